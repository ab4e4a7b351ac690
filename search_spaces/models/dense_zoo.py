"""Small networks for images of 32 to 128 pixels that say more than one class: a detector and a segmenter."""

from __future__ import annotations

from collections import OrderedDict

from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.detection.anchor_utils import DefaultBoxGenerator
from torchvision.models.detection.ssd import SSD

from search_spaces.errors import InputError

_ANCHOR_SCALES = (0.2, 0.35, 0.6, 0.9)
"""Side of the boxes of each level, and of one above the last, relative to the image's."""


def _block(in_channels: int, out_channels: int, stride: int) -> nn.Sequential:
    """A 3x3 convolution with BatchNorm and ReLU."""
    return nn.Sequential(
        OrderedDict(
            conv=nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False),
            norm=nn.BatchNorm2d(out_channels),
            act=nn.ReLU(inplace=True),
        )
    )


class TinyBackbone(nn.Module):
    """Maps images (N, C, S, S) to three levels, at strides 4, 8 and 16, of ``out_channels``."""

    def __init__(self, in_channels: int, width: int) -> None:
        super().__init__()
        self.out_channels = [2 * width, 4 * width, 4 * width]
        self.stem = _block(in_channels, width, 2)
        self.level1 = nn.Sequential(_block(width, 2 * width, 2), _block(2 * width, 2 * width, 1))
        self.level2 = _block(2 * width, 4 * width, 2)
        self.level3 = _block(4 * width, 4 * width, 2)

    def forward(self, x: Tensor) -> OrderedDict[str, Tensor]:
        """The levels by their number."""
        found: OrderedDict[str, Tensor] = OrderedDict()
        x = self.stem(x)
        for number, level in enumerate((self.level1, self.level2, self.level3)):
            x = level(x)
            found[str(number)] = x
        return found


def tiny_ssd(num_classes: int = 4, in_channels: int = 3, width: int = 16, size: int = 64) -> SSD:
    """Build torchvision's SSD on a backbone of five convolutions, for images of ``size`` pixels in [0, 1].

    ``num_classes`` counts the background. 116 k parameters at width 16.
    """
    _refuse_empty(num_classes=num_classes, in_channels=in_channels, width=width)
    if size % 16 or size < 32:
        raise InputError(f"tiny_ssd: size must be a multiple of 16 from 32 on, got {size}")
    anchors = DefaultBoxGenerator([[2], [2], [2]], scales=list(_ANCHOR_SCALES), steps=[4, 8, 16])
    return SSD(
        TinyBackbone(in_channels, width),
        anchors,
        (size, size),
        num_classes,
        image_mean=[0.5] * in_channels,
        image_std=[0.25] * in_channels,
        detections_per_img=30,
        topk_candidates=60,
        score_thresh=0.02,
    )


class TinySegmenter(nn.Module):
    """Maps images (N, in_channels, H, W) to logits (N, num_classes, H, W): three levels, added on the way up."""

    def __init__(self, num_classes: int, in_channels: int, width: int) -> None:
        super().__init__()
        self.stem = _block(in_channels, width, 1)
        self.down1 = _block(width, 2 * width, 2)
        self.down2 = _block(2 * width, 4 * width, 2)
        self.middle = _block(4 * width, 4 * width, 1)
        self.side1 = nn.Conv2d(2 * width, 4 * width, 1)
        self.up1 = _block(4 * width, 2 * width, 1)
        self.side0 = nn.Conv2d(width, 2 * width, 1)
        self.up0 = _block(2 * width, width, 1)
        self.classifier = nn.Conv2d(width, num_classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        """The logits of each pixel."""
        full = self.stem(x)
        half = self.down1(full)
        quarter = self.middle(self.down2(half))
        half = self.up1(self.side1(half) + F.interpolate(quarter, half.shape[-2:]))
        full = self.up0(self.side0(full) + F.interpolate(half, full.shape[-2:]))
        logits: Tensor = self.classifier(full)
        return logits


def tiny_segmenter(num_classes: int = 4, in_channels: int = 3, width: int = 8) -> TinySegmenter:
    """Build a segmenter of nine convolutions (22 k parameters at width 8)."""
    _refuse_empty(num_classes=num_classes, in_channels=in_channels, width=width)
    return TinySegmenter(num_classes, in_channels, width)


def _refuse_empty(**counts: int) -> None:
    for name, count in counts.items():
        if not isinstance(count, int) or count < 1:
            raise InputError(f"{name} must be a whole number of 1 or more, got {count!r}")
