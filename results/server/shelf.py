"""Which runs can be seen, by name: nothing that a request says ever becomes a path."""

from __future__ import annotations

from collections import OrderedDict, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any

from results.report.log import log_lines
from results.report.runs import report_json
from results.run.folder import Run
from results.run.layout import FRONT_JSON, JOURNAL, list_runs
from results.run.lost import sound_events
from results.run.status import RunStatus, status_of
from search_spaces.errors import InputError

MOST_KEPT = {"report": 8, "state": 1000}
"""Answers of each kind that are kept until their run changes: a large run takes seconds to read."""


@dataclass
class Shelf:
    """The runs in ``folders``, and all in ``parent``, under names of their own."""

    folders: Sequence[Path] = ()
    parent: Path | None = None
    _kept: dict[str, OrderedDict[str, dict[str, Any]]] = field(default_factory=lambda: defaultdict(OrderedDict))
    _busy: Lock = field(default_factory=Lock)

    def runs(self) -> dict[str, Path]:
        """Name → folder, as they are now."""
        found: dict[str, Path] = {}
        for folder in (*self.folders, *(list_runs(self.parent) if self.parent else ())):
            name, number = folder.resolve().name, 1
            while name in found:
                number += 1
                name = f"{folder.resolve().name} ({number})"
            found[name] = folder
        return found

    def open(self, name: str) -> Run:
        """The run of this name; :class:`KeyError` where there is none, :class:`InputError` where it is damaged."""
        return Run.open(self.runs()[name])

    def version(self, name: str) -> str:
        """A text that changes whenever there may be more to show of a run."""
        run = self.open(name)
        times = [path.stat() for path in (run.folder / JOURNAL, run.folder / FRONT_JSON) if path.exists()]
        return "-".join([*(f"{time.st_mtime_ns}.{time.st_size}" for time in times), "held" if run.writer else "free"])

    def report(self, name: str) -> dict[str, Any]:
        """What a page shows of a run."""
        return self._once(name, "report", lambda run: _named(report_json([run]), name))

    def state(self, name: str) -> dict[str, Any]:
        """Where a run stands, and the last lines of its journal."""
        return self._once(name, "state", _state)

    def rows(self) -> list[dict[str, Any]]:
        """Every run and where it stands; of a damaged one, why."""
        return [{"name": name, **self._row(name)} for name in self.runs()]

    def _row(self, name: str) -> dict[str, Any]:
        try:
            return dict(self.state(name)["status"])
        except InputError as error:
            return asdict(RunStatus("damaged", message=str(error)))
        except KeyError:  # removed meanwhile
            return asdict(RunStatus("gone"))

    def _once(self, name: str, what: str, read: Callable[[Run], dict[str, Any]]) -> dict[str, Any]:
        """What ``read`` gives, read again only when the run has changed."""
        version, kept = self.version(name), self._kept[what]
        with self._busy:
            if name not in kept or kept[name]["version"] != version:
                kept[name] = {"version": version, **read(self.open(name))}
            kept.move_to_end(name)
            while len(kept) > MOST_KEPT[what]:
                kept.popitem(last=False)
            return dict(kept[name])


def _named(report: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The report of one run, under the name that it has here."""
    return {**report, "runs": [{**report["runs"][0], "name": name}]}


def _state(run: Run) -> dict[str, Any]:
    held = run.writer is not None
    events = sound_events(run)
    return {"status": asdict(status_of(events, held)), "log": log_lines(events)}
