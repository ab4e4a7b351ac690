"""The measured points as a page shows them: every figure as a number to draw and as a text to read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from results.kinds import POINT_KINDS, PointKind
from results.pareto import COSTS, Estimate, FrontPoint, ParetoFront
from results.pictures.plot_data import floor_of, side_of, wants_logarithm
from results.tables.advice import advice, recommended
from results.tables.verdicts import verdicts
from results.units import amount_text, measured, scaled_unit
from search_spaces.metrics import ACCURACY, Metric
from search_spaces.provenance import FEWER_BITS, PROFILE, PRUNED_RANDOM, PRUNED_UNIFORM

_SYMBOLS = {
    "o": "circle",
    "P": "cross",
    "s": "square",
    "^": "triangle-up",
    "H": "hexagon2",
    "v": "triangle-down",
    "d": "diamond-tall",
    "D": "diamond",
    "8": "octagon",
    "*": "star",
    ">": "triangle-right",
    "<": "triangle-left",
    "X": "x",
    "p": "pentagon",
    "h": "hexagon",
}
"""Markers of pictures → those of plotly."""


def metric_json(metric: Metric) -> dict[str, Any]:
    """How the metric is labelled and drawn."""
    title = f"{metric.label} accuracy" if metric == ACCURACY else metric.label
    axis = f"{title} ({metric.unit})" if metric.unit else title
    told = {"name": metric.name, "axis": axis, "unit": metric.unit, "larger": metric.direction == "larger"}
    return {**told, "side": side_of(metric)}


def kinds_json() -> dict[str, Any]:
    """How points of each kind are named and drawn."""
    return {name: _kind_json(name, kind) for name, kind in POINT_KINDS.items()}


def _kind_json(name: str, kind: PointKind) -> dict[str, Any]:
    controls = {control for each in POINT_KINDS.values() for control in each.controls}
    controls |= {"random", "control", "sampled", PRUNED_UNIFORM, PRUNED_RANDOM, FEWER_BITS}
    group = "profiles" if name == PROFILE else "controls" if name in controls else "found"
    drawn = {"colour": kind.colour, "symbol": _SYMBOLS[kind.marker], "size": round(1.4 * kind.size, 1)}
    return {"label": kind.label, "group": group, "ring": kind.ring, **drawn}


def costs_of(front: ParetoFront) -> list[str]:
    """All costs that any point has, the usual ones first; what was measured stands beside what was foretold of it."""
    names = dict.fromkeys([*COSTS, *(name for point in front.points for name in point.extra_costs)])
    beside = {f"measured_{name}" for name in names}
    return [each for name in names if name not in beside for each in (name, f"measured_{name}") if each in names]


def points_json(front: ParetoFront) -> dict[str, Any]:
    """The points, what they cost and reach, and for every cost which are on its front and what to take."""
    names = costs_of(front) if front.points else []
    return {
        "metric": metric_json(front.metric),
        "x": front.x,
        "costs": [_cost_json(name, front) for name in names],
        "points": [_point_json(point, names) for point in front.points],
        "fronts": {name: _front_json(front, name) for name in names},
        "verdicts": verdicts(front),
        "float": _float_json(front, names),
    }


def _cost_json(name: str, front: ParetoFront) -> dict[str, Any]:
    known = [point.costs[name] for point in front.points if name in point.costs]
    unit = scaled_unit(name, max(known))
    return {"name": name, "label": unit.axis_label, "divisor": unit.divisor, "log": wants_logarithm(known)}


def _front_json(front: ParetoFront, cost: str) -> dict[str, Any]:
    """Those that no other one beats over this cost, among the points that have it, by rising cost.

    ``floor`` is the value at which the axis of the metric is cut, at its worse end; None where all points are shown.
    """
    known = [point for point in front.points if cost in point.costs]
    by_cost = ParetoFront.from_points(known, cost, front.reference, front.preprocessing)
    taken = recommended(by_cost)
    return {
        "front": [point.assignment for point in by_cost.front],
        "take": advice(by_cost),
        "taken": taken.assignment if taken else None,
        "floor": floor_of([by_cost]),
    }


def _point_json(point: FrontPoint, names: Sequence[str]) -> dict[str, Any]:
    return {
        "id": point.assignment,
        "kind": point.kind,
        "budget": point.budget,
        "costs": [point.costs.get(name) for name in names],
        "cost_texts": [amount_text(name, point.costs[name]) if name in point.costs else "" for name in names],
        "val": _estimate_json(point.metric, point.val),
        "test": None if point.test is None else _estimate_json(point.metric, point.test),
        "feasible": point.feasible,
        "parent": point.parent,
        "kept": None if point.kept_filters is None else f"{100 * point.kept_filters:.0f} %",
    }


def _estimate_json(metric: Metric, found: Estimate) -> dict[str, Any]:
    """The figure as it is drawn, its spread over seeds, and as it is read."""
    text = f"{measured(metric, found.mean, found.std, found.n)} {metric.unit}".rstrip()
    seeds = f"{found.n} seed{'' if found.n == 1 else 's'}"
    return {"mean": metric.scale * found.mean, "std": abs(metric.scale) * found.std, "text": text, "seeds": seeds}


def _float_json(front: ParetoFront, names: Sequence[str]) -> dict[str, Any] | None:
    reference, metric = front.reference, front.metric
    if reference is None:
        return None
    costs = {"size_bytes": reference.size_bytes, **reference.costs}
    return {
        "val": None if reference.val is None else metric.scale * reference.val,
        "val_text": "" if reference.val is None else metric.text(reference.val),
        "test_text": "" if reference.test is None else metric.text(reference.test),
        "costs": [costs.get(name) for name in names],
        "cost_texts": [amount_text(name, costs[name]) if name in costs else "" for name in names],
    }
