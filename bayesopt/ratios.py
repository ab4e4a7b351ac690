"""The space of pruning ratios: one number per channel group, and the exact integers that it stands for.

A point x in [0, 1]^D has a coordinate for each *free* group: the group's ratio is its ``max_ratio`` times x. Channels
are whole and often come in multiples, so a point stands for kept counts, and only counts have a cost. A budget is met
by :meth:`RatioSpace.repair`, which moves any point onto it (our construction; methods/pruning.md of the product calls
for it, no paper is known that does the same).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from numbers import Real
from typing import Any, TypeGuard

import numpy as np

from search_spaces.errors import InputError, nearest, told_as

Limits = Mapping[str, float]
"""Cost name → the amount that may not be exceeded."""
KeptCost = Callable[[Mapping[str, int]], Mapping[str, float]]
"""Kept units of every group → exact named costs; fewer units never cost more."""

_BISECTIONS = 30
_WHOLE = ("min_keep", "round_to")
_OPTIONS = ("max_ratio", *_WHOLE)
_REMEMBERED_COSTS = 1 << 16
_EPSILON = 1e-9  # what float arithmetic may add to a whole number before it is rounded up


@dataclass(frozen=True, eq=False)
class RatioSpace:
    """The groups that can be pruned, how far, in which steps, and what the remaining units cost.

    ``max_ratio`` (in [0, 1)), ``min_keep`` and ``round_to`` (at least 1) are one number for all groups or one for each.
    ``fixed`` maps a group to a ratio that is not searched. Kept counts are multiples of ``round_to``, or all units.

    >>> space = RatioSpace(("a", "b"), (8, 8), lambda kept: {"size_bytes": float(sum(kept.values()))}, round_to=2)
    >>> space.counts((0.0, 0.5)), space.repair((0.0, 0.5), {"size_bytes": 11})
    ((8, 6), (8, 2))
    """

    names: tuple[str, ...]
    units: tuple[int, ...]
    cost: KeptCost
    max_ratio: float | Sequence[float] = 0.9
    min_keep: int | Sequence[int] = 1
    round_to: int | Sequence[int] = 1
    fixed: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for key in ("names", "units"):  # lists and arrays are as good
            object.__setattr__(self, key, tuple(getattr(self, key)))
        self._check_groups()
        for option in _OPTIONS:
            self._check_length(option)
        for row, name in enumerate(self.names):
            self._check_ratio(f"max_ratio of group '{name}'", self._option("max_ratio", row))
            for option, value in (("units", self.units[row]), *((o, self._option(o, row)) for o in _WHOLE)):
                if not is_number(value) or not math.isfinite(value) or value != int(value) or value < 1:
                    raise InputError(f"{option} of group '{name}' is {value}; it must be a whole number, at least 1")
        if not isinstance(self.fixed, Mapping):
            raise InputError(f"fixed is {self.fixed!r}; give ratios by the names of their groups")
        for name, ratio in self.fixed.items():
            if name not in self.names:
                raise InputError(f"fixed names no channel group '{name}'{nearest(str(name), self.names)}")
            self._check_ratio(f"the fixed ratio of group '{name}'", ratio)

    def _check_groups(self) -> None:
        if not callable(self.cost):
            raise InputError(f"cost is {self.cost!r}; give a function of the kept units of every group")
        if len(set(self.names)) != len(self.names):
            raise InputError("two channel groups have the same name; every group needs its own")
        if len(self.units) != len(self.names):
            raise InputError(f"there are {len(self.names)} channel groups but {len(self.units)} numbers of units")

    def _check_length(self, option: str) -> None:
        given = getattr(self, option)
        if is_number(given):
            return
        try:
            count = 0 if isinstance(given, str | Mapping) else len(given)
        except TypeError:  # an array without dimensions has no length either
            count = 0
        if not count:
            raise InputError(f"{option} is {given!r}; give a number, or one for each channel group in their order")
        if count != len(self.names):
            raise InputError(f"{option} has {count} entries for {len(self.names)} channel groups")

    def _check_ratio(self, what: str, ratio: Any) -> None:
        if not is_number(ratio) or not 0 <= ratio < 1:
            raise InputError(f"{what} is {ratio}; a ratio lies in [0, 1)")

    def _option(self, option: str, row: int) -> Any:
        return self._options[option][row]

    @cached_property
    def _options(self) -> dict[str, list[Any]]:
        """What is asked of each group."""
        found = {}
        for option in _OPTIONS:
            given = getattr(self, option)
            values = [given] * len(self.names) if is_number(given) else given
            found[option] = [float(value) if is_number(value) else value for value in values]
        return found

    def _kept(self, row: int, ratio: float) -> int:
        """Units of group ``row`` that stay at ``ratio``: never fewer than asked, in whole steps."""
        step, units = int(self._option("round_to", row)), int(self.units[row])
        least = max(self._option("min_keep", row), units * (1 - ratio))
        return min(units, step * math.ceil(least / step - _EPSILON))

    @cached_property
    def levels(self) -> tuple[tuple[int, ...], ...]:
        """The counts that each group can have, ascending; a fixed group has one."""
        found: list[tuple[int, ...]] = []
        for row, name in enumerate(self.names):
            units, step = int(self.units[row]), int(self._option("round_to", row))
            if name in self.fixed:
                found.append((self._kept(row, self.fixed[name]),))
                continue
            least = self._kept(row, self._option("max_ratio", row))
            found.append(tuple(sorted({min(units, count) for count in range(least, units + step, step)})))
        return tuple(found)

    @cached_property
    def free(self) -> tuple[int, ...]:
        """The groups that are searched: not fixed, and with more than one level."""
        return tuple(row for row, levels in enumerate(self.levels) if len(levels) > 1)

    @cached_property
    def _remembered(self) -> Callable[[tuple[int, ...]], dict[str, float]]:
        return lru_cache(_REMEMBERED_COSTS)(self._asked)

    def _asked(self, counts: tuple[int, ...]) -> dict[str, float]:
        """What the cost function says of counts; :class:`InputError` where it fails or gives no finite amounts."""
        called = (
            "cost is called with the kept units of every group by its name, and returns amounts by the names of costs"
        )
        with told_as(lambda reason: f"the costs of the counts {counts} failed: {reason}; {called}"):
            found = {name: float(amount) for name, amount in self.cost(self.named(counts)).items()}
        for name, amount in found.items():
            if not math.isfinite(amount):
                raise InputError(f"the cost '{name}' of the counts {counts} is {amount}; it must be finite")
        return found

    def named(self, counts: Sequence[int]) -> dict[str, int]:
        """The counts by the names of their groups."""
        if len(counts) != len(self.names):
            raise InputError(f"there are {len(counts)} counts for {len(self.names)} channel groups")
        return {name: int(count) for name, count in zip(self.names, counts, strict=True)}

    def costs(self, counts: Sequence[int]) -> dict[str, float]:
        """The exact costs of kept counts, asked of ``cost`` once for each."""
        return self._remembered(tuple(map(int, counts)))

    def meets(self, counts: Sequence[int], limits: Limits) -> bool:
        """Whether no limit is exceeded."""
        costs = self.costs(counts) if limits else {}
        for name in limits:
            if name not in costs:
                raise InputError(f"there is no cost '{name}'; there are {', '.join(costs)}{nearest(str(name), costs)}")
        return all(costs[name] <= limit for name, limit in limits.items())

    def counts(self, x: Sequence[float] | np.ndarray) -> tuple[int, ...]:
        """The counts that a point (D,) stands for: one per group, fixed ones included."""
        if len(x) != len(self.free):
            raise InputError(f"a point has a coordinate for each of {len(self.free)} free groups, got {len(x)}")
        kept = [levels[-1] for levels in self.levels]
        for row, coordinate in zip(self.free, x, strict=True):
            kept[row] = self._kept(row, self._option("max_ratio", row) * float(coordinate))
        return tuple(kept)

    def point(self, counts: Sequence[int]) -> tuple[float, ...]:
        """The point (D,) of kept counts, in [0, 1]; :meth:`counts` leads back."""
        ratios = ((row, 1 - counts[row] / self.units[row]) for row in self.free)
        return tuple(min(1.0, ratio / self._option("max_ratio", row)) for row, ratio in ratios)  # 1 - 49/50 > 0.02

    def least(self) -> tuple[int, ...]:
        """The cheapest counts that can be reached: every free group pruned as far as it may be."""
        return tuple(levels[0] for levels in self.levels)

    def most(self) -> tuple[int, ...]:
        """The dearest counts: nothing pruned but what is fixed."""
        return tuple(levels[-1] for levels in self.levels)

    def check_reachable(self, limits: Limits) -> None:
        """Raise :class:`InputError` with the nearest amount if a limit is out of reach or names no cost."""
        costs = self.costs(self.least())
        for name, limit in limits.items():
            if name not in costs:
                raise InputError(f"there is no cost '{name}'; there are {', '.join(costs)}{nearest(name, costs)}")
            if math.isnan(limit):
                raise InputError(f"the limit on {name} is not a number")
            if costs[name] > limit:
                raise InputError(
                    f"{name} {limit:g} cannot be reached by pruning: with every group at its largest ratio it is still "
                    f"{costs[name]:.10g}; raise the budget or max_ratio"
                )

    def repair(self, x: Sequence[float] | np.ndarray, limits: Limits) -> tuple[int, ...]:
        """The counts nearest to ``x`` along one scale that exhaust the limits as far as rounding allows.

        The scale leads from no pruning over the direction of ``x`` to everything at its maximum, so a limit that can be
        reached is met. Rounding steps that still fit are then handed back, nearest first: in the answer no single group
        can have one more. Without limits the answer is ``counts(x)``; an answer's own point is answered by itself.
        """
        start = self.counts(x)
        if not limits or self.exhausts(start, limits):
            return start
        given = np.asarray(x, dtype=float)
        return self._exhausting(lambda scale: along(given, scale), 2.0, limits)

    def uniform(self, limits: Limits) -> tuple[int, ...]:
        """The counts of one common ratio (where a group's ``max_ratio`` allows it) that exhaust the limits."""
        if not limits:
            return self.most()
        caps = np.array([self._option("max_ratio", row) for row in self.free])
        return self._exhausting(lambda ratio: np.minimum(ratio, caps) / caps, 1.0, limits)

    def _exhausting(self, path: Callable[[float], np.ndarray], end: float, limits: Limits) -> tuple[int, ...]:
        """Bisect ``path`` (0: no pruning, ``end``: everything at its maximum) for the first point within the limits."""
        self.check_reachable(limits)
        low, high = 0.0, end
        if self.meets(self.counts(path(low)), limits):
            high = low
        for _ in range(_BISECTIONS if high > low else 0):
            middle = (low + high) / 2
            if self.meets(self.counts(path(middle)), limits):
                high = middle
            else:
                low = middle
        return self._handed_back(self.counts(path(high)), path(high), limits)

    def exhausts(self, counts: tuple[int, ...], limits: Limits) -> bool:
        """Whether the limits are met, and would not be with a rounding step more in any single group."""
        above = (self.raised(counts, row) for row in self.free)
        return self.meets(counts, limits) and not any(more and self.meets(more, limits) for more in above)

    def raised(self, counts: tuple[int, ...], row: int) -> tuple[int, ...] | None:
        """The counts with one rounding step more in group ``row``, or None where it has all its units."""
        levels = self.levels[row]
        above = levels.index(counts[row]) + 1
        return (*counts[:row], levels[above], *counts[row + 1 :]) if above < len(levels) else None

    def _handed_back(self, counts: tuple[int, ...], target: np.ndarray, limits: Limits) -> tuple[int, ...]:
        """Give back steps while the limits hold: first to the group that would end nearest to ``target``."""
        wanted = dict(zip(self.free, target, strict=True))
        open_rows = set(self.free)
        while open_rows:
            shifts = []
            for row in open_rows:
                more = self.raised(counts, row)
                if more:
                    after = (1 - more[row] / self.units[row]) / self._option("max_ratio", row)
                    shifts.append((wanted[row] - after, row, more))
            open_rows = {row for _, row, _ in shifts}
            for _, row, more in sorted(shifts):
                if self.meets(more, limits):
                    counts = more
                    break
                open_rows.discard(row)  # costs only grow from here, so this step will not fit later either
        return counts


def is_number(value: Any) -> TypeGuard[float]:
    """Whether a value is a real number, of Python's or numpy's."""
    return isinstance(value, Real) and not isinstance(value, bool | np.bool_)


def along(x: np.ndarray, scale: float | np.ndarray) -> np.ndarray:
    """The path of repair: points (..., D) at ``scale`` (..., 1), from 0 (no pruning) over 1 (x/max x) to 2 (all ones).

    >>> along(np.array([0.2, 0.4]), 1.0), along(np.array([0.2, 0.4]), 1.5)
    (array([0.5, 1. ]), array([0.75, 1.  ]))
    """
    largest = np.max(x, axis=-1, keepdims=True, initial=0.0)
    direction = np.where(largest > 0, np.clip(x, 0, None) / np.where(largest > 0, largest, 1.0), 1.0)
    return np.where(scale <= 1, direction * scale, direction + (np.asarray(scale) - 1) * (1 - direction))
