"""The exact step: choose one cell per decision, best in total utility, within every budget.

An integer linear program (scipy.optimize.milp) that serves the projection of a search's result onto a budget,
the training-free control, and the question whether a budget can be met at all.
"""

from __future__ import annotations

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_array, vstack

from search_spaces.budgets import Budget
from search_spaces.costs import CostTable
from search_spaces.errors import InputError

Cells = list[tuple[int, int]]


def allocate(utilities: np.ndarray, table: CostTable, budget: Budget | None) -> Cells:
    """Return the cell of each decision that maximises the summed utility within ``budget``.

    ``utilities`` is (D, Kw, Ka); cells outside ``space.allowed`` are never taken. The result never exceeds the
    budget. Raises :class:`InputError` with the nearest possible figure when nothing meets it.
    """
    limits = dict(budget.limits) if budget else {}
    for _ in range(8):
        cells = _solve(utilities, table, limits)
        if cells is None:
            break
        exact = table.cells_cost(cells)
        excess = {name: exact[name] - limit for name, limit in (budget.limits if budget else {}).items()}
        if all(value <= 0 for value in excess.values()):
            return cells
        # The solver's tolerance let a row through: tighten that row by what it overshot, and a little more.
        limits = {name: limits[name] - max(0.0, 2 * value) for name, value in excess.items()}
    assert budget is not None
    raise InputError(unreachable(table, budget))


def unreachable(table: CostTable, budget: Budget) -> str:
    """Say why a budget cannot be met and what the nearest possible figure is."""
    met: dict[str, float] = {}
    for name, limit in budget.limits.items():
        cells = _solve(-_scaled(table, name), table, met)
        nearest_cost = table.cells_cost(cells)[name] if cells is not None else float("nan")
        if cells is None or nearest_cost > limit:
            given = f" with {' and '.join(met)} held" if met else ""
            return (
                f"budget '{budget.label}' cannot be met: {name} would have to be {limit:,.0f}, "
                f"the least possible{given} is {nearest_cost:,.0f}; raise the budget or offer fewer bits"
            )
        met[name] = limit
    return f"budget '{budget.label}' cannot be met by any choice of bits"


def check_reachable(table: CostTable, budget: Budget) -> None:
    """Raise :class:`InputError` unless some assignment of the space meets ``budget``."""
    allocate(-_scaled(table, next(iter(budget.limits))), table, budget)


def _scaled(table: CostTable, name: str) -> np.ndarray:
    entries = table.entries[name]
    return entries / max(entries.max(), 1e-300)


def _solve(utilities: np.ndarray, table: CostTable, limits: dict[str, float]) -> Cells | None:
    """One integer program; None when it has no solution."""
    open_cells = table.space.allowed.copy()
    rows, bounds = [], []
    for name, limit in limits.items():
        if table.costs[name].combine == "max":
            open_cells &= table.entries[name] <= limit
            if table.constants[name] > limit:
                return None
            continue
        room = limit - table.constants[name]
        if room < 0:
            return None
        rows.append(table.entries[name].ravel() / max(room, 1e-300))
        bounds.append(1.0)
    decisions, *cell_shape = utilities.shape
    per_decision = int(np.prod(cell_shape))
    choose_one = csr_array(np.kron(np.eye(decisions), np.ones((1, per_decision))))
    constraints = [LinearConstraint(choose_one, 1, 1)]
    if rows:
        constraints.append(LinearConstraint(vstack([csr_array(row[None, :]) for row in rows]), -np.inf, bounds))
    finite = np.where(open_cells, utilities, 0.0).ravel()
    solution = milp(
        -finite,
        constraints=constraints,
        integrality=np.ones(finite.size),
        bounds=Bounds(0, open_cells.ravel().astype(float)),
        options={"mip_rel_gap": 1e-9, "time_limit": 60.0},
    )
    if solution.x is None:
        return None
    chosen = solution.x.reshape(decisions, per_decision).argmax(axis=1)
    return [(int(cell // cell_shape[1]), int(cell % cell_shape[1])) for cell in chosen]
