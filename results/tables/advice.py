"""What to take from a front: the cheapest net that is about as good as float, and the best within each budget."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from results.kinds import POINT_KINDS
from results.pareto import FrontPoint, ParetoFront
from results.tables.within import Within
from results.units import amount_text, measured, spread
from search_spaces.errors import check_type
from search_spaces.provenance import KINDS, PROFILE

MOST_BUDGETS = 6
"""More nobody reads in a sentence: the first, the last and some between."""
_ROUNDING = 1 + 1e-9
_SHARE = 0.01
"""Of the float network's figure, where the metric is no percentage."""


def advice(front: ParetoFront) -> list[str]:
    """Return sentences that say which nets to take, by what they reach on validation; none of an empty front.

    Profiles of a switchable net are left out: their weights are not of their own.
    """
    check_type(front, ParetoFront, "a front", "give what run_job or Run.load_front returns")
    points = _candidates(front)
    return [*_near_float(front, points), *_by_budget(front, points)] if points else []


def recommended(front: ParetoFront) -> FrontPoint | None:
    """The point that the first sentence of :func:`advice` names; where float is not known, the best one."""
    points = _candidates(front)
    if not points:
        return None
    near = [point for point in points if _is_near(front, point)]
    return _cheapest(near, front.x) if near else _best(points, front.x)


def told_costs(front: ParetoFront) -> list[str]:
    """The costs to tell of a net of this front: what it is drawn over, and what the searched budgets limit."""
    limited = {name: None for limits in _budgets(_candidates(front)).values() for name in limits}
    return list({front.x: None, **limited})


def _candidates(front: ParetoFront) -> list[FrontPoint]:
    return [point for point in front.points if point.feasible and point.kind != PROFILE]


def _near_float(front: ParetoFront, points: Sequence[FrontPoint]) -> list[str]:
    """The cheapest point within one point of the float network, or the nearest to it."""
    if front.reference is None or front.reference.val is None:
        return []
    metric, val = front.metric, front.reference.val
    words = "one point" if metric.unit == "%" else f"{_SHARE:.0%}"
    near = [point for point in points if _is_near(front, point)]
    float_text = f"float ({metric.told(val)} on validation)"
    names = told_costs(front)
    if not near:
        best = _best(points, front.x)
        return [f"nothing is within {words} of {float_text}; the best is {_told(best, names)}"]
    told = _told(_cheapest(near, front.x), names)
    return [f"take {told}: the {_adjective(front.x)} net within {words} of {float_text}"]


def _is_near(front: ParetoFront, point: FrontPoint) -> bool:
    """Whether a point is about as good as the float network."""
    metric, val = front.metric, front.reference.val if front.reference else None
    if val is None:
        return False
    within = 1 / metric.scale if metric.unit == "%" else _SHARE * abs(val)
    return point.gain >= metric.gain(val) - within * _ROUNDING


def _cheapest(points: Sequence[FrontPoint], x: str) -> FrontPoint:
    return min(points, key=lambda point: (point.cost(x), *_order(point, x)))


def _by_budget(front: ParetoFront, points: Sequence[FrontPoint]) -> list[str]:
    """The best point within each budget that was searched, by rising limits; its costs are those that are limited."""
    budgets = _budgets(points)
    within = Within(points, lambda point: _order(point, front.x))
    told = []
    for label, limits in sorted(budgets.items(), key=lambda budget: tuple(budget[1].values())):
        best = within.best(limits)
        told += [f"{label}: {_told(best, list(limits))}"] if best else []
    which = "each budget" if len(told) <= MOST_BUDGETS else f"{MOST_BUDGETS} of {len(told)} budgets"
    return [f"the best within {which}: {'; '.join(spread(told, MOST_BUDGETS))}"] if told else []


def _budgets(points: Sequence[FrontPoint]) -> dict[str, Mapping[str, float]]:
    """Label → limits of the budgets that were searched."""
    return {
        point.budget: point.limits
        for point in points
        if point.budget and point.limits and POINT_KINDS[point.kind].controls
    }


def _best(points: Sequence[FrontPoint], x: str) -> FrontPoint:
    return min(points, key=lambda point: _order(point, x))


def _order(point: FrontPoint, x: str) -> tuple[float, float, int, str]:
    """The best first; of equal ones the cheapest, then a search before its controls."""
    return -point.gain, point.cost(x), KINDS.index(point.kind), point.assignment


def _adjective(x: str) -> str:
    return "smallest" if x == "size_bytes" else f"cheapest ({x})"


def _told(point: FrontPoint, names: Sequence[str]) -> str:
    """A point with those of these costs that it has, and what it reaches."""
    costs = [amount_text(name, point.cost(name)) for name in names if name in point.costs]
    found = point.val
    figure = f"{measured(point.metric, found.mean, found.std, found.n)} {point.metric.unit}".rstrip()
    return f"'{point.assignment}' ({', '.join([*costs, figure])})"
