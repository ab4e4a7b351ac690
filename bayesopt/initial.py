"""What a proposer begins with: budgets that can be met, ratios to try first, and how many trials precede the model."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from scipy.stats import rankdata

from bayesopt.proposals import CostRange
from bayesopt.ratios import Limits, RatioSpace
from search_spaces.errors import InputError, nearest


def checked_budgets(space: RatioSpace, targets: Sequence[Limits] | CostRange) -> list[dict[str, float]]:
    """The limits of each budget, the highest of a cost range; :class:`InputError` for what cannot be met."""
    if isinstance(targets, CostRange):
        space.check_reachable({targets.cost: targets.lowest})
        return [{targets.cost: targets.highest}]
    if not targets:
        raise InputError("there is no budget to prune to; give one, several, or a cost range")
    for limits in targets:
        if not limits:
            raise InputError("a budget is empty; without a limit nothing would be pruned")
        space.check_reachable(limits)
    return [dict(limits) for limits in targets]


def ratios_to_try(space: RatioSpace, sensitivity: Mapping[str, float] | None) -> np.ndarray | None:
    """Ratios to try first: the more harmful a group is to prune, the smaller; ranks alone count."""
    if sensitivity is None:
        return None
    for name, value in sensitivity.items():
        if name not in space.names:
            raise InputError(f"the sensitivity names no channel group '{name}'{nearest(name, space.names)}")
        if not math.isfinite(value):
            raise InputError(f"the sensitivity of group '{name}' is {value}; it must be finite")
    harms = np.array([sensitivity.get(space.names[row], math.nan) for row in space.free])
    harms = np.where(np.isnan(harms), np.median(list(sensitivity.values())), harms)
    ranks = rankdata(harms, method="ordinal") - 1
    return 1 - 0.8 * ranks / max(1, len(ranks) - 1)


def first_count(first: int | None, total: int | None, dimensions: int, openings: int) -> int:
    """How many proposals come before the model: openings and a design; half of all trials where these are few."""
    if first is None:
        first = openings + min(10, max(4, dimensions // 2))
        first = min(first, max(openings, (total or 2 * first) // 2))
    if first < 1:
        raise InputError(f"first is {first}; at least one configuration must be tried before a model can be fitted")
    return first
