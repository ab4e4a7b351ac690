"""What the front says in words and in a table: does the search beat its controls, and by how much."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.table import Table

from results.pareto import Estimate, FrontPoint, ParetoFront
from results.units import scaled_unit

KIBIBYTE = 1024


@dataclass(frozen=True)
class Comparison:
    """A search point beside one control; ``control`` is None where there is none to compare with, ``why`` says why.

    ``gain`` is the difference of validation accuracies in percentage points, ``spread`` the pooled standard
    deviation over seeds in percentage points (None where neither was measured on more than one seed).
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

    The controls are the ILP point of the same budget, and the best uniform point that meets every limit of that
    budget (or costs no more than the search point, where the limits are not known). Where several points qualify,
    the one with the highest validation accuracy is taken.
    """
    search = [point for point in front.points if point.kind == "search" and point.feasible]
    best = {budget: _best([p for p in search if p.budget == budget]) for budget in {p.budget for p in search}}
    comparisons = []
    for point in sorted((p for p in best.values() if p), key=lambda p: (p.cost(front.x), p.key)):
        label = point.budget or point.assignment
        ilp = _best([p for p in front.points if p.kind == "ilp" and p.feasible and p.budget == point.budget])
        comparisons.append(_compare(label, point, "ilp", ilp, "no ILP control was measured at this budget"))
        uniform = [p for p in front.points if p.kind == "uniform"]
        limits = point.limits or {front.x: point.cost(front.x)}
        small = _best([p for p in uniform if all(p.cost(name) <= limit for name, limit in limits.items())])
        none = "no uniform assignment that was measured meets it" if uniform else "no uniform control was measured"
        comparisons.append(_compare(label, point, "uniform", small, none))
    return comparisons


def verdicts(front: ParetoFront) -> list[str]:
    """Return one sentence for each budget and control: does the search beat it, by how much against the spread."""
    return [_sentence(comparison, front.x) for comparison in compare_with_controls(front)]


def front_rows(front: ParetoFront) -> list[dict[str, Any]]:
    """Return the front's points sorted by size, as numbers: KiB, 10⁹ bit operations, accuracies in [0, 1].

    ``times_smaller`` is the fp32 size over the point's size, None where the fp32 size is not known.
    """
    reference = front.reference
    rows = []
    for point in sorted(front.points, key=lambda point: (point.size_bytes, point.key)):
        test = point.test_top1
        smaller = reference.size_bytes / point.size_bytes if reference and point.size_bytes else None
        rows.append(
            {
                "id": point.assignment,
                "kind": point.kind,
                "budget": point.budget,
                "size_kib": point.size_bytes / KIBIBYTE,
                "times_smaller": smaller,
                "gbitops": point.bitops / 1e9,
                "val_top1": point.val_top1.mean,
                "val_std": point.val_top1.std,
                "test_top1": test.mean if test else None,
                "test_std": test.std if test else None,
                "test_seeds": test.n if test else None,
                "seeds": point.val_top1.n,
                "on_front": point.on_front,
                "feasible": point.feasible,
            }
        )
    return rows


def render_table(rows: Sequence[Mapping[str, Any]], title: str | None = None) -> Table:
    """Return a terminal table of :func:`front_rows`; accuracies in %, points on the front in bold.

    "÷fp32" is how many times smaller than in fp32 the network is; "over" marks a point over its budget.
    """
    # No lines, so that everything fits into 80 columns; only a long id is ever folded.
    table = Table(title=title, box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="underline")
    table.add_column("assignment", overflow="fold")
    table.add_column("kind", no_wrap=True)
    for heading in ("KiB", "÷fp32", "GBitOps", "val %", "test %"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("front", no_wrap=True)
    for row in rows:
        smaller = row["times_smaller"]
        table.add_row(
            row["id"],
            "ILP" if row["kind"] == "ilp" else row["kind"],
            f"{row['size_kib']:,.1f}",
            "" if smaller is None else f"{smaller:.1f}x",
            f"{row['gbitops']:.3g}",
            _percent(row["val_top1"], row["val_std"], row["seeds"]),
            "" if row["test_top1"] is None else _percent(row["test_top1"], row["test_std"], row["test_seeds"]),
            "yes" if row["on_front"] else "" if row["feasible"] else "over",
            style="bold" if row["on_front"] else None,
        )
    return table


def _best(points: Sequence[FrontPoint]) -> FrontPoint | None:
    return min(points, key=lambda point: (-point.val_top1.mean, point.key), default=None)


def _compare(label: str, search: FrontPoint, kind: str, control: FrontPoint | None, why: str) -> Comparison:
    if control is None:
        return Comparison(label, search, kind, None, why=why)
    spread = pooled_std(search.val_top1, control.val_top1)
    gain = 100 * (search.val_top1.mean - control.val_top1.mean)
    return Comparison(label, search, kind, control, gain, None if spread is None else 100 * spread)


def _sentence(comparison: Comparison, x: str) -> str:
    name = "ILP" if comparison.kind == "ilp" else comparison.kind
    search, control = comparison.search, comparison.control
    start = f"budget {comparison.budget}: search '{search.assignment}'"
    if control is None:
        return f"{start} has no {name} control to compare with: {comparison.why}."
    unit = scaled_unit(x, max(search.cost(x), control.cost(x)))
    tell: Callable[[FrontPoint], str] = lambda point: (  # noqa: E731 (used twice, in one sentence)
        f"{point.cost(x) / unit.divisor:.4g} {unit.symbol}".rstrip()
        + f", {_percent(point.val_top1.mean, point.val_top1.std, point.val_top1.n)} %"
    )
    spread = (
        "one seed each, so the spread is not known"
        if comparison.spread is None
        else (f"spread {comparison.spread:.2f}")
    )
    other = f"{name} '{control.assignment}' ({tell(control)})"
    words = {
        "within the spread": f"is within the spread of {other}: {comparison.gain:+.2f} points",
        "equals": f"equals {other}: no difference",
        "beats": f"beats {other} by {abs(comparison.gain):.2f} points",
        "loses to": f"loses to {other} by {abs(comparison.gain):.2f} points",
    }[comparison.verdict]
    return f"{start} ({tell(search)}) {words} ({spread})."


def _percent(mean: float, std: float, n: int) -> str:
    return f"{100 * mean:.2f}" if n == 1 else f"{100 * mean:.2f} ±{100 * std:.2f}"
