"""The command `dnas status`: where runs stand, how far they are, what they found and what they take."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dnas.commands.terminal import show, show_json, tell
from results.report.overview import BestPoint, overview
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
    rows = [_row(runs[0])] if len(folders) == len(runs) == 1 else [_row_or_damage(folder) for folder in runs]
    if as_json:
        show_json([_json(row) for row in rows])
    elif rows:
        show(_table(rows))
    else:
        tell(f"there is no run in {' or '.join(map(str, folders)) or parent}; start one with: dnas search")


def _runs_in(folder: Path, named: bool) -> Iterator[Path]:
    inside = [] if is_run(folder) else list_runs(folder)
    yield from inside if inside or not named else [folder]


def _row(folder: Path) -> dict[str, Any]:
    found = overview(Run.open(folder))
    facts = {name: getattr(found, name) for name in ("fraction", "seconds_left", "best", "age_seconds", "disk_bytes")}
    return {"run": str(folder), **asdict(found.status), **facts}


def _row_or_damage(folder: Path) -> dict[str, Any]:
    try:
        return _row(folder)
    except InputError as error:
        none = dict.fromkeys(("fraction", "seconds_left", "best", "age_seconds", "disk_bytes"))
        return {"run": str(folder), **asdict(RunStatus("damaged", message=str(error))), **none}


def _json(row: Mapping[str, Any]) -> dict[str, Any]:
    best = row["best"]
    return {**row, "best": best.to_json() if isinstance(best, BestPoint) else None}


def _table(rows: Sequence[Mapping[str, Any]]) -> PlainTable:
    """A line a run; what none of them has is left out."""
    cells = [_cells(row) for row in rows]
    shown = [heading for heading in HEADINGS if any(row[heading] for row in cells) or heading in HEADINGS[:3]]
    table = PlainTable()
    for heading in shown:
        table.add_column(heading, fold=True)
    for row in cells:
        table.add_row(*(row[heading] for heading in shown))
    return table


def _cells(row: Mapping[str, Any]) -> dict[str, str]:
    """What stands under each heading."""
    updated, age = row["updated"], row["age_seconds"]
    since = None if updated is None or age is None else max(0.0, age - (updated - row["started"]))
    return {
        "run": row["run"],
        "state": row["state"],
        "at": _place(row),
        "done": "" if row["fraction"] is None else f"{100 * row['fraction']:.0f} %",
        "left": _duration(row["seconds_left"]),
        "best": "" if row["best"] is None else _best(row["best"]),
        "age": _duration(age),
        "last sign": "" if since is None else f"{_duration(since)} ago",
        "disk": "" if row["disk_bytes"] is None else amount_text("size_bytes", row["disk_bytes"]),
        "message": row["message"],
    }


def _place(row: Mapping[str, Any]) -> str:
    epoch = f"epoch {row['epoch']}/{row['epochs']}" if row["epoch"] is not None else ""
    trial = f"trial {row['trial']}" if row["trial"] is not None else ""
    label = (row["label"] or "").removeprefix("prune-") if trial else row["label"]
    return " ".join(part for part in (row["stage"], label, epoch, trial) if part)


def _best(best: BestPoint) -> str:
    size = "" if best.size_bytes is None else f"{amount_text('size_bytes', best.size_bytes)}, "
    return f"{best.assignment} ({size}{best.metric.text(best.value)})"


def _duration(seconds: float | None) -> str:
    return "" if seconds is None else duration_text(seconds)
