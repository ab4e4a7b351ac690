"""Small networks, plans and images that the tests of the search share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import _get_current_dispatch_mode

from dnas.data.image_sets import MemoryImages
from dnas.quantization.conversion import QuantizerChoice
from dnas.quantization.layers import TensorQuantizer
from dnas.search.supernet import Supernet
from search_spaces.channels.running import WatchedRun
from search_spaces.costs.table import CostTable, build_costs
from search_spaces.layers import LayerGraph
from search_spaces.options import SpaceOptions
from search_spaces.spaces import PrecisionSpace, build_space
from tests.known import known_graph

SHAPE = (1, 6, 6)


class Net(nn.Module):
    """A stem, one residual branch (in-place activations) and a classifier; about a hundred weights."""

    def __init__(self, channels: int = 3, classes: int = 3) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, channels, 3, padding=1, bias=False)
        self.stem_norm = nn.BatchNorm2d(channels)
        self.first = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.first_norm = nn.BatchNorm2d(channels)
        self.second = nn.Conv2d(channels, channels, 1)
        self.second_norm = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.head = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.stem_norm(self.stem(x)))
        y = self.relu(self.first_norm(self.first(x)))
        y = self.second_norm(self.second(y))
        return self.head(F.adaptive_avg_pool2d(self.relu(y + x), 1).flatten(1))


class Unwatchable(Net):
    """A network that does not run while its calls are followed."""

    def forward(self, x: Tensor) -> Tensor:
        if isinstance(_get_current_dispatch_mode(), WatchedRun):
            raise RuntimeError("it does not like to be watched")
        return super().forward(x)


class CalledTwice(nn.Module):
    """One convolution, called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 1, 3, padding=1)
        self.head = nn.Linear(36, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.conv(self.conv(x).relu()).flatten(1))


class SharedWeight(nn.Module):
    """Two layers that own one parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(36, 36), nn.Linear(36, 36)
        self.second.weight = self.first.weight
        self.head = nn.Linear(36, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.second(self.first(x.flatten(1)).relu()))


class OwnForward(nn.Conv2d):
    """A convolution whose forward does more than convolve."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * F.conv2d(F.pad(x, (1, 1, 1, 1)), self.weight, self.bias)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def trained(model: nn.Module, seed: int = 0) -> nn.Module:
    """Draw all parameters and BatchNorm statistics from the seed, none of them as in a fresh network."""
    generator = seeded(seed)
    with torch.no_grad():
        for module in model.modules():
            if (
                isinstance(module, nn.BatchNorm2d)
                and module.running_mean is not None
                and module.running_var is not None
            ):
                module.running_mean.copy_(0.3 * torch.randn(module.num_features, generator=generator))
                module.running_var.copy_(0.5 + torch.rand(module.num_features, generator=generator))
        for parameter in model.parameters():
            drawn = torch.randn(parameter.shape, generator=generator)
            many = parameter.dim() > 1
            parameter.copy_(drawn / parameter[0].numel() ** 0.5 if many else (parameter != 0) + 0.1 * drawn)
    return model


def plan(
    model: nn.Module, shape: Sequence[int] = SHAPE, **options: Any
) -> tuple[LayerGraph, PrecisionSpace, CostTable]:
    graph = known_graph(model, tuple(shape))
    space = build_space(graph, SpaceOptions(**options))
    return graph, space, CostTable(graph, space, build_costs())


def build_supernet(
    model: nn.Module, *, engine: Any = "composite", choice: QuantizerChoice | None = None, **options: Any
) -> Supernet:
    graph, space, table = plan(model, **options)
    return Supernet(model, graph, space, table, choice, engine)


def images(count: int = 48, classes: int = 3, seed: int = 0) -> MemoryImages:
    """Noise with one bright row per class, which a tiny network can learn."""
    labels = torch.arange(count) % classes
    pixels = 0.3 * torch.rand(count, *SHAPE, generator=seeded(seed))
    pixels[torch.arange(count), 0, 2 * labels] += 0.7
    return MemoryImages(pixels, labels, (0.4,), (0.3,))


def inputs(count: int = 8, seed: int = 1) -> Tensor:
    return torch.randn(count, *SHAPE, generator=seeded(seed))


def hand_over(source: TensorQuantizer, target: TensorQuantizer) -> None:
    """Give a quantizer of one width the range that a quantizer of several has for it."""
    target.set_sign(source.signed)
    with torch.no_grad():
        target.clip.copy_(source.clip)
        for k, width in enumerate(target.widths):
            target.gain[k] = source.gain[source.widths.index(width)]
