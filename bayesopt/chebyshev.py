"""ParEGO: one random weighting of loss and cost per proposal turns a front into single-objective searches.

Knowles 2006 (ParEGO, IEEE TEC 10(1)), augmented Chebyshev norm with its ρ = 0.05. Our addition: the cost is known
exactly, so only the loss is modelled, and a weighting becomes the loss that a point of that cost has to beat.
"""

from __future__ import annotations

import numpy as np

_RHO = 0.05


class Scalarisation:
    """max(w·l, (1 - w)·c) + ρ·(w·l + (1 - w)·c), with normalised losses l and costs c."""

    def __init__(self, losses: np.ndarray, costs: np.ndarray, lowest: float, highest: float, weight: float) -> None:
        """``losses`` and ``costs`` (N,) are those known; ``weight`` in (0, 1) is that of the loss."""
        self.weight = weight
        self.lowest, self.width = lowest, highest - lowest
        self.least, self.spread = float(np.min(losses)), float(np.ptp(losses)) or 1.0
        loss = weight * (losses - self.least) / self.spread
        cost = self._weighted(costs)
        self.scores = np.maximum(loss, cost) + _RHO * (loss + cost)
        self.best = float(np.min(self.scores))

    def _weighted(self, costs: np.ndarray) -> np.ndarray:
        return (1 - self.weight) * (costs - self.lowest) / self.width

    def loss_to_beat(self, costs: np.ndarray) -> np.ndarray:
        """The loss (N,) below which a point of these costs is better than the best known."""
        cost = self._weighted(costs)
        by_loss = (self.best - _RHO * cost) / (1 + _RHO)
        by_cost = (self.best - (1 + _RHO) * cost) / _RHO
        return self.least + self.spread * np.minimum(by_loss, by_cost) / self.weight
