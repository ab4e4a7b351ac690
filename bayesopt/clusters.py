"""Fewer coordinates than groups: neighbouring groups share one ratio where there are too many for the model.

Groups next to one another in call order play the same part in a network (a stage's blocks), so clusters are runs of
groups (our choice; measured against a trust region over all groups in benchmarks/proposers.py).
"""

from __future__ import annotations

import numpy as np


class Clusters:
    """Runs of neighbouring coordinates, as even as can be; the identity where ``most`` is no limit.

    >>> Clusters(5, 2).members.tolist(), Clusters(5, 2).shared(np.array([[0.0, 0.2, 0.4, 1.0, 0.0]])).round(2).tolist()
    ([0, 0, 0, 1, 1], [[0.2, 0.5]])
    """

    def __init__(self, dimensions: int, most: int) -> None:
        self.count = min(dimensions, most)
        self.members = np.arange(dimensions) * self.count // dimensions
        self._means = np.eye(self.count)[self.members] / np.bincount(self.members)

    def shared(self, points: np.ndarray) -> np.ndarray:
        """Points (N, D) as the mean of each cluster (N, K)."""
        return points @ self._means

    def spread(self, shared: np.ndarray) -> np.ndarray:
        """Shared coordinates (..., K) as points (..., D)."""
        return shared[..., self.members]
