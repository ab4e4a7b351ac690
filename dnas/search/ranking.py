"""Does the loss of the supernet rank assignments as fine-tuning does? Kendall's τ over some of equal cost.

Sources: Kendall 1938; the variance of atanh τ, 0.437 / (n - 4), is Fieller, Hartley and Pearson's (1957).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from scipy.stats import kendalltau

from dnas.data.image_sets import ImageSet
from dnas.quantization.calibration import batch_statistics, recalibrate_batchnorm
from dnas.search.evidence import LEAST_ASSIGNMENTS
from dnas.search.supernet import Supernet
from dnas.training.device import Device
from dnas.training.task import Task
from dnas.training.trainer import measure, without_single
from search_spaces.allocation.program import Cells
from search_spaces.allocation.spent import another_widest, can_be_counted
from search_spaces.allocation.widening import allocate_widest
from search_spaces.costs.budgets import Budget
from search_spaces.costs.table import CostTable
from search_spaces.errors import InputError

_TRIES = 20
_FEW_IN_VAIN = 10
_MOST_IN_VAIN = 200
"""Draws in a row that give nothing new: then the budget allows hardly any more, however many are asked for."""
_NORMAL_95 = 1.959964


def rank_correlation(losses: Sequence[float], scores: Sequence[float]) -> dict[str, float | None]:
    """Kendall's τ of low losses with high scores, its standard error and 95 % interval, and its p-value (``chance``).

    A value that is no number counts as the worst. All are None where all losses or all scores are equal.
    """
    worth = [-loss if math.isfinite(loss) else -math.inf for loss in losses]
    found = [score if math.isfinite(score) else -math.inf for score in scores]
    count = len(worth)
    if count < LEAST_ASSIGNMENTS:
        raise InputError(f"Kendall's τ of {count} assignments has no standard error; take {LEAST_ASSIGNMENTS} or more")
    tau, chance = (round(float(value), 12) for value in kendalltau(worth, found))
    if math.isnan(tau):
        return dict.fromkeys(("tau", "error", "low", "high", "chance"))
    spread = math.sqrt(0.437 / (count - 4))
    most = 1 - 2 / (count * (count - 1))  # half a pair from perfect, where atanh ends
    middle = math.atanh(max(-most, min(most, tau)))
    low, high = (math.tanh(middle + sign * _NORMAL_95 * spread) for sign in (-1, 1))
    error = (1 - math.tanh(middle) ** 2) * spread
    return {"tau": tau, "error": error, "low": min(low, tau), "high": max(high, tau), "chance": chance}


def random_assignments(table: CostTable, budget: Budget, count: int, seed: int) -> list[Cells]:
    """So many different assignments that spend the budget, by the exact program over random worths.

    Raises :class:`InputError` where the budget does not allow that many.
    """
    generator, found = np.random.default_rng(seed), list[Cells]()
    draws = latest = 0
    counted = can_be_counted(table, budget)
    while len(found) < count:
        worth, in_vain = generator.random(table.space.allowed.shape), draws - latest
        if counted and in_vain >= _FEW_IN_VAIN:
            # Draws would have to repeat for long to tell that hardly anything else is left; the program knows.
            if (cells := another_widest(worth, table, budget, found)) is None:
                spent = "that spends it" if len(found) == 1 else "that spend it"
                raise InputError(
                    f"{budget.label} allows {_different(len(found))} {spent}, not {count}; {_instead(len(found))}"
                )
            found.append(cells)
            continue
        if in_vain == _MOST_IN_VAIN or draws == _TRIES * count:
            raise InputError(
                f"{draws} draws within {budget.label} gave {_different(len(found))}, not {count}; "
                f"{_instead(len(found))}"
            )
        draws += 1
        cells = allocate_widest(worth, table, budget)
        if cells not in found:
            found.append(cells)
            latest = draws
    return found


def _different(count: int) -> str:
    return "1 assignment" if count == 1 else f"{count} different assignments"


def _instead(count: int) -> str:
    """What to do where a budget allows so many; fewer than the least are no ranking."""
    return "ask for fewer, or name another budget" if count >= LEAST_ASSIGNMENTS else "name another budget"


def supernet_loss(
    supernet: Supernet,
    cells: Cells,
    batches: Iterable[Any],
    images: ImageSet,
    *,
    batch_size: int,
    device: Device,
    task: Task,
) -> float:
    """Loss of one assignment in the supernet on ``images``; BatchNorm is estimated anew on ``batches`` (N, C, H, W)."""
    with supernet.sampled(supernet.one_hot(cells)):
        recalibrate_batchnorm(supernet.network, batches, allow_overflow=True)
        return measure(supernet, images, batch_size, device, task).loss


def loss_by_batch(
    supernet: Supernet, cells: Cells, images: ImageSet, batch_size: int, device: Device, task: Task
) -> float:
    """As :func:`supernet_loss`, with BatchNorm by the statistics of each batch: it ranks as well, and costs less."""
    with batch_statistics(supernet.network), supernet.sampled(supernet.one_hot(cells)):
        return measure(supernet, images, without_single(len(images), batch_size), device, task).loss
