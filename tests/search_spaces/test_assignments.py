"""Bit assignments: the file round-trips, and whatever is wrong with it is one sentence."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from search_spaces.assignments import BIT_WIDTHS, BitAssignment, LayerBits, ModelReference, check_fits
from search_spaces.errors import InputError
from search_spaces.network.graph import read_graph
from search_spaces.provenance import Provenance
from tests.toys import SHAPE, Net

WIDTHS = st.sampled_from([bits for bits in BIT_WIDTHS if bits])
CHANNELS = st.none() | st.lists(st.integers(0, 99), unique=True).map(lambda c: tuple(sorted(c)))
LAYER_BITS = st.builds(LayerBits, WIDTHS, WIDTHS, st.none() | st.integers(1, 99), CHANNELS) | st.just(LayerBits(0, 0))
ASSIGNMENTS = st.builds(
    BitAssignment,
    id=st.text(),
    model=st.builds(ModelReference, st.text(), st.lists(st.integers(1, 9)).map(tuple), st.none() | st.text()),
    layers=st.dictionaries(st.text(), LAYER_BITS),
    cost=st.dictionaries(st.text(), st.floats(0, 1e100)),
    metrics=st.dictionaries(st.text(), st.floats(0, 1)),
    provenance=st.builds(
        Provenance,
        kind=st.sampled_from(["search", "ilp"]),
        run=st.text(),
        limits=st.dictionaries(st.text(), st.floats(0, 1e100)),
    ),
)
MINE = BitAssignment("mine", ModelReference("zoo:x", (3, 8, 8)), {"conv": LayerBits(4, 8), "fc": LayerBits(0, 0)})
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.sampled_from([0, 4, 8]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)


@given(ASSIGNMENTS)
def test_the_file_round_trips(assignment: BitAssignment) -> None:
    assert BitAssignment.loads(json.dumps(assignment.to_json())) == assignment


@pytest.mark.parametrize("pair", [(9, 8), (4, 64), (True, 8), (4.0, 8), ("4", 8), (None, 8), (0, 8), (8, 0), (-1, 8)])
def test_no_layer_has_bits_that_do_not_exist(pair: tuple[Any, Any]) -> None:
    with pytest.raises(InputError, match="bit"):
        LayerBits(*pair)


@pytest.mark.parametrize("schema", [None, "dnas.assignment/2", "dnas.front/1"])
def test_another_schema_is_refused_by_name(schema: str | None) -> None:
    with pytest.raises(InputError, match=r"schema is .*, this version reads 'dnas.assignment/1'"):
        BitAssignment.from_json({**MINE.to_json(), "schema": schema})


@pytest.mark.parametrize("text", ["", "[", "[" * 100_000, "9" * 5000, "NaN", '{"schema": 1'])
def test_text_that_is_no_assignment_is_an_input_error(text: str) -> None:
    with pytest.raises(InputError):
        BitAssignment.loads(text)


def _paths(data: Any, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    below = [p for key, value in data.items() for p in _paths(value, (*path, key))] if isinstance(data, dict) else []
    return [path, *below] if path else below


@given(st.sampled_from(_paths(MINE.to_json())), JSON)
def test_a_damaged_entry_is_an_input_error_or_harmless(path: tuple[str, ...], value: Any) -> None:
    data = copy.deepcopy(MINE.to_json())
    entry = data
    for key in path[:-1]:
        entry = entry[key]
    entry[path[-1]] = value
    try:
        read = BitAssignment.from_json(data)
    except InputError:
        return
    assert BitAssignment.from_json(read.to_json()) is not None


@pytest.mark.parametrize("path", _paths(MINE.to_json()))
def test_a_missing_entry_is_an_input_error(path: tuple[str, ...]) -> None:
    if path[0] == "layers" and len(path) == 2:
        return  # a file may hold any layers; check_fits compares them with the network
    data = copy.deepcopy(MINE.to_json())
    entry = data
    for key in path[:-1]:
        entry = entry[key]
    del entry[path[-1]]
    with pytest.raises(InputError):
        BitAssignment.from_json(data)


def test_an_assignment_fits_exactly_the_layers_of_its_network() -> None:
    graph = read_graph(Net(), SHAPE)
    layers = {layer.name: LayerBits(4, 4) for layer in graph.layers}
    model = ModelReference("mine", SHAPE)
    check_fits(BitAssignment("whole", model, layers), graph)
    with pytest.raises(InputError, match=r"layer 'frist', .*did you mean 'first'.*made for mine"):
        check_fits(BitAssignment("foreign", model, {**layers, "frist": LayerBits(4, 4)}), graph)
    del layers["second"], layers["head"]
    with pytest.raises(InputError, match=r"nothing about layer 'head' \(2 missing"):
        check_fits(BitAssignment("partial", model, layers), graph)


def test_metrics_are_added_to_a_copy() -> None:
    measured = MINE.with_metrics(val_top1=0.9)
    assert (MINE.metrics, measured.metrics) == ({}, {"val_top1": 0.9})
    assert measured.pairs == {"conv": (4, 8), "fc": (0, 0)}
