"""The command `dnas switch`: the profiles of a run's switchable nets, each beside its assignment trained alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from dnas.commands.terminal import show, show_json
from results.pareto import Estimate
from results.pictures.switch_data import SwitchRow, switch_rows
from results.run.folder import Run
from results.units import number_text, scaled_unit
from search_spaces.errors import InputError


def switch(folder: Path, as_json: bool) -> None:
    """Show the profiles of every switchable net of a run."""
    run = Run.open(folder)
    nets = switch_rows(run.load_front(), run.assignments())
    if not nets:
        raise InputError(f"{folder} has no switchable net; make one with: dnas finalise {folder}")
    if as_json:
        show_json({"run": str(folder), "nets": {net: [row.to_json() for row in rows] for net, rows in nets.items()}})
        return
    for net, rows in nets.items():
        show(_table(net, rows), "")
    show(*_hints(folder, nets))


def _table(net: str, rows: Sequence[SwitchRow]) -> Table:
    table = Table(title=net, title_justify="left", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.header_style = "underline"
    table.add_column("profile", overflow="fold")
    size = scaled_unit("size_bytes", min(row.size_bytes for row in rows))
    bitops = scaled_unit("bitops", min(row.bitops for row in rows))
    for heading in (size.symbol, bitops.symbol, "val %", "alone", "Δ", "test %", "alone", "Δ"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        cells = (row.val_top1, row.alone_val_top1), (row.test_top1, row.alone_test_top1)
        measured = [text for pair in cells for text in (*map(_percent, pair), _difference(*pair))]
        costs = (row.size_bytes / size.divisor, row.bitops / bitops.divisor)
        table.add_row(row.profile, *(number_text(cost) for cost in costs), *measured)
    return table


def _percent(estimate: Estimate | None) -> str:
    if estimate is None:
        return ""
    return f"{100 * estimate.mean:.2f}" + (f" ±{100 * estimate.std:.2f}" if estimate.n > 1 else "")


def _difference(shared: Estimate | None, alone: Estimate | None) -> str:
    return "" if shared is None or alone is None else f"{100 * (shared.mean - alone.mean):+.2f}"


def _hints(folder: Path, nets: Mapping[str, Any]) -> list[str]:
    last = list(nets)[-1]
    return [f"one file of {last}: dnas export {folder} {last} --format packed --out net.safetensors"]
