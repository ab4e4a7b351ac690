"""Every choice that a table has, priced once: what the programs are held against."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence

import numpy as np

from search_spaces.allocation.program import Cells
from search_spaces.costs.budgets import Budget
from search_spaces.costs.table import CostTable
from search_spaces.fields import Pair


@functools.lru_cache(maxsize=16)
def priced(table: CostTable) -> list[tuple[Cells, dict[str, float]]]:
    """All assignments with what they cost."""
    open_cells = [np.argwhere(allowed).tolist() for allowed in table.space.allowed]
    every: list[Cells] = [[(i, j) for i, j in cells] for cells in itertools.product(*open_cells)]
    return [(cells, table.cells_cost(cells)) for cells in every]


def every(table: CostTable) -> list[Cells]:
    return [cells for cells, _ in priced(table)]


def within(table: CostTable, budget: Budget, bound: Sequence[Pair] | None = None) -> list[Cells]:
    met = [cells for cells, cost in priced(table) if budget.met_by(cost)]
    return met if bound is None else [cells for cells in met if inside(table, cells, bound)]


def between(table: CostTable, shares: dict[str, float]) -> Budget:
    """Limits at these shares of the way from the least cost to the largest."""
    ends = {name: sorted(cost[name] for _, cost in priced(table)) for name in shares}
    return Budget(
        {name: ends[name][0] + share * (ends[name][-1] - ends[name][0]) for name, share in shares.items()}, "drawn"
    )


def utility(utilities: np.ndarray, cells: Cells) -> float:
    return sum(float(utilities[index, *cell]) for index, cell in enumerate(cells))


def widths(table: CostTable, cells: Cells) -> list[Pair]:
    return [table.space.pair(*cell) for cell in cells]


def inside(table: CostTable, cells: Cells, bound: Sequence[Pair]) -> bool:
    pairs = zip(widths(table, cells), bound, strict=True)
    return all(weight <= most[0] and activation <= most[1] for (weight, activation), most in pairs)


def single_widenings(table: CostTable, cells: Cells, budget: Budget, bound: list[Pair] | None) -> list[Cells]:
    """Every assignment that differs in one decision, which is wider; within budget and bound."""
    found = []
    for index, current in enumerate(widths(table, cells)):
        for row, column in np.argwhere(table.space.allowed[index]).tolist():
            pair = table.space.pair(row, column)
            wider = pair != current and pair[0] >= current[0] and pair[1] >= current[1]
            other = [*cells[:index], (row, column), *cells[index + 1 :]]
            if wider and budget.met_by(table.cells_cost(other)) and (bound is None or inside(table, other, bound)):
                found.append(other)
    return found
