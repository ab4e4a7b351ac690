"""The contract of a cost, ours or the user's own: finite, monotone in bits and channels, a budget like any other."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from search_spaces.allocation.program import allocate
from search_spaces.assignments import LayerBits
from search_spaces.costs.budgets import parse_budget
from search_spaces.costs.kinds import Cost
from search_spaces.costs.pruned import PrunedCosts
from search_spaces.costs.table import CostTable, build_costs
from search_spaces.errors import InputError
from search_spaces.options import SpaceOptions
from search_spaces.spaces import build_space
from tests.known import known_graph
from tests.toys import SHAPE, Net

OWN = """
from dnas import Cost

def joules(layer, weight_bits, activation_bits):
    return layer.macs * (1 + weight_bits * activation_bits)

energy = Cost("anything", "J", joules)
widest = Cost("anything", "bits", lambda layer, w, a: layer.input_elements * a, combine="max")
rest = Cost("anything", "J", joules, network=lambda graph: 7.0)
"""
FUNCTIONS = {
    "joules": "own_cost:joules",
    "energy": "own_cost:energy",
    "widest": "own_cost:widest",
    "rest": "own_cost:rest",
}
NAMES = ["size_bytes", "bitops", "macs", "weight_bits", "peak_activation_bytes", *FUNCTIONS]


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CostTable:
    (tmp_path / "own_cost.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "own_cost", raising=False)
    graph = known_graph(Net(), SHAPE)
    space = build_space(graph, SpaceOptions(weight_bits=(2, 4, 8), activation_bits=(2, 4, 8), first_layer="search"))
    return CostTable(graph, space, build_costs(functions=FUNCTIONS))


def test_every_cost_is_there(table: CostTable) -> None:
    assert list(table.costs) == NAMES
    assert (table.costs["energy"].unit, table.costs["joules"].unit, table.costs["widest"].combine) == ("J", "", "max")


@pytest.mark.parametrize("name", NAMES)
def test_more_bits_never_cost_less_and_the_table_is_what_layers_cost(table: CostTable, name: str) -> None:
    entries = table.entries[name]
    assert np.isfinite(entries).all()
    assert (np.diff(entries, axis=1) >= 0).all()
    assert (np.diff(entries, axis=2) >= 0).all()
    cells = [(index % 3, (index + 1) % 3) for index in range(len(table.space.decisions))]
    parts = [entries[index, row, column] for index, (row, column) in enumerate(cells)]
    combined = max if table.costs[name].combine == "max" else sum
    whole = combined([table.constants[name], *parts])
    assert table.cells_cost(cells)[name] == pytest.approx(whole, rel=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_a_budget_on_it_is_met_by_bits(table: CostTable, name: str) -> None:
    costs = [table.uniform(bits, [name])[name] for bits in (2, 8)]
    limit = sum(costs) / 2
    budget = parse_budget({name: limit}, table)
    cells = allocate(table.space.allowed * np.arange(9).reshape(3, 3), table, budget)
    assert table.cells_cost(cells)[name] <= limit


@pytest.mark.parametrize("name", NAMES)
def test_it_falls_with_filters_where_it_says_so(table: CostTable, name: str) -> None:
    layers = {layer.name: LayerBits(4, 4) for layer in table.graph.layers}
    exact = PrunedCosts(table, layers, [name])
    units = {group.name: group.units for group in table.graph.channels.groups}
    assert exact(units)[name] == pytest.approx(table.price(layers, [name])[name], rel=1e-12)
    assert table.costs[name].shrinks
    for group in units:
        assert exact({**units, group: 1})[name] <= exact(units)[name]


def test_a_cost_of_ones_own_can_be_handed_over_as_it_is(table: CostTable) -> None:
    mine = Cost("anything", "J", lambda layer, weight_bits, activation_bits: 1.0)
    [found] = [cost for cost in build_costs(functions={"mine": mine}) if cost.name == "mine"]
    assert found == replace(mine, name="mine")
    with pytest.raises(InputError, match="cost 'mine' is 3; give a function, a Cost"):
        build_costs(functions={"mine": 3})
