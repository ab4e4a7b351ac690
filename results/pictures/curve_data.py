"""The course of each search, read from the journal's epoch records before anything is drawn."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase as fnmatch
from typing import TypeVar

from results.events import Epoch, Event
from results.units import scaled_unit
from search_spaces.assignments import BitAssignment
from search_spaces.metrics import Metric, metric_named

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
    """One search, epoch by epoch: the metric in its unit, entropies in [0, 1], bits per decision (rows) and epoch.

    ``final_bits`` are the (weight, activation) bits of each decision in the assignment that was kept; where they are
    not those of the last epoch, the projection onto the budget moved them. Empty where the search has not ended.
    Probabilities are those of each width under θ; empty where the journal is of an earlier version.
    """

    label: str
    metric: Metric
    epochs: tuple[int, ...]
    soft: Column
    argmax: Column
    costs: tuple[Curve, ...]
    temperature: Column
    entropy: Column
    decision_entropy: Mapping[str, Column]
    weight_bits: Mapping[str, tuple[int | None, ...]]
    activation_bits: Mapping[str, tuple[int | None, ...]]
    final_bits: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    weight_probabilities: Mapping[str, tuple[Mapping[int, float] | None, ...]] = field(default_factory=dict)
    activation_probabilities: Mapping[str, tuple[Mapping[int, float] | None, ...]] = field(default_factory=dict)

    @property
    def moved(self) -> dict[str, tuple[bool, bool]]:
        """Decision → whether the projection moved its weight bits and its activation bits after the last epoch."""
        return {
            name: (final[0] != self.weight_bits[name][-1], final[1] != self.activation_bits[name][-1])
            for name, final in self.final_bits.items()
        }


def search_curves(
    events: Iterable[Event], assignments: Mapping[str, BitAssignment] | None = None
) -> dict[str, SearchCurves]:
    """Return the curves of each search label in the journal, in order of appearance.

    An epoch that was repeated after a resume counts once, as last recorded. Where a label was searched with several
    seeds, each is told apart as ``"LABEL (seed N)"``. ``assignments`` are those of the run: the one that is called as a
    search is what that search found.
    """
    found: dict[tuple[str, int], dict[int, Epoch]] = {}
    for event in events:
        if isinstance(event, Epoch) and event.stage == "search":
            found.setdefault((event.run, event.seed), {})[event.epoch] = event
    labels = [label for label, _ in found]
    curves = {}
    for (label, seed), epochs in found.items():
        name = label if labels.count(label) == 1 else f"{label} (seed {seed})"
        kept = (assignments or {}).get(label)
        curves[name] = _curves(name, [epochs[epoch] for epoch in sorted(epochs)], kept)
    return curves


def _curves(label: str, epochs: Sequence[Epoch], kept: BitAssignment | None) -> SearchCurves:
    bits, metric = _table([epoch.bits for epoch in epochs]), metric_named(epochs[0].metric)
    return SearchCurves(
        label=label,
        metric=metric,
        epochs=tuple(epoch.epoch for epoch in epochs),
        soft=_scaled(metric, [epoch.score for epoch in epochs]),
        argmax=_scaled(metric, [epoch.argmax_score for epoch in epochs]),
        costs=_cost_curves(epochs),
        temperature=tuple(epoch.temperature for epoch in epochs),
        entropy=tuple(epoch.entropy for epoch in epochs),
        decision_entropy=_table([epoch.decision_entropy for epoch in epochs]),
        weight_bits={name: tuple(v and v[0] for v in row) for name, row in bits.items()},
        activation_bits={name: tuple(v and v[1] for v in row) for name, row in bits.items()},
        final_bits=_final_bits(list(bits), kept) if kept else {},
        weight_probabilities=_table([epoch.weight_probabilities for epoch in epochs]),
        activation_probabilities=_table([epoch.activation_probabilities for epoch in epochs]),
    )


def _final_bits(decisions: Sequence[str], kept: BitAssignment) -> dict[str, tuple[int, int]]:
    """The bits of each decision, read off the first layer that it is named after or that is one of its block."""
    found = {}
    for name in decisions:
        layers = [
            layer for layer in kept.layers if layer == name or layer.startswith(f"{name}.") or fnmatch(layer, name)
        ]
        if layers:
            found[name] = kept.pairs[layers[0]]
    return found


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


def _scaled(metric: Metric, values: Sequence[float | None]) -> Column:
    return tuple(None if value is None else metric.scale * value for value in values)


def _table(tables: Sequence[Mapping[str, Value]]) -> dict[str, tuple[Value | None, ...]]:
    """Return name → value per epoch, None where an epoch lacks the name."""
    names = dict.fromkeys(name for table in tables for name in table)
    return {name: tuple(table.get(name) for table in tables) for name in names}
