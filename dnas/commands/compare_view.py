"""The command `dnas compare`: several runs, in what they differ and what each reaches."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dnas.commands.terminal import show, show_json
from results.comparison import FrontComparison, Reference, compare_fronts, cost_of_all
from results.pictures.front import draw_fronts, save_figure
from results.report.repeat import differences
from results.run.folder import Run
from results.tables.plain import PlainTable
from results.units import amount_text, measured, number_text, scaled_unit
from search_spaces.errors import InputError


def compare(folders: Sequence[Path], x: str | None, reference: str | None, out: Path, as_json: bool) -> None:
    """Show where runs differ: their settings, their fronts in a table and a picture, the areas that these dominate."""
    runs = [Run.open(folder) for folder in dict.fromkeys(folders)]
    names = [run.name for run in runs]
    named = {run.name if names.count(run.name) == 1 else str(run.folder): run for run in runs}
    fronts = {name: run.load_front() for name, run in named.items()}
    x = x or cost_of_all(fronts.values())
    found = compare_fronts(fronts, x, None if reference is None else _reference(reference))
    settings = differences({name: run.job_toml() for name, run in named.items()})
    save_figure(draw_fronts(fronts, x), out)
    if as_json:
        show_json({"runs": list(named), "settings": settings, **found.to_json(), "picture": str(out)})
        return
    show(_settings_table(list(named), settings) if settings else "the jobs have the same settings", "")
    if any(row["key"] == "data.source" for row in settings):
        show("note: they are judged on images of other data sets; which is better is not told by what follows", "")
    show(_fronts_table(found), "", _volumes_table(found), "", _told_reference(found), f"written: {out}")


def _reference(text: str) -> Reference:
    try:
        cost, value = map(float, text.split(","))
        if not (math.isfinite(cost) and math.isfinite(value)):
            raise ValueError("not finite")
    except ValueError as error:
        raise InputError(
            f"--reference {text} is not a cost and a value of the metric, both finite, such as 200000,0.5 for 200,000 "
            "bytes and 50 %"
        ) from error
    return Reference(cost, value)


def _settings_table(names: Sequence[str], settings: Sequence[Mapping[str, Any]]) -> PlainTable:
    table = PlainTable()
    for heading in ("setting", *names):
        table.add_column(heading, fold=True)
    for row in settings:
        table.add_row(row["key"], *(value or "not given" for value in row["values"]))
    return table


def _fronts_table(found: FrontComparison) -> PlainTable:
    """The points of all fronts by rising cost; those that no point of another run beats are marked."""
    metric = found.metric
    unit = scaled_unit(found.x, min((each.point.cost(found.x) for each in found.points), default=0.0))
    table = PlainTable()
    table.add_column("run", fold=True)
    table.add_column("assignment", fold=True)
    scores = (f"{split} {metric.unit or metric.name}" for split in ("val", "test"))
    for heading in (unit.symbol or unit.quantity, *scores):
        table.add_column(heading, right=True)
    table.add_column("best of all")
    for each in found.points:
        point = each.point
        figures = ("" if e is None else measured(metric, e.mean, e.std, e.n) for e in (point.val, point.test))
        cells = (each.run, point.assignment, number_text(point.cost(found.x) / unit.divisor), *figures)
        table.add_row(*cells, "yes" if each.best else "", style="bold" if each.best else "")
    return table


def _volumes_table(found: FrontComparison) -> PlainTable:
    table = PlainTable()
    table.add_column("run", fold=True)
    table.add_column("hypervolume", right=True)
    table.add_column("of all together", right=True)
    for run, volume in found.volumes.items():
        table.add_row(run, f"{volume:,.6g}", f"{100 * found.shares[run]:.1f} %")
    return table


def _told_reference(found: FrontComparison) -> str:
    cost, value = amount_text(found.x, found.reference.cost), found.metric.text(found.reference.value)
    return f"hypervolume: {found.x} × {found.metric.name}, from the reference point {cost}, {value}"
