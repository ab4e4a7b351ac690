"""The exact step against brute force: the best cells, within every budget, or the nearest figure that is possible."""

from __future__ import annotations

import ctypes
import os
import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.optimize import OptimizeResult, milp

from search_spaces.allocation import solver
from search_spaces.allocation.program import allocate, check_reachable, dominated, is_reachable
from search_spaces.costs.budgets import Budget
from search_spaces.costs.table import CostTable, build_costs
from search_spaces.errors import InputError, JobError
from tests.search_spaces.allocation.brute_force import between, priced, utility, within
from tests.toys import Net, plan

GRAPH, SPACE, TABLE = plan(Net(), weight_bits=(1, 3, 8), activation_bits=(2, 4), first_layer="search")
# A cost that falls with the width of weights: whether it and the size are met together needs the solver.
OPPOSED = CostTable(
    GRAPH, SPACE, build_costs(functions={"error": lambda layer, weights, inputs: layer.macs / 2.0**weights})
)
COSTS = ("size_bytes", "bitops", "peak_activation_bytes")
seeds = st.integers(0, 2**32 - 1)
shares = st.dictionaries(st.sampled_from(COSTS), st.floats(0, 1), min_size=1)


def random_table(rng: np.random.Generator) -> CostTable:
    """A table in which some cells are closed."""
    allowed = rng.random(SPACE.allowed.shape) < 0.7
    allowed[:, 1, 1] = True
    return CostTable(GRAPH, replace(SPACE, allowed=allowed, independent=False), list(TABLE.costs.values()))


@settings(max_examples=30, deadline=None)
@given(seeds, shares)
def test_allocate_is_the_best_of_all_within_the_budget_or_none_is(seed: int, shares: dict[str, float]) -> None:
    rng = np.random.default_rng(seed)
    table, utilities = random_table(rng), rng.normal(size=SPACE.allowed.shape)
    budget = between(table, shares)
    fitting = within(table, budget)
    if not fitting:
        with pytest.raises(InputError, match="cannot be met"):
            allocate(utilities, table, budget)
        return
    chosen = allocate(utilities, table, budget)
    assert budget.met_by(table.cells_cost(chosen))
    assert table.space.allowed[np.arange(len(chosen)), *np.transpose(chosen)].all()
    assert utility(utilities, chosen) == pytest.approx(max(utility(utilities, cells) for cells in fitting), abs=1e-5)


@settings(max_examples=30, deadline=None)
@given(seeds, st.sampled_from(COSTS))
def test_a_budget_a_hair_below_the_best_choice_is_met_by_another(seed: int, name: str) -> None:
    rng = np.random.default_rng(seed)
    utilities = rng.normal(size=SPACE.allowed.shape)
    best = TABLE.cells_cost(allocate(utilities, TABLE, None))[name]
    assume(best > min(cost[name] for _, cost in priced(TABLE)))
    budget = Budget({name: best * (1 - 1e-9)}, "a hair less")
    assert TABLE.cells_cost(allocate(utilities, TABLE, budget))[name] < best


@settings(max_examples=20, deadline=None)
@given(seeds, st.floats(-9, 9))
def test_the_unit_of_the_utilities_does_not_matter(seed: int, exponent: float) -> None:
    rng = np.random.default_rng(seed)
    utilities, budget = rng.normal(size=SPACE.allowed.shape), between(TABLE, {"bitops": 0.4})
    scaled = utilities * 10**exponent + rng.normal(size=(len(utilities), 1, 1)) * 10**exponent
    assert allocate(scaled, TABLE, budget) == allocate(utilities, TABLE, budget)


def test_without_a_budget_it_is_the_argmax_and_no_program(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(solver, "milp", None)
    utilities = np.random.default_rng(0).normal(size=SPACE.allowed.shape)
    argmax = [divmod(int(flat.argmax()), SPACE.allowed.shape[2]) for flat in utilities.reshape(len(utilities), -1)]
    assert allocate(utilities, TABLE, None) == argmax


def test_a_cell_of_utility_minus_infinity_is_closed_and_costs_the_others_no_precision() -> None:
    utilities = 1e-3 * np.random.default_rng(0).normal(size=SPACE.allowed.shape)
    closed = utilities.copy()
    closed[:, 0, 0] = -np.inf
    budget = between(TABLE, {"bitops": 0.5})
    fitting = [cells for cells in within(TABLE, budget) if (0, 0) not in cells]
    assert allocate(closed, TABLE, budget) == max(fitting, key=lambda each: utility(utilities, each))


@settings(max_examples=20, deadline=None)
@given(seeds, shares)
def test_leaving_out_dominated_cells_never_makes_a_budget_unreachable(seed: int, shares: dict[str, float]) -> None:
    table = random_table(np.random.default_rng(seed))
    budget = between(table, shares)
    fitting = within(table, budget)
    assume(fitting)
    left_out = dominated(table, budget)
    cells = allocate(np.where(left_out, -np.inf, 0.0), table, budget)
    assert budget.met_by(table.cells_cost(cells))
    for index, (row, column) in enumerate(cells):  # nothing wider costs as little
        wider = np.argwhere(table.space.allowed[index])
        for i, j in wider[((wider >= (row, column)).all(1)) & ((wider != (row, column)).any(1))]:
            assert any(table.entries[name][index, i, j] > table.entries[name][index, row, column] for name in shares)


def figure(message: str) -> float:
    found = re.search(r"the least possible.* is ([\d,.]+\d);", message)
    assert found, message
    return float(found[1].replace(",", ""))


@settings(max_examples=20, deadline=None)
@given(seeds, shares, st.floats(0.5, 0.999))
def test_the_nearest_figure_of_a_refusal_is_possible_and_the_least(
    seed: int, shares: dict[str, float], share: float
) -> None:
    table = random_table(np.random.default_rng(seed))
    budget = between(table, shares)
    last = list(budget.limits)[-1]
    held = {name: limit for name, limit in budget.limits.items() if name != last}
    possible = [cost for _, cost in priced(table) if Budget(held, "").met_by(cost)]
    assume(possible)
    least = min(cost[last] for cost in possible)
    with pytest.raises(InputError) as refused:
        check_reachable(table, Budget({**held, last: least * share}, "too little"))
    assert figure(str(refused.value)) == pytest.approx(least, rel=1e-5)
    check_reachable(table, Budget({**held, last: figure(str(refused.value))}, "as told"))


@pytest.mark.parametrize("unit", [1e-3, 1 / 3, 1.0, 1e7])
def test_the_figure_told_is_never_below_what_is_possible(unit: float) -> None:
    scaled = replace(TABLE.costs["bitops"], layer=lambda layer, w, a: layer.macs * w * a * unit / 7e3)
    table = CostTable(GRAPH, SPACE, [scaled])
    with pytest.raises(InputError) as refused:
        check_reachable(table, Budget({"bitops": 1e-9}, "nothing"))
    check_reachable(table, Budget({"bitops": figure(str(refused.value))}, "as told"))


def test_a_budget_of_what_is_fixed_is_met_by_skipping_everything() -> None:
    _, space, table = plan(
        Net(), weight_bits=(0, 4), activation_bits=(4,), granularity="block", include=("first", "second")
    )
    for name in ("size_bytes", "bitops", "peak_activation_bytes"):
        cells = allocate(np.ones(space.allowed.shape), table, Budget({name: table.constants[name]}, "fixed alone"))
        assert space.pair(*cells[0]) == (0, 0)
    with pytest.raises(InputError, match="cannot be met"):
        check_reachable(table, Budget({"size_bytes": table.constants["size_bytes"] - 1}, "less than that"))


def stopped(status: int, message: str) -> Any:
    return lambda *given, **options: OptimizeResult(x=None, status=status, message=message)


@pytest.mark.parametrize("status", [1, 4])
def test_a_solver_that_stops_early_does_not_make_a_budget_impossible(
    status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    budget = between(OPPOSED, {"size_bytes": 0.6, "error": 0.6})
    monkeypatch.setattr(solver, "milp", stopped(status, "Time limit reached. (HiGHS Status 13: kTimeLimit)"))
    for ask in (check_reachable, is_reachable, lambda *given: allocate(np.zeros(SPACE.allowed.shape), *given)):
        with pytest.raises(JobError, match=r"is not decided: the solver stopped after 60 s or less \(Time limit"):
            ask(OPPOSED, budget)
    monkeypatch.setattr(solver, "milp", stopped(4, "The problem is unbounded or infeasible."))
    assert not is_reachable(OPPOSED, budget)


def test_what_needs_no_solver_asks_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(solver, "milp", stopped(1, "Time limit reached."))
    budget = between(TABLE, {"size_bytes": 0.0, "bitops": 0.0})
    assert is_reachable(TABLE, budget)
    narrow = -np.broadcast_to(SPACE.widths, SPACE.allowed.shape)
    assert budget.met_by(TABLE.cells_cost(allocate(narrow, TABLE, budget)))


def nothing_in_time(*given: Any, **options: Any) -> OptimizeResult:
    """Tells what is impossible, and finds nothing else."""
    found = milp(*given, **options)
    return OptimizeResult(
        x=None, status=2 if found.x is None else 1, message="infeasible" if found.x is None else "Time limit reached."
    )


def test_an_impossible_budget_stays_so_where_the_least_is_not_found_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(solver, "milp", nothing_in_time)
    with pytest.raises(InputError, match="'drawn' cannot be met by any choice of bits"):
        check_reachable(OPPOSED, between(OPPOSED, {"size_bytes": 0.1, "error": 0.1}))
    with pytest.raises(InputError, match="size_bytes would have to be 1, the least possible is 161"):  # needs no solver
        check_reachable(TABLE, Budget({"size_bytes": 1.0}, "drawn"))


def first_found(*given: Any, **options: Any) -> OptimizeResult:
    """A solution that the clock kept from being proven the best; what is impossible is told."""
    found = milp(*given, **options)
    return found if found.x is None else OptimizeResult(x=found.x, status=1, message="Time limit reached.")


def test_what_was_found_when_time_was_up_is_taken_and_told(monkeypatch: pytest.MonkeyPatch) -> None:
    utilities = np.random.default_rng(0).normal(size=SPACE.allowed.shape) + SPACE.widths
    budget = between(TABLE, {"bitops": 0.5})
    expected = allocate(utilities, TABLE, budget)
    monkeypatch.setattr(solver, "milp", first_found)
    with pytest.warns(solver.NotProven, match="within 'drawn' is the best that was found in 60 s, not proven"):
        assert allocate(utilities, TABLE, budget) == expected
    assert is_reachable(TABLE, budget)  # any solution proves it: nothing to warn of
    check_reachable(TABLE, budget)
    # The second of two limits is what cannot be met: how far off it is needs a proof, so no figure is told.
    with pytest.raises(InputError, match="'drawn' cannot be met by any choice of bits"):
        check_reachable(OPPOSED, between(OPPOSED, {"size_bytes": 0.1, "error": 0.1}))


def test_nothing_that_the_solver_prints_is_seen(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def chatty(*given: Any, **options: Any) -> OptimizeResult:
        ctypes.CDLL(None).puts(b"tmpSolver.run();")
        os.write(1, b"debug")
        return milp(*given, **options)

    monkeypatch.setattr(solver, "milp", chatty)
    print("before", end=" ")
    allocate(np.broadcast_to(SPACE.widths, SPACE.allowed.shape), TABLE, between(TABLE, {"bitops": 0.5}))
    print("after")
    ctypes.CDLL(None).fflush(None)
    assert capfd.readouterr() == ("before after\n", "")


@pytest.mark.parametrize("name", ["size_bytes", "bitops", "peak_activation_bytes"])
def test_a_budget_that_every_choice_meets_is_told_and_no_other(name: str) -> None:
    most = max(cost[name] for _, cost in priced(TABLE))
    told = f"budget 'mine' limits nothing, no choice costs more than {name} {most:,.10g}; give less"
    assert Budget({name: most}, "mine").note(TABLE) == told
    assert not Budget({name: np.nextafter(most, 0)}, "mine").note(TABLE)
    assert not Budget({name: most, "macs": 1.0}, "mine").note(TABLE)
