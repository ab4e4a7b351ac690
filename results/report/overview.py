"""A run in one line: where it stands, how far it is, the best net so far, how old and how large it is."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

from results.events import Decoded, Event, Measured
from results.pareto import ParetoFront
from results.run.folder import Run
from results.run.layout import FRONT_JSON
from results.run.limited import limited_costs
from results.run.lost import sound_events, standing
from results.run.progress import told_progress
from results.run.status import RunStatus, status_of
from results.tables.advice import recommended, told_costs
from results.units import amount_text
from search_spaces.errors import InputError
from search_spaces.metrics import ACCURACY, Metric, metric_of


@dataclass(frozen=True)
class BestPoint:
    """A net, its size in bytes (None: not known) and the metric on validation images.

    ``costs`` are those that are told of it: what the front is drawn over, and what the budgets of the job limit.
    """

    assignment: str
    size_bytes: float | None
    value: float
    metric: Metric = ACCURACY
    costs: Mapping[str, float] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        told = {"assignment": self.assignment, "size_bytes": self.size_bytes, self.metric.name: self.value}
        return {**told, "costs": dict(self.costs)}

    @property
    def text(self) -> str:
        """As a person reads it."""
        costs = [amount_text(name, value) for name, value in self.costs.items()]
        return f"{self.assignment} ({', '.join([*costs, self.metric.text(self.value)])})"


@dataclass(frozen=True)
class Overview:
    """Where a run stands; of a running one the share in [0, 1] that is done and the seconds that are left.

    ``best`` is the net to take of a finished run, the best one that is measured so far of another. ``age_seconds`` is
    the time since its start, ``disk_bytes`` what its files take.
    """

    status: RunStatus
    fraction: float | None = None
    seconds_left: float | None = None
    best: BestPoint | None = None
    age_seconds: float | None = None
    disk_bytes: int | None = None


def overview(run: Run) -> Overview:
    """Look a run over; :class:`InputError` where its journal does not tell."""
    held = run.writer is not None  # asked first: a run that ends meanwhile is then told as running
    events = sound_events(run)
    status = status_of(events, held)
    told = told_progress(run) if status.state == "running" else None
    fraction = 1.0 if status.state == "finished" else told.fraction if told else None
    age = None if status.started is None else max(0.0, time.time() - status.started)
    left = told.seconds_left if told else None
    return Overview(status, fraction, left, best_point(run, standing(events)), age, disk_bytes(run))


def disk_bytes(run: Run) -> int:
    """What the files of a run take, in bytes; links are not followed."""
    total = 0
    for folder, _, names in os.walk(run.folder):
        for name in names:
            try:
                total += os.lstat(os.path.join(folder, name)).st_size  # noqa: PTH118 (thousands of files)
            except OSError:  # gone meanwhile
                continue
    return total


def best_point(run: Run, events: Sequence[Event]) -> BestPoint | None:
    """The net to take of the front; without one, or where it cannot be read, the best one of the journal."""
    try:
        return _of_front(run.load_front()) if (run.folder / FRONT_JSON).exists() else _so_far(run, events)
    except InputError:
        return None


def _of_front(front: ParetoFront) -> BestPoint | None:
    point = recommended(front)
    if point is None:
        return None
    costs = _named(point.costs, told_costs(front))
    return BestPoint(point.assignment, point.size_bytes, point.val.mean, point.metric, costs)


def _so_far(run: Run, events: Sequence[Event]) -> BestPoint | None:
    measured: dict[str, list[float]] = {}
    for event in events:
        if isinstance(event, Measured):
            measured.setdefault(event.assignment, []).append(event.val)
    if not measured:
        return None
    named = {event.metric for event in events if isinstance(event, Measured)}
    metric = ACCURACY if named == {ACCURACY.name} else metric_of(run.assignment(next(iter(measured))).metrics)
    best = max(measured, key=lambda name: metric.gain(fmean(measured[name])))
    costs = next((e.cost for e in events if isinstance(e, Decoded) and e.assignment == best), {})
    told = _named(costs, limited_costs(run).told)
    return BestPoint(best, costs.get("size_bytes"), fmean(measured[best]), metric, told)


def _named(costs: Mapping[str, float], names: Sequence[str]) -> dict[str, float]:
    """Those of the costs that are known."""
    return {name: costs[name] for name in names if name in costs}
