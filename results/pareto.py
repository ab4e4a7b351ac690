"""Measured points, which of them no other one beats, and the area they dominate."""

from __future__ import annotations

import csv
import io
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, ClassVar

from results.front_file import SCHEMA, EstimateEntry, FloatEntry, FrontFile, PointEntry
from results.preprocessing import Preprocessing
from search_spaces.errors import InputError, check_type, nearest
from search_spaces.metrics import ACCURACY, Metric, Scored, check_figure
from search_spaces.provenance import KINDS
from search_spaces.records import check_schema

FLOAT = "float"
"""What the network as it came is called beside the assignments of a run."""
COSTS = ("size_bytes", "bitops", "macs")
_FLAGS = ("on_front", "feasible")


@dataclass(frozen=True)
class Estimate:
    """A mean over ``n`` seeds with the sample standard deviation (0.0 for one seed).

    >>> Estimate.from_values([0.25, 0.5, 0.75])
    Estimate(mean=0.5, std=0.25, n=3)
    """

    mean: float
    std: float = 0.0
    n: int = 1

    def __post_init__(self) -> None:
        if not (math.isfinite(self.mean) and math.isfinite(self.std)) or self.std < 0 or self.n < 1:
            raise InputError(f"not a measurement: mean {self.mean}, std {self.std}, n {self.n}")

    @classmethod
    def from_values(cls, values: Iterable[float]) -> Estimate:
        """Return the estimate of at least one finite value; raise :class:`InputError` for anything else."""
        numbers = [float(value) for value in values]
        if not numbers or not all(map(math.isfinite, numbers)):
            raise InputError(f"a measurement needs finite values, at least one: got {numbers}")
        std = statistics.stdev(numbers) if len(numbers) > 1 else 0.0
        return cls(statistics.fmean(numbers), std, len(numbers))


@dataclass(frozen=True)
class FrontPoint(Scored):
    """One assignment as measured: its ``metric`` on validation and test images, and its costs.

    ``budget`` labels the budget that a search or ILP point was made for; ``feasible`` is False where it is exceeded.
    ``limits`` are that budget's, by cost. ``extra_costs`` holds all other costs by name. ``on_front`` is set by
    :meth:`ParetoFront.from_points`. ``parent`` is the assignment that this one was made from, by removing filters or
    bits, or the one that a profile of a switchable net runs, trained alone; ``kept_filters`` is the share of all
    filters that stay (None where none was removed).
    """

    _names: ClassVar[Mapping[str, str]] = {"val_{}": "val", "test_{}": "test"}

    assignment: str
    kind: str
    size_bytes: float
    bitops: float
    macs: float
    val: Estimate
    test: Estimate | None = None
    on_front: bool = False
    feasible: bool = True
    budget: str | None = None
    extra_costs: Mapping[str, float] = field(default_factory=dict)
    limits: Mapping[str, float] = field(default_factory=dict)
    parent: str | None = None
    kept_filters: float | None = None
    metric: Metric = ACCURACY

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise InputError(f"'{self.kind}' is not a kind of point; choose one of {', '.join(KINDS)}")
        if self.kept_filters is not None and not 0 < self.kept_filters <= 1:
            raise InputError(f"point '{self.assignment}' keeps {self.kept_filters} of its filters, which is no share")
        for name, value in self.costs.items():
            if not math.isfinite(value):
                raise InputError(f"point '{self.assignment}' has {name} = {value}, which cannot be compared")

    @property
    def costs(self) -> dict[str, float]:
        """All costs by name."""
        return {name: getattr(self, name) for name in COSTS} | dict(self.extra_costs)

    def cost(self, name: str) -> float:
        """Return one cost by name; raise :class:`InputError` for a cost that was not measured."""
        if name in COSTS and name not in self.extra_costs:
            return float(getattr(self, name))
        if name not in self.extra_costs:
            raise InputError(
                f"point '{self.assignment}' has no cost '{name}'; it has {', '.join(self.costs)}"
                f"{nearest(name, self.costs)}"
            )
        return self.extra_costs[name]

    @property
    def gain(self) -> float:
        """The metric on validation images, with the sign that makes larger better, as :meth:`Metric.compared`."""
        return self.metric.gain(self.metric.compared(self.val.mean))

    @property
    def key(self) -> tuple[str, str, str]:
        """What tells this point from all others of a front: id, kind, budget."""
        return self.assignment, self.kind, self.budget or ""

    def to_json(self) -> dict[str, Any]:
        """Return the point's entry in front.json."""
        return {
            "assignment": self.assignment,
            "kind": self.kind,
            **{name: getattr(self, name) for name in COSTS},
            "extra_costs": dict(self.extra_costs),
            f"val_{self.metric.name}": _estimate_json(self.val),
            f"test_{self.metric.name}": _estimate_json(self.test),
            "on_front": self.on_front,
            "feasible": self.feasible,
            "budget": self.budget,
            "limits": dict(self.limits),
            "parent": self.parent,
            "kept_filters": self.kept_filters,
        }


@dataclass(frozen=True)
class FloatReference:
    """The network as it came: its size in fp32 and, where measured, its metric.

    ``costs`` are all that fp32 has a figure for, by name; empty in files of earlier versions.
    """

    size_bytes: float
    val: float | None = None
    test: float | None = None
    costs: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        own = {name: getattr(self, name) for name in ("size_bytes", "val", "test")}
        for name, value in {**self.costs, **own}.items():
            if value is not None and not math.isfinite(value):
                raise InputError(f"the float network has {name} = {value}, which cannot be compared")

    def to_json(self, metric: Metric) -> dict[str, Any]:
        """Return the entry in front.json."""
        measured = {f"val_{metric.name}": self.val, f"test_{metric.name}": self.test}
        return {"size_bytes": self.size_bytes, **measured, "costs": dict(self.costs)}

    @classmethod
    def of(cls, entry: FloatEntry | None, metric: Metric) -> FloatReference | None:
        """What a front file tells of it, if it does; :class:`InputError` for figures that nothing can have."""
        if entry is None:
            return None
        for value in (entry.val, entry.test):
            if value is not None:
                check_figure(metric, value)
        return cls(entry.size_bytes, entry.val, entry.test, entry.costs)


@dataclass(frozen=True)
class ParetoFront:
    """All measured points, sorted by cost, the non-dominated ones marked (``x`` small, the metric good)."""

    points: tuple[FrontPoint, ...]
    x: str = "size_bytes"
    reference: FloatReference | None = None
    preprocessing: Preprocessing | None = None

    @classmethod
    def from_points(
        cls,
        points: Iterable[FrontPoint],
        x: str = "size_bytes",
        reference: FloatReference | None = None,
        preprocessing: Preprocessing | None = None,
    ) -> ParetoFront:
        """Mark the front among ``points``; their order never matters.

        Of points with equal cost and metric only the first by kind (a search before its controls) and id is on the
        front; an infeasible one never is.
        Raises :class:`InputError` for a cost that is missing, a point given twice, or several metrics.
        """
        check_type(points, Iterable, "the points of a front", "give a list of FrontPoint")
        points = list(points)
        if len({point.metric for point in points}) > 1:
            raise InputError("points that were measured by different metrics cannot be compared")
        ranked = sorted(points, key=lambda point: (point.cost(x), -point.gain, KINDS.index(point.kind), point.key))
        keys = [point.key for point in ranked]
        if len(set(keys)) < len(keys):
            twice = next(key for key in keys if keys.count(key) > 1)
            raise InputError(f"the {twice[1]} point '{twice[0]}' is given twice")
        marked = []
        best = -math.inf
        for point in ranked:
            # A profile of a switchable net shares its weights with others: the front is of nets of their own.
            on_front = point.feasible and point.kind != "switchable" and point.gain > best
            best = point.gain if on_front else best
            marked.append(replace(point, on_front=on_front))
        return cls(tuple(marked), x, reference, preprocessing)

    @property
    def front(self) -> tuple[FrontPoint, ...]:
        """The non-dominated points by rising cost."""
        return tuple(point for point in self.points if point.on_front)

    @property
    def metric(self) -> Metric:
        """What the points were measured by."""
        return self.points[0].metric if self.points else ACCURACY

    def by_cost(self, x: str) -> ParetoFront:
        """Return the front of the same points over another cost."""
        return ParetoFront.from_points(self.points, x, self.reference, self.preprocessing)

    def hypervolume(self, worst_cost: float, worst: float = 0.0) -> float:
        """Return the area (cost × metric) between the front and the corner (``worst_cost``, ``worst``)."""
        pairs = [(-point.cost(self.x), point.gain) for point in self.front]
        return hypervolume(pairs, (-worst_cost, self.metric.gain(worst)))

    def to_json(self) -> dict[str, Any]:
        """Return the object described in docs/file-formats.md."""
        reference = self.reference
        return {
            "schema": SCHEMA,
            "x": self.x,
            "metric": self.metric.to_json(),
            "points": [point.to_json() for point in self.points],
            "float": None if reference is None else reference.to_json(self.metric),
            "preprocessing": None if self.preprocessing is None else self.preprocessing.to_json(),
        }

    @classmethod
    def from_json(cls, data: Any) -> ParetoFront:
        """Read what :meth:`to_json` writes (marks are computed again); raise :class:`InputError` for anything else."""
        check_schema(data, SCHEMA, "a front file")
        try:
            file = FrontFile.read(data)
            metric, told = file.measured_by, file.preprocessing
            points = [_point(entry, metric) for entry in file.entries()]
            reference = FloatReference.of(file.reference(), metric)
            preprocessing = None if told is None else Preprocessing.from_json(told)  # earlier files have none
            return cls.from_points(points, file.x, reference, preprocessing)
        except InputError as error:
            raise InputError(f"the front file is damaged ({error})") from error

    def to_csv(self) -> str:
        """Return one line per point, with a column for every cost that any point has."""
        extra = sorted({name for point in self.points for name in point.extra_costs})
        estimates = [f"{split}_{self.metric.name}_{part}" for split in ("val", "test") for part in ("mean", "std", "n")]
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(["assignment", "kind", "budget", *COSTS, *extra, *estimates, *_FLAGS, "parent", "kept_filters"])
        for point in self.points:
            costs = [point.costs.get(name, "") for name in (*COSTS, *extra)]
            measured = [*_cells(point.val), *_cells(point.test)]
            flags = ["true" if getattr(point, flag) else "false" for flag in _FLAGS]
            kept = "" if point.kept_filters is None else point.kept_filters
            name = [point.assignment, point.kind, point.budget or ""]
            writer.writerow([*name, *costs, *measured, *flags, point.parent or "", kept])
        return out.getvalue()


def fronts_over(fronts: Mapping[str, ParetoFront], x: str) -> dict[str, ParetoFront]:
    """Fronts by the names of their runs, over the cost ``x``; :class:`InputError` names the run that lacks it."""
    for run, front in fronts.items():
        lacking = [point.assignment for point in front.points if x not in point.costs]
        if not lacking:
            continue
        every = [set(point.costs) for each in fronts.values() for point in each.points]
        common = sorted(set.intersection(*every))
        of = "" if len(lacking) == len(front.points) else f" of '{lacking[0]}'"
        whose = "it has" if len(fronts) == 1 else "all of these runs have"
        raise InputError(f"{run} has no cost '{x}'{of}; {whose} {', '.join(common)}{nearest(x, common)}")
    return {run: front.by_cost(x) for run, front in fronts.items()}


def hypervolume(points: Iterable[Sequence[float]], reference: Sequence[float]) -> float:
    """Return the exact area dominated by 2-D ``points``, both coordinates maximised, above ``reference``.

    Points that do not exceed the reference in both coordinates add nothing; a NaN raises :class:`InputError`.

    >>> hypervolume([(1, 3), (2, 2), (3, 1)], (0, 0))
    6.0
    """
    pairs = [(float(x), float(y)) for x, y in points]
    reference_x, reference_y = map(float, reference)
    if not all(math.isfinite(number) for pair in [*pairs, (reference_x, reference_y)] for number in pair):
        raise InputError("the hypervolume needs finite numbers")
    area, height = 0.0, reference_y
    for x, y in sorted(pairs, reverse=True):
        if x > reference_x and y > height:
            area += (x - reference_x) * (y - height)
            height = y
    return area


def _estimate_json(estimate: Estimate | None) -> dict[str, float] | None:
    return None if estimate is None else {"mean": estimate.mean, "std": estimate.std, "n": estimate.n}


def _cells(estimate: Estimate | None) -> list[float | str]:
    return ["", "", ""] if estimate is None else [estimate.mean, estimate.std, estimate.n]


def _point(entry: PointEntry, metric: Metric) -> FrontPoint:
    values = {each.name: getattr(entry, each.name) for each in fields(FrontPoint) if each.name != "metric"}
    measured = {split: _estimate(getattr(entry, split), metric) for split in ("val", "test")}
    return FrontPoint(**{**values, **measured}, metric=metric)


def _estimate(entry: EstimateEntry | None, metric: Metric) -> Estimate | None:
    if entry is None:
        return None
    check_figure(metric, entry.mean)
    return Estimate(entry.mean, entry.std, entry.n)
