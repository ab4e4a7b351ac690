"""How far a running job is, in a small file of its run that other processes read; gone once the job has ended."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from results.files import read_json, write_json
from results.run.folder import Run
from results.run.layout import PROGRESS
from results.units import share_text
from search_spaces.errors import InputError, JobError

SECONDS_BETWEEN = 5.0
Report = Callable[[Mapping[str, Any]], None]


@dataclass(frozen=True)
class ToldProgress:
    """The share of a job that is done, in [0, 1], and the seconds that the rest takes, as far as they are known."""

    fraction: float
    seconds_left: float | None

    @property
    def text(self) -> str:
        """As a person reads it."""
        return share_text(self.fraction, self.seconds_left)


@contextmanager
def noted(run: Run, report: Report, clock: Callable[[], float] = time.time) -> Iterator[Report]:
    """A report that passes events on, and keeps how far the job is in the run, once in some seconds."""
    path = run.folder / PROGRESS
    last = 0.0

    def note(event: Mapping[str, Any]) -> None:
        nonlocal last
        report(event)
        if "fraction" in event and clock() - last >= SECONDS_BETWEEN:
            last = clock()
            left = event.get("seconds_left")
            with contextlib.suppress(JobError, InputError):  # the job itself tells of a disk that is full
                write_json(path, {"fraction": event["fraction"], "seconds_left": left, "time": last})

    try:
        yield note
    finally:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)


def told_progress(run: Run, now: float | None = None) -> ToldProgress | None:
    """What a running job last told of its progress; None where it did not, or not in a way to be read."""
    try:
        data = read_json(run.folder / PROGRESS)
        since = max(0.0, (time.time() if now is None else now) - float(data["time"]))
        left = data["seconds_left"]
        share = min(max(float(data["fraction"]), 0.0), 1.0)
        return ToldProgress(share, None if left is None else max(0.0, float(left) - since))
    except (InputError, KeyError, TypeError, ValueError):
        return None
