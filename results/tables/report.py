"""The front as a table: its points as rows of numbers, and those as a person reads them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from results.kinds import POINT_KINDS
from results.pareto import COSTS, FLOAT, FloatReference, ParetoFront
from results.tables.plain import PlainTable
from results.units import MEASURED_LATENCY, measured, scaled_unit
from search_spaces.metrics import ACCURACY, Metric

KIBIBYTE = 1024
MOST_DECIMALS = 6


def front_rows(front: ParetoFront) -> list[dict[str, Any]]:
    """Return the front's points sorted by size, as numbers: KiB, 10⁹ bit operations, the metric as measured.

    Where the float network is known its row, of the kind "float", comes last. ``costs`` and ``limits`` are in the
    costs' own units. ``times_smaller`` is the fp32 size over the point's size, None where the fp32 size is not known;
    ``times_smaller_without_index`` leaves out what says where weights are, None where that is not told apart.
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


def limited_costs(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The costs that a budget of some row limits."""
    return list(dict.fromkeys(name for row in rows for name in row["limits"]))


def render_table(rows: Sequence[Mapping[str, Any]], title: str = "", limited: Sequence[str] = ()) -> PlainTable:
    """Return a table of :func:`front_rows` for rich to print; the metric in its unit, points on the front in bold.

    Where something was pruned, "kept" (the share of filters) takes the place of the kind, which ids tell as well: that
    of a pruned assignment begins with the id of the one it was made from.
    The column "front" is left out where all points are on it.
    "÷fp32" is how many times smaller than in fp32 the network is, "no index" the same without what says where
    weights are; "over" marks a point over its budget. Beside the size stand the bit operations (unless an index is told
    apart: they do not know of zeros), every other cost that a budget limits, ``limited`` where these are a few rows of
    many, and the latency as it was measured.
    """
    # Only a long id is ever folded: the usual costs fit into 80 columns.
    table = PlainTable(title)
    table.add_column("assignment", fold=True)
    pruned = any(row.get("kept_filters") is not None for row in rows)
    table.add_column("kept" if pruned else "kind", right=pruned)
    indexed = any(row.get("times_smaller_without_index") is not None for row in rows)
    size, *others = _shown_costs(rows, indexed, limited or limited_costs(rows))
    for heading in (size.heading, "÷fp32", *(["no index"] if indexed else []), *(cost.heading for cost in others)):
        table.add_column(heading, right=True)
    metric = Metric.read(rows[0]["metric"]) if rows else ACCURACY
    for heading in (f"{split} {metric.heading}" for split in ("val", "test")):
        table.add_column(heading, right=True)
    on_front = all(row["on_front"] for row in rows)
    if not on_front:
        table.add_column("front")
    for row in rows:
        table.add_row(
            row["id"],
            _filters(row["kept_filters"]) if pruned else _kind_text(row["kind"]),
            size.text(row),
            _times(row["times_smaller"]),
            *([_times(row["times_smaller_without_index"])] if indexed else []),
            *(cost.text(row) for cost in others),
            _cell(metric, row[f"val_{metric.name}"], row["val_std"], row["seeds"]),
            _cell(metric, row[f"test_{metric.name}"], row["test_std"], row["test_seeds"]),
            *([] if on_front else [_place(row)]),
            style="bold" if row["on_front"] else "dim" if row["kind"] == FLOAT else "",
        )
    return table


@dataclass(frozen=True)
class _CostColumn:
    """One cost of every row, in the unit in which the smallest one still has two digits."""

    name: str
    heading: str
    divisor: float
    decimals: int | None

    def text(self, row: Mapping[str, Any]) -> str:
        value = row["costs"].get(self.name)
        if value is None:
            return ""
        shown = value / self.divisor
        return f"{shown:.4g}" if self.decimals is None else f"{shown:,.{self.decimals}f}"


def _shown_costs(rows: Sequence[Mapping[str, Any]], indexed: bool, limited: Sequence[str]) -> list[_CostColumn]:
    """The size, the bit operations unless an index is told apart, and whatever else is limited."""
    nets = [row for row in rows if row["kind"] != FLOAT] or rows  # fp32 has a line, not a say in the unit
    columns = []
    timed = [MEASURED_LATENCY] if any(MEASURED_LATENCY in row["costs"] for row in rows) else []
    for name in dict.fromkeys(["size_bytes", *([] if indexed else ["bitops"]), *limited, *timed]):
        values = [row["costs"][name] for row in nets if row["costs"].get(name)]
        unit = scaled_unit(name, min(values, default=0.0))
        heading = unit.symbol if name in COSTS else f"{unit.quantity} {unit.symbol}".rstrip()
        columns.append(_CostColumn(name, heading, unit.divisor, _decimals([v / unit.divisor for v in values])))
    return columns


def _decimals(values: Sequence[float]) -> int | None:
    """How many decimals show four digits of the smallest value; 0 where all are whole, None where it takes too many."""
    smallest = min(values, default=0.0)
    if not smallest or all(value == round(value) for value in values):
        return 0
    decimals = max(3 - math.floor(math.log10(smallest)), 0)
    return decimals if decimals <= MOST_DECIMALS else None


def _place(row: Mapping[str, Any]) -> str:
    return "yes" if row["on_front"] else "" if row["feasible"] else "over"


def _kind_text(kind: str) -> str:
    known = POINT_KINDS.get(kind)
    return known.short if known and known.short else kind


def _filters(share: float | None) -> str:
    return "all" if share is None else f"{100 * share:.0f} %"


def _times(ratio: float | None) -> str:
    return "" if ratio is None else f"{ratio:.1f}x"


def _cell(metric: Metric, mean: float | None, std: float, n: int) -> str:
    return "" if mean is None else measured(metric, mean, std, n)
