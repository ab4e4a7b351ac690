"""Every parameter of a network is accounted for once: held by a layer, outside all layers and why, or unused."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

from search_spaces.network.graph import read_graph
from tests.search_spaces.parameter_toys import ZOO, Toy, head


@pytest.mark.parametrize("name", ZOO)
def test_every_parameter_is_accounted_for(name: str) -> None:
    network, example, unsupported, other_bytes = ZOO[name]
    modes = [module.training for module in network.modules()]
    graph = read_graph(network, example)
    found = {spec.name: spec.elements for spec in graph.parameters}
    assert sorted(found.values()) == sorted(p.numel() for p in network.parameters())
    assert len(found) == len(graph.parameters)
    known = {*graph.by_name, *graph.unsupported}
    for spec in graph.parameters:
        assert (spec.owner in graph.by_name) == (not spec.reason)
        assert spec.owner in known or spec.owner == spec.name
    assert set(graph.unsupported) == unsupported
    assert graph.other_bytes == other_bytes
    assert [module.training for module in network.modules()] == modes


@pytest.mark.whole
@pytest.mark.parametrize(("name", "aux"), [("googlenet", "aux"), ("inception_v3", "AuxLogits")])
def test_heads_that_only_training_runs_are_not_deployed(name: str, aux: str) -> None:
    with torch.device("meta"):
        network = torchvision.models.get_model(name, init_weights=False)
        plain = torchvision.models.get_model(name, init_weights=False, aux_logits=False)
    graph = read_graph(network, (3, 224 if name == "googlenet" else 299, 224 if name == "googlenet" else 299))
    unused = {spec.name for spec in graph.parameters if not spec.deployed}
    assert unused == {n for n, _ in network.named_parameters() if n.startswith(aux)}
    assert graph.other_bytes == 0
    assert sum(p.numel() for p in plain.parameters()) == sum(s.elements for s in graph.parameters if s.deployed)


def test_what_an_example_does_not_reach_is_told_as_that() -> None:
    network, example, _, _ = ZOO["mixture"]
    graph = read_graph(network, example)
    assert "the example does not reach it" in graph.unsupported["experts.1"]
    assert not graph.unused
    graph = read_graph(network, torch.eye(4)[2:3])
    assert {name for name in graph.by_name if name.startswith("experts")} == {"experts.2"}


def test_a_layer_that_nothing_of_the_example_comes_to_is_not_searched() -> None:
    """It is called, on no rows: it would cost no operations."""

    def routed(toy: Any, x: Tensor) -> Tensor:
        return toy.head(torch.cat([toy.first(x[x[:, 0] > 0]), toy.second(x[x[:, 0] <= 0])]))

    network = Toy(routed, first=nn.Linear(4, 4), second=nn.Linear(4, 4), head=head())
    graph = read_graph(network, torch.ones(1, 4))
    assert set(graph.by_name) == {"first", "head"}
    assert "the example does not reach it" in graph.unsupported["second"]
    assert sum(spec.elements for spec in graph.parameters) == sum(p.numel() for p in network.parameters())


def test_reasons_say_how_a_parameter_is_used() -> None:
    told = {s.name: s.reason for name in ("matmul", "vectors", "lstm") for s in read_graph(*ZOO[name][:2]).parameters}
    assert told["w"] == "Toy multiplies with it itself; only layers are quantized"
    assert told["b"] == told["p.0"] == "Toy reads it itself; only layers are quantized"
    assert told["norm.weight"] == "LayerNorm is no convolution and no linear layer"
    assert told["a.weight_hr_l0"] == "LSTM is no convolution and no linear layer"
    unused = read_graph(*ZOO["auxiliary"][:2])
    assert unused.unsupported["auxiliary.0"] == "the forward pass never calls it in eval mode"
    assert unused.unused == {
        *("auxiliary.0.weight", "auxiliary.0.bias", "auxiliary.1", "auxiliary.2", "auxiliary.2.weight"),
        *("auxiliary.2.bias", "auxiliary.3.weight", "auxiliary.4.weight", "auxiliary.4.bias"),
    }


def test_a_norm_is_a_layers_own_only_where_nothing_else_reads_either() -> None:
    layers = {"a": nn.Linear(4, 4), "norm": nn.BatchNorm1d(4), "head": head()}
    runs: dict[str, Callable[[Any, Any], Any]] = {
        "own": lambda t, x: t.head(t.norm(t.a(x)).relu()),
        "own, two calls": lambda t, x: t.head(t.norm(t.a(t.norm(t.a(x)).relu()))),
        "output read": lambda t, x: (lambda y: t.head(t.norm(y).relu() + y))(t.a(x)),
        "output given out": lambda t, x: (lambda y: (t.head(t.norm(y)), y))(t.a(x)),
        "a view read": lambda t, x: (lambda y: t.head(t.norm(y) + y.view(-1, 4)[:, :1]))(t.a(x)),
        "other input": lambda t, x: t.head(t.norm(t.a(x)) + t.norm(x)),
        "one call without": lambda t, x: t.head(t.a(t.norm(t.a(x)).relu())),
        "changed in place": lambda t, x: t.head(t.norm(t.a(x).relu_())),
    }
    found = {name: read_graph(Toy(run, **layers), (4,))["a"].norm for name, run in runs.items()}
    assert {name for name, norm in found.items() if norm} == {"own", "own, two calls"}


class Tied(nn.Module):
    """An autoencoder that decodes with the weight of its encoder, got in one of several ways."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.encode, self.head = nn.Linear(4, 3), nn.Linear(4, 2)
        weight = self.encode.weight
        if way == "buffer":
            self.register_buffer("kept", weight.data)
        elif way == "attribute":
            self.kept = weight.detach()
        elif way == "list":
            self.listed = [weight]
        self.decode = {
            "buffer": lambda own, z: z @ own.kept,
            "attribute": lambda own, z: z @ own.kept.view(3, 4),
            "list": lambda own, z: z @ own.listed[0],
            "closure": lambda own, z: F.linear(z, weight.t()),
            "view": lambda own, z: z @ own.encode.weight.flatten().view(3, 4),
            "copy": lambda own, z: z @ own.encode.weight.clone(),
            "norm": lambda own, z: F.pad(z, (0, 1)) / own.encode.weight.norm(),
            "module": lambda own, z: F.pad(copy.deepcopy(own.encode)(F.pad(z, (0, 1))), (0, 1)),
        }[way]

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.decode(self, self.encode(x)))


@pytest.mark.parametrize("way", ["buffer", "attribute", "list", "closure", "view", "copy", "norm", "module"])
def test_a_weight_that_is_read_outside_its_layer_is_not_quantized(way: str) -> None:
    graph = read_graph(Tied(way), (4,))
    assert list(graph.by_name) == ["head"]
    assert graph.unsupported == {"encode": "its parent calls it and reads the weight itself as well"}


@pytest.mark.whole
@pytest.mark.parametrize(("name", "side"), [("mobilenet_v3_small", 64), ("swin_t", 224), ("vit_b_32", 224)])
def test_the_parameters_of_published_networks_add_up(name: str, side: int) -> None:
    with torch.device("meta"):
        network = torchvision.models.get_model(name)
    graph = read_graph(network, (3, side, side))
    assert sum(spec.elements for spec in graph.parameters) == sum(p.numel() for p in network.parameters())
    assert not graph.unused


@pytest.mark.whole
def test_learned_queries_of_timm_are_read() -> None:
    timm = pytest.importorskip("timm")
    with torch.device("meta"):
        network = timm.create_model("pit_ti_224")
    graph = read_graph(network, (3, 224, 224))
    assert len(graph.layers) == 54
    assert sum(spec.elements for spec in graph.parameters) == sum(p.numel() for p in network.parameters())
