"""What the picture of a front and the heat map of bits will show, computed before anything is drawn."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from results.pareto import FrontPoint, ParetoFront, fronts_over
from results.units import scaled_unit
from search_spaces.assignments import BitAssignment
from search_spaces.errors import InputError
from search_spaces.metrics import ACCURACY, Metric
from search_spaces.provenance import KINDS

# From this ratio of the largest to the smallest cost on, the axis is logarithmic; from the second one on, if the
# largest lies far from all others.
LOG_RATIO, LOG_RATIO_OF_OUTLIERS = 10.0, 3.0
# Tukey's fence: what lies further from the quartiles than so many of their distances is an outlier.
FENCE = 1.5
# The axis is cut where what is left is at most this share of all.
WORTH_CUTTING = 0.75

MOST_COLUMNS = 32
"""More assignments beside each other nobody can read, in a picture or in a table."""


@dataclass(frozen=True)
class Series:
    """Points of one run, kind and feasibility: cost in the picture's unit, accuracy and its spread in %."""

    run: str
    kind: str
    feasible: bool
    x: tuple[float, ...]
    y: tuple[float, ...]
    error: tuple[float, ...]


@dataclass(frozen=True)
class Staircase:
    """The front of one run: between two points the accuracy of the cheaper one holds."""

    run: str
    x: tuple[float, ...]
    y: tuple[float, ...]


@dataclass(frozen=True)
class Link:
    """From the point of an unpruned assignment to one pruned from it, each as (cost, accuracy)."""

    run: str
    start: tuple[float, float]
    end: tuple[float, float]


@dataclass(frozen=True)
class Label:
    """The name of a point on the front, at (cost, accuracy)."""

    text: str
    point: tuple[float, float]


@dataclass(frozen=True)
class FrontPicture:
    """All that is drawn of one or several fronts; ``baselines`` are float accuracies in % by run.

    ``floor`` is the accuracy at which the axis begins where some points, far below all others, would squeeze the rest
    (of an error, where smaller is better, that at which it ends); None where all are shown. ``labels`` name the points
    on the front, of one run alone.
    """

    x_label: str
    y_label: str
    log_x: bool
    series: tuple[Series, ...]
    test_series: tuple[Series, ...]
    staircases: tuple[Staircase, ...]
    baselines: Mapping[str, float]
    links: tuple[Link, ...] = ()
    labels: tuple[Label, ...] = ()
    floor: float | None = None
    metric: Metric = ACCURACY

    @property
    def below(self) -> tuple[tuple[Series, int], ...]:
        """Which points are worse than the floor: their series, and which of it."""
        if self.floor is None:
            return ()
        least = self.side * self.floor
        return tuple((series, at) for series in self.series for at, y in enumerate(series.y) if self.side * y < least)

    @property
    def side(self) -> int:
        """1 where better points lie higher in the picture, -1 where they lie lower."""
        return side_of(self.metric)

    @property
    def runs(self) -> tuple[str, ...]:
        """The runs in drawing order."""
        return tuple(dict.fromkeys(series.run for series in self.series))


def front_picture(fronts: Mapping[str, ParetoFront], x: str = "size_bytes", show_test: bool = False) -> FrontPicture:
    """Return what to draw for these fronts by run name; raise :class:`InputError` where there is no point."""
    fronts = fronts_over(fronts, x)
    costs = [point.cost(x) for front in fronts.values() for point in front.points]
    if not costs:
        raise InputError("there is no measured point to draw yet")
    unit = scaled_unit(x, max(costs))
    series, test_series = [], []
    for run, front in fronts.items():
        for kind in KINDS:
            for feasible in (True, False):
                points = [point for point in front.points if (point.kind, point.feasible) == (kind, feasible)]
                series.append(_series(run, kind, feasible, points, x, unit.divisor, test=False))
                tested = [point for point in points if point.test is not None] if show_test else []
                test_series.append(_series(run, kind, feasible, tested, x, unit.divisor, test=True))
    return FrontPicture(
        x_label=unit.axis_label,
        y_label=_label(next(iter(fronts.values())).metric, show_test),
        log_x=wants_logarithm(costs),
        series=tuple(item for item in series if item.x),
        test_series=tuple(item for item in test_series if item.x),
        staircases=tuple(_staircase(run, front, unit.divisor) for run, front in fronts.items() if front.front),
        baselines={
            run: front.metric.scale * front.reference.val
            for run, front in fronts.items()
            if front.reference is not None and front.reference.val is not None
        },
        links=tuple(link for run, front in fronts.items() for link in _links(run, front, unit.divisor)),
        labels=tuple(_labels(next(iter(fronts.values())), unit.divisor)) if len(fronts) == 1 else (),
        floor=floor_of(list(fronts.values())),
        metric=next(iter(fronts.values())).metric,
    )


def _labels(front: ParetoFront, divisor: float) -> Iterator[Label]:
    for point in front.front:
        yield Label(point.assignment, (point.cost(front.x) / divisor, point.metric.scale * point.val.mean))


def wants_logarithm(costs: Sequence[float]) -> bool:
    """Whether costs lie so far apart that most of a linear axis would be empty."""
    if min(costs) <= 0:
        return False
    ratio = max(costs) / min(costs)
    low, high = np.quantile(costs, [0.25, 0.75])
    return bool(ratio > LOG_RATIO or (ratio > LOG_RATIO_OF_OUTLIERS and max(costs) > high + FENCE * (high - low)))


def floor_of(fronts: Sequence[ParetoFront]) -> float | None:
    """The worst value worth its place: no point of a front is left out, nor any that is near others; None: all are."""
    points = [point for front in fronts for point in front.points]
    side = side_of(fronts[0].metric)
    means = [side * point.metric.scale * point.val.mean for point in points]
    low, high = np.quantile(means, [0.25, 0.75])
    kept = [
        mean - abs(point.metric.scale) * point.val.std
        for point, mean in zip(points, means, strict=True)
        if point.on_front or mean >= low - FENCE * (high - low)
    ]
    floor = min(kept) - 0.05 * (max(means) - min(kept))
    squeezed = max(means) - floor < WORTH_CUTTING * (max(means) - min(means))
    return side * float(floor) if squeezed else None


def side_of(metric: Metric) -> int:
    """1 where better values of a metric are drawn higher, -1 where they are drawn lower."""
    return 1 if (metric.direction == "larger") == (metric.scale > 0) else -1


def _links(run: str, front: ParetoFront, divisor: float) -> Iterator[Link]:
    """From parents to the pruned points; the controls, which are many, stand at the same costs without a line."""
    places = {p.assignment: (p.cost(front.x) / divisor, p.metric.scale * p.val.mean) for p in front.points}
    for point in front.points:
        if point.kind == "pruned" and point.parent in places:
            yield Link(run, places[point.parent], places[point.assignment])


def _label(metric: Metric, show_test: bool) -> str:
    """The axis of the metric; `top-1` reads as an accuracy."""
    split = "" if show_test else "validation "
    title = f"{metric.label} accuracy" if metric == ACCURACY else metric.label
    return f"{split}{title} ({metric.unit})" if metric.unit else f"{split}{title}"


def _series(
    run: str, kind: str, feasible: bool, points: Sequence[FrontPoint], x: str, divisor: float, *, test: bool
) -> Series:
    measured = [(p.test if test else None) or p.val for p in points]
    return Series(
        run,
        kind,
        feasible,
        tuple(point.cost(x) / divisor for point in points),
        tuple(point.metric.scale * e.mean for point, e in zip(points, measured, strict=True)),
        tuple(abs(point.metric.scale) * e.std for point, e in zip(points, measured, strict=True)),
    )


def _staircase(run: str, front: ParetoFront, divisor: float) -> Staircase:
    """Return the front of ``run`` up to the most expensive point, where its last step ends."""
    x = [point.cost(front.x) / divisor for point in front.front]
    y = [point.metric.scale * point.val.mean for point in front.front]
    last = max(point.cost(front.x) for point in front.points) / divisor
    if last > x[-1]:
        x, y = [*x, last], [*y, y[-1]]
    return Staircase(run, tuple(x), tuple(y))


@dataclass(frozen=True)
class BitMap:
    """Bits by layer (rows) and assignment (columns); None where an assignment does not have the layer."""

    layers: tuple[str, ...]
    assignments: tuple[str, ...]
    weight_bits: tuple[tuple[int | None, ...], ...]
    activation_bits: tuple[tuple[int | None, ...], ...]

    @property
    def levels(self) -> tuple[int, ...]:
        """The bit-widths that occur, ascending."""
        cells = (cell for table in (self.weight_bits, self.activation_bits) for row in table for cell in row)
        return tuple(sorted({cell for cell in cells if cell is not None}))


def bit_map(assignments: Sequence[BitAssignment]) -> BitMap:
    """Return the heat map's numbers, layers in their order of first appearance; raise InputError without any."""
    layers = tuple(dict.fromkeys(name for assignment in assignments for name in assignment.layers))
    if not layers:
        raise InputError("there is no assignment to draw yet")
    weights, activations = [], []
    for layer in layers:
        bits = [assignment.layers.get(layer) for assignment in assignments]
        weights.append(tuple(None if entry is None else entry.weight_bits for entry in bits))
        activations.append(tuple(None if entry is None else entry.activation_bits for entry in bits))
    return BitMap(layers, tuple(item.id for item in assignments), tuple(weights), tuple(activations))


def bit_text(bits: int | None) -> str:
    """Return what a cell shows.

    >>> bit_text(0), bit_text(4), bit_text(32), bit_text(None)
    ('skip', '4', 'fp32', '')
    """
    return "" if bits is None else {0: "skip", 32: "fp32"}.get(bits, str(bits))
