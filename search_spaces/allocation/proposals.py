"""Several choices of bits within one budget: the best ones that differ in enough decisions, the nearest to a given one.

Diversity cuts as in AMD Quark's mixed-precision planner: each further program leaves out what agrees with an earlier
solution in too many decisions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from search_spaces.allocation.cuts import Cut
from search_spaces.allocation.monotone import no_wider
from search_spaces.allocation.program import Cells, best_within
from search_spaces.allocation.solver import NotDecided, warn_not_proven
from search_spaces.allocation.widening import allocate_widest, widened
from search_spaces.costs.budgets import Budget
from search_spaces.costs.table import CostTable
from search_spaces.fields import Pair

_SHARE_APART = 0.25


def allocate_several(
    utilities: ArrayLike, table: CostTable, budget: Budget, count: int, bound: Sequence[Pair] | None = None
) -> list[Cells]:
    """The ``count`` best choices of summed utility, the best first, each spent as by :func:`allocate_widest`.

    Each differs, before it is widened, from every one before it in at least a quarter of the decisions; there are fewer
    where no more are so different or none is found in the solver's time, and what widening makes equal is given once.
    """
    best = allocate_widest(utilities, table, budget, bound)
    worth = np.asarray(utilities, dtype=np.float64)
    if bound is not None:
        worth = np.where(no_wider(table.space, bound), worth, -np.inf)
    most_equal = len(best) - max(1, math.ceil(_SHARE_APART * len(best)))
    found, cuts = [best], [Cut(best, most_equal)]
    for _ in range(count - 1):
        try:
            other = best_within(worth, table, budget.limits, cuts)
        except NotDecided:  # what was found before stays found
            warn_not_proven(f"what was proposed within '{budget.label}'")
            break
        if other is None:
            break
        cuts.append(Cut(other.cells, most_equal))
        cells = widened(other.cells, worth, table, budget)
        found += [] if cells in found else [cells]
    return found


def nearest_within(
    pairs: Sequence[Pair], table: CostTable, budget: Budget, bound: Sequence[Pair] | None = None
) -> Cells:
    """The choice within ``budget`` that is nearest to the widths ``pairs``, one per decision; then spent.

    The distance is the sum over decisions of |log₂| of the ratios of weight and of activation bits; the program is
    exact. Raises what :func:`allocate` raises.
    """
    space = table.space
    cells = [space.pair(*cell) for cell in np.ndindex(*space.widths.shape)]
    away = np.abs(_logs(cells)[None] - _logs(pairs)[:, None]).sum(2).reshape(space.allowed.shape)
    return allocate_widest(-away, table, budget, bound)


def distance(pairs: Sequence[Pair], others: Sequence[Pair]) -> float:
    """How far two choices are from each other, as :func:`nearest_within` counts it.

    >>> distance([(2, 8), (4, 8)], [(1, 8), (8, 4)])
    3.0
    """
    return float(np.abs(_logs(pairs) - _logs(others)).sum())


def _logs(pairs: Sequence[Pair]) -> np.ndarray:
    """Log₂ of the widths (D, 2); 0 bits, a branch that is skipped, count as half a bit."""
    return np.log2(np.maximum(np.array(pairs, dtype=np.float64), 0.5))
