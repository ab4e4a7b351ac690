"""From layers that were timed alone to what they take inside whole nets: a factor for each, and what is left over.

A layer alone does not tell what is fused into it, or copied before and behind it, in a network. A few whole nets of
random widths and filters do: the factors are those that make the sums their times, and otherwise stay close to one
another (least squares with a prior, all of them positive).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import lsq_linear

# What is believed before the nets are seen, as standard deviations; only their ratios matter.
_NET_ERROR = 0.02
"""Of a whole net's time, relative."""
_OWN_FACTOR = 0.3
"""Of a layer's factor around that of its widths."""
_COMMON_FACTOR = 1.0
"""Of the factor of some widths around 1."""
_REST = 0.5
"""Of what is left over, as a share of the fastest net's time."""
_LEAST_FACTOR = 0.05


@dataclass(frozen=True)
class Fitted:
    """``factors`` (K,) for what was timed alone, and the milliseconds ``rest_ms`` of everything else."""

    factors: np.ndarray
    rest_ms: float


def fit(alone_ms: np.ndarray, kinds: Sequence[int], measured_ms: np.ndarray) -> Fitted:
    """Fit factors to whole nets.

    ``alone_ms`` (N, K) is what each kind of layer at each width takes in each of N nets, by its own times; ``kinds``
    (K,) numbers the widths of these from 0; ``measured_ms`` (N,) is what the nets take.
    """
    nets, parts = alone_ms.shape
    count = max(kinds) + 1
    own = np.zeros((parts, parts + count + 1))
    own[:, :parts] = np.eye(parts)
    own[np.arange(parts), parts + np.asarray(kinds)] = -1.0
    common = np.zeros((count, parts + count + 1))
    common[:, parts : parts + count] = np.eye(count)
    rest = np.zeros((1, parts + count + 1))
    rest[0, -1] = 1.0
    whole = np.hstack([alone_ms, np.zeros((nets, count)), np.ones((nets, 1))]) / measured_ms[:, None]
    blocks = [
        (whole, np.ones(nets), _NET_ERROR),
        (own, np.zeros(parts), _OWN_FACTOR),
        (common, np.ones(count), _COMMON_FACTOR),
        (rest, np.zeros(1), _REST * float(measured_ms.min())),
    ]
    matrix = np.vstack([block / deviation for block, _, deviation in blocks])
    wanted = np.concatenate([values / deviation for _, values, deviation in blocks])
    least = np.r_[np.full(parts + count, _LEAST_FACTOR), 0.0]
    found = lsq_linear(matrix, wanted, (least, np.inf)).x
    return Fitted(found[:parts], float(found[-1]))
