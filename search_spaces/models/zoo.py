"""The small model zoo: CIFAR ResNets [1], a tiny ResNet for 8x8 images, and MobileNet v1 [2].

``norm_last`` is the order of [3]: convolution, ReLU, BatchNorm, and no ReLU behind an addition. Every convolution but
the first then reads values of both signs, as its quantizer of activations `tanh` needs. No parameter changes its name.

[1] He, Zhang, Ren, Sun: Deep Residual Learning for Image Recognition, 2015 (§4.2, option-A shortcuts).
[2] Howard et al.: MobileNets: Efficient Convolutional Neural Networks for Mobile Vision Applications, 2017 (table 1).
[3] Guerra, Zhuang, Reid, Drummond: Switchable Precision Neural Networks, 2020.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from search_spaces.errors import InputError


class SubsampleShortcut(nn.Module):
    """Option A of [1]: every second pixel, and zero channels ``before`` and ``after``; no parameters.

    Maps (N, C, H, W) to (N, before + C + after, ceil(H / stride), ceil(W / stride)).
    """

    def __init__(self, stride: int, before: int, after: int) -> None:
        super().__init__()
        self.stride, self.before, self.after = stride, before, after

    def forward(self, x: Tensor) -> Tensor:
        """Subsample and pad (N, C, H, W)."""
        x = x[:, :, :: self.stride, :: self.stride]
        return F.pad(x, (0, 0, 0, 0, self.before, self.after))

    def extra_repr(self) -> str:
        """Show the numbers that define the shortcut."""
        return f"stride={self.stride}, before={self.before}, after={self.after}"


class BasicBlock(nn.Module):
    """Two 3x3 convolutions whose output, ending in ``bn2``, is added to the shortcut."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, norm_last: bool = False) -> None:
        super().__init__()
        self.norm_last = norm_last
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            padding = (out_channels - in_channels) // 2
            self.shortcut = SubsampleShortcut(stride, padding, padding)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, out_channels, H / stride, W / stride)."""
        if self.norm_last:
            out = self.bn1(F.relu(self.conv1(x)))
            out = self.bn2(F.relu(self.conv2(out)))
            return out + self.shortcut(x)
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out = out + self.shortcut(x)
        return F.relu(out)


class ResNet(nn.Module):
    """A ResNet for small images: stem, a stage of ``blocks`` for each of ``widths``, global average, linear.

    Every stage but the first halves the image. Maps (N, in_channels, H, W) to logits (N, num_classes). Raises
    InputError on counts below one.
    """

    def __init__(
        self,
        blocks: Sequence[int],
        widths: Sequence[int],
        *,
        num_classes: int = 10,
        in_channels: int = 3,
        norm_last: bool = False,
    ) -> None:
        super().__init__()
        self.norm_last = norm_last
        _refuse_empty(num_classes=num_classes, in_channels=in_channels)
        self.conv1 = nn.Conv2d(in_channels, widths[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.stages = [f"layer{number}" for number in range(1, len(widths) + 1)]
        before = widths[0]
        for name, count, width in zip(self.stages, blocks, widths, strict=True):
            self.add_module(name, _stage(count, before, width, 1 if name == "layer1" else 2, norm_last=norm_last))
            before = width
        self.linear = nn.Linear(widths[-1], num_classes)
        _initialize(self)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, in_channels, H, W) to logits (N, num_classes)."""
        out = _activated(self.conv1(x), self.bn1, self.norm_last)
        for name in self.stages:
            out = self.get_submodule(name)(out)
        out = F.adaptive_avg_pool2d(out, 1).flatten(1)
        return self.linear(out)


class DepthwiseSeparable(nn.Module):
    """A 3x3 depthwise and a 1x1 pointwise convolution, each followed by BatchNorm and ReLU (fig. 3 of [2]).

    Without ``depthwise_norm`` there is no BatchNorm between the two ([3]).
    """

    def __init__(
        self, in_channels: int, out_channels: int, stride: int, norm_last: bool = False, depthwise_norm: bool = True
    ) -> None:
        super().__init__()
        self.norm_last = norm_last
        self.depthwise = nn.Conv2d(in_channels, in_channels, 3, stride, padding=1, groups=in_channels, bias=False)
        self.bn1 = nn.BatchNorm2d(in_channels) if depthwise_norm else nn.Identity()
        self.pointwise = nn.Conv2d(in_channels, out_channels, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, in_channels, H, W) to (N, out_channels, H / stride, W / stride)."""
        out = _activated(self.depthwise(x), self.bn1, self.norm_last)
        return _activated(self.pointwise(out), self.bn2, self.norm_last)


# (output channels, stride) of the thirteen depthwise separable blocks in table 1 of [2].
_MOBILENET_BLOCKS = ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *((512, 1),) * 5, (1024, 2), (1024, 1))


class MobileNetV1(nn.Module):
    """MobileNet v1; ``width`` multiplies every channel count, with a floor of eight channels.

    Maps (N, in_channels, H, W) to logits (N, num_classes). Raises InputError on counts or a width of zero or less.
    """

    def __init__(
        self,
        *,
        num_classes: int = 1000,
        in_channels: int = 3,
        width: float = 1.0,
        norm_last: bool = False,
        depthwise_norm: bool = True,
    ) -> None:
        super().__init__()
        self.norm_last = norm_last
        _refuse_empty(num_classes=num_classes, in_channels=in_channels)
        if not 0.0 < width <= 16.0:
            raise InputError(f"mobilenet_v1: width must lie in (0, 16], got {width}")
        channels = max(8, int(32 * width))
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride=2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        blocks = []
        for base_channels, stride in _MOBILENET_BLOCKS:
            out_channels = max(8, int(base_channels * width))
            blocks.append(DepthwiseSeparable(channels, out_channels, stride, norm_last, depthwise_norm))
            channels = out_channels
        self.blocks = nn.Sequential(*blocks)
        self.linear = nn.Linear(channels, num_classes)
        _initialize(self)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, in_channels, H, W) to logits (N, num_classes)."""
        out = _activated(self.conv1(x), self.bn1, self.norm_last)
        out = self.blocks(out)
        out = F.adaptive_avg_pool2d(out, 1).flatten(1)
        return self.linear(out)


def resnet20(num_classes: int = 10, in_channels: int = 3, norm_last: bool = False) -> ResNet:
    """Build the CIFAR ResNet-20 (0.27 M parameters)."""
    return ResNet((3, 3, 3), (16, 32, 64), num_classes=num_classes, in_channels=in_channels, norm_last=norm_last)


def resnet32(num_classes: int = 10, in_channels: int = 3, norm_last: bool = False) -> ResNet:
    """Build the CIFAR ResNet-32 (0.46 M parameters)."""
    return ResNet((5, 5, 5), (16, 32, 64), num_classes=num_classes, in_channels=in_channels, norm_last=norm_last)


def resnet44(num_classes: int = 10, in_channels: int = 3, norm_last: bool = False) -> ResNet:
    """Build the CIFAR ResNet-44 (0.66 M parameters)."""
    return ResNet((7, 7, 7), (16, 32, 64), num_classes=num_classes, in_channels=in_channels, norm_last=norm_last)


def resnet56(num_classes: int = 10, in_channels: int = 3, norm_last: bool = False) -> ResNet:
    """Build the CIFAR ResNet-56 (0.85 M parameters)."""
    return ResNet((9, 9, 9), (16, 32, 64), num_classes=num_classes, in_channels=in_channels, norm_last=norm_last)


def resnet110(num_classes: int = 10, in_channels: int = 3, norm_last: bool = False) -> ResNet:
    """Build the CIFAR ResNet-110 (1.7 M parameters)."""
    return ResNet((18, 18, 18), (16, 32, 64), num_classes=num_classes, in_channels=in_channels, norm_last=norm_last)


def tiny_resnet(
    num_classes: int = 10, in_channels: int = 1, width: int = 8, norm_last: bool = False, stages: int = 3
) -> ResNet:
    """Build a ResNet of a block per stage for 8x8 images such as scikit-learn's digits (19 k parameters at width 8)."""
    if stages not in range(1, 5):
        raise InputError(
            f"tiny_resnet: stages must lie in [1, 4], as each but the first halves the image; got {stages}"
        )
    widths = [width * 2**stage for stage in range(stages)]
    return ResNet([1] * stages, widths, num_classes=num_classes, in_channels=in_channels, norm_last=norm_last)


def mobilenet_v1(
    num_classes: int = 1000,
    in_channels: int = 3,
    width: float = 1.0,
    norm_last: bool = False,
    depthwise_norm: bool = True,
) -> MobileNetV1:
    """Build MobileNet v1 (4.2 M parameters at width 1)."""
    return MobileNetV1(
        num_classes=num_classes,
        in_channels=in_channels,
        width=width,
        norm_last=norm_last,
        depthwise_norm=depthwise_norm,
    )


def _stage(blocks: int, in_channels: int, out_channels: int, stride: int, *, norm_last: bool) -> nn.Sequential:
    first = BasicBlock(in_channels, out_channels, stride, norm_last)
    return nn.Sequential(first, *(BasicBlock(out_channels, out_channels, 1, norm_last) for _ in range(blocks - 1)))


def _activated(x: Tensor, norm: nn.Module, norm_last: bool) -> Tensor:
    """BatchNorm and ReLU in the network's order."""
    return norm(F.relu(x)) if norm_last else F.relu(norm(x))


def _initialize(model: nn.Module) -> None:
    """Draw the weights as [1] does: normal, scaled by the fan-in."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight)


def _refuse_empty(**counts: int) -> None:
    for name, count in counts.items():
        if count < 1:
            raise InputError(f"{name} must be at least 1, got {count}")
