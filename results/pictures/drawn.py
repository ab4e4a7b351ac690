"""The numbers that a picture shows, as rows of a table: what a reader would otherwise measure off it."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence

from results.pictures.curve_data import SearchCurves
from results.pictures.plot_data import BitMap, FrontPicture
from results.pictures.prune_data import RatioPanel
from results.pictures.trial_data import BudgetTrials

Row = Mapping[str, object]


def csv_of(rows: Sequence[Row]) -> str:
    """The rows under a line of all their columns; a cell is empty where a row does not have it.

    >>> print(csv_of([{"layer": "a", "bits": 2}, {"layer": "b", "ratio": 0.5}]), end="")
    layer,bits,ratio
    a,2,
    b,,0.5
    """
    out = io.StringIO()
    writer = csv.DictWriter(out, list(dict.fromkeys(key for row in rows for key in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def front_rows(picture: FrontPicture) -> Iterator[Row]:
    """Every point, corner and level, in the units of the axes, whose labels are the names of the columns."""
    names = {label.point: label.text for label in picture.labels}
    for split, every in (("validation", picture.series), ("test", picture.test_series)):
        for series in every:
            for x, y, std in zip(series.x, series.y, series.error, strict=True):
                own = {"drawn": split, "run": series.run, "kind": series.kind, "within_budget": series.feasible}
                yield {**own, **_at(picture, x, y), "std": std, "assignment": names.get((x, y))}
    for stairs in picture.staircases:
        for x, y in zip(stairs.x, stairs.y, strict=True):
            yield {"drawn": "front", "run": stairs.run, **_at(picture, x, y)}
    for link in picture.links:
        for end, (x, y) in (("unpruned", link.start), ("pruned", link.end)):
            yield {"drawn": f"line, {end}", "run": link.run, **_at(picture, x, y)}
    for run, level in picture.baselines.items():
        yield {"drawn": "float", "run": run, picture.y_label: level}


def _at(picture: FrontPicture, x: float, y: float) -> Row:
    return {picture.x_label: x, picture.y_label: y}


def bit_rows(bits: BitMap) -> Iterator[Row]:
    """Every cell of both panels."""
    for layer, weights, activations in zip(bits.layers, bits.weight_bits, bits.activation_bits, strict=True):
        for assignment, weight, activation in zip(bits.assignments, weights, activations, strict=True):
            yield {"assignment": assignment, "layer": layer, "weight_bits": weight, "activation_bits": activation}


def curve_rows(curves: SearchCurves) -> Iterator[Row]:
    """Every line by epoch with the budget drawn beside it; entropy and bits of every decision by epoch."""
    metric = f"validation {curves.metric.label}" + (f" ({curves.metric.unit})" if curves.metric.unit else "")
    lines = {f"{metric}, soft": curves.soft, f"{metric}, argmax": curves.argmax}
    lines |= {"temperature": curves.temperature, "entropy": curves.entropy}
    for quantity, values in lines.items():
        yield from _by_epoch(curves, values, {"quantity": quantity})
    for cost in curves.costs:
        yield from _by_epoch(curves, cost.values, {"quantity": f"expected {cost.label}"}, {"budget": cost.budget})
    tables = {
        "entropy": curves.decision_entropy,
        "weight_bits": curves.weight_bits,
        "activation_bits": curves.activation_bits,
    }
    for quantity, table in tables.items():
        for decision, column in table.items():
            yield from _by_epoch(curves, column, {"quantity": quantity, "decision": decision})
    ends = {"kept": curves.final_bits}
    if curves.projected_bits not in ({}, curves.final_bits):
        ends = {"on the budget": curves.projected_bits, **ends}
    for end, bits_of in ends.items():
        for decision, pair in bits_of.items():
            for quantity, bits in zip(("weight_bits", "activation_bits"), pair, strict=True):
                yield {"quantity": f"{quantity}, {end}", "decision": decision, "value": bits}


def _by_epoch(
    curves: SearchCurves, values: Sequence[float | None], before: Row, after: Row | None = None
) -> Iterator[Row]:
    for epoch, value in zip(curves.epochs, values, strict=True):
        if value is not None:
            yield {**before, "epoch": epoch, "value": value, **(after or {})}


def ratio_rows(panels: Sequence[RatioPanel]) -> Iterator[Row]:
    """Every bar, and the uniform ratio that is drawn beside it, as shares of the group's units."""
    for panel in panels:
        for entry in panel.groups:
            own = {"assignment": panel.assignment, "budget": panel.budget, "group": entry.group, "ratio": entry.ratio}
            yield {**own, "units": entry.text, "uniform_ratio": panel.uniform.get(entry.group)}


def trial_rows(budgets: Sequence[BudgetTrials]) -> Iterator[Row]:
    """Every trial with the best value up to it, the level of the uniform ratio, and what was foretold."""
    for budget in budgets:
        own = {"run": budget.run, "budget": budget.title}
        for curve in budget.curves:
            for number, (loss, best) in enumerate(zip(curve.losses, curve.best, strict=True), start=1):
                yield {**own, "proposer": curve.kind, "trial": number, "loss": loss, budget.value_label: best}
        if budget.uniform is not None:
            yield {**own, "proposer": "uniform", budget.value_label: budget.uniform}
        found = budget.forecast
        for trial, error, std in zip(found.trials, found.errors, found.stds, strict=True):
            yield {**own, "proposer": "forecast", "trial": trial, "error": error, "std": std}
