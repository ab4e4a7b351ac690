"""What the front says in words: does the search beat its controls, and by how much."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass

from results.kinds import POINT_KINDS
from results.pareto import Estimate, FrontPoint, ParetoFront
from results.tables.within import Within
from results.units import Unit, measured, number_text, scaled_unit
from search_spaces.errors import check_type
from search_spaces.metrics import Metric

PRUNE_CONTROLS = {
    "pruned-uniform": "no uniform ratio was measured at this budget",
    "pruned-random": "no result of random trials was measured at this budget",
    "fewer-bits": "all filters at fewer bits were not measured at this budget",
}
"""Kinds of points that a pruned one is compared with, and what is said where there is none."""


@dataclass(frozen=True)
class Comparison:
    """A search point beside one control; ``control`` is None where there is none to compare with, ``why`` says why.

    ``gain`` is the difference on validation in the metric's unit (above 0: the search is better), ``spread`` the
    pooled standard deviation over seeds in it (None where neither was measured on more than one seed).
    """

    budget: str
    search: FrontPoint
    kind: str
    control: FrontPoint | None
    gain: float = 0.0
    spread: float | None = None
    why: str = ""

    @property
    def verdict(self) -> str:
        """One of "beats", "loses to", "within the spread", "equals", or "no control"."""
        if self.control is None:
            return "no control"
        if self.spread is not None and abs(self.gain) <= self.spread:
            return "within the spread"
        if self.gain == 0:
            return "equals"
        return "beats" if self.gain > 0 else "loses to"


def pooled_std(first: Estimate, second: Estimate) -> float | None:
    """Return the pooled sample standard deviation, or None where both have a single value."""
    freedom = first.n + second.n - 2
    if freedom == 0:
        return None
    return math.sqrt(((first.n - 1) * first.std**2 + (second.n - 1) * second.std**2) / freedom)


def compare_with_controls(front: ParetoFront) -> list[Comparison]:
    """Return, for each budget by rising cost, the best feasible search point beside the controls of its kind.

    The controls are the ILP point of the same budget, that of the measured ILP where there is one, and the best
    uniform point that meets every limit of that budget (or costs no more than the search point, where the limits are
    not known). Where several points qualify, the one with the highest validation accuracy is taken.
    """
    search = [point for point in front.points if POINT_KINDS[point.kind].controls and point.feasible]
    by_budget = _best_by((p for p in front.points if p.feasible), lambda p: (p.kind, p.budget))
    uniform = [p for p in front.points if p.kind == "uniform"]
    within = Within(uniform, _order)
    none = "no uniform assignment that was measured meets it" if uniform else "no uniform control was measured"
    comparisons = []
    for point in sorted(_best_by(search, _goal).values(), key=lambda p: (p.cost(front.x), p.key)):
        label, controls = point.budget or point.assignment, POINT_KINDS[point.kind].controls
        if "ilp" in controls:
            ilp = by_budget.get(("ilp", point.budget))
            comparisons.append(_compare(label, point, "ilp", ilp, "no ILP control was measured at this budget"))
        measured = by_budget.get(("measured-ilp", point.budget))
        if measured and "measured-ilp" in controls:
            comparisons.append(_compare(label, point, "measured-ilp", measured, ""))
        small = within.best(point.limits or {front.x: point.cost(front.x)})
        comparisons.append(_compare(label, point, "uniform", small, none))
    return comparisons


def _goal(point: FrontPoint) -> tuple[str, str]:
    """What a point was made for: among points with the same, the best is compared."""
    alone = POINT_KINDS[point.kind].alone and point.budget is None
    return point.kind, point.assignment if alone else point.budget or ""


def compare_pruned(front: ParetoFront) -> list[Comparison]:
    """Return, for each parent and budget by rising cost, the best feasible pruned point beside each of its controls.

    The controls have the same parent and budget: one ratio for all groups, random trials, all filters at fewer bits.
    A point that was pruned without a budget stands by itself beside the best point with all its filters that costs
    no more.
    """
    feasible = [point for point in front.points if point.feasible]
    best = _best_by(feasible, lambda p: (p.kind, *_prune_goal(p)))
    whole = Within([p for p in feasible if p.kept_filters is None], _order)
    comparisons = []
    for point in sorted((p for p in best.values() if p.kind == "pruned"), key=lambda p: (p.cost(front.x), p.key)):
        if point.budget is None:
            unpruned = whole.best({front.x: point.cost(front.x)})
            comparisons.append(_compare("", point, "unpruned", unpruned, "nothing as small keeps all its filters"))
            continue
        for kind, why in PRUNE_CONTROLS.items():
            control = best.get((kind, *_prune_goal(point)))
            comparisons.append(_compare(point.budget, point, kind, control, why))
    return comparisons


def _prune_goal(point: FrontPoint) -> tuple[str | None, ...]:
    """What a pruned point or its control was made for: among points with the same, the best is compared."""
    return point.parent, point.budget, point.assignment if point.budget is None else None


def verdicts(front: ParetoFront) -> list[str]:
    """Return one sentence for each budget and control: does the search beat it, by how much against the spread.

    Below them, the same for what was pruned.
    """
    check_type(front, ParetoFront, "a front", "give what run_job or Run.load_front returns")
    comparisons = [*compare_with_controls(front), *compare_pruned(front)]
    return [_sentence(comparison, front.x) for comparison in comparisons]


def _best_by(points: Iterable[FrontPoint], key: Callable[[FrontPoint], Hashable]) -> dict[Hashable, FrontPoint]:
    """The best point of every group of them that have the same key."""
    found: dict[Hashable, FrontPoint] = {}
    for point in sorted(points, key=_order):
        found.setdefault(key(point), point)
    return found


def _order(point: FrontPoint) -> tuple[float, tuple[str, str, str]]:
    return -point.gain, point.key


def _compare(label: str, search: FrontPoint, kind: str, control: FrontPoint | None, why: str) -> Comparison:
    if control is None:
        return Comparison(label, search, kind, None, why=why)
    scale, spread = search.metric.scale, pooled_std(search.val, control.val)
    gain = scale * search.metric.difference(search.gain, control.gain)
    return Comparison(label, search, kind, control, gain, None if spread is None else scale * spread)


def _sentence(comparison: Comparison, x: str) -> str:
    """One comparison, its costs those that the budget limits (``x`` without one)."""
    known = POINT_KINDS.get(comparison.kind)
    name = (known.short if known else "") or comparison.kind
    search, control = comparison.search, comparison.control
    budget = f"budget {comparison.budget}: " if search.kind == "search" or search.budget else ""
    parent = "" if search.parent is None else f"{search.parent}, " if budget else f"{search.parent}: "
    start = f"{parent}{budget}{search.kind} '{search.assignment}'"
    if control is None:
        return f"{start} has no {name} control to compare with: {comparison.why}."
    names = [name for name in search.limits if name in search.costs and name in control.costs] or [x]
    units = {name: scaled_unit(name, max(search.cost(name), control.cost(name))) for name in names}
    spread = (
        "one seed each, so the spread is not known"
        if comparison.spread is None
        else f"spread {_difference(search.metric, comparison.spread)}"
    )
    other = f"{name} '{control.assignment}' ({_figures(control, units)})"
    size, unit = (
        _difference(search.metric, abs(comparison.gain)),
        "points" if search.metric.unit == "%" else search.metric.unit,
    )
    signed = f"{'-' if comparison.gain < 0 else '+'}{size}"
    words = {
        "within the spread": f"is within the spread of {other}: {signed} {unit}".rstrip(),
        "equals": f"equals {other}: no difference",
        "beats": f"beats {other} by {size} {unit}".rstrip(),
        "loses to": f"loses to {other} by {size} {unit}".rstrip(),
    }[comparison.verdict]
    return f"{start} ({_figures(search, units)}) {words} ({spread})."


def _figures(point: FrontPoint, units: Mapping[str, Unit]) -> str:
    """What a point costs in these units, and its accuracy."""
    told = [f"{number_text(point.cost(name) / unit.divisor)} {unit.symbol}".rstrip() for name, unit in units.items()]
    found = point.val
    return ", ".join([*told, f"{measured(point.metric, found.mean, found.std, found.n)} {point.metric.unit}".rstrip()])


def _difference(metric: Metric, scaled: float) -> str:
    """A difference that is in the metric's own unit already."""
    return f"{scaled:.2f}" if metric.unit == "%" else f"{scaled:.4g}"
