"""Where to look next: an acquisition function, and the search of its best point on a budget's own manifold.

Expected improvement is Jones, Schonlau, Welch 1998, over the best *predicted* value, for values are noisy; its
log is compared, so that it never underflows (Ament et al. 2023, arXiv 2310.20708). The search mutates and keeps the
best; every candidate lies near the budget, for only such networks can be proposed (our construction).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from scipy.special import erfcx, log_ndtr

Score = Callable[[np.ndarray], np.ndarray]
"""Points (N, D) → how much each is worth trying (N,), higher is better."""

_POOL, _ROUNDS, _PARENTS = 256, 12, 24
_WIDTHS = (0.01, 0.4)  # standard deviation of a mutation, drawn log-uniformly


def log_expected_improvement(means: np.ndarray, spreads: np.ndarray, best: np.ndarray | float) -> np.ndarray:
    """Log E[max(0, best - loss)], accurate however small it is.

    >>> float(np.round(log_expected_improvement(np.array([0.0]), np.array([1.0]), 0.0)[0], 4))  # log(1/√(2π))
    -0.9189
    """
    ratio = (best - means) / spreads
    density = -0.5 * ratio**2 - 0.5 * np.log(2 * np.pi)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        near = np.log(np.exp(density) + ratio * np.exp(log_ndtr(ratio)))
        # φ(z) + zΦ(z) = φ(z)·(1 + z·√(π/2)·erfcx(-z/√2)); beyond -25 the bracket cancels and 1/z² is its limit.
        scaled = 1 + ratio * np.sqrt(np.pi / 2) * erfcx(-ratio / np.sqrt(2))
        middle = density + np.log(np.maximum(scaled, 1e-300))
        far = density - 2 * np.log(np.maximum(-ratio, 1.0))
    return np.where(ratio > -1, near, np.where(ratio > -25, middle, far)) + np.log(spreads)


def mutated(parents: np.ndarray, count: int, random: np.random.Generator) -> np.ndarray:
    """``count`` points near rows of ``parents`` (P, D): a few coordinates move, or many, a little, or far."""
    dimensions = parents.shape[1]
    chosen = parents[random.integers(len(parents), size=count)]
    share = np.exp(random.uniform(np.log(1 / dimensions), 0.0, size=(count, 1)))
    moves = random.random((count, dimensions)) < share
    moves[np.arange(count), random.integers(dimensions, size=count)] = True
    widths = np.exp(random.uniform(math.log(_WIDTHS[0]), math.log(_WIDTHS[1]), size=(count, 1)))
    return np.clip(chosen + moves * widths * random.standard_normal((count, dimensions)), 0.0, 1.0)


def search(
    score: Score, project: Callable[[np.ndarray], np.ndarray], starts: np.ndarray, random: np.random.Generator
) -> np.ndarray:
    """The best points found (P, D), best first, from ``starts`` (S, D) and random ones, all through ``project``."""
    dimensions = starts.shape[1]
    fresh = random.random((_POOL, dimensions)) ** np.exp(random.uniform(-1, 1, size=(_POOL, 1)))
    pool = project(np.concatenate([starts, mutated(starts, _POOL, random), fresh]))
    scores = score(pool)
    for _ in range(_ROUNDS):
        best = np.argsort(-scores, kind="stable")[:_PARENTS]
        pool, scores = pool[best], scores[best]
        children = project(mutated(pool, _POOL, random))
        pool, scores = np.concatenate([pool, children]), np.concatenate([scores, score(children)])
    best = np.argsort(-scores, kind="stable")[:_PARENTS]
    return pool[best]
