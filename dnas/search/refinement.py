"""A choice of bits refined where its budget lies: the exact program over what single steps do to the loss there.

The programs of :mod:`dnas.search.controls` add up what each width costs in a net of the widest choice. At few bits
layers depend on each other: what a step is worth in one follows from what the others have. So the loss of every single
step is measured at a choice that spends the budget, the program takes the best steps that fit together, and what it
finds is where steps are measured next, as long as the loss falls (ours; a trust region as of sequential programming).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from search_spaces.allocation.cuts import Cut
from search_spaces.allocation.monotone import no_wider
from search_spaces.allocation.program import Cells, best_within, dominated
from search_spaces.allocation.solver import NotDecided, warn_not_proven
from search_spaces.allocation.widening import widened
from search_spaces.costs.budgets import Budget
from search_spaces.costs.table import CostTable
from search_spaces.fields import Pair

ROUNDS = 3
_SHARE = 0.25  # of the decisions may change at once, at first
_LEAST = 2  # one wider, another narrower

LossOf = Callable[[Cells], float]
"""The loss of one choice of bits; what is no finite number counts as the worst."""


def refined(
    start: Cells,
    table: CostTable,
    budget: Budget,
    loss_of: LossOf,
    *,
    bound: Sequence[Pair] | None = None,
    rounds: int = ROUNDS,
) -> tuple[Cells, float]:
    """The best choice within ``budget`` (and ``bound``) that steps from ``start`` lead to, and its loss.

    ``start`` is within them. In each of the ``rounds`` at most a quarter of the decisions change; where that does not
    lower the loss, half as many may. What is found is spent as by :func:`allocate_widest`.
    """
    is_open = _open_cells(table, budget, bound)
    best, least = start, loss_of(start)
    for _ in range(rounds):
        gains = _gains(best, least, is_open, loss_of)
        found = _lower(best, least, gains, table, budget, loss_of)
        if found is None:
            break
        best, least = found
    return best, least


def _open_cells(table: CostTable, budget: Budget, bound: Sequence[Pair] | None) -> np.ndarray:
    is_open = table.space.allowed & ~dominated(table, budget, bound)
    return is_open if bound is None else is_open & no_wider(table.space, bound)


def _gains(cells: Cells, loss: float, is_open: np.ndarray, loss_of: LossOf) -> np.ndarray:
    """How much lower than ``loss`` each single step brings it, (D, Kw, Ka); 0 for no step, -inf for what is none."""
    gains = np.full(is_open.shape, -np.inf)
    for index, cell in single_steps(cells, is_open):
        gain = loss - loss_of([*cells[:index], cell, *cells[index + 1 :]])
        gains[index, *cell] = gain if math.isfinite(gain) else -np.inf
    for index, cell in enumerate(cells):
        gains[index, *cell] = 0.0
    return gains


def _lower(
    cells: Cells, loss: float, gains: np.ndarray, table: CostTable, budget: Budget, loss_of: LossOf
) -> tuple[Cells, float] | None:
    """The most gainful steps within the budget that lower the loss together, and the loss; None where none do."""
    count = len(cells)
    most = max(_LEAST, math.ceil(_SHARE * count))
    while most >= _LEAST:
        try:
            found = best_within(gains, table, budget.limits, [Cut(cells, count, count - most)])
        except NotDecided:  # the cells at hand are within the budget
            warn_not_proven(f"what was refined within '{budget.label}'")
            return None
        if found is None or found.cells == cells:
            return None
        other = widened(found.cells, gains, table, budget)
        lower = loss_of(other)
        if lower < loss:
            return other, lower
        most //= 2
    return None


def single_steps(cells: Cells, is_open: np.ndarray) -> Iterator[tuple[int, tuple[int, int]]]:
    """The open cells next to those of a choice, each with its decision: no other open one lies between the two."""
    for index, here in enumerate(cells):
        offered = [(int(row), int(column)) for row, column in np.argwhere(is_open[index])]
        for cell in offered:
            between = (other for other in offered if other not in (here, cell))
            if cell != here and not any(_lies_between(other, here, cell) for other in between):
                yield index, cell


def _lies_between(cell: tuple[int, int], one: tuple[int, int], other: tuple[int, int]) -> bool:
    return all(min(a, b) <= c <= max(a, b) for c, a, b in zip(cell, one, other, strict=True))
