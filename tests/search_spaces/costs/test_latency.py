"""Latency tables that were made by measuring: round trip, pruned layers, widths that they lack, foreign networks."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import nn

from search_spaces.assignments import LayerBits
from search_spaces.channels.slicing import pruned_graph
from search_spaces.costs.budgets import parse_budget
from search_spaces.costs.latency import CheckedNet, LatencyRow, LatencyTable, channels_of, layer_words, read_table
from search_spaces.costs.pruned import PrunedCosts
from search_spaces.costs.table import CostTable, build_costs, latency_table
from search_spaces.errors import InputError
from search_spaces.groups import kept_rows
from search_spaces.layers import LayerGraph
from search_spaces.options import SpaceOptions
from search_spaces.spaces import build_space
from tests.known import known_graph
from tests.toys import SHAPE, Net

CHANNELS = 32
GRAPH = known_graph(Net(channels=CHANNELS), SHAPE)
SPEED = {(32, 32): 4.0, (8, 8): 2.0, (4, 8): 1.0}


def rows_of(graph: LayerGraph) -> list[LatencyRow]:
    """Times that are a product of channels, at all, a half and a quarter of them."""
    rows = []
    for spec in graph.layers:
        inputs, filters = channels_of(spec)
        for (w, a), i, f in itertools.product(SPEED, _sizes(inputs), _sizes(filters)):
            ms = SPEED[w, a] * (1 + i * f)
            row = {"layer": spec.name, "inputs": i, "filters": f, "weight_bits": w, "activation_bits": a}
            rows.append(LatencyRow.read({**row, "latency_ms": ms}))
    return rows


def _sizes(count: int) -> list[int]:
    return [count] if count != CHANNELS else [count, count // 2, count // 4]


def table_of(**changes: Any) -> LatencyTable:
    known: dict[str, Any] = {
        "runtime": "openvino", "version": "1", "device": "cpu", "processor": "a core", "threads": 1, "model": "mine",
        "input_shape": SHAPE, "rounds": 9, "spread": 0.1, "rest_ms": 0.5, "rows": tuple(rows_of(GRAPH)),
        "useless": ((4, 4),), "checked": (CheckedNet(predicted_ms=1.1, measured_ms=1.0),),
    }  # fmt: skip
    return LatencyTable(**(known | changes))


def written(path: Path, table: LatencyTable) -> Path:
    path.write_text(json.dumps(table.to_json()))
    return path


def priced(path: Path, graph: LayerGraph = GRAPH) -> CostTable:
    space = build_space(graph, SpaceOptions((4, 8, 32), (8, 32), first_layer="search", last_layer="search"))
    return CostTable(graph, space, [*build_costs(), latency_table(path)])


def test_a_table_is_what_was_written(tmp_path: Path) -> None:
    table = table_of()
    assert read_table(written(tmp_path / "t.json", table)).to_json() == table.to_json()


def test_a_net_takes_the_sum_of_its_layers_and_the_rest(tmp_path: Path) -> None:
    table = priced(written(tmp_path / "t.json", table_of()))
    sizes = [channels_of(spec) for spec in GRAPH.layers]
    for bits, speed in ((32, 4.0), (8, 2.0)):
        wanted = 0.5 + sum(speed * (1 + i * f) for i, f in sizes)
        assert table.uniform(bits, ["latency_ms"])["latency_ms"] == pytest.approx(wanted)
    assert parse_budget({"latency_ms": "60% of fp32"}, table).limits["latency_ms"] == pytest.approx(
        0.6 * table.uniform(32)["latency_ms"]
    )


def test_a_width_that_is_not_there_takes_what_the_fastest_wider_one_does(tmp_path: Path) -> None:
    table = priced(written(tmp_path / "t.json", table_of()))
    cost, spec = table.costs["latency_ms"], GRAPH["first"]
    at = {pair: cost.of_layer(spec, *pair) for pair in ((4, 8), (8, 8), (32, 32))}
    for pair, known in {
        (2, 2): (4, 8), (4, 4): (4, 8), (3, 8): (4, 8), (5, 8): (8, 8), (8, 4): (8, 8), (4, 16): (32, 32),
        (8, 32): (32, 32), (32, 8): (32, 32), (16, 16): (32, 32),
    }.items():  # fmt: skip
        assert cost.of_layer(spec, *pair) == at[known]
    assert cost.of_layer(spec, 0, 0) == 0


def test_a_slower_narrow_width_is_not_hidden(tmp_path: Path) -> None:
    rows = [row.model_copy(update={"latency_ms": 9e4}) if row.weight_bits == 4 else row for row in rows_of(GRAPH)]
    cost = priced(written(tmp_path / "t.json", table_of(rows=tuple(rows)))).costs["latency_ms"]
    assert cost.of_layer(GRAPH["first"], 4, 8) == 9e4  # it was measured
    assert cost.of_layer(GRAPH["first"], 4, 4) < 9e4  # it was not: a runtime may take the wider one


@pytest.mark.parametrize(
    ("count", "counted"), [(32, 32), (24, 24), (20, 24), (16, 16), (9, 16), (8, 8), (3, 8), (1, 8)]
)
def test_pruned_layers_are_priced_at_whole_multiples(tmp_path: Path, count: int, counted: int) -> None:
    table = priced(written(tmp_path / "t.json", table_of()))
    group = GRAPH.channels.groups[0]
    rows = kept_rows(GRAPH.channels, {group.name: tuple(range(count))} if count < group.units else {})
    layers = {s.name: LayerBits(8, 8, None, rows.get(s.name)) for s in GRAPH.layers}
    wanted = 0.5
    for spec in GRAPH.layers:
        inputs, filters = channels_of(spec)
        wanted += 2 * (1 + (counted if spec.name in group.columns else inputs)
                       * (counted if spec.name in group.rows else filters))  # fmt: skip
    assert table.price(layers)["latency_ms"] == pytest.approx(wanted)
    kept = PrunedCosts(table, layers, ["latency_ms"])
    counts = {each.name: count if each is group else each.units for each in GRAPH.channels.groups}
    assert kept(counts)["latency_ms"] == pytest.approx(wanted)


def test_fewer_channels_never_take_longer_whatever_the_noise(tmp_path: Path) -> None:
    noise = np.random.default_rng(0)
    rows = [r.model_copy(update={"latency_ms": r.latency_ms * float(noise.uniform(0.3, 3))}) for r in rows_of(GRAPH)]
    table = priced(written(tmp_path / "t.json", table_of(rows=tuple(rows))))
    costs = PrunedCosts(table, {s.name: LayerBits(8, 8) for s in GRAPH.layers}, ["latency_ms"])
    names = GRAPH.channels.names
    for _ in range(50):
        more = {name: int(noise.integers(1, CHANNELS + 1)) for name in names}
        fewer = {name: int(noise.integers(1, count + 1)) for name, count in more.items()}
        assert costs(fewer)["latency_ms"] <= costs(more)["latency_ms"]


def test_layers_whose_channels_go_together_have_a_row_for_each_number(tmp_path: Path) -> None:
    rows = [r for r in rows_of(GRAPH) if r.layer != "first" or r.inputs == r.filters]
    cost = priced(written(tmp_path / "t.json", table_of(rows=tuple(rows)))).costs["latency_ms"]
    assert cost.of_layer(GRAPH["first"], 8, 8) == 2 * (1 + 32 * 32)


@pytest.mark.parametrize(
    ("channels", "shape", "told"),
    [
        (40, SHAPE, "layer 'stem' with 1 inputs and 32 filters, and not of one with 1 and 40"),
        (CHANNELS, (1, 8, 8), "inputs of 1×6×6, and this network's are 1×8×8"),
    ],
)
def test_a_table_of_another_network_is_refused(
    tmp_path: Path, channels: int, shape: tuple[int, ...], told: str
) -> None:
    with pytest.raises(InputError, match=told):
        priced(written(tmp_path / "t.json", table_of()), known_graph(Net(channels=channels), shape))


class Twice(nn.Module):
    """One layer, called so many times."""

    def __init__(self, layer: nn.Module, calls: int = 1) -> None:
        super().__init__()
        self.layer, self.calls = layer, calls

    def forward(self, x):  # type: ignore[no-untyped-def]
        for _ in range(self.calls):
            x = self.layer(x)
        return x


@pytest.mark.parametrize(
    ("other", "told"),
    [
        (Twice(nn.Conv2d(8, 8, 5, padding=2)), "is Conv2d 3×3 at 8×8 places, and this network's is Conv2d 5×5 at 8×8"),
        (Twice(nn.Conv2d(8, 8, 3, 2, 1)), "this network's is Conv2d 3×3 at 4×4 places"),
        (Twice(nn.Conv2d(8, 8, 3, padding=1), 2), "is Conv2d 3×3 at 8×8 places, called 2 times"),
        (Twice(nn.ConvTranspose2d(8, 8, 3, padding=1)), "this network's is ConvTranspose2d 3×3 at 8×8 places"),
    ],
)
def test_a_table_of_layers_with_other_kernels_or_places_is_refused(tmp_path: Path, other: nn.Module, told: str) -> None:
    own, foreign = (known_graph(each, (8, 8, 8)) for each in (Twice(nn.Conv2d(8, 8, 3, padding=1)), other))
    words = {spec.name: layer_words(spec) for spec in own.layers}
    table = table_of(rows=tuple(rows_of(own)), input_shape=(8, 8, 8), layers=words)
    path = written(tmp_path / "t.json", table)
    assert priced(path, own).uniform(8)["latency_ms"] > 0
    with pytest.raises(InputError, match=told):
        priced(path, foreign).uniform(8)


def test_a_pruned_network_is_the_one_that_was_measured(tmp_path: Path) -> None:
    words = {spec.name: layer_words(spec) for spec in GRAPH.layers}
    group = GRAPH.channels.groups[0]
    pruned = pruned_graph(GRAPH, {group.name: tuple(range(8))})
    table = priced(written(tmp_path / "t.json", table_of(layers=words)), pruned)
    assert table.uniform(8)["latency_ms"] < priced(tmp_path / "t.json").uniform(8)["latency_ms"]


def test_a_layer_that_the_table_lacks_is_named(tmp_path: Path) -> None:
    rows = tuple(row for row in rows_of(GRAPH) if row.layer != "second")
    with pytest.raises(InputError, match="no row for layer 'second' at 4 weight bits and 8 activation bits"):
        priced(written(tmp_path / "t.json", table_of(rows=rows)))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"schema": "dnas.latency/2"}, "a newer version of dnas wrote it"),
        ({"schema": "dnas.front/1"}, "its schema is 'dnas.front/1'"),
        ({"threads": 0}, "threads"),
        ({"rest_ms": -1.0}, "rest_ms"),
        ({"rows": [{"layer": "stem"}]}, "rows"),
        ({"rows": 5}, "rows"),
        ({"input_shape": "big"}, "input_shape"),
    ],
)
def test_a_damaged_table_is_refused_in_one_sentence(tmp_path: Path, change: dict[str, Any], told: str) -> None:
    path = tmp_path / "t.json"
    path.write_text(json.dumps({**table_of().to_json(), **change}))
    with pytest.raises(InputError, match=f"latency table .*{told}"):
        latency_table(path)


def test_rows_that_fill_no_grid_are_refused(tmp_path: Path) -> None:
    rows = tuple(row for row in rows_of(GRAPH) if (row.layer, row.inputs, row.filters) != ("first", 8, 16))
    with pytest.raises(InputError, match="layer 'first' does not have one row for each number of inputs and filters"):
        latency_table(written(tmp_path / "t.json", table_of(rows=rows)))
    with pytest.raises(InputError, match="layer 'stem' does not have one row"):
        latency_table(written(tmp_path / "t.json", table_of(rows=(*rows_of(GRAPH), rows_of(GRAPH)[0]))))


def test_errors_are_told_of_nets_that_were_checked() -> None:
    pairs = [(1.0, 1.0), (2.2, 2.0), (3.0, 4.0)]
    table = table_of(checked=tuple(CheckedNet(predicted_ms=p, measured_ms=m) for p, m in pairs))
    assert table.median_error == pytest.approx(0.1)
    assert table.rank_correlation == pytest.approx(1.0)
    assert table_of(checked=()).median_error is None
    assert table_of(checked=()).rank_correlation is None
