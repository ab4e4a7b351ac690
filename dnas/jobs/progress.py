"""How much of a job is done, and how long the rest takes.

Every stage says beforehand what it has to do, as :data:`Work`: units by kind of work. A unit is about one image passed
through the float network, so that the share of units done is a fair share of the job before anything is known. How long
a unit of each kind takes is then learned from the clock as the job goes, and of a kind that has not begun yet it is
what the units of all other kinds took.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

Report = Callable[[Mapping[str, Any]], None]
Work = Mapping[str, float]
"""Kind of work → units."""

FORWARD, TRAIN = 1.0, 3.0
"""Units of one image in a measurement and in a training step of the float network."""

FORWARD_QUANTIZED, TRAIN_QUANTIZED, TRAIN_SUPERNET = 2.0, 6.0, 8.0
"""The same of a quantized net, and of a training step of a supernet (measured on the default job, on a CPU)."""

_LEAST = 1e-9
"""Units below which nothing was timed."""

_TRUST = 1000.0
"""Units of a kind after which its own pace counts as much as that of all kinds."""


def in_all(*works: Work) -> dict[str, float]:
    """The sum of several works, kind by kind.

    >>> in_all({"test": 1.0}, {"test": 2.0, "search": 5.0})
    {'test': 3.0, 'search': 5.0}
    """
    total: dict[str, float] = defaultdict(float)
    for work in works:
        for kind, units in work.items():
            total[kind] += units
    return dict(total)


def times(count: float, work: Work) -> dict[str, float]:
    """So many times the work.

    >>> times(2, {"test": 1.5})
    {'test': 3.0}
    """
    return {kind: count * units for kind, units in work.items()}


class Progress:
    """Counts units done against units planned, learns the seconds that a unit takes, and tells both with each step.

    Every stage of the job has an account of its own, so that what it did not need in the end can be taken back. What is
    done ``ahead`` of the present stage is taken from the accounts of later ones.
    """

    def __init__(self, report: Report, clock: Callable[[], float] = time.monotonic) -> None:
        self._report, self._clock = report, clock
        self._left: list[dict[str, float]] = [defaultdict(float)]
        self._ahead: list[dict[str, float]] = [defaultdict(float)]
        self._now = 0
        self._done = 0.0
        self._timed: dict[str, tuple[float, float]] = {}  # kind → (units, seconds)
        self._last = clock()
        self._fields: dict[str, Any] = {}

    def plan(self, stages: Sequence[Work]) -> None:
        """Say what every stage has to do, before the first of them."""
        self._left = [defaultdict(float, work) for work in stages]
        self._ahead = [defaultdict(float) for _ in stages]

    @contextmanager
    def within(self, stage: int) -> Iterator[None]:
        """Count as the work of this stage; what is left of it at the end turned out not to be needed."""
        self._now = stage
        yield
        self._left[stage].clear()

    def replan(self, work: Work) -> None:
        """Say anew what the present stage has to do in all, now that it is known."""
        done = self._ahead[self._now]
        self._left[self._now] = defaultdict(float, {kind: max(0.0, units - done[kind]) for kind, units in work.items()})

    def correct(self, count: float, work: Work) -> None:
        """Plan for so many times this work more in the present stage; less, where negative."""
        for kind, units in work.items():
            self._left[self._now][kind] = max(0.0, self._left[self._now][kind] + count * units)

    def recall(self, work: Work, *, ahead: bool = False) -> None:
        """Count work as done that an earlier process did."""
        for kind, units in work.items():
            self._count(kind, units, ahead)
        self._last = self._clock()

    def step(self, kind: str, units: float, *, ahead: bool = False, **fields: Any) -> None:
        """Count the work of one step, with the time since the last one, and report where the job stands."""
        self._count(kind, units, ahead)
        now = self._clock()
        # What comes before the first step of a kind, such as a compilation, is not what its other steps take.
        if not units:
            pass  # was counted before
        elif kind in self._timed:
            done, seconds = self._timed[kind]
            self._timed[kind] = (done + units, seconds + now - self._last)
        else:
            self._timed[kind] = (0.0, 0.0)
        self._last = now
        self._fields = fields
        self.tell()

    def tell(self) -> None:
        """Report where the job stands, at the step that was counted last."""
        told = {"fraction": self.fraction, "seconds_left": self.seconds_left}
        self._report({"event": "progress", **told, **self._fields})

    @property
    def fraction(self) -> float:
        """The share of all units that is done, in [0, 1]."""
        left = sum(units for stage in self._left for units in stage.values())
        return self._done / (self._done + left) if self._done + left else 0.0

    @property
    def seconds_left(self) -> float | None:
        """How long the rest takes; None before anything was timed."""
        units = sum(units for units, _ in self._timed.values())
        if units < _LEAST:
            return None
        common = sum(seconds for _, seconds in self._timed.values()) / units
        return sum(units * self._pace(kind, common) for kind, units in in_all(*self._left).items())

    def _pace(self, kind: str, common: float) -> float:
        """Seconds per unit: as measured, and the ``common`` ones where little was measured."""
        units, seconds = self._timed.get(kind, (0.0, 0.0))
        return (seconds + _TRUST * common) / (units + _TRUST)

    def _count(self, kind: str, units: float, ahead: bool) -> None:
        self._done += units
        if not ahead:
            self._left[self._now][kind] = max(0.0, self._left[self._now][kind] - units)
            return
        for left, done in zip(self._left[self._now :], self._ahead[self._now :], strict=True):
            taken = min(units, left[kind])
            left[kind] -= taken
            done[kind] += taken
            units -= taken
