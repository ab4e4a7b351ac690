"""Is the search healthy? What its last record says about collapse and indecision, in words."""

from __future__ import annotations

import numpy as np

from dnas.search.records import EpochRecord
from search_spaces.allocation.program import Cells
from search_spaces.costs.amounts import number_text
from search_spaces.costs.budgets import Budget
from search_spaces.costs.table import CostTable
from search_spaces.metrics import ACCURACY, Metric

UNDECIDED_ENTROPY = 0.95
GAP_POINTS = 10.0


def diagnose(
    label: str,
    record: EpochRecord,
    free: Cells,
    table: CostTable,
    budget: Budget | None,
    metric: Metric = ACCURACY,
) -> list[str]:
    """Sentences about a finished search; none when it is healthy.

    ``free`` is the argmax of θ, before its projection onto the budget.
    """
    told = []
    name = next(iter(budget.limits)) if budget else "size_bytes"
    entries = np.where(table.space.allowed, table.entries[name], np.nan)
    costs = np.array([entries[index, row, column] for index, (row, column) in enumerate(free)])
    lowest, highest = np.nanmin(entries, axis=(1, 2)), np.nanmax(entries, axis=(1, 2))
    several = highest > lowest
    if budget and several.any():
        limit, spent = budget.limits[name], table.cells_cost(free)[name]
        if (costs == lowest)[several].all() and spent < 0.9 * limit:
            told.append(
                f"{label}: collapse: every decision took its cheapest choice, {name} {number_text(spent)}, although "
                f"the budget {number_text(limit)} allows better; lower search.penalty or warm up longer"
            )
        if (costs == highest)[several].all() and spent > limit:
            told.append(
                f"{label}: collapse: every decision took its dearest choice and the projection alone met the budget; "
                "raise search.penalty, search.epochs or search.theta_learning_rate"
            )
    if record.entropy is not None and record.entropy > UNDECIDED_ENTROPY:
        told.append(
            f"{label}: undecided: θ still has {record.entropy:.0%} of the entropy of a uniform choice, so the decoded "
            "bits are close to arbitrary; raise search.epochs or search.theta_learning_rate"
        )
    gap = 0.0 if record.argmax_score is None else metric.scale * (record.score - record.argmax_score)
    if metric.unit == "%" and metric.gain(gap) > GAP_POINTS:
        told.append(
            f"{label}: the mixture is {abs(gap):.0f} points more accurate than its "
            "argmax: the supernet leans on mixing; raise search.epochs until θ decides, and sample hard "
            "(search.sampling = 'gumbel_hard') if the job does not"
        )
    return told
