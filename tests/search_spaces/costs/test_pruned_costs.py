"""What a pruned network costs: from counts alone, from its assignment and from the smaller network, always the same."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from search_spaces.assignments import LayerBits
from search_spaces.channels.slicing import remove_filters
from search_spaces.costs.budgets import parse_budget
from search_spaces.costs.pruned import PrunedCosts
from search_spaces.costs.table import CostTable, build_costs
from search_spaces.errors import InputError
from search_spaces.groups import kept_rows
from search_spaces.layers import LayerGraph
from search_spaces.models.zoo import tiny_resnet
from search_spaces.options import SpaceOptions
from search_spaces.spaces import build_space
from tests.search_spaces.channel_toys import CASES, Case, built, layers_read, some_kept

NETWORKS = {**CASES, "tiny_resnet": Case(lambda: tiny_resnet(width=4), (), (1, 8, 8))}
COSTS = {"size_bytes", "bitops", "macs", "weight_bits", "peak_activation_bytes"}
BITS = st.tuples(st.sampled_from([1, 2, 3, 8, 32]), st.sampled_from([1, 4, 32]))
Units = dict[str, tuple[int, ...]]


def table_of(graph: LayerGraph, per_channel: bool) -> CostTable:
    options = SpaceOptions(weight_bits=(2, 4, 8), activation_bits=(4, 8), first_layer="search", last_layer="search")
    return CostTable(graph, build_space(graph, options), build_costs(per_channel))


def drawn_bits(data: st.DataObject, graph: LayerGraph) -> dict[str, LayerBits]:
    return {layer.name: LayerBits(*data.draw(BITS)) for layer in graph.layers}


def drawn_units(data: st.DataObject, graph: LayerGraph) -> Units:
    return {
        group.name: tuple(sorted(data.draw(st.sets(st.integers(0, group.units - 1), min_size=1))))
        for group in graph.channels.groups
    }


def counts(kept: Units) -> dict[str, int]:
    return {name: len(units) for name, units in kept.items()}


def assert_all_say_the_same(name: str, layers: dict[str, LayerBits], kept: Units, per_channel: bool) -> None:
    network, graph = built(NETWORKS[name])
    table = table_of(graph, per_channel)
    foretold = PrunedCosts(table, layers)(counts(kept))
    assert foretold.keys() == COSTS

    rows = kept_rows(graph.channels, kept)
    assignment = {name: replace(bits, kept_channels=rows.get(name)) for name, bits in layers.items()}
    assert table.price(assignment) == foretold

    smaller = layers_read(remove_filters(network, graph.channels, kept), graph.input_shape)
    assert table_of(smaller, per_channel).price(layers) == foretold


@settings(max_examples=25, deadline=None)
@given(st.data(), st.booleans())
def test_counts_the_assignment_and_the_smaller_network_cost_the_same(data: st.DataObject, per_channel: bool) -> None:
    name = data.draw(st.sampled_from(sorted(NETWORKS)))
    graph = built(NETWORKS[name])[1]
    assert_all_say_the_same(name, drawn_bits(data, graph), drawn_units(data, graph), per_channel)


@pytest.mark.parametrize("name", NETWORKS)
def test_so_it_is_however_channels_are_tied(name: str) -> None:
    graph = built(NETWORKS[name])[1]
    layers = {layer.name: LayerBits(3, 4) for layer in graph.layers}
    assert_all_say_the_same(name, layers, some_kept(graph.channels, share=0.5), per_channel=True)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_fewer_units_never_cost_more(data: st.DataObject) -> None:
    _, graph = built(NETWORKS[data.draw(st.sampled_from(sorted(NETWORKS)))])
    costs = PrunedCosts(table_of(graph, data.draw(st.booleans())), drawn_bits(data, graph))
    more = counts(drawn_units(data, graph))
    fewer = {name: data.draw(st.integers(1, count)) for name, count in more.items()}
    for name, amount in costs(fewer).items():
        assert amount <= costs(more)[name]


@pytest.mark.parametrize("name", NETWORKS)
def test_all_units_cost_what_the_network_costs_and_one_fewer_is_felt(name: str) -> None:
    _, graph = built(NETWORKS[name])
    table = table_of(graph, per_channel=False)
    layers = {layer.name: LayerBits(8, 8) for layer in graph.layers}
    costs = PrunedCosts(table, layers)
    everything = {group.name: group.units for group in graph.channels.groups}
    assert costs(everything) == table.price(layers)
    for group in graph.channels.groups:
        less = costs({**everything, group.name: group.units - 1})
        for cost in ("size_bytes", "bitops", "macs", "weight_bits"):
            assert less[cost] < costs(everything)[cost]


def test_only_the_costs_asked_for_are_given() -> None:
    _, graph = built(NETWORKS["tiny_resnet"])
    table = table_of(graph, per_channel=False)
    layers = {layer.name: LayerBits(4, 4) for layer in graph.layers}
    some = PrunedCosts(table, layers, ["macs", "size_bytes"])
    everything = {group.name: group.units for group in graph.channels.groups}
    whole = PrunedCosts(table, layers)(everything)
    assert some(everything) == {name: whole[name] for name in ("size_bytes", "macs")}


OWN = {"size_bytes": 1000.0, "bitops": 2.0e6, "macs": 3.0e4}


@pytest.mark.parametrize(
    ("amount", "share_of_own", "bits", "share_of_uniform"),
    [("70%", 0.7, 0, 0.0), (" 12.5 % ", 0.125, 0, 0.0), ("20% of fp32", 0, 32, 0.2), ("50% of uniform8", 0, 8, 0.5)],
)
@pytest.mark.parametrize("cost", OWN)
def test_a_plain_percentage_is_of_ones_own_cost(
    cost: str, amount: str, share_of_own: float, bits: int, share_of_uniform: float
) -> None:
    table = table_of(built(NETWORKS["tiny_resnet"])[1], per_channel=False)
    reference = table.uniform(bits)[cost] * share_of_uniform if bits else OWN[cost] * share_of_own
    budget = parse_budget({cost: amount}, table, own=OWN)
    assert budget.limits == {cost: pytest.approx(reference)}
    assert budget.label == f"{cost} {amount}"
    without = parse_budget({cost: amount}, table)  # nothing of its own: of fp32
    share = share_of_own or share_of_uniform
    assert without.limits == {cost: pytest.approx(share * table.uniform(bits or 32)[cost])}


def test_amounts_are_amounts_whoever_asks() -> None:
    table = table_of(built(NETWORKS["tiny_resnet"])[1], per_channel=False)
    entry: dict[str, Any] = {"size_bytes": "2 KiB", "macs": 7}
    assert parse_budget(entry, table, own=OWN).limits == {"size_bytes": 2048.0, "macs": 7.0}
    for refused in ({}, {"size": "70%"}, {"macs": "-3%"}, {"macs": "0%"}, {"macs": "70 % of it"}):
        with pytest.raises(InputError):
            parse_budget(refused, table, own=OWN)
