"""One-hot samples to train the weights at: a supernet ranks assignments whose widths were trained alone, not mixed.

Each step runs the widest assignment, the narrowest, and some that cost about what a budget allows (the sandwich rule,
arXiv 1903.05134). Those are drawn from the distribution of most entropy whose expected cost is the budget: every
decision by itself, the probability of a cell falling exponentially with what it costs (ours).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from dnas.config.job import SearchSection
from search_spaces.allocation.program import Cells, dominated
from search_spaces.costs.budgets import Budget
from search_spaces.costs.table import CostTable

_HALVINGS = 100


def warmup_passes(section: SearchSection) -> int:
    """How many forward and backward passes one step of the warm-up takes."""
    return 2 + section.sandwich_samples if section.warmup == "sandwich" else 1


class Sandwich:
    """The assignments of each step: the widest, the narrowest, and ``drawn`` ones of about the cost of a budget.

    It is one of ``budgets``, drawn at random. Without budgets every allowed cell is as likely as any other.
    """

    def __init__(self, table: CostTable, budgets: Sequence[Budget], drawn: int) -> None:
        space = table.space
        self.widest = [_extreme(cells, space.widths) for cells in space.allowed]
        self.narrowest = [_extreme(cells, -space.widths) for cells in space.allowed]
        limited: Sequence[Budget | None] = budgets or [None]
        probabilities = [cell_probabilities(table, budget).reshape(len(space.allowed), -1) for budget in limited]
        self._probabilities = torch.from_numpy(np.stack(probabilities))
        self._drawn, self._columns = drawn, len(space.activation_bits)

    def draw(self, generator: torch.Generator) -> list[Cells]:
        """The assignments of one step, the widest first."""
        chosen = torch.randint(len(self._probabilities), (self._drawn,), generator=generator).tolist()
        between = [
            torch.multinomial(self._probabilities[index], 1, generator=generator)[:, 0].tolist() for index in chosen
        ]
        return [self.widest, *([divmod(cell, self._columns) for cell in cells] for cells in between), self.narrowest]


def _extreme(allowed: np.ndarray, worth: np.ndarray) -> tuple[int, int]:
    row, column = divmod(int(np.where(allowed, worth, -np.inf).argmax()), allowed.shape[1])
    return row, column


def cell_probabilities(table: CostTable, budget: Budget | None) -> np.ndarray:
    """Probabilities (D, Kw, Ka) of cells, exponential in their cost, at which the tightest limit is met in expectation.

    A limit that is out of reach gives the cheapest, or the dearest, cells. What the search never takes is not drawn.
    """
    allowed = table.space.allowed
    if budget is None:
        return np.asarray(allowed / allowed.sum((1, 2), keepdims=True))
    allowed, limits = allowed & ~dominated(table, budget), budget.limits
    entries = {name: np.where(allowed, table.entries[name], 0.0) for name in limits}
    price = np.where(allowed, sum(entries[name] / limit for name, limit in limits.items()), np.inf)
    price = price - price.min((1, 2), keepdims=True)
    finite = price[np.isfinite(price) & (price > 0)]
    most = 50 / finite.min(initial=1.0)
    below, above = -most, most
    for _ in range(_HALVINGS):
        middle = (below + above) / 2
        over = _tightest(table, entries, limits, _tilted(price, allowed, middle)) > 1
        below, above = (middle, above) if over else (below, middle)
    return _tilted(price, allowed, above)


def _tilted(price: np.ndarray, allowed: np.ndarray, slope: float) -> np.ndarray:
    logits = np.where(allowed, -slope * np.where(allowed, price, 0.0), -np.inf)
    raised = np.exp(logits - logits.max((1, 2), keepdims=True))
    return np.asarray(raised / raised.sum((1, 2), keepdims=True))


def _tightest(
    table: CostTable, entries: Mapping[str, np.ndarray], limits: Mapping[str, float], probabilities: np.ndarray
) -> float:
    """The largest expected cost relative to its limit."""
    ratios = []
    for name, limit in limits.items():
        expected, constant = (probabilities * entries[name]).sum((1, 2)), table.constants[name]
        spent = max(expected.max(), constant) if table.costs[name].combine == "max" else expected.sum() + constant
        ratios.append(spent / limit)
    return float(max(ratios))
