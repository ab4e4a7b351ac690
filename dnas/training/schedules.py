"""Schedules as pure functions of progress in [0, 1), and the seeds that make every epoch repeatable by itself."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence


def cosine(start: float, progress: float) -> float:
    """Half a cosine from ``start`` to 0.

    >>> cosine(1.0, 0.0), round(cosine(1.0, 0.5), 6)
    (1.0, 0.5)
    """
    return start * 0.5 * (1 + math.cos(math.pi * progress))


def stepped(start: float, progress: float, milestones: Sequence[float], factor: float) -> float:
    """``start``, times ``factor`` at each milestone that is behind.

    >>> stepped(1.0, 0.4, (0.5, 0.75), 0.5), stepped(1.0, 0.75, (0.5, 0.75), 0.5)
    (1.0, 0.25)
    """
    return start * factor ** sum(progress >= milestone for milestone in milestones)


def warmed_up(end: float, progress: float) -> float:
    """Rise linearly from a hundredth of ``end`` to it.

    >>> warmed_up(1.0, 0.0), warmed_up(1.0, 0.5)
    (0.01, 0.505)
    """
    return end * (0.01 + 0.99 * progress)


def exponential(start: float, end: float, progress: float) -> float:
    """Exponential decay, DNAS's temperature: T0 exp(-eta epoch) (arXiv 1812.00090, section 5.1).

    >>> exponential(8.0, 2.0, 0.5)
    4.0
    """
    return start * (end / start) ** progress


def ramp(progress: float, until: float = 0.5) -> float:
    """Rise linearly from 0 to 1 at ``until``, then stay.

    >>> ramp(0.25), ramp(0.9)
    (0.5, 1.0)
    """
    return min(1.0, progress / until)


def derived_seed(seed: int, *parts: str | int) -> int:
    """A seed that depends on every part, so that any epoch of any stage can be repeated without what came before."""
    text = ":".join(map(str, (seed, *parts)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big")
