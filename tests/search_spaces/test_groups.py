"""The records of channel groups: units and rows are two ways to say the same, and what does not fit is refused."""

from __future__ import annotations

import functools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from search_spaces.errors import InputError
from search_spaces.groups import ChannelGroups, check_kept, kept_rows, kept_units
from tests.search_spaces.channel_toys import CASES, built, group

GROUPS = ChannelGroups(
    groups=(
        group("stem", {"stem": (0, 1, 2), "second": (-1, 0, 1, 2, -1)}, {"head": (-1, 0, 1, 2, -1)}),
        group("second", {"second": (0, -1, -1, -1, 1)}, {"head": (0, -1, -1, -1, 1)}),
        group("grouped", {"grouped": (0, 1, 0, 1)}, {"last": (0, 1, 0, 1)}),
    ),
    frozen={"head": "it is the network's output"},
)


@functools.cache
def toy_groups(name: str) -> ChannelGroups:
    return built(CASES[name])[1].channels


@st.composite
def choices(draw: st.DrawFn) -> tuple[ChannelGroups, dict[str, tuple[int, ...]]]:
    groups = draw(st.sampled_from([GROUPS, *map(toy_groups, ("grouped", "shortcut", "concat", "depthwise"))]))
    named = draw(st.sets(st.sampled_from(groups.names)))
    subsets = {
        name: draw(st.sets(st.integers(0, groups[name].units - 1), min_size=1).map(lambda units: tuple(sorted(units))))
        for name in named
    }
    return groups, subsets


@settings(deadline=None)  # the networks are read in the first example
@given(choices())
def test_units_and_rows_say_the_same(choice: tuple[ChannelGroups, dict[str, tuple[int, ...]]]) -> None:
    groups, kept = choice
    rows = kept_rows(groups, kept)
    assert kept_units(groups, rows) == {name: units for name, units in kept.items() if len(units) < groups[name].units}
    assert kept_rows(groups, kept_units(groups, rows)) == rows


@settings(deadline=None)  # the networks are read in the first example
@given(choices())
def test_a_layer_keeps_the_rows_of_no_lost_unit(choice: tuple[ChannelGroups, dict[str, tuple[int, ...]]]) -> None:
    groups, kept = choice
    owned = {(layer, row): (one.name, unit) for one in groups.groups for layer, units in one.rows.items()
             for row, unit in enumerate(units) if unit >= 0}  # fmt: skip
    lost = {place for place, (name, unit) in owned.items() if unit not in kept.get(name, (unit,))}
    rows = kept_rows(groups, kept)
    assert set(rows) == {layer for layer, _ in lost}
    for layer, stays in rows.items():
        width = len(next(one.rows[layer] for one in groups.groups if layer in one.rows))
        assert stays == tuple(row for row in range(width) if (layer, row) not in lost)


def test_rows_of_a_layer_in_two_groups_by_hand() -> None:
    assert kept_rows(GROUPS, {"stem": (0, 2), "second": (1,)}) == {"stem": (0, 2), "second": (1, 3, 4)}
    assert kept_rows(GROUPS, {"grouped": (1,)}) == {"grouped": (1, 3)}
    assert kept_rows(GROUPS, {}) == kept_rows(GROUPS, {"stem": (0, 1, 2)}) == {}


def test_groups_are_found_by_name() -> None:
    assert GROUPS.names == ("stem", "second", "grouped")
    assert GROUPS["stem"].layers == ("stem", "second")
    with pytest.raises(InputError, match="there is no channel group 'grouped2'; did you mean 'grouped'"):
        GROUPS["grouped2"]


@pytest.mark.parametrize(
    ("kept", "sentence"),
    [
        ({"sten": (0,)}, "no channel group 'sten'; did you mean 'stem'"),
        ({"stem": ()}, "'stem' would lose all its 3 units; keep at least one"),
        ({"stem": (0, 3)}, "has units 0 to 2"),
        ({"stem": (-1, 0)}, "has units 0 to 2"),
        ({"stem": (1, 0)}, "ascending"),
        ({"stem": (1, 1)}, "each once"),
    ],
)
def test_units_that_do_not_exist_are_refused(kept: dict[str, tuple[int, ...]], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        check_kept(GROUPS, kept)


@pytest.mark.parametrize(
    ("rows", "sentence"),
    [
        ({"stem": (0,)}, "'second' do not fit those of 'stem', which go together"),
        ({"stem": (0,), "second": (0, 2, 4)}, "'second' do not fit those of 'stem'"),
        ({"grouped": (0, 1, 2)}, "'grouped' cannot be removed in this network"),
        ({"grouped": (0, 7)}, "'grouped' cannot be removed in this network"),
        ({"grouped": (2, 0)}, "'grouped' cannot be removed in this network"),
        ({"grouped": ()}, "would lose all its 2 units"),
        ({"head": (0,)}, r"'head' cannot be removed in this network \(it is the network's output\)"),
        ({"nowhere": (0,)}, "'nowhere' cannot be removed in this network: the assignment was made for another network"),
    ],
)
def test_rows_of_another_network_are_refused(rows: dict[str, tuple[int, ...]], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        kept_units(GROUPS, rows)
