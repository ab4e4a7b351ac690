"""Budgets projected from the largest down, each bounded by the one before: a larger one is nowhere narrower.

Widths are compared in bits, of weights and of activations apart; a skipped branch has 0 of both and is narrower than
anything else.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from search_spaces.costs.budgets import Budget
from search_spaces.costs.table import CostTable
from search_spaces.errors import InputError
from search_spaces.fields import Pair
from search_spaces.spaces import PrecisionSpace


def from_largest(budgets: Sequence[Budget], table: CostTable) -> list[int]:
    """The positions of ``budgets``, the largest first.

    Compared is the limit on the first cost that all of them limit, in the order in which the first budget names its
    costs; where that is equal, the next such cost, then every other cost (no limit being the largest). Where no cost is
    limited by all, compared is each budget's tightest limit, as a share of what the dearest choice of bits costs.
    Equal budgets stay in order.
    """
    names = list(dict.fromkeys(name for budget in budgets for name in budget.limits))
    shared = [name for name in names if all(name in budget.limits for budget in budgets)]

    def size(position: int) -> tuple[float, ...]:
        limits = budgets[position].limits
        if not shared:
            return (min(limit / max(_dearest(table, name), 1e-300) for name, limit in limits.items()),)
        return tuple(limits.get(name, math.inf) for name in [*shared, *(n for n in names if n not in shared)])

    return sorted(range(len(budgets)), key=size, reverse=True)


def no_wider(space: PrecisionSpace, bound: Sequence[Pair]) -> np.ndarray:
    """Allowed cells (D, Kw, Ka) no wider than ``bound``, (weight bits, activation bits) per decision, in either."""
    weights, activations = _bits(space)
    most = np.asarray(bound).reshape(len(space.decisions), 2)
    fits = (weights <= most[:, 0, None, None]) & (activations <= most[:, 1, None, None])
    return space.allowed & fits


def no_narrower(space: PrecisionSpace, least: Sequence[Pair]) -> np.ndarray:
    """Allowed cells (D, Kw, Ka) no narrower than ``least``, (weight bits, activation bits) per decision, in either."""
    weights, activations = _bits(space)
    floor = np.asarray(least).reshape(len(space.decisions), 2)
    fits = (weights >= floor[:, 0, None, None]) & (activations >= floor[:, 1, None, None])
    return space.allowed & fits


def rises_with_width(table: CostTable, budget: Budget) -> bool:
    """Whether no decision gets cheaper, in any cost that is limited, by being wider in one width and no narrower."""
    space = table.space
    weights, activations = (np.broadcast_to(bits, space.widths.shape).ravel() for bits in _bits(space))
    wider = (weights[None] >= weights[:, None]) & (activations[None] >= activations[:, None])  # [narrow, wide]
    allowed = space.allowed.reshape(len(space.decisions), -1)
    both = wider & allowed[:, :, None] & allowed[:, None, :]
    entries = (table.entries[name].reshape(len(allowed), -1) for name in budget.limits)
    return not any((both & (each[:, None, :] < each[:, :, None])).any() for each in entries)


def check_bounds(table: CostTable, budgets: Sequence[Budget]) -> None:
    """Raise :class:`InputError` where a bound could leave a budget that can be met without any choice.

    It cannot where every decision has one choice that is the narrowest in both widths and the cheapest in every cost
    that is limited: it lies within any bound, and all decisions at theirs meet every budget that can be met.
    """
    space = table.space
    costs = {name: table.entries[name] for budget in budgets for name in budget.limits} if len(budgets) > 1 else {}
    weights, activations = _bits(space)
    for index, decision in enumerate(space.decisions if costs else ()):
        allowed = space.allowed[index]
        narrowest = allowed & (weights == weights[allowed].min()) & (activations == activations[allowed].min())
        if not narrowest.any():
            raise InputError(
                f"search.monotone: '{decision.name}' has no choice that is the narrowest in weights and in activations,"
                " so a smaller budget may find none within the bound of a larger one; offer such a pair, or set "
                "search.monotone = false"
            )
        for name, entries in costs.items():
            if entries[index][narrowest].min() > entries[index][allowed].min():
                raise InputError(
                    f"search.monotone: the narrowest choice of '{decision.name}' is not its cheapest in {name}, "
                    "so a smaller budget may find none within the bound of a larger one; set search.monotone = false"
                )


def _bits(space: PrecisionSpace) -> tuple[np.ndarray, np.ndarray]:
    """Weight and activation bits of every cell, (Kw, Ka) each; 0 and 0 where the branch is skipped."""
    weights, activations = np.meshgrid(space.weight_bits, space.activation_bits, indexing="ij")
    return weights, np.where(weights == 0, 0, activations)


def _dearest(table: CostTable, name: str) -> float:
    """What the dearest choice of every decision costs together."""
    most = np.where(table.space.allowed, table.entries[name], 0.0).max(axis=(1, 2))
    return table.costs[name].total(most.tolist(), table.constants[name])
