"""Which runs can be seen, by name: nothing that a request says ever becomes a path."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from results.files import encode_json
from results.report.log import log_lines
from results.report.overview import BestPoint, best_point
from results.report.runs import report_json
from results.run.folder import Run
from results.run.layout import ASSIGNMENTS, FRONT_JSON, JOURNAL, NETWORK, SENSITIVITIES, list_runs
from results.run.lost import sound_events, standing
from results.run.progress import told_progress
from results.run.status import RunStatus, status_of
from results.server.content import Content
from results.server.kept import Kept
from search_spaces.errors import InputError, printable

JSON = "application/json"
MOST_REPORTS, MOST_LOGS = 8, 32
_SHOWN = (JOURNAL, FRONT_JSON, ASSIGNMENTS, NETWORK, *SENSITIVITIES.values())
"""What a page shows changes with one of these; of a folder, when a file in it is replaced."""


@dataclass
class Shelf:
    """The runs in ``folders``, and all in ``parent``, under names of their own."""

    folders: Sequence[Path] = ()
    parent: Path | None = None
    _reports: Kept[Content] = field(default_factory=lambda: Kept(MOST_REPORTS))
    _logs: Kept[list[str]] = field(default_factory=lambda: Kept(MOST_LOGS))
    _rows: Kept[dict[str, Any]] = field(default_factory=Kept)

    def runs(self) -> dict[str, Path]:
        """Name → folder, as they are now; one that is there twice, through a link or another path, once."""
        found: dict[str, Path] = {}
        homes = set()
        for folder in (*self.folders, *(list_runs(self.parent) if self.parent else ())):
            home = folder.resolve()
            if home in homes:
                continue
            homes.add(home)
            own = printable(home.name)
            name, number = own, 1
            while name in found:
                number += 1
                name = f"{own} ({number})"
            found[name] = folder
        return found

    def open(self, name: str) -> Run:
        """The run of this name; :class:`KeyError` where there is none, :class:`InputError` where it is damaged."""
        return Run.open(self.runs()[name])

    def report(self, name: str) -> Content:
        """What a page shows of a run, and its version, as JSON."""
        run = self.open(name)
        version = _version(run)
        return self._reports.get(name, version, lambda: _report(run, name, version))

    def state(self, name: str) -> dict[str, Any]:
        """Where a run stands, the last lines of its journal, and the version of its report."""
        run = self.open(name)
        version = _version(run)
        log = self._logs.get(name, version, lambda: log_lines(sound_events(run)))
        return {"version": version, **self._row(name, run, version), "log": log}

    def rows(self) -> list[dict[str, Any]]:
        """Every run and where it stands; of a damaged one, why."""
        return [{"name": name, **self._row_or_damage(name, folder)} for name, folder in self.runs().items()]

    def _row(self, name: str, run: Run, version: str) -> dict[str, Any]:
        row = self._rows.get(name, version, lambda: _row(run))
        told = told_progress(run) if row["state"] == "running" else None
        return {**row, "progress": None if told is None else {"fraction": told.fraction, "text": told.text}}

    def _row_or_damage(self, name: str, folder: Path) -> dict[str, Any]:
        try:
            run = Run.open(folder)
            return self._row(name, run, _version(run))
        except InputError as error:
            return _told(RunStatus("damaged" if folder.exists() else "gone", message=str(error))) | {"progress": None}


def _version(run: Run) -> str:
    """A text that changes whenever there may be more to show of a run."""
    return "-".join([*(_mark(run.folder / name) for name in _SHOWN), "held" if run.writer else "free"])


def _mark(path: Path) -> str:
    try:
        found = path.lstat()
    except OSError:  # there is none
        return ""
    return f"{found.st_mtime_ns}.{found.st_size}.{found.st_ino}"


def _report(run: Run, name: str, version: str) -> Content:
    """The report of one run, under the name that it has here."""
    report = report_json([run])
    shown = {**report, "runs": [{**report["runs"][0], "name": name}], "version": version}
    return Content.of(encode_json(shown, what="the report"), JSON)


def _row(run: Run) -> dict[str, Any]:
    held = run.writer is not None  # asked first: a run that ends meanwhile is then told as running
    events = sound_events(run)
    return _told(status_of(events, held), best_point(run, standing(events)))


def _told(status: RunStatus, best: BestPoint | None = None) -> dict[str, Any]:
    return {**asdict(status), "place": status.place, "best": best.text if best else ""}
