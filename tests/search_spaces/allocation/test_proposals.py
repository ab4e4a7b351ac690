"""Several choices within a budget, against brute force: the best that are apart, and the nearest to given widths."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import assume, given, settings

from search_spaces.allocation import proposals, widening
from search_spaces.allocation.cuts import Cut
from search_spaces.allocation.program import Cells, allocate, best_within
from search_spaces.allocation.proposals import allocate_several, nearest_within
from search_spaces.allocation.solver import NotProven, not_decided
from search_spaces.costs.budgets import Budget
from search_spaces.errors import InputError
from search_spaces.fields import Pair
from tests.search_spaces.allocation.brute_force import between, every, inside, priced, single_widenings, utility, within
from tests.search_spaces.allocation.test_program import SPACE, TABLE, random_table, seeds, shares


def equal(first: Cells, second: Cells) -> int:
    return sum(a == b for a, b in zip(first, second, strict=True))


@settings(max_examples=25, deadline=None)
@given(seeds, shares)
def test_a_cut_leaves_the_best_of_what_is_as_far_apart_as_it_says(seed: int, shares: dict[str, float]) -> None:
    rng = np.random.default_rng(seed)
    table, utilities = random_table(rng), rng.normal(size=SPACE.allowed.shape)
    budget, most_equal = between(table, shares), int(rng.integers(0, 3))
    fitting = within(table, budget)
    assume(fitting)
    first = allocate(utilities, table, budget)
    least_equal = int(rng.integers(0, most_equal + 1))
    apart = [cells for cells in fitting if least_equal <= equal(cells, first) <= most_equal]
    found = best_within(utilities, table, budget.limits, [Cut(first, most_equal, least_equal)])
    if not apart:
        assert found is None
        return
    assert found is not None
    assert found.cells in apart
    assert utility(utilities, found.cells) == pytest.approx(max(utility(utilities, c) for c in apart), abs=1e-5)


@settings(max_examples=15, deadline=None)
@given(seeds, shares)
def test_several_are_different_within_the_budget_and_spent(seed: int, shares: dict[str, float]) -> None:
    rng = np.random.default_rng(seed)
    utilities, budget = rng.normal(size=SPACE.allowed.shape), between(TABLE, shares)
    found = allocate_several(utilities, TABLE, budget, 4)
    assert found[0] == widening.allocate_widest(utilities, TABLE, budget)
    assert len({tuple(cells) for cells in found}) == len(found) <= 4
    for cells in found:
        assert budget.met_by(TABLE.cells_cost(cells))
        assert not single_widenings(TABLE, cells, budget, None)


def test_there_are_no_more_than_there_are() -> None:
    """The narrowest choice alone meets this budget, in whatever order it is asked for."""
    least = min(cost["bitops"] for _, cost in priced(TABLE))
    assert len(allocate_several(np.zeros(SPACE.allowed.shape), TABLE, Budget({"bitops": least}, "least"), 5)) == 1


def test_further_ones_that_are_not_found_in_time_take_nothing_from_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    utilities, budget = (
        np.random.default_rng(3).normal(size=SPACE.allowed.shape),
        between(TABLE, {"bitops": 0.5}),
    )
    best = widening.allocate_widest(utilities, TABLE, budget)
    assert len(allocate_several(utilities, TABLE, budget, 4)) > 1
    monkeypatch.setattr(proposals, "best_within", undecided)
    with pytest.warns(NotProven, match=f"what was proposed within '{budget.label}'"):
        assert allocate_several(utilities, TABLE, budget, 4) == [best]


def undecided(*given: object) -> None:
    raise not_decided("the solver stopped")


def distance(cells: Cells, wanted: list[Pair]) -> float:
    pairs = [SPACE.pair(*cell) for cell in cells]
    return sum(
        abs(math.log2(a / b))
        for pair, other in zip(pairs, wanted, strict=True)
        for a, b in zip(pair, other, strict=True)
    )


@settings(max_examples=15, deadline=None)
@given(seeds, shares)
def test_what_is_repaired_is_within_the_budget_and_starts_from_the_nearest(seed: int, shares: dict[str, float]) -> None:
    rng = np.random.default_rng(seed)
    everything, budget = every(TABLE), between(TABLE, shares)
    wanted = [SPACE.pair(*cell) for cell in everything[rng.integers(len(everything))]]
    fitting = within(TABLE, budget)
    found = nearest_within(wanted, TABLE, budget)
    assert found in fitting
    assert not single_widenings(TABLE, found, budget, None)
    with pytest.MonkeyPatch.context() as patch:  # before it is spent
        patch.setattr(widening, "widened", lambda cells, *rest: cells)
        nearest = nearest_within(wanted, TABLE, budget)
    assert distance(nearest, wanted) == pytest.approx(min(distance(cells, wanted) for cells in fitting))


def test_what_meets_the_budget_and_spends_it_is_its_own_repair_unless_a_bound_is_narrower() -> None:
    budget = between(TABLE, {"size_bytes": 0.5})
    cells = widening.allocate_widest(np.random.default_rng(0).normal(size=SPACE.allowed.shape), TABLE, budget)
    pairs = [SPACE.pair(*cell) for cell in cells]
    assert nearest_within(pairs, TABLE, budget) == cells
    bound = [(1, 2)] * len(cells)
    assert inside(TABLE, nearest_within(pairs, TABLE, budget, bound), bound)
    with pytest.raises(InputError, match="cannot be met"):
        nearest_within(pairs, TABLE, Budget({"size_bytes": 1.0}, "nothing"))
