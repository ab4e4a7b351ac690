"""Tables by measuring, with a clock that goes by known times of layers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
from torch import nn

from dnas.export.stored import StoredNet
from dnas.latency.engines import EIGHT, FLOAT
from dnas.latency.measure import Effort, measure_table
from dnas.latency.nets import random_layers
from dnas.latency.places import Place
from dnas.latency.sums import calibrated, capability_of, predicted_ms, without_gain
from search_spaces.assignments import LayerBits, kept_rows_of
from search_spaces.channels.slicing import pruned_graph
from search_spaces.costs.latency import LatencyTable
from search_spaces.errors import InputError
from search_spaces.fields import Pair
from search_spaces.groups import kept_units
from search_spaces.layers import LayerGraph, LayerSpec
from tests.known import known_graph

SHAPE = (3, 8, 8)
SPEED = {FLOAT: 1.0, EIGHT: 0.4, (4, 4): 0.4, (8, 32): 1.1}


class Net(nn.Module):
    """A stem, a depthwise and a grouped convolution, a residual addition, and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 32, 3, 2, 1)
        self.first = nn.Conv2d(32, 32, 3, 1, 1)
        self.depthwise = nn.Conv2d(32, 32, 3, 1, 1, groups=32)
        self.last = nn.Conv2d(32, 64, 1, bias=False)
        self.norm = nn.BatchNorm2d(64)
        self.head = nn.Linear(64, 10)

    def forward(self, x):  # type: ignore[no-untyped-def]
        x = self.stem(x).relu()
        x = (x + self.depthwise(self.first(x).relu())).relu()
        return self.head(self.norm(self.last(x)).relu().mean((2, 3)))


def known_ms(spec: LayerSpec, pair: Pair) -> float:
    """A time that is a product of channels, faster in integers but for layers that are linear."""
    speed = 1.0 if spec.kind == "Linear" else SPEED[pair]
    return speed * (0.05 + spec.macs / 1e5)


@dataclass
class Known:
    """A runtime whose nets take what their layers take, and 0.25 ms."""

    name: str = "known"
    pairs: tuple[Pair, ...] = (EIGHT, FLOAT)
    narrower: tuple[Pair, ...] = ((4, 4), (8, 32))
    now: list[float] = field(default_factory=lambda: [0.0])
    loaded: int = 0
    stops_at: int = 0
    drift: float = 0.0

    def version(self) -> str:
        return "1"

    def check(self, place: Place) -> None:
        return None

    def loader(self, base: StoredNet, place: Place) -> Callable[[StoredNet, np.ndarray], Callable[[], None]]:
        return lambda net, image: self.load(net, image, place)

    def load(self, net: StoredNet, image: np.ndarray, place: Place) -> Callable[[], None]:
        self.loaded += 1
        if self.loaded == self.stops_at:
            raise KeyboardInterrupt
        ms = 0.25 + sum(known_layers(net.graph, dict(net.assignment.layers)).values())

        seconds = round(ms / 1000 * 2**40) / 2**40  # of which sums are exact

        def run() -> None:
            self.now[0] += seconds * (1 + self.drift * self.loaded)

        return run


def known_layers(graph: LayerGraph, layers: dict[str, LayerBits]) -> dict[str, float]:
    kept = kept_units(graph.channels, kept_rows_of(layers))
    specs = (pruned_graph(graph, kept) if kept else graph).by_name
    return {name: known_ms(specs[name], (b.weight_bits, b.activation_bits)) for name, b in layers.items()}


def table_of(
    network: Net, graph: LayerGraph, engine: Known, effort: Effort, shares: list[float], keep: Path | None = None
) -> LatencyTable:
    """Measured by the clock of the engine itself; ``shares`` hears how far it is."""
    hear = lambda what, share: shares.append(share)  # noqa: E731
    clock = lambda: engine.now[0]  # noqa: E731
    return measure_table(
        network, graph, engine, Place(), model="mine", effort=effort, progress=hear, clock=clock, keep=keep
    )


@pytest.fixture(scope="module")
def measured() -> tuple[LayerGraph, LatencyTable, list[float]]:
    shares: list[float] = []
    network = Net().eval()
    graph = known_graph(network, SHAPE)
    table = table_of(network, graph, Known(), Effort(rounds=3, nets=10, checks=12), shares)
    return graph, table, shares


def test_the_table_says_what_layers_and_nets_take(measured: tuple[LayerGraph, LatencyTable, list[float]]) -> None:
    graph, table, _ = measured
    for row in table.rows:
        spec = graph[row.layer]
        if (row.inputs, row.filters) == (spec.weight_shape[1] * spec.groups, spec.out_channels):
            assert row.latency_ms == pytest.approx(known_ms(spec, (row.weight_bits, row.activation_bits)), rel=0.05)
    assert table.rest_ms == pytest.approx(0.25, abs=0.1)
    assert len(table.checked) == 12
    assert table.median_error is not None
    assert table.rank_correlation is not None
    assert table.median_error < 0.01
    assert table.rank_correlation > 0.99


def test_a_prediction_is_the_sum_of_layers_and_the_rest(measured: tuple[LayerGraph, LatencyTable, list[float]]) -> None:
    graph, table, _ = measured
    pairs = {"stem": EIGHT, "first": FLOAT, "depthwise": EIGHT, "last": EIGHT, "head": FLOAT}
    layers = {name: LayerBits(*pair) for name, pair in pairs.items()}
    whole = {(s.name, s.weight_shape[1] * s.groups, s.out_channels, *pairs[s.name]) for s in graph.layers}
    rows = [r for r in table.rows if (r.layer, r.inputs, r.filters, r.weight_bits, r.activation_bits) in whole]
    assert len(rows) == 5
    assert predicted_ms(table, graph, layers) == pytest.approx(sum(r.latency_ms for r in rows) + table.rest_ms)


def test_widths_that_give_nothing_are_told_and_left_out(measured: tuple[LayerGraph, LatencyTable, list[float]]) -> None:
    graph, table, _ = measured
    assert table.useless == ((4, 4), (8, 32))
    assert table.pairs == (EIGHT, FLOAT)
    assert without_gain(table, ["head"]) == {EIGHT}
    assert capability_of(table, graph) == {"pairs": [[8, 8], [32, 32]], "by_type": {"Linear": [[32, 32]]}}


def test_a_narrower_width_that_is_faster_is_measured_too() -> None:
    network, engine = Net().eval(), Known(narrower=((4, 4),))
    graph = known_graph(network, SHAPE)
    before = SPEED[4, 4]
    SPEED[4, 4] = 0.2
    try:
        table = table_of(network, graph, engine, Effort(rounds=3, nets=4, checks=4), [])
    finally:
        SPEED[4, 4] = before
    assert table.useless == ()
    assert table.pairs == ((4, 4), EIGHT, FLOAT)
    assert (table.median_error or 1) < 0.02


def test_progress_rises_to_the_whole(measured: tuple[LayerGraph, LatencyTable, list[float]]) -> None:
    shares = measured[2]
    assert shares == sorted(shares)
    assert 0.9 < shares[-1] <= 1.0


def test_nets_that_take_other_times_scale_the_rows(measured: tuple[LayerGraph, LatencyTable, list[float]]) -> None:
    graph, table, _ = measured
    draw = __import__("random").Random(0)
    nets = [random_layers(graph, table.pairs, draw, prunes=True) for _ in range(30)]
    doubled = [2 * predicted_ms(table, graph, layers) for layers in nets]
    again = calibrated(table, graph, [[spec.name] for spec in graph.layers], nets, doubled)
    for layers, wanted in zip(nets, doubled, strict=True):
        assert predicted_ms(again, graph, layers) == pytest.approx(wanted, rel=0.03)


def test_random_nets_are_whole_multiples_and_differ(measured: tuple[LayerGraph, LatencyTable, list[float]]) -> None:
    graph, table, _ = measured
    draw = __import__("random").Random(1)
    found = [random_layers(graph, table.pairs, draw, prunes=True) for _ in range(20)]
    kept = [bits.out_channels for layers in found for name, bits in layers.items() if name != "head"]
    assert all(count % 8 == 0 for count in kept)
    assert len({round(predicted_ms(table, graph, layers), 6) for layers in found}) > 15
    assert {len({(b.weight_bits, b.activation_bits) for b in layers.values()}) for layers in found} == {1, 2}


def test_the_network_is_left_alone() -> None:
    network = Net().eval()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    engine = replace(Known(), narrower=())
    graph = known_graph(network, SHAPE)
    measure_table(network, graph, engine, Place(), model="m", effort=Effort(3, 2, 2), clock=lambda: engine.now[0])
    assert not network.training
    assert all((value == before[name]).all() for name, value in network.state_dict().items())


@pytest.mark.whole
def test_a_stopped_measurement_goes_on_to_the_table_of_one_that_was_not(tmp_path: Path) -> None:
    network, effort, keep = Net().eval(), Effort(rounds=3, nets=3, checks=9), tmp_path / "times.json"
    graph, whole = known_graph(network, SHAPE), Known()
    uninterrupted = table_of(network, graph, whole, effort, [])
    loaded, shares = 0, list[float]()
    for stops_at in (9, 30, 0):
        engine = Known(stops_at=stops_at)
        if stops_at:
            with pytest.raises(KeyboardInterrupt):
                table_of(network, graph, engine, effort, [], keep)
        else:
            table = table_of(network, graph, engine, effort, shares, keep)
        loaded += engine.loaded
    assert table == uninterrupted
    assert shares[0] > 0.2
    assert loaded < 1.5 * whole.loaded  # what was being loaded when it was stopped is loaded again, and no more


def test_times_of_another_network_or_of_other_rounds_are_not_taken_over(tmp_path: Path) -> None:
    network, effort, keep = Net().eval(), Effort(rounds=3, nets=2, checks=2), tmp_path / "times.json"
    with pytest.raises(KeyboardInterrupt):
        table_of(network, known_graph(network, SHAPE), Known(stops_at=9), effort, [], keep)
    kept = keep.read_bytes()
    circular = Net().eval()
    circular.first = nn.Conv2d(32, 32, 3, 1, 1, padding_mode="circular").eval()
    others = [(network, replace(effort, rounds=4), "rounds = 3, which is 4 here"), (circular, effort, "layers = ")]
    for other, own, told in others:
        with pytest.raises(InputError, match=told):
            table_of(other, known_graph(other, SHAPE), Known(), own, [], keep)
    assert keep.read_bytes() == kept


def test_a_machine_that_becomes_slower_does_not_make_nets_slow() -> None:
    network, effort = Net().eval(), Effort(rounds=3, nets=10, checks=12)
    graph, engine = known_graph(network, SHAPE), Known(narrower=(), drift=0.01)
    table = table_of(network, graph, engine, effort, [])
    assert engine.drift * engine.loaded > 0.5
    assert (table.median_error or 1) < 0.02
    assert table.rest_ms == pytest.approx(0.25, rel=0.5)
