"""The command `dnas switch`: the profiles of a run's switchable nets, each beside its assignment trained alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dnas.commands.terminal import show, show_json
from results.pareto import Estimate
from results.pictures.switch_data import SwitchRow, switch_rows
from results.run.folder import Run
from results.tables.plain import PlainTable
from results.units import measured, number_text, scaled_unit
from search_spaces.errors import InputError, quoted
from search_spaces.metrics import Metric


def switch(folder: Path, as_json: bool) -> None:
    """Show the profiles of every switchable net of a run."""
    run = Run.open(folder)
    nets = switch_rows(run.load_front(), run.assignments())
    if not nets:
        raise InputError(f"{folder} has no switchable net; make one with: dnas finalise {quoted(folder)}")
    if as_json:
        show_json({"run": str(folder), "nets": {net: [row.to_json() for row in rows] for net, rows in nets.items()}})
        return
    for net, rows in nets.items():
        show(_table(net, rows), "")
    show(*_hints(folder, nets))


def _table(net: str, rows: Sequence[SwitchRow]) -> PlainTable:
    table = PlainTable(net)
    table.add_column("profile", fold=True)
    size = scaled_unit("size_bytes", min(row.size_bytes for row in rows))
    bitops = scaled_unit("bitops", min(row.bitops for row in rows))
    metric = rows[0].metric
    unit = metric.heading
    for heading in (size.symbol, bitops.symbol, f"val {unit}", "alone", "Δ", f"test {unit}", "alone", "Δ"):
        table.add_column(heading, right=True)
    for row in rows:
        pairs = (row.val, row.alone_val), (row.test, row.alone_test)
        figures = [t for a, b in pairs for t in (_figure(metric, a), _figure(metric, b), _difference(metric, a, b))]
        costs = (row.size_bytes / size.divisor, row.bitops / bitops.divisor)
        table.add_row(row.profile, *(number_text(cost) for cost in costs), *figures)
    return table


def _figure(metric: Metric, estimate: Estimate | None) -> str:
    return "" if estimate is None else measured(metric, estimate.mean, estimate.std, estimate.n)


def _difference(metric: Metric, shared: Estimate | None, alone: Estimate | None) -> str:
    if shared is None or alone is None:
        return ""
    difference = metric.difference(shared.mean, alone.mean)
    return f"{'-' if difference < 0 else '+'}{metric.number(abs(difference))}"


def _hints(folder: Path, nets: Mapping[str, Any]) -> list[str]:
    last = list(nets)[-1]
    return [f"one file of {last}: dnas export {quoted(folder)} {last} --format packed --out net.dnas"]
