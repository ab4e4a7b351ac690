"""Refining a choice of bits: within budget and bound, never worse; against brute force no two steps are better."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from dnas.search import refinement
from dnas.search.refinement import refined, single_steps
from search_spaces.allocation.program import Cells
from search_spaces.allocation.solver import NotProven, not_decided
from search_spaces.allocation.widening import allocate_widest
from search_spaces.costs.budgets import Budget
from search_spaces.costs.table import CostTable
from tests.dnas.search.test_pool import SPACES, middle, pairs_of, table_of
from tests.search_spaces.allocation.brute_force import inside, single_widenings


def separable(table: CostTable, seed: int) -> Callable[[Cells], float]:
    """A loss that adds up over decisions and falls with the width."""
    drawn = np.random.default_rng(seed).random(table.space.allowed.shape)
    losses = drawn[:, ::-1, ::-1].cumsum(1).cumsum(2)[:, ::-1, ::-1]
    return lambda cells: sum(float(losses[index, *cell]) for index, cell in enumerate(cells))


def up_to_two_steps(cells: Cells, table: CostTable, budget: Budget) -> Iterator[Cells]:
    """Every choice within the budget that at most two single steps lead to."""
    steps = list(single_steps(cells, table.space.allowed))
    for pair in itertools.chain(((step,) for step in steps), itertools.combinations(steps, 2)):
        other = dict(enumerate(cells)) | dict(pair)
        if budget.met_by(table.cells_cost(found := list(other.values()))):
            yield found


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("seed", range(3))
def test_what_is_refined_is_within_the_budget_spent_and_no_two_steps_are_better(space: str, seed: int) -> None:
    table = table_of(space)
    budget, loss_of = middle(table, 0.4), separable(table, seed)
    start = allocate_widest(np.random.default_rng(seed + 9).random(table.space.allowed.shape), table, budget)
    found, loss = refined(start, table, budget, loss_of, rounds=50)
    assert loss == loss_of(found) <= loss_of(start)
    assert budget.met_by(table.cells_cost(found))
    assert found == start or not single_widenings(table, found, budget, None)
    if len(table.space.activation_bits) == 1:  # else cells that are dominated are closed to it
        assert all(loss_of(each) >= loss - 1e-9 for each in up_to_two_steps(found, table, budget))


@pytest.mark.parametrize("share", [0.2, 0.7])
def test_nothing_is_wider_than_the_bound(share: float) -> None:
    table = table_of("independent")
    budget, bound = middle(table, share), [(4, 4)] * len(table.space.decisions)
    start = allocate_widest(np.zeros(table.space.allowed.shape), table, budget, bound)
    found, _ = refined(start, table, budget, separable(table, 1), bound=bound)
    assert inside(table, found, bound)


def test_steps_that_are_not_found_in_time_leave_what_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    table = table_of("independent")
    budget, loss_of = middle(table, 0.4), separable(table, 1)
    start = allocate_widest(np.zeros(table.space.allowed.shape), table, budget)

    def undecided(*given: object) -> None:
        raise not_decided("the solver stopped")

    monkeypatch.setattr(refinement, "best_within", undecided)
    with pytest.warns(NotProven, match="what was refined within"):
        assert refined(start, table, budget, loss_of) == (start, loss_of(start))


def test_what_layers_do_to_each_other_is_found_and_no_number_is_never_taken() -> None:
    """Two layers at few bits together are as bad as can be, which no sum of their own losses tells."""
    table = table_of("one width of activations")
    budget = middle(table, 0.5)
    own = -np.log(table.space.widths)[None] * np.array([1.0, 1.0, 1.0, 3.0])[: len(table.space.decisions), None, None]

    def loss_of(cells: Cells) -> float:
        alone = sum(float(own[index, *cell]) for index, cell in enumerate(cells))
        if cells[0][0] == 0:
            return math.nan
        return alone + 10 * (cells[1][0] < 2 and cells[2][0] < 2)

    fooled = allocate_widest(-own, table, budget)
    start = [(1, 0), (0, 0), (0, 0), *fooled[3:]]
    found, loss = refined(start, table, budget, loss_of, rounds=10)
    assert loss < loss_of(start) - 5
    assert found[0][0] > 0


def test_a_step_leads_to_what_nothing_on_offer_lies_between() -> None:
    grid = np.ones((1, 3, 3), dtype=bool)
    assert {cell for _, cell in single_steps([(1, 1)], grid)} == {(0, 1), (2, 1), (1, 0), (1, 2)}
    assert {cell for _, cell in single_steps([(0, 0)], np.eye(3, dtype=bool)[None])} == {(1, 1)}
    grid[0, 1] = False
    assert {cell for _, cell in single_steps([(0, 0)], grid)} == {(2, 0), (0, 1)}


def test_cells_and_widths_lead_to_each_other() -> None:
    for space in SPACES:
        table = table_of(space)
        for cells in ([tuple(map(int, np.argwhere(each)[k])) for each in table.space.allowed] for k in (0, -1)):
            assert pairs_of(table, table.space.cells_of(pairs_of(table, cells))) == pairs_of(table, cells)
