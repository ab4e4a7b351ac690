"""A budget is spent: against brute force no single decision can be wider; it is met, and nothing gets narrower."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.optimize import OptimizeResult, milp

from search_spaces.allocation import solver
from search_spaces.allocation.program import Cells, allocate
from search_spaces.allocation.widening import allocate_widest
from search_spaces.costs.budgets import Budget
from search_spaces.costs.table import CostTable
from search_spaces.errors import InputError
from tests.search_spaces.allocation.brute_force import between, inside, single_widenings, widths, within
from tests.search_spaces.allocation.test_monotone import SKIPPING_TABLE, TABLE, drawn_bound, seeds, shares
from tests.search_spaces.allocation.test_program import random_table
from tests.toys import Net, plan

TIED = plan(Net(), pairing="tied", weight_bits=(1, 3, 8), first_layer="search")[2]
PAIRS = plan(Net(), pairing="pairs", pairs=((1, 4), (4, 1), (4, 4), (8, 8)), first_layer="search")[2]
KINDS = ("random", "equal", "narrow")


def table_of(kind: str, rng: np.random.Generator) -> CostTable:
    tables = {"plain": TABLE, "skipping": SKIPPING_TABLE, "tied": TIED, "pairs": PAIRS}
    return tables.get(kind) or random_table(rng)


def worth_of(kind: str, table: CostTable, rng: np.random.Generator) -> np.ndarray:
    if kind == "equal":
        return np.zeros(table.space.allowed.shape)
    drawn = rng.normal(size=table.space.allowed.shape) * 10.0 ** rng.integers(-8, 8)
    return drawn if kind == "random" else -np.broadcast_to(np.log1p(table.space.widths), drawn.shape)


def no_narrower(table: CostTable, cells: Cells, than: Cells) -> bool:
    return inside(table, than, widths(table, cells))


@settings(max_examples=40, deadline=None)
@given(
    seeds,
    shares,
    st.sampled_from(["plain", "skipping", "tied", "pairs", "open"]),
    st.sampled_from(KINDS),
    st.booleans(),
)
def test_nothing_fits_any_more(seed: int, limits: dict[str, float], kind: str, worth: str, bounded: bool) -> None:
    rng = np.random.default_rng(seed)
    table = table_of(kind, rng)
    utilities, budget = worth_of(worth, table, rng), between(table, limits)
    bound = drawn_bound(table, rng) if bounded else None
    fitting = within(table, budget, bound)
    assume(fitting)
    cells = allocate_widest(utilities, table, budget, bound)
    assert cells in fitting
    assert not single_widenings(table, cells, budget, bound)
    first = allocate(utilities, table, budget, bound)
    assert no_narrower(table, cells, first)
    if not single_widenings(table, first, budget, bound):
        assert cells == first  # an answer that spends its budget is the program's own


@settings(max_examples=20, deadline=None)
@given(st.floats(0, 1))
def test_what_is_wider_is_the_best_of_all_that_is(share: float) -> None:
    """With a worth that is level, the widening is the largest sum of log widths above the first answer."""
    utilities = np.zeros(TABLE.space.allowed.shape)
    budget = between(TABLE, {"size_bytes": share, "bitops": share})
    first, cells = (find(utilities, TABLE, budget) for find in (allocate, allocate_widest))

    def log_width(chosen: Cells) -> float:
        return float(sum(np.log(w * a) for w, a in widths(TABLE, chosen)))

    above = [other for other in within(TABLE, budget) if no_narrower(TABLE, other, first)]
    assert log_width(cells) == pytest.approx(max(map(log_width, above)), abs=1e-2)


def test_what_is_worth_more_is_widened_first() -> None:
    """Of two widenings that fit one at a time, the one that costs less worth is taken."""
    utilities = np.zeros(TABLE.space.allowed.shape)
    for dear, cheap in itertools.permutations(range(len(utilities)), 2):
        closed = np.full_like(utilities, -np.inf)
        closed[:, 0, 0] = 0.0
        closed[dear, 1, 0], closed[cheap, 1, 0] = -2.0, -1.0
        narrow = [(0, 0)] * len(utilities)
        bits = [TABLE.cells_cost([*narrow[:i], (1, 0), *narrow[i + 1 :]])["size_bytes"] for i in (dear, cheap)]
        cells = allocate_widest(closed, TABLE, Budget({"size_bytes": max(bits)}, "one of them"))
        assert cells[cheap] == (1, 0)


def test_a_cell_that_is_closed_stays_closed_and_the_callers_worth_is_left_alone() -> None:
    utilities = np.zeros(TABLE.space.allowed.shape)
    utilities[:, -1] = -np.inf
    before = utilities.copy()
    cells = allocate_widest(utilities, TABLE, {"size_bytes": "100%"})
    assert cells == [(1, 1)] * 3
    assert np.array_equal(utilities, before)
    assert allocate_widest(-np.indices(utilities.shape).sum(0).astype(float), TABLE) == [(0, 0)] * 3  # no budget


def test_a_solver_that_is_stopped_leaves_nothing_over_either(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was found until then is no answer of the second program: single widenings go on from it."""
    budget = between(TABLE, {"size_bytes": 0.6})
    narrowest = np.zeros((3, *TABLE.space.allowed.shape[1:]))
    narrowest[:, 0, 0] = 1.0

    def stopped(*given: Any, **options: Any) -> OptimizeResult:
        return OptimizeResult(x=narrowest.ravel(), status=1, message="Time limit reached.")

    assert milp is solver.milp
    monkeypatch.setattr(solver, "milp", stopped)
    with pytest.warns(solver.NotProven):
        cells = allocate_widest(narrowest, TABLE, budget)
    assert budget.met_by(TABLE.cells_cost(cells))
    assert not single_widenings(TABLE, cells, budget, None)


def test_a_second_program_without_an_answer_takes_nothing_from_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """What meets the budget is known by then: that nothing wider was found in time is no reason to refuse it."""
    budget, worth = between(TABLE, {"size_bytes": 0.6}), -np.broadcast_to(TABLE.space.widths, TABLE.space.allowed.shape)
    first = allocate(worth, TABLE, budget)

    def nothing(*given: Any, **options: Any) -> OptimizeResult:
        return OptimizeResult(x=None, status=1, message="Time limit reached.")

    monkeypatch.setattr(solver, "milp", nothing)
    with pytest.warns(solver.NotProven, match=f"within '{budget.label}' is the best that was found in 60 s"):
        cells = allocate_widest(worth, TABLE, budget)
    assert budget.met_by(TABLE.cells_cost(cells))
    assert not single_widenings(TABLE, cells, budget, None)
    assert inside(TABLE, first, widths(TABLE, cells))


def test_a_budget_that_nothing_meets_is_refused_as_before() -> None:
    with pytest.raises(InputError, match="cannot be met"):
        allocate_widest(np.zeros(TABLE.space.allowed.shape), TABLE, {"size_bytes": 1})
    with pytest.raises(InputError, match="without any cell"):
        allocate_widest(np.full(TABLE.space.allowed.shape, -np.inf), TABLE)
