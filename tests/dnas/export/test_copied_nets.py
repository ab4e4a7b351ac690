"""Nets that keep a tensor with its graph, as hook-based weight norm does, are copied wherever copies are made."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune

import bayesopt
from dnas.quantization.calibration import calibrate
from dnas.quantization.conversion import QuantizerChoice, quantize_fixed
from dnas.switchable.net import SwitchableNet
from search_spaces.assignments import LayerBits
from search_spaces.layers import LayerGraph
from search_spaces.network.graph import read_graph
from tests.exported_nets import export_onnx
from tests.packed_nets import assignment_of, inputs_for
from tests.toys import SHAPE, seeded

KINDS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "weight norm": nn.utils.weight_norm,
    "spectral norm": nn.utils.spectral_norm,
    "a mask": lambda layer: prune.l1_unstructured(layer, "weight", 0.5),
}


def after_a_step(kind: str) -> tuple[nn.Module, LayerGraph]:
    """A network in which a layer holds the weight that it computed last, and its graph."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 6, 1), nn.ReLU(), nn.Conv2d(6, 4, 1), nn.Flatten(), nn.Linear(64, 3)
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        KINDS[kind](model[4])
    return step(model), read_graph(model, SHAPE)


def step(network: nn.Module) -> nn.Module:
    network.train()(images()).square().sum().backward()
    return network


def images() -> Tensor:
    return torch.randn(8, *SHAPE, generator=seeded())


def own_graphs(network: nn.Module) -> list[Tensor]:
    held = (value for module in network.modules() for value in vars(module).values())
    return [value for value in held if isinstance(value, Tensor) and value.grad_fn is not None]


@pytest.mark.parametrize("kind", KINDS)
def test_a_net_after_a_step_is_pruned_with_its_optimizer(kind: str) -> None:
    model, graph = after_a_step(kind)
    groups = graph.channels
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    optimizer.step()
    step(model)
    assert own_graphs(model)
    batches = [(images(), torch.arange(8) % 3)]
    kept = bayesopt.choose(model, groups, {"0": 0.5}, "taylor", batches=batches)
    smaller = bayesopt.prune(model, groups, {"0": 0.5}, "taylor", batches=batches)
    assert smaller(images()).shape == (8, 3)
    rebuilt = bayesopt.rebuild_optimizer(optimizer, model, smaller, groups, kept)
    assert len(rebuilt.state) == len(optimizer.state)


@pytest.mark.parametrize("kind", KINDS)
def test_a_pruned_profile_is_taken_out_of_a_switchable_net_after_a_step(kind: str) -> None:
    model, graph = after_a_step(kind)
    choice = QuantizerChoice("nested", "pact")
    whole = {name: LayerBits(4, 4) for name in graph.by_name}
    pruned = {**whole, "0": LayerBits(4, 4, kept_channels=(0, 2))}
    profiles = {"whole": assignment_of(graph, whole, choice), "pruned": assignment_of(graph, pruned, choice)}
    net = SwitchableNet(model, graph, profiles, choice)
    net.calibrate(model, [images()])
    step(net.use("pruned"))
    assert own_graphs(net)
    alone = net.alone("pruned").eval()
    assert torch.equal(alone(images()), net.eval()(images()))


@pytest.mark.whole
def test_a_net_after_a_step_is_exported(tmp_path: Path) -> None:
    model, graph = after_a_step("spectral norm")
    layers = {name: LayerBits(4, 4, spec.out_channels) for name, spec in graph.by_name.items()}
    network = quantize_fixed(model, graph, layers)
    calibrate(network, [inputs_for(graph)])
    step(network)
    assert own_graphs(network)
    export_onnx(tmp_path / "net", network, graph, assignment_of(graph, layers, QuantizerChoice()))
    assert (tmp_path / "net").is_file()
