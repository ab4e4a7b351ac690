"""What a network reads and does not register is in no file: told where it differs, refused if it is a parameter."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dnas.export.constants import constants_of
from dnas.export.save import save_packed
from dnas.export.unpack import load
from dnas.quantization.calibration import calibrate
from dnas.quantization.conversion import QuantizerChoice, quantize_fixed
from dnas.switchable.net import SwitchableNet
from search_spaces.assignments import BitAssignment, LayerBits
from search_spaces.errors import InputError
from search_spaces.layers import LayerGraph
from search_spaces.network.graph import read_graph
from tests.packed_nets import assignment_of
from tests.toys import seeded

WIDTH = 6
NESTED = QuantizerChoice("nested", "pact")
MEAN = torch.full((WIDTH,), 0.5)


class Keeps(nn.Module):
    """Two layers, and between them what the given function makes of the input and of ``kept``."""

    def __init__(self, kept: Any, run: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.second, self.kept, self.run = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 3), kept, run

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.run(self, self.first(x).relu()))


def images() -> Tensor:
    return torch.randn(8, WIDTH, generator=seeded())


def packed(model: nn.Module, path: Path) -> tuple[nn.Module, LayerGraph, BitAssignment]:
    graph = read_graph(model, (WIDTH,))
    layers = {name: LayerBits(4, 4, spec.out_channels) for name, spec in graph.by_name.items()}
    net = quantize_fixed(model, graph, layers)
    calibrate(net, [images()])
    assignment = assignment_of(graph, layers, QuantizerChoice())
    save_packed(path, net.eval(), graph, assignment)
    return net, graph, assignment


KEPT: dict[str, tuple[Callable[[float], Any], Callable[[Any, Tensor], Tensor], str]] = {
    "an attribute": (lambda v: torch.full((WIDTH,), v), lambda m, x: x + m.kept, "'kept'"),
    "of a list": (lambda v: [0, torch.full((WIDTH,), v)], lambda m, x: x + m.kept[1], r"'kept\[1\]'"),
    "of a dict": (lambda v: {"a": torch.full((1,), v)}, lambda m, x: x * m.kept["a"], r"'kept\['a'\]'"),
    "whole numbers": (lambda v: torch.tensor([0, int(10 * v) % 5, 3, 1, 2, 4]), lambda m, x: x[:, m.kept], "'kept'"),
}


@pytest.mark.parametrize("how", KEPT)
def test_other_values_of_what_is_not_registered_are_refused_by_name(how: str, tmp_path: Path) -> None:
    make, run, name = KEPT[how]
    torch.manual_seed(0)
    net, *_ = packed(Keeps(make(0.7), run), tmp_path / "net")
    assert torch.equal(load(tmp_path / "net", Keeps(make(0.7), run))(images()), net(images()))
    with pytest.raises(InputError, match=f"{name}.*is a tensor that the network reads and does not register"):
        load(tmp_path / "net", Keeps(make(0.8), run))


def test_what_a_function_keeps_is_compared_in_its_order(tmp_path: Path) -> None:
    def keeping(value: Tensor) -> Callable[[Any, Tensor], Tensor]:
        return lambda m, x: x + value + MEAN

    packed(Keeps(None, keeping(torch.ones(WIDTH))), tmp_path / "net")
    load(tmp_path / "net", Keeps(None, keeping(torch.ones(WIDTH))))
    with pytest.raises(InputError, match="'constant 0' is a tensor"):
        load(tmp_path / "net", Keeps(None, keeping(torch.zeros(WIDTH))))


MADE: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "in the code": lambda m, x: x + torch.tensor([0.5]) + torch.arange(WIDTH) * torch.ones(1),
    "a view of a parameter": lambda m, x: x + m.first.weight.data[0] * 0 + m.second.bias.detach().sum() * 0,
    "kept from the run": lambda m, x: setattr(m, "kept", x * 2) or m.kept,
    "never read": lambda m, x: x,
    "counted": lambda m, x: x + 0 * m.kept.add_(1),
}


@pytest.mark.parametrize("how", MADE)
def test_what_is_made_as_the_network_runs_is_none(how: str) -> None:
    network = Keeps(torch.zeros(WIDTH), MADE[how])
    assert constants_of(network, read_graph(network, (WIDTH,))) == {}


class Closed(nn.Module):
    """A module that calls a function over a layer."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.first, self.layer = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 3)
        layer = self.layer
        if how == "forward":
            own = layer.forward
            layer.forward = lambda x: own(x) * 2  # type: ignore[method-assign]
            self.call = None
        else:
            self.call = {"closure": lambda x: layer(x) * 2, "function": lambda x: x @ layer.weight.t()}.get(
                how, layer.forward
            )

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x).relu()
        return self.layer(x) if self.call is None else self.call(x)


@pytest.mark.parametrize("how", ["forward", "closure", "function", "method"])
def test_functions_over_a_layer_are_copied_with_it(how: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    net, *_ = packed(Closed(how), tmp_path / "net")
    torch.manual_seed(1)
    assert torch.equal(load(tmp_path / "net", Closed(how))(images()), net(images()))


def test_a_closure_over_a_layer_of_nobody_is_refused_when_it_is_saved(tmp_path: Path) -> None:
    teacher = nn.Linear(WIDTH, WIDTH)
    with pytest.raises(InputError, match=r"reads a parameter of shape \(6, 6\) that none of its modules holds"):
        packed(Keeps(None, lambda m, x: x + teacher(x)), tmp_path / "net")
    assert not (tmp_path / "net").exists()


def test_switchable_nets_tell_them_too(tmp_path: Path) -> None:
    make, run, _ = KEPT["an attribute"]
    model = Keeps(make(0.7), run)
    graph = read_graph(model, (WIDTH,))
    profiles = {
        name: assignment_of(graph, {n: LayerBits(bits, 4, s.out_channels) for n, s in graph.by_name.items()}, NESTED)
        for name, bits in {"wide": 4, "narrow": 2}.items()
    }
    net = SwitchableNet(model, graph, profiles, NESTED)
    net.calibrate(model, [images()])
    save_packed(tmp_path / "net", net.eval())
    assert torch.equal(load(tmp_path / "net", Keeps(make(0.7), run))(images()), net(images()))
    with pytest.raises(InputError, match=r"'kept' .*does not register"):
        load(tmp_path / "net", Keeps(make(0.8), run))


def first_mean(m: Any, x: Tensor) -> Tensor:
    """Subtracts the mean of the first batch that it ever saw."""
    if m.kept is None:
        m.kept = x.detach().mean(0)
    return x - m.kept  # type: ignore[no-any-return]


def table(m: Any, x: Tensor) -> Tensor:
    if m.kept is None:
        m.kept = {x.shape[1]: torch.linspace(0, 1, x.shape[1])}
    return x + m.kept[x.shape[1]]  # type: ignore[no-any-return]


def test_an_attribute_that_follows_the_first_batch_is_refused_and_a_table_is_not(tmp_path: Path) -> None:
    """The loaded net would make another of its own first batch."""
    torch.manual_seed(0)
    packed(Keeps(None, first_mean), tmp_path / "net")
    with pytest.raises(InputError, match="'kept' is a tensor that the network reads and does not register"):
        load(tmp_path / "net", Keeps(None, first_mean))
    net, *_ = packed(Keeps(None, table), tmp_path / "other")
    assert torch.equal(load(tmp_path / "other", Keeps(None, table))(images()), net(images()))


def test_neither_saving_nor_loading_runs_the_network_itself(tmp_path: Path) -> None:
    """What it counts whenever it runs stays, in the saved one and in the loaded one."""

    class Counting(Keeps):
        def __init__(self) -> None:
            super().__init__(torch.ones(WIDTH), lambda m, x: x * m.kept * m.level)
            self.register_buffer("level", torch.zeros(()))
            self.calls = 0

        def forward(self, x: Tensor) -> Tensor:
            self.level += x.detach().abs().mean()
            self.calls += 1
            return super().forward(x)

    model = Counting()
    graph = read_graph(model, (WIDTH,))
    layers = {name: LayerBits(4, 4, spec.out_channels) for name, spec in graph.by_name.items()}
    net = quantize_fixed(model, graph, layers).eval()
    calibrate(net, [images()])
    level, calls = net.level.clone(), net.calls
    save_packed(tmp_path / "net", net, graph, assignment_of(graph, layers, QuantizerChoice()))
    loaded = load(tmp_path / "net", Counting())
    assert (net.level, net.calls) == (level, calls)
    assert torch.equal(loaded(images()), net(images()))
