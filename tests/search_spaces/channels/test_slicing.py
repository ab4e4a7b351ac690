"""Removing filters for real: the smaller network computes what the masked one does, and is the one foretold."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torchvision.models import (
    densenet,
    mobilenetv2,
    mobilenetv3,
    regnet,
    resnet,
    shufflenetv2,
    vision_transformer,
)
from torchvision.models.swin_transformer import SwinTransformer

from search_spaces.channels.slicing import pruned_graph, remove_filters
from search_spaces.errors import InputError
from search_spaces.groups import kept_rows, kept_units
from search_spaces.layers import LayerGraph
from search_spaces.models.load import load_model
from search_spaces.models.zoo import mobilenet_v1, resnet20
from search_spaces.network.graph import read_graph
from tests.search_spaces.channel_toys import (
    CASES,
    SHAPE,
    Case,
    Toy,
    assert_removed_is_masked,
    built,
    conv,
    difference,
    layers_read,
    masked_where_made,
    masked_where_read,
    pooled,
    some_kept,
    trained,
)

_IMAGE = (3, 32, 32)
_INVERTED = [[1, 16, 1, 1], [6, 16, 2, 2], [6, 32, 2, 2]]  # expansion, width, blocks, stride
_INVERTED_V3 = [
    mobilenetv3.InvertedResidualConfig(16, 3, 16, 16, True, "RE", 2, 1, 1),
    mobilenetv3.InvertedResidualConfig(16, 5, 40, 24, True, "HS", 2, 1, 1),
    mobilenetv3.InvertedResidualConfig(24, 3, 32, 24, False, "HS", 1, 1, 1),
]
_REGNET = ([1, 2], [16, 32], [8, 8], [1, 1], [2, 2])  # depths, widths, widths of a group, bottlenecks, strides
_TRANSFORMER = {"num_layers": 1, "num_heads": 2, "hidden_dim": 8, "mlp_dim": 16, "num_classes": 4}
NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "resnet20": (resnet20, _IMAGE),
    "mobilenet_v1": (lambda: mobilenet_v1(width=0.25, num_classes=5), _IMAGE),
    "resnet": (lambda: resnet.ResNet(resnet.BasicBlock, [1, 1, 1, 1], 5), _IMAGE),
    "resnext": (lambda: resnet.ResNet(resnet.Bottleneck, [1, 1, 1, 1], 5, groups=4, width_per_group=8), _IMAGE),
    "mobilenet_v2": (lambda: mobilenetv2.MobileNetV2(5, 0.5, _INVERTED, 8), _IMAGE),
    "mobilenet_v3": (lambda: mobilenetv3.MobileNetV3(_INVERTED_V3, 32, 5), _IMAGE),
    "shufflenet": (lambda: shufflenetv2.ShuffleNetV2([2, 2, 2], [8, 16, 32, 64, 32], 5), _IMAGE),
    "densenet": (lambda: densenet.DenseNet(4, (2, 2, 2, 2), 8, num_classes=5), _IMAGE),
    "squeezenet": (torchvision.models.squeezenet1_1, _IMAGE),
    "regnet": (lambda: regnet.RegNet(regnet.BlockParams(*_REGNET, se_ratio=0.25), 5, 16), _IMAGE),
    "vit": (lambda: vision_transformer.VisionTransformer(16, 8, **_TRANSFORMER), (3, 16, 16)),
    "swin": (lambda: SwinTransformer([4, 4], 8, [1, 1], [2, 2], [2, 2], num_classes=4), _IMAGE),
}
_FEW = ("resnet20", "shufflenet", "densenet", "swin")
_VANISHING = ("resnet20", "mobilenet_v1", "resnet", "resnext", "mobilenet_v2", "mobilenet_v3", "shufflenet", "regnet")


@functools.cache
def network_and_graph(name: str) -> tuple[nn.Module, LayerGraph]:
    build, shape = NETWORKS[name]
    return built(Case(build, (), shape))


def assert_pruned_is_masked_and_foretold(network: nn.Module, graph: LayerGraph, kept: dict[str, Any]) -> None:
    smaller = assert_removed_is_masked(network, graph, kept)
    foretold, found = pruned_graph(graph, kept), layers_read(smaller, graph.input_shape)
    assert foretold.layers == found.layers
    assert foretold.other_bytes == found.other_bytes
    assert kept_units(graph.channels, kept_rows(graph.channels, kept)) == {
        name: units for name, units in kept.items() if len(units) < graph.channels[name].units
    }


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in _FEW else pytest.mark.whole) for name in NETWORKS]
)
def test_the_pruned_network_is_the_masked_one(name: str) -> None:
    network, graph = network_and_graph(name)
    kept = some_kept(graph.channels)
    assert_pruned_is_masked_and_foretold(network, graph, kept)
    assert difference(network, masked_where_read(network, graph, kept), graph.input_shape) > 1e-6  # the mask is felt


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in _FEW else pytest.mark.whole) for name in _VANISHING]
)
def test_filters_that_are_zero_with_their_batchnorm_can_go(name: str) -> None:
    network, graph = network_and_graph(name)
    kept = some_kept(graph.channels, seed=2)
    smaller = remove_filters(network, graph.channels, kept)
    assert difference(masked_where_made(network, graph, kept), smaller, graph.input_shape) < 1e-12


@settings(max_examples=20, deadline=None)
@given(st.data())
def test_whatever_is_kept_the_pruned_network_is_the_masked_one(data: st.DataObject) -> None:
    network, graph = built(CASES[data.draw(st.sampled_from(sorted(CASES)))])
    kept = {
        one.name: tuple(sorted(data.draw(st.sets(st.integers(0, one.units - 1), min_size=1))))
        for one in graph.channels.groups
    }
    assert_pruned_is_masked_and_foretold(network, graph, kept)


@pytest.mark.parametrize("name", CASES)
def test_nothing_changes_where_all_is_kept(name: str) -> None:
    network, graph = built(CASES[name])
    for kept in ({}, some_kept(graph.channels, share=1)):
        same = remove_filters(network, graph.channels, kept)
        assert difference(network, same, graph.input_shape) == 0
        foretold = pruned_graph(graph, kept)
        assert (foretold.layers, foretold.other_bytes) == (graph.layers, graph.other_bytes)


@pytest.mark.parametrize("name", ["residual", "shared_parameter", "shortcut", "preactivation"])
def test_the_callers_network_is_untouched(name: str) -> None:
    network, graph = built(CASES[name])
    network = copy.deepcopy(network)
    before, modules = copy.deepcopy(network.state_dict()), repr(network)
    parameters = dict(network.named_parameters())
    smaller = remove_filters(network, graph.channels, some_kept(graph.channels, share=0.3))
    assert repr(network) == modules != repr(smaller)
    assert all(parameters[key] is value for key, value in network.named_parameters())
    assert network.state_dict().keys() == before.keys() == smaller.state_dict().keys()
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    with torch.no_grad():
        for parameter in smaller.parameters():
            parameter.zero_()
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())  # no memory in common


def test_the_mode_and_what_needs_no_gradient_are_kept() -> None:
    network, graph = built(CASES["residual"])
    network = copy.deepcopy(network).train()
    network.get_submodule("norm").eval()
    network.get_submodule("a").weight.requires_grad_(False)
    smaller = remove_filters(network, graph.channels, {"a": (1, 3)})
    assert [module.training for module in smaller.modules()] == [module.training for module in network.modules()]
    needed = {name: parameter.requires_grad for name, parameter in smaller.named_parameters()}
    assert needed == {name: parameter.requires_grad for name, parameter in network.named_parameters()}
    assert [name for name, needs in needed.items() if not needs] == ["a.weight"]


def test_a_pruned_network_trains() -> None:
    network, graph = built(CASES["residual"])
    smaller = remove_filters(network, graph.channels, {"a": (1, 3)}).train()
    smaller(torch.randn(4, *graph.input_shape, dtype=torch.float64)).sum().backward()
    assert all(parameter.grad is not None and parameter.is_leaf for parameter in smaller.parameters())
    assert smaller.get_submodule("norm").running_mean.shape == (2,)


def test_a_shared_parameter_is_cut_once_and_stays_shared() -> None:
    network, graph = built(CASES["shared_parameter"])
    smaller = remove_filters(network, graph.channels, {"a": (0, 1, 3)})
    first, second = smaller.get_submodule("first"), smaller.get_submodule("second")
    assert first.weight is second.weight
    assert first.bias is not second.bias
    assert first.weight.shape == (3, 3, 3, 3)


def test_a_bias_that_is_read_beside_its_layer_is_counted_once() -> None:
    def net() -> nn.Module:
        code = lambda n, x: n.head(pooled(n.a(x).relu() * n.a.bias.view(1, -1, 1, 1)))  # noqa: E731
        return Toy(code, a=conv(2, 8), head=nn.Linear(8, 3))

    network, graph = built(Case(net, (), SHAPE))
    assert graph.channels.names == ("a",)
    assert_pruned_is_masked_and_foretold(network, graph, {"a": (0, 3, 4)})


def test_the_right_filters_stay() -> None:
    network, graph = built(CASES["concat"])
    smaller = remove_filters(network, graph.channels, {"a": (0, 2), "b": (1,), "c": (1,)})
    a, b, c = (network.get_submodule(name) for name in "abc")
    cut = {name: smaller.get_submodule(name) for name in "abc"}
    assert torch.equal(cut["a"].weight, a.weight[[0, 2]])
    assert torch.equal(cut["b"].bias, b.bias[[1]])
    assert torch.equal(cut["c"].weight, c.weight[[1]][:, [0, 2, 4]])
    assert [(layer.in_channels, layer.out_channels) for layer in cut.values()] == [(2, 2), (2, 1), (3, 1)]


def test_the_number_of_convolution_groups_changes_only_for_depthwise() -> None:
    network, graph = built(CASES["depthwise"])
    assert remove_filters(network, graph.channels, {"a": (0, 2)}).get_submodule("d").groups == 2
    network, graph = built(CASES["grouped"])
    assert remove_filters(network, graph.channels, {"a": (1,), "g": (0, 2)}).get_submodule("g").groups == 2


def test_the_padding_of_a_shortcut_shrinks_on_the_side_that_lost() -> None:
    network, graph = built(CASES["shortcut"])
    shortcut = remove_filters(network, graph.channels, {"b": (1,)}).get_submodule("shortcut")
    assert (shortcut.before, shortcut.after) == (0, 1)


def test_a_pruned_network_says_that_it_is_pruned() -> None:
    _, graph = built(CASES["concat"])
    smaller = pruned_graph(graph, {"a": (0,)})
    assert smaller.channels.groups == ()
    assert set(smaller.channels.frozen.values()) == {"its network is pruned already"}


@pytest.mark.parametrize("kept", [{"nobody": (0,)}, {"a": ()}, {"a": (3,)}])
def test_what_does_not_exist_is_refused(kept: dict[str, tuple[int, ...]]) -> None:
    network, graph = built(CASES["concat"])
    with pytest.raises(InputError, match="channel group"):
        remove_filters(network, graph.channels, kept)
    with pytest.raises(InputError, match="channel group"):
        pruned_graph(graph, kept)


_TOO_LARGE = pytest.mark.skip(reason="its copies in float64 take more than 15 GB")
_CLASSIFIERS = [
    pytest.param(name, marks=_TOO_LARGE if name in ("vit_h_14", "regnet_y_128gf") else ())
    for name in torchvision.models.list_models(module=torchvision.models)
]


@pytest.mark.slow
@pytest.mark.parametrize("name", _CLASSIFIERS)
def test_every_classifier_of_torchvision(name: str) -> None:
    torch.manual_seed(0)
    fixed = name.startswith(("vit", "maxvit"))
    shape = (3, 224, 224) if fixed else (3, 96, 96) if name == "inception_v3" else (3, 64, 64)
    network = trained(load_model(f"torchvision:{name}").module)
    graph = read_graph(network, shape)
    channels = graph.channels
    assert channels.unknown == ""
    held = {layer for one in channels.groups for layer in one.layers}
    assert held.isdisjoint(channels.frozen)
    assert held | set(channels.frozen) == set(graph.by_name)
    assert all(channels.frozen.values())
    assert_pruned_is_masked_and_foretold(network, graph, some_kept(channels))
