"""The course of each search, read from the journal's epoch records before anything is drawn."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase as fnmatch
from typing import TypeVar

from results.events import Epoch, Event
from results.pools import proposed_by_theta
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

    ``projected_bits`` are the (weight, activation) bits of each decision in what θ proposes, projected onto the budget;
    ``final_bits`` those of the assignment that was kept, which is another where the choice took one from the pool. Both
    are empty where the search has not ended. Probabilities are those of each width under θ; empty where the journal is
    of an earlier version.
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
    projected_bits: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    final_bits: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    weight_probabilities: Mapping[str, tuple[Mapping[int, float] | None, ...]] = field(default_factory=dict)
    activation_probabilities: Mapping[str, tuple[Mapping[int, float] | None, ...]] = field(default_factory=dict)

    def unlike_last(self, bits: Mapping[str, tuple[int, int]]) -> dict[str, tuple[bool, bool]]:
        """Decision → whether its weight bits and its activation bits are others than those of the last epoch."""
        return {
            name: (pair[0] != self.weight_bits[name][-1], pair[1] != self.activation_bits[name][-1])
            for name, pair in bits.items()
        }


def search_curves(
    events: Iterable[Event], assignments: Mapping[str, BitAssignment] | None = None
) -> dict[str, SearchCurves]:
    """Return the curves of each search label in the journal, in order of appearance.

    An epoch that was repeated after a resume counts once, as last recorded. Where a label was searched with several
    seeds, each is told apart as ``"LABEL (seed N)"``. ``assignments`` are those of the run: the one that is called as a
    search is what was kept of it.
    """
    events, assignments = list(events), assignments or {}
    projected = proposed_by_theta(events)
    found: dict[tuple[str, int], dict[int, Epoch]] = {}
    for event in events:
        if isinstance(event, Epoch) and event.stage == "search":
            found.setdefault((event.run, event.seed), {})[event.epoch] = event
    labels = [label for label, _ in found]
    curves = {}
    for (label, seed), epochs in found.items():
        name = label if labels.count(label) == 1 else f"{label} (seed {seed})"
        kept = assignments.get(label)
        decoded = assignments.get(projected.get(label, label))
        curves[name] = _curves(name, [epochs[epoch] for epoch in sorted(epochs)], decoded, kept)
    return curves


def _curves(
    label: str, epochs: Sequence[Epoch], projected: BitAssignment | None, kept: BitAssignment | None
) -> SearchCurves:
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
        projected_bits=_decision_bits(list(bits), projected) if projected else {},
        final_bits=_decision_bits(list(bits), kept) if kept else {},
        weight_probabilities=_table([epoch.weight_probabilities for epoch in epochs]),
        activation_probabilities=_table([epoch.activation_probabilities for epoch in epochs]),
    )


def _decision_bits(decisions: Sequence[str], assignment: BitAssignment) -> dict[str, tuple[int, int]]:
    """The bits of each decision, read off the first layer that it is named after or that is one of its block."""
    found = {}
    for name in decisions:
        layers = [
            layer
            for layer in assignment.layers
            if layer == name or layer.startswith(f"{name}.") or fnmatch(layer, name)
        ]
        if layers:
            found[name] = assignment.pairs[layers[0]]
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
