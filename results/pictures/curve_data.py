"""The course of each search, read from the journal's epoch records before anything is drawn."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from results.units import scaled_unit

Column = tuple[float | None, ...]


@dataclass(frozen=True)
class Curve:
    """One quantity per epoch with its budget (None where it has none), both in the unit that ``label`` names."""

    label: str
    values: Column
    budget: float | None = None


@dataclass(frozen=True)
class SearchCurves:
    """One search, epoch by epoch: accuracies in %, entropies in [0, 1], bits per decision (rows) and epoch."""

    label: str
    epochs: tuple[int, ...]
    soft_top1: Column
    argmax_top1: Column
    costs: tuple[Curve, ...]
    temperature: Column
    entropy: Column
    decision_entropy: Mapping[str, Column]
    weight_bits: Mapping[str, tuple[int | None, ...]]
    activation_bits: Mapping[str, tuple[int | None, ...]]


def search_curves(records: Iterable[Mapping[str, Any]]) -> dict[str, SearchCurves]:
    """Return the curves of each search label in the journal, in order of appearance.

    An epoch that was repeated after a resume counts once, as last recorded. Where a label was searched with several
    seeds, each is told apart as ``"LABEL (seed N)"``.
    """
    found: dict[tuple[str, Any], dict[int, Mapping[str, Any]]] = {}
    for record in records:
        if record.get("event") == "epoch" and record.get("stage") == "search":
            key = (str(record.get("run", "search")), record.get("seed"))
            found.setdefault(key, {})[int(record["epoch"])] = record
    labels = [label for label, _ in found]
    curves = {}
    for (label, seed), epochs in found.items():
        name = label if labels.count(label) == 1 else f"{label} (seed {seed})"
        curves[name] = _curves(name, [epochs[epoch] for epoch in sorted(epochs)])
    return curves


def _curves(label: str, records: Sequence[Mapping[str, Any]]) -> SearchCurves:
    return SearchCurves(
        label=label,
        epochs=tuple(int(record["epoch"]) for record in records),
        soft_top1=_column(records, "top1", 100.0),
        argmax_top1=_column(records, "argmax_top1", 100.0),
        costs=_cost_curves(records),
        temperature=_column(records, "temperature"),
        entropy=_column(records, "entropy"),
        decision_entropy=_table(records, "decision_entropy"),
        weight_bits={name: tuple(v and v[0] for v in row) for name, row in _table(records, "bits").items()},
        activation_bits={name: tuple(v and v[1] for v in row) for name, row in _table(records, "bits").items()},
    )


def _cost_curves(records: Sequence[Mapping[str, Any]]) -> tuple[Curve, ...]:
    """Return expected costs: one alone in its unit; several as a share of their budgets, on one axis."""
    expected = _table(records, "expected")
    budgets = {name: float(value) for record in records for name, value in (record.get("budget") or {}).items()}
    names = [name for name in expected if name in budgets] or list(expected)[:1]
    curves = []
    for name in names:
        budget = budgets.get(name)
        unit = scaled_unit(name, max(value for value in (*expected[name], budget) if value is not None))
        if len(names) > 1 and budget:
            scaled = tuple(None if value is None else value / budget for value in expected[name])
            curves.append(Curve(f"{unit.quantity} / budget", scaled, 1.0))
        else:
            scaled = tuple(None if value is None else value / unit.divisor for value in expected[name])
            curves.append(Curve(unit.axis_label, scaled, None if budget is None else budget / unit.divisor))
    return tuple(curves)


def _column(records: Sequence[Mapping[str, Any]], key: str, scale: float = 1.0) -> Column:
    values = [record.get(key) for record in records]
    return tuple(None if value is None else scale * float(value) for value in values)


def _table(records: Sequence[Mapping[str, Any]], key: str) -> dict[str, tuple[Any, ...]]:
    """Return name → value per epoch of a nested mapping, None where an epoch lacks the name."""
    tables = [record.get(key) or {} for record in records]
    names = dict.fromkeys(name for table in tables for name in table)
    return {name: tuple(table.get(name) for table in tables) for name in names}
