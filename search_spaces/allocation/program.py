"""The exact step: choose one cell per decision, best in total utility, within every budget.

An integer linear program (scipy.optimize.milp) that serves the projection of a search's result onto a budget,
the training-free control, and the question whether a budget can be met at all.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import LinearConstraint
from scipy.sparse import csr_array, vstack

from search_spaces.allocation.cuts import Beyond, Cut
from search_spaces.allocation.monotone import no_wider
from search_spaces.allocation.solver import most_useful, not_decided, warn_not_proven
from search_spaces.costs.budgets import Budget, parse_budget
from search_spaces.costs.table import CostTable
from search_spaces.errors import InputError, JobError, one_line
from search_spaces.fields import Pair

Cells = list[tuple[int, int]]


class Found(NamedTuple):
    """The cells that a program found, and whether they are proven to be the best."""

    cells: Cells
    proven: bool = True


# The solver's tolerances are absolute, 1e-6: limits and the spread of the utilities are brought to these figures.
_LIMIT, _SPREAD = 1e3, 10.0
_MOST_TRIES = 64
_EPSILON = 1e-12  # what adding up in another order can change, relative to the sum


def allocate(
    utilities: ArrayLike,
    table: CostTable,
    budget: Budget | Mapping[str, str | float] | None = None,
    bound: Sequence[Pair] | None = None,
) -> Cells:
    """Return the cell of each decision that maximises the summed utility within ``budget``.

    ``utilities`` is (D, Kw, Ka); ``budget`` may be written as in a job file. Cells outside ``space.allowed``
    and those of utility -inf are never taken. The result never exceeds the budget, and is nowhere wider than ``bound``,
    (weight bits, activation bits) per decision. Raises :class:`InputError` with the nearest possible figure when
    nothing meets the budget, :class:`JobError` when the solver could not tell in its time; warns (``NotProven``) when
    it found a solution and not in its time that there is no better one.
    """
    utilities = _checked(utilities, table)
    if budget is not None:
        budget = parse_budget(budget, table)
    if bound is not None:
        utilities = np.where(no_wider(table.space, bound), utilities, -np.inf)
    label = budget.label if budget else "none"
    found = best_within(utilities, table, budget.limits if budget else {})
    if found is None:
        if bound is not None and (budget is None or is_reachable(table, budget)):
            raise InputError(f"budget '{label}' cannot be met within the bound of a larger one")
        if budget is None:
            raise InputError("the utilities leave some decision without any cell: all of its are -inf")
        raise InputError(unreachable(table, budget))
    if not found.proven:
        warn_not_proven(f"the choice of bits within '{label}'")
    return found.cells


def _checked(utilities: ArrayLike, table: CostTable) -> np.ndarray:
    """The utilities in float64; :class:`InputError` where they are not (D, Kw, Ka), or not numbers."""
    try:
        found = np.asarray(utilities, dtype=np.float64)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"utilities are no array of numbers: {one_line(error)}") from error
    if found.shape != table.space.allowed.shape:
        raise InputError(
            f"utilities have the shape {found.shape}; the space has {table.space.allowed.shape} decisions, widths of "
            "weights and widths of activations"
        )
    if np.isnan(found).any() or np.isposinf(found).any():
        raise InputError("utilities must be finite, or -inf for a cell that is never taken; one is NaN or inf")
    return found


def dominated(table: CostTable, budget: Budget, bound: Sequence[Pair] | None = None) -> np.ndarray:
    """Cells (D, Kw, Ka) for which another allowed one is at least as wide in both, and no dearer in any limited cost.

    With ``bound`` that other one is among those that are no wider than it. Under a budget on size alone, for example,
    only the widest activations are not dominated.
    """
    space = table.space
    allowed = space.allowed if bound is None else no_wider(space, bound)
    found = np.zeros(allowed.shape, dtype=bool)
    grid = len(space.weight_bits), len(space.activation_bits)
    for row, column in np.ndindex(*grid):
        for other_row, other_column in np.ndindex(*grid):
            wider = other_row >= row and other_column >= column and (other_row, other_column) != (row, column)
            if not wider:
                continue
            no_dearer = allowed[:, other_row, other_column].copy()
            for name in budget.limits:
                entries = table.entries[name]
                no_dearer &= entries[:, other_row, other_column] <= entries[:, row, column]
            found[:, row, column] |= no_dearer
    return found


def unreachable(table: CostTable, budget: Budget) -> str:
    """Say why a budget cannot be met and what the nearest possible figure is."""
    met: dict[str, float] = {}
    for name, limit in budget.limits.items():
        try:
            least = _least(table, name, met)
        except JobError:  # that it cannot be met is known, how far it is off is not
            break
        if least > limit:
            given = f" with {' and '.join(met)} held" if met else ""
            return (
                f"budget '{budget.label}' cannot be met: {name} would have to be {_figure(limit)}, "
                f"the least possible{given} is {_figure(least)}; raise the budget or offer fewer bits"
            )
        met[name] = limit
    return f"budget '{budget.label}' cannot be met by any choice of bits"


def is_reachable(table: CostTable, budget: Budget) -> bool:
    """Whether some assignment of the space meets ``budget``; :class:`JobError` where the solver could not tell."""
    return best_within(-table.entries[next(iter(budget.limits))], table, budget.limits) is not None


def check_reachable(table: CostTable, budget: Budget) -> None:
    """Raise :class:`InputError` unless some assignment of the space meets ``budget``."""
    if not is_reachable(table, budget):
        raise InputError(unreachable(table, budget))


def _least(table: CostTable, name: str, limits: Mapping[str, float]) -> float:
    """The least exact cost that an assignment within ``limits`` can have."""
    entries = table.entries[name]
    if table.costs[name].combine == "sum":
        return _cost(table, name, best_within(-entries, table, limits))
    # The least maximum: the smallest entry that can serve as a limit of its own.
    values = np.unique(entries[table.space.allowed])
    low, high = 0, len(values) - 1
    while low < high:
        middle = (low + high) // 2
        limit = max(values[middle], table.constants[name])
        low, high = (low, middle) if best_within(-entries, table, {**limits, name: limit}) else (middle + 1, high)
    return max(float(values[low]), table.constants[name])


def _cost(table: CostTable, name: str, found: Found | None) -> float:
    """The cost of what was found; :class:`JobError` where it is not known to be the least."""
    if found is None:
        return math.inf
    if not found.proven:
        raise not_decided("the least possible figure was not found in time")
    return table.cells_cost(found.cells)[name]


def _figure(value: float) -> str:
    """The value with about six digits, rounded up: a budget of what is printed is one that ``value`` meets."""
    decimals = max(0, 5 - math.floor(math.log10(value))) if 0 < value < 1e6 and value != int(value) else 0
    return f"{math.ceil(value * 10**decimals) / 10**decimals:,.{decimals}f}"


def best_within(
    utilities: np.ndarray, table: CostTable, limits: Mapping[str, float], cuts: Sequence[Cut | Beyond] = ()
) -> Found | None:
    """The best cells whose exact costs are within ``limits``; None where it is proven that there are none."""
    if not cuts:  # most questions whether a budget can be met are answered by what is best without it
        best = _unlimited(utilities, table)
        if best is None or Budget(limits, "").met_by(table.cells_cost(best.cells)):
            return best
    left_out, proven = list(cuts), True
    for _ in range(_MOST_TRIES):
        found = _solve(utilities, table, limits, left_out)
        if found is None:
            return None
        proven &= found.proven
        if Budget(limits, "").met_by(table.cells_cost(found.cells)):
            return Found(found.cells, proven)
        left_out.append(Cut(found.cells, len(found.cells) - 1))  # over a limit by less than the solver's tolerance
    raise not_decided(f"the best {_MOST_TRIES} choices are over it by less than the solver's tolerance")


def _unlimited(utilities: np.ndarray, table: CostTable) -> Found | None:
    """The best open cell of every decision, the first of equal ones; None where a decision has none."""
    open_worth = np.where(table.space.allowed, utilities, -np.inf).reshape(len(utilities), -1)
    if np.isneginf(open_worth.max(axis=1)).any():
        return None
    columns = utilities.shape[2]
    return Found([(int(flat) // columns, int(flat) % columns) for flat in open_worth.argmax(axis=1)])


def _solve(
    utilities: np.ndarray, table: CostTable, limits: Mapping[str, float], cuts: Sequence[Cut | Beyond]
) -> Found | None:
    """One integer program over x (D * Kw * Ka), 1 where a cell is chosen; None when it has no solution."""
    open_cells = table.space.allowed & (utilities > -np.inf)
    rows: list[csr_array] = []
    bounds: list[tuple[float, float]] = []
    rooms = {name: limit - table.constants[name] for name, limit in limits.items()}
    if any(room < -_EPSILON * limits[name] for name, room in rooms.items()):
        return None
    for name, limit in limits.items():
        most = limit if table.costs[name].combine == "max" else max(rooms[name], 0.0) + _EPSILON * limit
        open_cells &= table.entries[name] <= most
    for name, room in rooms.items():
        if table.costs[name].combine == "sum":
            entries = np.where(open_cells, table.entries[name], 0.0).ravel()
            rows.append(csr_array(entries[None, :] * (_LIMIT / max(room, _EPSILON * limits[name]))))
            bounds.append((-np.inf, _LIMIT))
    decisions, *cell_shape = utilities.shape
    per_decision = math.prod(cell_shape)
    for cut in cuts:
        rows.append(csr_array(cut.counted(utilities.shape).reshape(1, -1)))
        bounds.append(cut.bounds)
    choose_one = csr_array(np.kron(np.eye(decisions), np.ones((1, per_decision))))
    constraints = [LinearConstraint(choose_one, 1, 1)]
    if rows:
        constraints.append(LinearConstraint(vstack(rows), *np.transpose(bounds)))
    found = most_useful(_centred(utilities, open_cells).ravel(), open_cells.ravel(), constraints)
    if found is None:
        return None
    cells = found.x.reshape(decisions, per_decision).argmax(axis=1)
    return Found([(int(cell // cell_shape[1]), int(cell % cell_shape[1])) for cell in cells], found.proven)


def _centred(utilities: np.ndarray, open_cells: np.ndarray) -> np.ndarray:
    """Utilities as losses against each decision's best open cell, brought to the solver's scale; 0 where closed."""
    best = np.where(open_cells, utilities, -np.inf).max(axis=(1, 2), keepdims=True)
    with np.errstate(invalid="ignore"):
        losses = np.where(open_cells, utilities - best, 0.0)
    return losses * (_SPREAD / max(np.abs(losses).max(), 1e-300))
