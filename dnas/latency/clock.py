"""Times of many nets that take turns, so that a busy machine slows all of them alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

Key = TypeVar("Key", bound=Hashable)
Clock = Callable[[], float]

_WARM_UP = 3


@dataclass(frozen=True)
class Timing:
    """Milliseconds of one call, over many.

    ``ms`` is the 10 % quantile, for other work on the machine only ever adds; ``median_ms`` is that of all calls, and
    ``spread`` how far the 10 % and the 90 % lie apart, as a share of it.
    """

    ms: float
    median_ms: float
    spread: float

    @classmethod
    def of(cls, seconds: list[float]) -> Timing:
        """That of single calls."""
        low, middle, high = (1000 * float(found) for found in np.percentile(seconds, (10, 50, 90)))
        return cls(low, middle, (high - low) / middle if middle else 0.0)


def take_turns(
    runs: Mapping[Key, Callable[[], Any]], rounds: int, clock: Clock = time.perf_counter
) -> dict[Key, Timing]:
    """Call each of ``runs`` once in every round; the first few rounds warm up and are not counted."""
    seconds: dict[Key, list[float]] = {key: [] for key in runs}
    for number in range(_WARM_UP + rounds):
        for key, run in runs.items():
            start = clock()
            run()
            spent = clock() - start
            if number >= _WARM_UP:
                seconds[key].append(spent)
    return {key: Timing.of(found) for key, found in seconds.items()}
