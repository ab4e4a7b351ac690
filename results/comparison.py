"""Several fronts beside each other: which points no point of any run beats, and the area that each front dominates."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from results.pareto import FrontPoint, ParetoFront, fronts_over, hypervolume
from search_spaces.errors import InputError
from search_spaces.metrics import Metric

BEYOND = 0.1
"""How far the reference point lies beyond the worst of all, as a share of the range."""


@dataclass(frozen=True)
class Reference:
    """The corner that areas are measured from: a cost, and a value of the metric, that are worse than what counts."""

    cost: float
    value: float


@dataclass(frozen=True)
class ComparedPoint:
    """A point on the front of its own run, and whether no point of any of the runs beats it."""

    run: str
    point: FrontPoint
    best: bool


@dataclass(frozen=True)
class FrontComparison:
    """Fronts of several runs over the cost ``x``: their points by rising cost, and areas by run.

    ``volumes`` are in units of the cost times those of the metric; ``shares`` are of what all runs dominate together.
    """

    x: str
    metric: Metric
    reference: Reference
    points: tuple[ComparedPoint, ...]
    volumes: Mapping[str, float]
    shares: Mapping[str, float]

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return {
            "x": self.x,
            "metric": self.metric.to_json(),
            "reference": {self.x: self.reference.cost, self.metric.name: self.reference.value},
            "hypervolume": dict(self.volumes),
            "share": dict(self.shares),
            "points": [{"run": each.run, "best": each.best, **each.point.to_json()} for each in self.points],
        }


def compare_fronts(
    fronts: Mapping[str, ParetoFront], x: str = "size_bytes", reference: Reference | None = None
) -> FrontComparison:
    """Compare fronts by the names of their runs, over the cost ``x``.

    Without a ``reference`` it lies beyond the largest cost and the worst value of all measured points within their
    budgets, by a tenth of what lies between the least and the largest (of the figure itself where all are the same), as
    BoTorch infers one.
    Raises :class:`InputError` for no points, a cost that one lacks, or runs that were measured by different metrics.
    """
    named = fronts_over(fronts, x)
    measured = [point for front in named.values() for point in front.points if point.feasible]
    if not measured:
        raise InputError("there is no measured point to compare yet")
    metrics = {run: front.metric for run, front in named.items() if front.points}
    metric = next(iter(metrics.values()))
    for run, other in metrics.items():
        if other != metric:
            raise InputError(
                f"{run} was measured by {other.label} and {next(iter(metrics))} by {metric.label}; "
                "compare runs of one task"
            )
    corner = reference or _beyond(measured, x, metric)
    owned = [(run, point) for run, front in named.items() for point in front.front]
    owned.sort(key=lambda pair: (pair[1].cost(x), -pair[1].gain, list(named).index(pair[0])))
    points: list[ComparedPoint] = []
    highest: tuple[float, float] | None = None  # gain and cost of the last point that none beats, nor its equals
    for run, point in owned:
        own = point.gain, point.cost(x)
        unbeaten = highest is None or own[0] > highest[0] or own == highest
        points.append(ComparedPoint(run, point, unbeaten))
        highest = own if unbeaten else highest
    volumes = {run: front.hypervolume(corner.cost, corner.value) for run, front in named.items()}
    together = hypervolume(
        [(-point.cost(x), point.gain) for _, point in owned], (-corner.cost, metric.gain(corner.value))
    )
    shares = {run: volume / together if together else 0.0 for run, volume in volumes.items()}
    return FrontComparison(x, metric, corner, tuple(points), volumes, shares)


def cost_of_all(fronts: Iterable[ParetoFront]) -> str:
    """The cost that all these fronts are over, which is that of their jobs' budgets; the size where they differ.

    >>> cost_of_all([])
    'size_bytes'
    """
    costs = {front.x for front in fronts}
    return costs.pop() if len(costs) == 1 else "size_bytes"


def _beyond(points: Sequence[FrontPoint], x: str, metric: Metric) -> Reference:
    """The corner that is a little worse than all of the points."""
    cost = _further([point.cost(x) for point in points])
    return Reference(cost, metric.gain(-_further([-point.gain for point in points])))


def _further(values: Sequence[float]) -> float:
    """The largest value, and a tenth of the range more."""
    most = max(values)
    return most + BEYOND * ((most - min(values)) or abs(most))
