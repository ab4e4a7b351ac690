"""The command `dnas status`: where runs stand, how far they are, what they found and what they take."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dnas.commands.terminal import show, show_json, tell
from results.report.overview import Overview, overview
from results.run.folder import Run
from results.run.layout import is_run, list_runs
from results.run.status import RunStatus
from results.tables.plain import PlainTable
from results.units import amount_text, duration_text
from search_spaces.errors import InputError

HEADINGS = ("run", "state", "at", "done", "left", "best", "age", "last sign", "disk", "message")


def status(folders: Sequence[Path], parent: Path, as_json: bool) -> None:
    """Show where runs stand; a folder of runs stands for all in it, and ``parent`` where none is named.

    Of several runs a damaged one is told in its row; one that is asked for alone is refused.
    """
    runs = list(dict.fromkeys(run for folder in folders or [parent] for run in _runs_in(folder, bool(folders))))
    look = _look if len(folders) == len(runs) == 1 else _look_or_damage
    found = {str(folder): look(folder) for folder in runs}
    if as_json:
        show_json([_json(run, each) for run, each in found.items()])
    elif found:
        show(_table(found))
    else:
        tell(f"there is no run in {' or '.join(map(str, folders)) or parent}; start one with: dnas search")


def _runs_in(folder: Path, named: bool) -> Iterator[Path]:
    inside = [] if is_run(folder) else list_runs(folder)
    yield from inside if inside or not named else [folder]


def _look(folder: Path) -> Overview:
    return overview(Run.open(folder))


def _look_or_damage(folder: Path) -> Overview:
    try:
        return _look(folder)
    except InputError as error:
        return Overview(RunStatus("damaged", message=str(error)))


def _json(run: str, found: Overview) -> dict[str, Any]:
    facts = {name: getattr(found, name) for name in ("fraction", "seconds_left", "age_seconds", "disk_bytes")}
    return {"run": run, **asdict(found.status), **facts, "best": found.best.to_json() if found.best else None}


def _table(found: Mapping[str, Overview]) -> PlainTable:
    """A line a run; what none of them has is left out."""
    cells = [_cells(run, each) for run, each in found.items()]
    shown = [heading for heading in HEADINGS if any(row[heading] for row in cells) or heading in HEADINGS[:3]]
    table = PlainTable()
    for heading in shown:
        table.add_column(heading, fold=True)
    for row in cells:
        table.add_row(*(row[heading] for heading in shown))
    return table


def _cells(run: str, found: Overview) -> dict[str, str]:
    """What stands under each heading."""
    where, age = found.status, found.age_seconds
    since = None
    if age is not None and where.started is not None and where.updated is not None:
        since = max(0.0, age - (where.updated - where.started))
    return {
        "run": run,
        "state": where.state,
        "at": where.place,
        "done": "" if found.fraction is None else f"{100 * found.fraction:.0f} %",
        "left": _duration(found.seconds_left),
        "best": found.best.text if found.best else "",
        "age": _duration(age),
        "last sign": "" if since is None else f"{_duration(since)} ago",
        "disk": "" if found.disk_bytes is None else amount_text("size_bytes", found.disk_bytes),
        "message": where.message,
    }


def _duration(seconds: float | None) -> str:
    return "" if seconds is None else duration_text(seconds)
