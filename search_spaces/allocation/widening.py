"""What a budget leaves over is spent: a choice of bits is widened until no single decision can be any wider.

The integer program maximises a worth, and where the worth does not rise with the width (θ that is undecided or sure of
few bits, sensitivities that are noise, random numbers) its best choice leaves some of the budget unspent.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike

from search_spaces.allocation.monotone import no_narrower, no_wider
from search_spaces.allocation.program import Cells, allocate
from search_spaces.allocation.solver import NotDecided, warn_not_proven
from search_spaces.costs.budgets import Budget, parse_budget
from search_spaces.costs.table import CostTable
from search_spaces.fields import Pair

_SLACK = 1e-12  # what adding up in another order can change, relative to the limit; an exact check follows
_RISE = 1e-3  # of the largest difference in worth: what a widening that costs no worth is worth at least


def allocate_widest(
    utilities: ArrayLike,
    table: CostTable,
    budget: Budget | Mapping[str, str | float] | None = None,
    bound: Sequence[Pair] | None = None,
) -> Cells:
    """Return what :func:`allocate` chooses, widened until no single widening fits the ``budget`` (or the ``bound``).

    A second program on top of the first: every decision is at least as wide, in weights and in activations, as in the
    first, and the utility of a cell is its worth plus the logarithm of its width, weighed so that any widening pays.
    Cells of utility -inf stay closed. Without a budget nothing is widened: there is none to spend.
    """
    cells = allocate(utilities, table, budget, bound)
    if budget is None:
        return cells
    worth = np.array(utilities, dtype=np.float64)
    if bound is not None:
        worth = np.where(no_wider(table.space, bound), worth, -np.inf)
    return widened(cells, worth, table, parse_budget(budget, table))


def widened(cells: Cells, worth: np.ndarray, table: CostTable, budget: Budget) -> Cells:
    """Cells that meet ``budget``, widened as by :func:`allocate_widest`; ``worth`` (D, Kw, Ka) is -inf where closed."""
    if not any(_widenings(cells, worth, table, budget)):
        return cells
    paying = _paying(np.where(no_narrower(table.space, _pairs(table, cells)), worth, -np.inf), table)
    try:
        cells = allocate(paying, table, budget)
    except NotDecided:  # the cells at hand meet the budget, whatever the solver did not find in time
        warn_not_proven(f"the choice of bits within '{budget.label}'")
    # The program has left nothing, unless the solver was stopped by its clock.
    while steps := list(_widenings(cells, worth, table, budget)):
        index, cell = max(steps, key=lambda step: paying[step[0], *step[1]] - paying[step[0], *cells[step[0]]])
        cells = [*cells[:index], cell, *cells[index + 1 :]]
    return cells


def _pairs(table: CostTable, cells: Cells) -> list[Pair]:
    return [table.space.pair(*cell) for cell in cells]


def _widenings(
    cells: Cells, worth: np.ndarray, table: CostTable, budget: Budget
) -> Iterator[tuple[int, tuple[int, int]]]:
    """Decisions that can take a wider open cell by themselves, each with such a cell; the budget stays met."""
    rows, columns = np.transpose(cells)
    numbers = np.arange(len(cells))
    pairs = _pairs(table, cells)
    fits = table.space.allowed & (worth > -np.inf) & no_narrower(table.space, pairs)
    spent = table.cells_cost(cells)
    for name, limit in budget.limits.items():
        entries, most = table.entries[name], limit * (1 + _SLACK)
        more = 0.0 if table.costs[name].combine == "max" else spent[name] - entries[numbers, rows, columns]
        fits &= entries + np.reshape(more, (-1, 1, 1)) <= most
    for index, row, column in np.argwhere(fits):
        cell = int(row), int(column)
        if table.space.pair(*cell) != pairs[index]:
            wider = [*cells[:index], cell, *cells[index + 1 :]]
            if budget.met_by(table.cells_cost(wider)):
                yield int(index), cell


def _paying(worth: np.ndarray, table: CostTable) -> np.ndarray:
    """The worth (D, Kw, Ka) plus the log of the width, by the least weight at which wider is always worth more."""
    space = table.space
    is_open = space.allowed & (worth > -np.inf)
    value = np.where(is_open, worth, 0.0).reshape(len(worth), -1)
    width = np.log(np.maximum(space.widths, 0.5)).ravel()
    pairs = np.array([space.pair(*cell) for cell in np.ndindex(*space.widths.shape)])
    wider = (pairs[None] >= pairs[:, None]).all(2) & (pairs[None] != pairs[:, None]).any(2)  # [narrow, wide]
    both = wider & is_open.reshape(len(worth), -1)[:, :, None] & is_open.reshape(len(worth), -1)[:, None, :]
    drop = np.where(both, value[:, :, None] - value[:, None, :], 0.0)
    rise = np.where(wider, width[None] - width[:, None], 1.0)
    weight = max(0.0, (drop / rise).max(initial=0.0)) + _RISE * (np.abs(drop).max(initial=0.0) or 1.0)
    return np.where(is_open, worth + weight * width.reshape(space.widths.shape), -np.inf)
