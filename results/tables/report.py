"""What the front says in words and in a table: does the search beat its controls, and by how much."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.table import Table

from results.pareto import COSTS, FLOAT, Estimate, FloatReference, FrontPoint, ParetoFront
from results.units import Unit, number_text, scaled_unit
from search_spaces.errors import check_type
from search_spaces.metrics import ACCURACY, Metric

KIBIBYTE = 1024
COMPARED = ("search", "squantizer")
"""Kinds of points that are compared with the controls."""
PRUNE_CONTROLS = {
    "pruned-uniform": "no uniform ratio was measured at this budget",
    "pruned-random": "no result of random trials was measured at this budget",
    "fewer-bits": "all filters at fewer bits were not measured at this budget",
}
"""Kinds of points that a pruned one is compared with, and what is said where there is none."""
_SHORT = {"ilp": "ILP", "squantizer": "SQuant"}


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
    """Return, for each budget by rising cost, the best feasible search point beside both of its controls.

    SQuantizer points stand beside the best uniform point alone, each without a budget by itself.

    The controls are the ILP point of the same budget, and the best uniform point that meets every limit of that
    budget (or costs no more than the search point, where the limits are not known). Where several points qualify,
    the one with the highest validation accuracy is taken.
    """
    search = [point for point in front.points if point.kind in COMPARED and point.feasible]
    best = {key: _best([p for p in search if _goal(p) == key]) for key in {_goal(p) for p in search}}
    comparisons = []
    for point in sorted((p for p in best.values() if p), key=lambda p: (p.cost(front.x), p.key)):
        label = point.budget or point.assignment
        if point.kind == "search":
            ilp = _best([p for p in front.points if p.kind == "ilp" and p.feasible and p.budget == point.budget])
            comparisons.append(_compare(label, point, "ilp", ilp, "no ILP control was measured at this budget"))
        uniform = [p for p in front.points if p.kind == "uniform"]
        limits = point.limits or {front.x: point.cost(front.x)}
        small = _best([p for p in uniform if all(p.cost(name) <= limit for name, limit in limits.items())])
        none = "no uniform assignment that was measured meets it" if uniform else "no uniform control was measured"
        comparisons.append(_compare(label, point, "uniform", small, none))
    return comparisons


def _goal(point: FrontPoint) -> tuple[str, str]:
    """What a point was made for: among points with the same, the best is compared."""
    alone = point.kind == "squantizer" and point.budget is None
    return point.kind, point.assignment if alone else point.budget or ""


def compare_pruned(front: ParetoFront) -> list[Comparison]:
    """Return, for each parent and budget by rising cost, the best feasible pruned point beside each of its controls.

    The controls have the same parent and budget: one ratio for all groups, random trials, all filters at fewer bits.
    A point that was pruned without a budget stands by itself beside the best point with all its filters that costs
    no more.
    """
    feasible = [point for point in front.points if point.feasible]
    pruned = [point for point in feasible if point.kind == "pruned"]
    best = {key: _best([p for p in pruned if _prune_goal(p) == key]) for key in map(_prune_goal, pruned)}
    comparisons = []
    for point in sorted((p for p in best.values() if p), key=lambda p: (p.cost(front.x), p.key)):
        if point.budget is None:
            whole = [p for p in feasible if p.kept_filters is None and p.cost(front.x) <= point.cost(front.x)]
            comparisons.append(_compare("", point, "unpruned", _best(whole), "nothing as small keeps all its filters"))
            continue
        for kind, why in PRUNE_CONTROLS.items():
            control = _best([p for p in feasible if p.kind == kind and _prune_goal(p) == _prune_goal(point)])
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


def front_rows(front: ParetoFront) -> list[dict[str, Any]]:
    """Return the front's points sorted by size, as numbers: KiB, 10⁹ bit operations, the metric as measured.

    Where the float network is known its row, of the kind "float", comes last. ``costs`` and ``limits`` are in the
    costs' own units. ``times_smaller`` is the fp32 size over the point's size, None where the fp32 size is not known;
    ``times_smaller_without_index`` leaves out what says where the non-zero weights are, None without sparse weights.
    """
    reference = front.reference
    rows = []
    for point in sorted(front.points, key=lambda point: (point.size_bytes, point.key)):
        test = point.test
        smaller = reference.size_bytes / point.size_bytes if reference and point.size_bytes else None
        bare = point.extra_costs.get("size_bytes_without_index")
        rows.append(
            {
                "id": point.assignment,
                "kind": point.kind,
                "budget": point.budget,
                "size_kib": point.size_bytes / KIBIBYTE,
                "times_smaller": smaller,
                "times_smaller_without_index": reference.size_bytes / bare if reference and bare else None,
                "gbitops": point.bitops / 1e9,
                f"val_{point.metric.name}": point.val.mean,
                "val_std": point.val.std,
                f"test_{point.metric.name}": test.mean if test else None,
                "test_std": test.std if test else None,
                "test_seeds": test.n if test else None,
                "seeds": point.val.n,
                "parent": point.parent,
                "kept_filters": point.kept_filters,
                "on_front": point.on_front,
                "feasible": point.feasible,
                "metric": point.metric.to_json(),
                "costs": point.costs,
                "limits": dict(point.limits),
            }
        )
    return rows if reference is None else [*rows, _float_row(reference, front.metric)]


def _float_row(reference: FloatReference, metric: Metric) -> dict[str, Any]:
    """The float network as a row of :func:`front_rows`."""
    costs = {"size_bytes": reference.size_bytes, **reference.costs}
    return {
        "id": FLOAT,
        "kind": FLOAT,
        "budget": None,
        "size_kib": reference.size_bytes / KIBIBYTE,
        "times_smaller": 1.0,
        "times_smaller_without_index": None,
        "gbitops": costs["bitops"] / 1e9 if "bitops" in costs else None,
        f"val_{metric.name}": reference.val,
        "val_std": 0.0,
        f"test_{metric.name}": reference.test,
        "test_std": 0.0,
        "test_seeds": 1,
        "seeds": 1,
        "parent": None,
        "kept_filters": None,
        "on_front": False,
        "feasible": True,
        "metric": metric.to_json(),
        "costs": costs,
        "limits": {},
    }


def render_table(rows: Sequence[Mapping[str, Any]], title: str | None = None) -> Table:
    """Return a terminal table of :func:`front_rows`; the metric in its unit, points on the front in bold.

    Where something was pruned, "kept" (the share of filters) takes the place of the kind, which ids tell as well: that
    of a pruned assignment begins with the id of the one it was made from.
    "÷fp32" is how many times smaller than in fp32 the network is, "no index" the same without the index of sparse
    weights; "over" marks a point over its budget. Beside the size stand the bit operations (without sparse weights) and
    every other cost that a budget limits.
    """
    # No lines, so that the usual costs fit into 80 columns; only a long id is ever folded.
    table = Table(title=title, box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="underline")
    table.add_column("assignment", overflow="fold")
    pruned = any(row.get("kept_filters") is not None for row in rows)
    table.add_column("kept" if pruned else "kind", no_wrap=True, justify="right" if pruned else "left")
    sparse = any(row.get("times_smaller_without_index") is not None for row in rows)
    size, *others = _shown_costs(rows, sparse)
    for heading in (size.heading, "÷fp32", *(["no index"] if sparse else []), *(cost.heading for cost in others)):
        table.add_column(heading, justify="right", no_wrap=True)
    metric = Metric(**rows[0]["metric"]) if rows else ACCURACY
    for heading in (f"{split} {metric.unit or metric.name}" for split in ("val", "test")):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("front", no_wrap=True)
    for row in rows:
        table.add_row(
            row["id"],
            _filters(row["kept_filters"]) if pruned else _SHORT.get(row["kind"], row["kind"]),
            size.text(row),
            _times(row["times_smaller"]),
            *([_times(row["times_smaller_without_index"])] if sparse else []),
            *(cost.text(row) for cost in others),
            _cell(metric, row[f"val_{metric.name}"], row["val_std"], row["seeds"]),
            _cell(metric, row[f"test_{metric.name}"], row["test_std"], row["test_seeds"]),
            "yes" if row["on_front"] else "" if row["feasible"] else "over",
            style="bold" if row["on_front"] else "dim" if row["kind"] == FLOAT else None,
        )
    return table


@dataclass(frozen=True)
class _CostColumn:
    """One cost of every row, in the unit in which the smallest one still has two digits."""

    name: str
    heading: str
    divisor: float
    decimals: int

    def text(self, row: Mapping[str, Any]) -> str:
        value = row["costs"].get(self.name)
        return "" if value is None else f"{value / self.divisor:,.{self.decimals}f}"


def _shown_costs(rows: Sequence[Mapping[str, Any]], sparse: bool) -> list[_CostColumn]:
    """The size, the bit operations unless weights are sparse, and whatever else is limited."""
    limited = dict.fromkeys(name for row in rows for name in row["limits"])
    columns = []
    for name in dict.fromkeys(["size_bytes", *([] if sparse else ["bitops"]), *limited]):
        values = [row["costs"][name] for row in rows if row["kind"] != FLOAT and row["costs"].get(name)]
        unit = scaled_unit(name, min(values, default=0.0))
        heading = unit.symbol if name in COSTS else f"{unit.quantity} {unit.symbol}".rstrip()
        columns.append(_CostColumn(name, heading, unit.divisor, _decimals([v / unit.divisor for v in values])))
    return columns


def _decimals(values: Sequence[float]) -> int:
    """How many decimals show four digits of the smallest value; none where all are whole."""
    smallest = min(values, default=0.0)
    if not smallest or all(value == round(value) for value in values):
        return 0
    return min(max(3 - math.floor(math.log10(smallest)), 0), 6)


def _filters(share: float | None) -> str:
    return "all" if share is None else f"{100 * share:.0f} %"


def _times(ratio: float | None) -> str:
    return "" if ratio is None else f"{ratio:.1f}x"


def _best(points: Sequence[FrontPoint]) -> FrontPoint | None:
    return min(points, key=lambda point: (-point.gain, point.key), default=None)


def _compare(label: str, search: FrontPoint, kind: str, control: FrontPoint | None, why: str) -> Comparison:
    if control is None:
        return Comparison(label, search, kind, None, why=why)
    scale, spread = search.metric.scale, pooled_std(search.val, control.val)
    gain = scale * (search.gain - control.gain)
    return Comparison(label, search, kind, control, gain, None if spread is None else scale * spread)


def _sentence(comparison: Comparison, x: str) -> str:
    """One comparison, its costs those that the budget limits (``x`` without one)."""
    name = "ILP" if comparison.kind == "ilp" else comparison.kind
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


def measured(metric: Metric, mean: float, std: float, n: int) -> str:
    """A figure over ``n`` seeds as it is shown, without its unit."""
    return metric.number(mean) if n == 1 else f"{metric.number(mean)} ±{metric.number(std)}"


def _cell(metric: Metric, mean: float | None, std: float, n: int) -> str:
    return "" if mean is None else measured(metric, mean, std, n)


def _difference(metric: Metric, scaled: float) -> str:
    """A difference that is in the metric's own unit already."""
    return f"{scaled:.2f}" if metric.unit == "%" else f"{scaled:.4g}"
