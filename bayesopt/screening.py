"""A cheap stand-in for the exact costs, to bring thousands of candidate points near a budget at once.

The cost of a pruned network is close to a quadratic form in its ratios: a convolution costs the product of the units
it reads and writes. Only the choice of which candidates are worth an exact repair rests on it (our construction).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from bayesopt.ratios import along

_BISECTIONS = 20


class QuadraticCost:
    """c + a·z + zᵀBz through exact costs at the corners of the first orthant: 1 + 2D + D(D-1)/2 of them."""

    def __init__(self, exact: Callable[[np.ndarray], float], dimensions: int) -> None:
        """``exact`` prices a point (D,) in [0, 1]^D after rounding."""
        unit = np.eye(dimensions)
        self.constant = exact(np.zeros(dimensions))
        ends = np.array([exact(row) for row in unit]) - self.constant
        halves = np.array([exact(row / 2) for row in unit]) - self.constant
        curvature = 2 * (ends - 2 * halves)
        self.linear = ends - curvature
        self.quadratic = np.diag(curvature)
        for first in range(dimensions):
            for second in range(first + 1, dimensions):
                joint = exact(unit[first] + unit[second]) - self.constant - ends[first] - ends[second]
                self.quadratic[first, second] = self.quadratic[second, first] = joint / 2

    def __call__(self, points: np.ndarray) -> np.ndarray:
        """Approximate costs (N,) of points (N, D)."""
        return self.constant + points @ self.linear + np.einsum("nd,nd->n", points @ self.quadratic, points)


def projected(points: np.ndarray, costs: list[tuple[QuadraticCost, np.ndarray]]) -> np.ndarray:
    """Move points (N, D) along the path of repair until each approximate cost meets its limits (N,)."""
    if not costs:
        return points
    low, high = np.zeros((len(points), 1)), np.full((len(points), 1), 2.0)
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        moved = along(points, middle)
        fits = np.all([cost(moved) <= limit for cost, limit in costs], axis=0)[:, None]
        low, high = np.where(fits, low, middle), np.where(fits, middle, high)
    return along(points, high)
