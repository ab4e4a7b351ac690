"""The best of many points within limits, for many limits: looked up, not searched again for each."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from typing import Any

from results.pareto import FrontPoint


class Within:
    """Points in an ``order`` (the best first), asked for the best one that meets limits on costs."""

    def __init__(self, points: Sequence[FrontPoint], order: Callable[[FrontPoint], Any]) -> None:
        self._ranked = sorted(points, key=order)
        self._costs = [point.costs for point in self._ranked]
        self._by_cost: dict[str, tuple[list[float], list[int]]] = {}

    def best(self, limits: Mapping[str, float]) -> FrontPoint | None:
        """The best point that has all these costs and exceeds no limit; None where there is none."""
        if len(limits) == 1:
            [(name, most)] = limits.items()
            costs, best = self._sorted(name)
            count = bisect_right(costs, most)
            return self._ranked[best[count - 1]] if count else None
        meets = (all(own.get(name, float("inf")) <= most for name, most in limits.items()) for own in self._costs)
        return next((point for point, met in zip(self._ranked, meets, strict=True) if met), None)

    def _sorted(self, name: str) -> tuple[list[float], list[int]]:
        """The values of a cost, rising, and up to each the place of the best point."""
        if name not in self._by_cost:
            pairs = sorted((own[name], place) for place, own in enumerate(self._costs) if name in own)
            self._by_cost[name] = [cost for cost, _ in pairs], list(accumulate((at for _, at in pairs), min))
        return self._by_cost[name]
