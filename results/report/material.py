"""What a run holds, read once and never written; what cannot be read is told in words."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from results.events import Event, FloatMeasured
from results.network import Network
from results.pareto import Estimate, FrontPoint, ParetoFront
from results.points import point_of
from results.run.folder import Run
from results.run.layout import FRONT_JSON, SENSITIVITIES
from results.run.limited import SIZE, limited_costs
from results.run.lost import sound_events, standing
from results.run.status import RunStatus, status_of
from search_spaces.assignments import BitAssignment
from search_spaces.errors import InputError, printable
from search_spaces.metrics import ACCURACY, metric_of, validation_of
from search_spaces.sensitivities import Sensitivities

Found = TypeVar("Found")


@dataclass(frozen=True)
class Material:
    """A run as it was read; ``problems`` say what of it could not be.

    ``front`` is the measured one, or of a job that has not come so far what is measured by now (then not ``complete``).
    """

    name: str
    folder: str
    job: str
    environment: Mapping[str, Any]
    status: RunStatus
    events: Sequence[Event]
    assignments: Mapping[str, BitAssignment]
    front: ParetoFront
    complete: bool
    network: Network | None
    sensitivities: tuple[Sensitivities, ...]
    problems: tuple[str, ...]

    @classmethod
    def of(cls, run: Run) -> Material:
        """Read a run; :class:`InputError` where its journal or its job file does not tell what it is."""
        held = run.writer is not None  # asked first: a run that ends meanwhile is then told as running
        events = sound_events(run)
        assignments, damaged = run.read_assignments()
        problems = list(damaged.values())
        front = _or_told(problems, run.load_front) if (run.folder / FRONT_JSON).exists() else None
        found = [_or_told(problems, partial(run.sensitivities, kind)) for kind in SENSITIVITIES]
        return cls(
            name=printable(run.name),
            folder=os.fsencode(run.folder).decode(errors="replace"),
            job=run.job_toml(),
            environment=_or_told(problems, run.environment) or {},
            status=status_of(events, held),
            events=standing(events),
            assignments=assignments,
            front=front or _front_so_far(assignments, problems, limited_costs(run).front),
            complete=front is not None,
            network=_or_told(problems, run.network),
            sensitivities=tuple(each for each in found if each),
            problems=tuple(dict.fromkeys(problems)),
        )

    @property
    def float_score(self) -> float | None:
        """What the float network reaches on validation, where that is known."""
        if self.front.reference is not None:
            return self.front.reference.val
        return next((event.val for event in self.events if isinstance(event, FloatMeasured)), None)


def _or_told(problems: list[str], read: Callable[[], Found | None]) -> Found | None:
    """What ``read`` gives; where it refuses, None and one problem more."""
    try:
        return read()
    except InputError as error:
        problems.append(str(error))
        return None


def _front_so_far(assignments: Mapping[str, BitAssignment], problems: list[str], cost: str) -> ParetoFront:
    """The points of the assignments that are measured by now, over the cost that the job's front will be over."""
    whole = next((item for item in assignments.values() if not _is_pruned(item)), None)
    filters = {name: bits.out_channels or 0 for name, bits in whole.layers.items()} if whole else {}
    points = [_or_told(problems, partial(_point, item, filters)) for item in assignments.values()]
    known = [point for point in points if point]
    alike = [point for point in known if point.metric == known[-1].metric]
    return ParetoFront.from_points(alike, cost if all(cost in point.costs for point in alike) else SIZE)


def _is_pruned(assignment: BitAssignment) -> bool:
    return any(bits.kept_channels is not None for bits in assignment.layers.values())


def _point(assignment: BitAssignment, filters: Mapping[str, int]) -> FrontPoint | None:
    told = validation_of(assignment.metrics)
    if told is None:
        return None
    metric = metric_of(assignment.metrics) if "metric" in assignment.metrics else ACCURACY
    return point_of(assignment, Estimate(told["mean"], told["std"], int(told["n"])), filters, metric)
