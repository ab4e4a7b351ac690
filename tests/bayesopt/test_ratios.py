"""Ratios to whole units and back; and whatever is asked for, the repaired counts meet every limit and use it up."""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bayesopt.clusters import Clusters
from bayesopt.ratios import RatioSpace, along
from bayesopt.screening import QuadraticCost, projected
from search_spaces.errors import InputError


def chain_cost(kept: Mapping[str, int]) -> dict[str, float]:
    counts = [3, *kept.values()]
    weights = [a * b for a, b in pairwise(counts)]
    return {"size_bytes": float(sum(-(-w // 8) for w in weights) + 4 * sum(counts)), "bitops": float(sum(weights))}


def chain(units: tuple[int, ...] = (16, 32, 33, 64), **options: Any) -> RatioSpace:
    return RatioSpace(tuple("abcdefgh"[: len(units)]), units, chain_cost, **options)


@st.composite
def spaces(draw: Any) -> RatioSpace:
    count = draw(st.integers(1, 5))
    whole = st.lists(st.integers(1, 9), min_size=count, max_size=count)
    return chain(
        tuple(draw(st.lists(st.integers(1, 70), min_size=count, max_size=count))),
        max_ratio=draw(st.lists(st.floats(0, 0.99), min_size=count, max_size=count)),
        min_keep=draw(whole),
        round_to=draw(whole),
        fixed=draw(st.dictionaries(st.sampled_from("abcdefgh"[:count]), st.floats(0, 0.99), max_size=2)),
    )


@st.composite
def cases(draw: Any) -> tuple[RatioSpace, list[float], dict[str, float]]:
    space = draw(spaces())
    x = draw(st.lists(st.floats(0, 1), min_size=len(space.free), max_size=len(space.free)))
    limits = {}
    for name in draw(st.sampled_from([("size_bytes",), ("bitops",), ("size_bytes", "bitops")])):
        least, most = (space.costs(counts)[name] for counts in (space.least(), space.most()))
        limits[name] = least + draw(st.floats(0, 1.1)) * (most - least)
    return space, x, limits


@given(cases())
def test_repaired_counts_meet_every_limit_and_no_group_could_have_one_step_more(case: Any) -> None:
    space, x, limits = case
    for counts in (space.repair(x, limits), space.uniform(limits)):
        assert all(space.costs(counts)[name] <= limit for name, limit in limits.items())
        assert all(count in levels for count, levels in zip(counts, space.levels, strict=True))
        for row in space.free:
            more = space.raised(counts, row)
            assert more is None or any(space.costs(more)[name] > limit for name, limit in limits.items())


@given(cases())
def test_repaired_counts_are_repaired_to_themselves(case: Any) -> None:
    space, x, limits = case
    counts = space.repair(x, limits)
    assert space.repair(space.point(counts), limits) == counts


@given(cases(), st.data())
def test_the_point_of_reachable_counts_leads_back(case: Any, data: Any) -> None:
    space, _, _ = case
    counts = tuple(data.draw(st.sampled_from(levels)) for levels in space.levels)
    assert space.counts(space.point(counts)) == counts
    assert all(0 <= coordinate <= 1 for coordinate in space.point(counts))


def test_the_point_of_the_largest_ratio_is_one_whatever_floats_say() -> None:
    space = RatioSpace(("a",), (50,), lambda kept: {"size_bytes": float(sum(kept.values()))}, max_ratio=0.02)
    assert (1 - 49 / 50) / 0.02 > 1
    assert space.point((49,)) == (1.0,)
    assert space.counts((1.0,)) == (49,)


@given(cases(), st.floats(0, 1))
def test_more_pruning_never_keeps_more(case: Any, share: float) -> None:
    space, x, _ = case
    more = [coordinate + share * (1 - coordinate) for coordinate in x]
    assert all(a >= b for a, b in zip(space.counts(x), space.counts(more), strict=True))
    assert space.costs(space.counts(x))["size_bytes"] >= space.costs(space.counts(more))["size_bytes"]


@given(st.lists(st.floats(0, 1), min_size=3, max_size=3), st.floats(0, 2), st.floats(0, 2))
def test_the_path_of_repair_only_ever_prunes_more(x: list[float], first: float, second: float) -> None:
    low, high = sorted((first, second))
    assert (along(np.array(x), low) <= along(np.array(x), high) + 1e-12).all()
    assert (along(np.array(x), 0.0) == 0).all()
    assert along(np.array(x), 2.0) == pytest.approx(np.ones(3))


def test_a_ratio_rounds_towards_keeping() -> None:
    space = chain((16, 32, 33, 64), round_to=8, max_ratio=0.9, min_keep=12)
    assert space.levels == ((16,), (16, 24, 32), (16, 24, 32, 33), (16, 24, 32, 40, 48, 56, 64))
    assert space.counts((0.5, 0.5, 0.5)) == (16, 24, 24, 40)
    assert space.least() == (16, 16, 16, 16)
    assert space.most() == (16, 32, 33, 64)


def test_a_fixed_group_keeps_its_ratio_and_is_not_searched() -> None:
    space = chain(fixed={"b": 0.5, "d": 0.0})
    assert space.free == (0, 2)
    assert {space.repair(x, {"bitops": 1500})[1::2] for x in ((1, 0), (0, 1), (0.3, 0.4))} == {(16, 64)}


def test_uniform_gives_every_group_the_same_ratio_but_for_rounding() -> None:
    space = chain((100, 100, 100), max_ratio=(0.9, 0.9, 0.2))
    counts = space.uniform({"bitops": 9000})
    assert counts[2] == 80
    assert abs(counts[0] - counts[1]) <= 1


def test_the_same_direction_is_repaired_alike_whatever_its_length() -> None:
    space, limits = chain((64, 64, 64, 64)), {"bitops": 4000.0}
    assert space.repair((0.2, 0.4, 0.1, 0.3), limits) == space.repair((0.4, 0.8, 0.2, 0.6), limits)


def test_cost_is_asked_once_for_the_same_counts() -> None:
    asked: list[tuple[int, ...]] = []

    def cost(kept: Mapping[str, int]) -> dict[str, float]:
        asked.append(tuple(kept.values()))
        return chain_cost(kept)

    space = RatioSpace(("a", "b"), (32, 32), cost)
    for _ in range(3):
        space.repair((0.3, 0.9), {"bitops": 500.0})
    assert len(asked) == len(set(asked)) < 60


def test_an_unreachable_limit_names_the_nearest_amount() -> None:
    with pytest.raises(InputError, match=r"bitops 10 cannot be reached .* still 58; raise"):
        chain(max_ratio=0.9).check_reachable({"size_bytes": 1e9, "bitops": 10})
    with pytest.raises(InputError, match=r"no cost 'bitop'; there are .*; did you mean 'bitops'"):
        chain().check_reachable({"bitop": 10})
    with pytest.raises(InputError, match="not a number"):
        chain().repair((0.1, 0.1, 0.1, 0.1), {"bitops": math.nan})


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"max_ratio": 1.0}, "max_ratio of group 'a' is 1.0"),
        ({"max_ratio": (0.5, 0.5, math.nan, 0.5)}, "max_ratio of group 'c' is nan"),
        ({"max_ratio": (0.5, 0.5)}, "max_ratio has 2 entries for 4"),
        ({"min_keep": 0}, "min_keep of group 'a' is 0"),
        ({"round_to": (1, 1, 2.5, 1)}, "round_to of group 'c' is 2.5"),
        ({"fixed": {"e": 0.1}}, "no channel group 'e'"),
        ({"fixed": {"a": -0.1}}, "fixed ratio of group 'a' is -0.1"),
        ({"names": ("a", "a", "b", "c")}, "same name"),
        ({"units": (1, 2)}, "4 channel groups but 2"),
        ({"units": (1, 2, 0, 4)}, "units of group 'c' is 0"),
    ],
)
def test_nonsense_is_refused_in_a_sentence(options: dict[str, Any], sentence: str) -> None:
    given = {"names": ("a", "b", "c", "d"), "units": (16, 32, 33, 64), "cost": chain_cost} | options
    with pytest.raises(InputError, match=sentence):
        RatioSpace(**given)


@pytest.mark.parametrize(
    ("cost", "sentence"),
    [
        (lambda kept: None, "failed: AttributeError"),
        (lambda kept: {"size_bytes": "many"}, "failed: ValueError"),
        (lambda kept: 1 / 0, "failed: ZeroDivisionError: division by zero; cost is called with"),
        (lambda: {}, "failed: TypeError"),
        (lambda kept: {"size_bytes": math.nan}, "cost 'size_bytes' of the counts .* is nan; it must be finite"),
    ],
)
def test_a_cost_function_that_fails_is_told_with_the_counts(cost: Any, sentence: str) -> None:
    space = RatioSpace(("a", "b"), (4, 8), cost)
    with pytest.raises(InputError, match=f"^the (costs of the counts \\(4, 8\\) )?{sentence}"):
        space.costs((4, 8))


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"fixed": [0.5]}, r"fixed is \[0.5\]; give ratios by the names of their groups"),
        ({"max_ratio": np.array(0.5)}, r"max_ratio is array\(0.5\); give a number, or one for each"),
        ({"min_keep": []}, r"min_keep is \[\]; give a number, or one for each"),
        ({"round_to": None}, "round_to is None; give a number, or one for each"),
    ],
)
def test_options_of_another_kind_are_refused_by_name(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        RatioSpace(("a", "b"), (4, 8), lambda kept: {}, **options)


def test_the_screen_is_near_the_exact_cost_and_projection_meets_it() -> None:
    space = chain((64, 128, 128, 256))
    screen = QuadraticCost(lambda x: space.costs(space.counts(x))["size_bytes"], 4)
    points = np.random.default_rng(0).random((50, 4))
    exact = np.array([space.costs(space.counts(x))["size_bytes"] for x in points])
    most = space.costs(space.most())["size_bytes"]
    assert screen(points) == pytest.approx(exact, abs=0.02 * most)
    limits = np.full(50, 0.4 * most)
    assert screen(projected(points, [(screen, limits)])) == pytest.approx(limits, rel=1e-3)


def test_clusters_share_one_ratio() -> None:
    clusters = Clusters(120, 40)
    shared = np.random.default_rng(0).random((3, 40))
    assert clusters.shared(clusters.spread(shared)) == pytest.approx(shared)
    assert Clusters(7, 60).members.tolist() == list(range(7))
