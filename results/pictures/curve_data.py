"""The course of each search, read from the journal's epoch records before anything is drawn."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from results.events import Epoch, Event
from results.units import scaled_unit

Column = tuple[float | None, ...]
Value = TypeVar("Value")


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


def search_curves(events: Iterable[Event]) -> dict[str, SearchCurves]:
    """Return the curves of each search label in the journal, in order of appearance.

    An epoch that was repeated after a resume counts once, as last recorded. Where a label was searched with several
    seeds, each is told apart as ``"LABEL (seed N)"``.
    """
    found: dict[tuple[str, int], dict[int, Epoch]] = {}
    for event in events:
        if isinstance(event, Epoch) and event.stage == "search":
            found.setdefault((event.run, event.seed), {})[event.epoch] = event
    labels = [label for label, _ in found]
    curves = {}
    for (label, seed), epochs in found.items():
        name = label if labels.count(label) == 1 else f"{label} (seed {seed})"
        curves[name] = _curves(name, [epochs[epoch] for epoch in sorted(epochs)])
    return curves


def _curves(label: str, epochs: Sequence[Epoch]) -> SearchCurves:
    bits = _table([epoch.bits for epoch in epochs])
    return SearchCurves(
        label=label,
        epochs=tuple(epoch.epoch for epoch in epochs),
        soft_top1=_percent([epoch.top1 for epoch in epochs]),
        argmax_top1=_percent([epoch.argmax_top1 for epoch in epochs]),
        costs=_cost_curves(epochs),
        temperature=tuple(epoch.temperature for epoch in epochs),
        entropy=tuple(epoch.entropy for epoch in epochs),
        decision_entropy=_table([epoch.decision_entropy for epoch in epochs]),
        weight_bits={name: tuple(v and v[0] for v in row) for name, row in bits.items()},
        activation_bits={name: tuple(v and v[1] for v in row) for name, row in bits.items()},
    )


def _cost_curves(epochs: Sequence[Epoch]) -> tuple[Curve, ...]:
    """Return expected costs: one alone in its unit; several as a share of their budgets, on one axis."""
    expected = _table([epoch.expected for epoch in epochs])
    budgets = {name: value for epoch in epochs for name, value in (epoch.budget or {}).items()}
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


def _percent(values: Sequence[float | None]) -> Column:
    return tuple(None if value is None else 100.0 * value for value in values)


def _table(tables: Sequence[Mapping[str, Value]]) -> dict[str, tuple[Value | None, ...]]:
    """Return name → value per epoch, None where an epoch lacks the name."""
    names = dict.fromkeys(name for table in tables for name in table)
    return {name: tuple(table.get(name) for table in tables) for name in names}
