"""The search works on networks as they are: torchvision's classifiers, some of timm's, and the usual traps by hand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision import models
from torchvision.models.mobilenetv3 import InvertedResidualConfig
from torchvision.models.regnet import BlockParams

from benchmarks.model_check import all_sources, check_model, check_module, reachable_budget
from dnas.config.job import CostsSection
from dnas.jobs.planning import cost_table
from search_spaces.layers import LayerGraph
from search_spaces.models.load import load_model
from search_spaces.network.graph import read_graph
from search_spaces.options import SpaceOptions
from search_spaces.spaces import build_space


@pytest.mark.whole
@pytest.mark.parametrize(
    ("source", "side", "arguments"),
    [  # shallow, where the network can be had so: whole ones are slow
        # channels-last linear layers, layer scale
        ("timm:convnext_atto", 32, {"depths": (1, 1, 1, 1)}),
        # attention with layers of its own
        ("timm:vit_tiny_patch16_224", 64, {"depth": 2, "img_size": 64}),
        # split attention, grouped
        ("timm:resnest14d", 32, {"base_width": 16}),
        # no BatchNorm, no linear layer, a convolution as the last layer
        ("torchvision:squeezenet1_1", 64, {}),
    ],
)
def test_representative(source: str, side: int, arguments: dict[str, Any]) -> None:
    if source.startswith("timm:"):
        pytest.importorskip("timm")
    torch.manual_seed(0)
    assert check_module(load_model(source, arguments=arguments).module, side, source).searched > 0


class ThinResNet(models.ResNet):
    """Bottlenecks of a quarter of the usual channels."""

    def __init__(self) -> None:
        super().__init__(models.resnet.Bottleneck, [1, 1, 1, 1])
        self.fc = nn.Linear(self.inplanes, 10)

    def _make_layer(self, block: Any, planes: int, *others: Any, **named: Any) -> nn.Sequential:
        return super()._make_layer(block, planes // 4, *others, **named)


def _mobilenet_v3() -> nn.Module:
    """Squeeze-and-excitation with inplace activations on 1x1 maps; both activations, with and without expansion."""
    rows = [(16, 3, 16, 16, True, "RE", 2, 1), (16, 3, 24, 24, False, "RE", 2, 1), (24, 5, 48, 24, True, "HS", 1, 1)]
    blocks = [InvertedResidualConfig(*row, width_mult=1.0) for row in rows]
    return models.MobileNetV3(blocks, last_channel=32, num_classes=10)


def _mobilevit() -> nn.Module:
    """Convolutions and attention in one network, folded windows: two of the five stages of mobilevit_xxs."""
    byobnet = pytest.importorskip("timm.models.byobnet")
    published = pytest.importorskip("timm.models.mobilevit").model_cfgs["mobilevit_xxs"]
    stages = (published.blocks[0], published.blocks[2])
    return byobnet.ByobNet(replace(published, blocks=stages, num_features=32), num_classes=10)


def _regnet() -> nn.Module:
    """Grouped convolutions, squeeze-and-excitation."""
    parameters = BlockParams.from_init_params(depth=4, w_0=16, w_a=16.0, w_m=2.0, group_width=8, se_ratio=0.25)
    return models.RegNet(parameters, num_classes=10)


@pytest.mark.whole
@pytest.mark.parametrize(
    "build",
    [
        lambda: models.DenseNet(8, (2, 2), 16, num_classes=10),  # concatenation, inplace ReLU behind BatchNorm
        lambda: ThinResNet(),
        # attention that reads the weights of qkv and proj itself, branches dropped at random
        lambda: models.SwinTransformer([4, 4], 24, [1, 1], [2, 4], [4, 4], num_classes=10),
        lambda: models.VisionTransformer(64, 16, 2, 2, 32, 64, num_classes=10),  # projections in one bare parameter
        lambda: models.MobileNetV2(10, 0.25, [[1, 16, 1, 1], [6, 24, 2, 2], [6, 32, 2, 2]]),
        lambda: models.ShuffleNetV2([2, 2, 2], [8, 16, 32, 64, 64], 10),  # chunks: views without dense memory
        _mobilenet_v3,
        _regnet,
        _mobilevit,
    ],
    ids=["densenet", "resnet", "swin", "vit", "mobilenet_v2", "shufflenet_v2", "mobilenet_v3", "regnet", "mobilevit"],
)
def test_family(build: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    coverage = check_module(build(), side=64)
    assert coverage.status == "ok"
    assert coverage.searched > 0


@pytest.mark.slow
@pytest.mark.parametrize("source", all_sources())
def test_every_network(source: str) -> None:
    _check(source)


def _check(source: str) -> None:
    if source.startswith("timm:"):
        pytest.importorskip("timm")
    assert check_model(source).searched > 0


def test_the_list_is_whole() -> None:
    sources = all_sources()
    assert sum(source.startswith("torchvision:") for source in sources) == 80
    assert sum(source.startswith("timm:") for source in sources) == 11


class Traps(nn.Module):
    """Everything in one small net that has broken a quantizer before."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.twice = nn.Conv2d(8, 8, 3, padding=1)
        self.shared = nn.Conv2d(8, 8, 3, padding=1)
        self.shared.weight = self.twice.weight
        self.same = SameConv(8, 8, 3)
        self.standardized = StandardizedConv(8, 8, 1)
        self.up = nn.ConvTranspose2d(8, 8, 2, stride=2, groups=2)
        self.relu = nn.ReLU(inplace=True)
        self.norm = nn.BatchNorm2d(8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.read_by_parent = nn.Linear(8, 8)
        self.unused = nn.Linear(8, 8)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.stem(x))
        both = self.twice(x)
        left, right = both[:, :4], both[:, 4:]  # views: an inplace activation writes into what they are of
        x = torch.cat([self.relu(left), right], dim=1)
        x = self.shared(self.twice(x)[:, :, ::2]) + self.same(x)[:, :, ::2]
        x = self.up(self.standardized(x))
        x += 1.0
        tokens = F.linear(x.flatten(2).transpose(1, 2), self.read_by_parent.weight)
        tokens = tokens + self.attention(tokens, tokens, tokens, need_weights=False)[0]
        pooled = self.norm(tokens.mean(1)[:, :, None, None])  # BatchNorm on a 1x1 map
        return self.head(pooled.flatten(1))


class SameConv(nn.Conv2d):
    """A subclass with a forward of its own, as in timm."""

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(F.pad(x, (1, 1, 1, 1)), self.weight, self.bias)


class StandardizedConv(nn.Conv2d):
    """A subclass that transforms its weight before use: what it multiplies with is quantized."""

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return F.conv2d(x, weight, self.bias)


def test_traps_in_one_net() -> None:
    torch.manual_seed(0)
    coverage = check_module(Traps(), side=16)
    assert (
        coverage.searched == 7
    )  # twice, shared, same, standardized, up, in_proj, out_proj; stem and head are the ends


def test_traps_are_told_by_name() -> None:
    graph = read_graph(Traps(), (3, 16, 16))
    assert graph["twice"].calls == 2
    assert graph["shared"].shares_weight_with == "twice"
    assert graph["twice"].macs == 2 * (8 * 8 * 8) * (8 * 3 * 3)
    assert graph["shared"].macs == (8 * 4 * 8) * (8 * 3 * 3)
    assert set(graph.unsupported) == {"read_by_parent", "unused"}


def test_budget_falls_back_to_the_least_size() -> None:
    small = models.SwinTransformer([4, 4], 24, [1, 1], [2, 4], [4, 4], num_classes=10)
    graph = read_graph(small, (3, 64, 64))
    assert reachable_budget(_table(graph)).label == "least size"  # its attention stays in fp32: more than 15 %


def _table(graph: LayerGraph):  # type: ignore[no-untyped-def]
    return cost_table(graph, build_space(graph, SpaceOptions()), CostsSection(), per_channel=False)
