"""Jobs that are killed at every one of many places, each once, and go on until they are finished."""

from __future__ import annotations

import json
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Any

import pytest

from dnas.config.file import dump_job
from dnas.config.job import JobConfig
from dnas.jobs import job as jobs
from dnas.jobs.run import run_job
from results.run.folder import Run
from results.run.journal import Journal
from results.run.status import run_status

Event = dict[str, Any]
LASTING = ("note", "epoch", "decoded", "searched", "pool", "judged", "measured", "tested", "finished")
MOST_KILLS = 200


class Killed(BaseException):
    """What no code but these tests catches."""


def identity(record: Event) -> str:
    return json.dumps({key: value for key, value in record.items() if key not in ("time", "seconds")}, sort_keys=True)


def history(run: Run, events: tuple[str, ...] = LASTING) -> list[str]:
    return [identity(record) for record in run.journal.records() if record["event"] in events]


def outcome(run: Run) -> dict[str, bytes]:
    paths = [run.folder / "front.json", run.folder / "front.csv", *(run.folder / "assignments").iterdir()]
    return {path.name: path.read_bytes() for path in paths}


def killed_everywhere(
    config: JobConfig,
    folder: Path,
    *,
    entry: Callable[[Event], bool] = lambda record: False,
    amid: Callable[[Event], Hashable] = lambda event: None,
) -> tuple[Run, list[Hashable]]:
    """Carry a job out in a new folder, killing it once at every place; returns the run and the places, in order.

    A place is a journal entry for which ``entry`` holds, by turns before it is written (what it is about is done and
    saved by then) and after; or what ``amid`` makes of an event that is reported, where that is not None.
    """
    places: list[Hashable] = []
    entries: list[str] = []
    append = Journal.append

    def kill_once(place: Hashable) -> None:
        if place not in places:
            places.append(place)
            raise Killed

    def deadly(journal: Journal, record: Event) -> None:
        key = identity(record)
        chosen = entry(record)
        if chosen and key not in entries:
            entries.append(key)
        before = chosen and entries.index(key) % 2 == 0
        if before:
            kill_once(key)
        append(journal, record)
        if chosen and not before:
            kill_once(key)

    def report(event: Event) -> None:
        place = amid(event)
        if place is not None:
            kill_once(place)

    with pytest.MonkeyPatch.context() as patch:
        _read_once(config, patch)
        patch.setattr(Journal, "append", deadly)
        run = _carried_on(config, Run.create(folder, dump_job(config), {}), report)
    return run, places


def _read_once(config: JobConfig, patch: pytest.MonkeyPatch) -> None:
    """Let every process of the job find the data and the plan that the first has: most of what each would do."""
    splits = jobs.load_splits(config)
    plan = jobs.plan_job(config, jobs.load_network(config).module, splits.input_shape)
    patch.setattr(jobs, "load_splits", lambda config: splits)
    patch.setattr(jobs, "plan_job", lambda *arguments: plan)


def _carried_on(config: JobConfig, run: Run, report: Callable[[Event], None]) -> Run:
    """Open the run and go on with it until it is finished, however often ``report`` or a patch kills it."""
    for _ in range(MOST_KILLS):
        run.close()
        if run_status(run).state == "finished":
            return run
        run = Run.open(run.folder, write=True)
        try:
            run_job(config, run, report)
        except Killed:
            pass
    raise AssertionError(f"the run is not finished after {MOST_KILLS} kills")
