"""Every choice of bits that spends a budget, one after the other, until it is proven that there is no other."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from search_spaces.allocation.cuts import Beyond
from search_spaces.allocation.monotone import no_wider, rises_with_width
from search_spaces.allocation.program import Cells, best_within
from search_spaces.allocation.widening import widened
from search_spaces.costs.budgets import Budget
from search_spaces.costs.table import CostTable


def can_be_counted(table: CostTable, budget: Budget) -> bool:
    """Whether :func:`another_widest` finds all: a choice that no single widening fits is then within no other one."""
    return rises_with_width(table, budget)


def another_widest(utilities: ArrayLike, table: CostTable, budget: Budget, found: Sequence[Cells]) -> Cells | None:
    """What :func:`allocate_widest` could choose beside ``found``; None where it is proven that there is nothing.

    Of choices that are somewhere wider than each of those found, it is the one of most utility, widened. Raises
    :class:`JobError` where the solver could not tell in its time.
    """
    space, worth = table.space, np.asarray(utilities, dtype=np.float64)
    cuts = [Beyond(space.allowed & ~no_wider(space, [space.pair(*cell) for cell in cells])) for cells in found]
    best = best_within(worth, table, budget.limits, cuts)
    return None if best is None else widened(best.cells, worth, table, budget)
