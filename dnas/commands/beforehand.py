"""What is wrong with a command line as far as PyTorch need not be asked, whose loading takes many times as long.

The commands check it all once more where they work, for what changes meanwhile and for several processes, which refuse
together. So a process that some launcher started checks nothing here.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from dnas.commands.exporting_bits import switchable_nets
from dnas.config.file import dump_job, load_job
from results.pareto import FLOAT
from results.run.folder import Run
from results.run.layout import JOB, JOURNAL, RUNS, is_run, refuse_occupied


def check_new(source: str | None, overrides: Sequence[str], folder: Path | None) -> None:
    """Refuse a job that cannot be read, and a folder that cannot become a run of it.

    A folder that holds a run of another job is left for later: what is wrong with the job is told before it.
    """
    if _is_one_of_several():
        return
    config = load_job(source, overrides)
    folder = folder or RUNS / config.name
    with suppress(OSError):  # told where the run is made
        if not is_run(folder) or Run.open(folder).job_toml() == dump_job(config):
            refuse_occupied(folder)


def check_job(source: str | None, overrides: Sequence[str] = ()) -> None:
    """Refuse a job that cannot be read."""
    load_job(source, overrides)


def check_run(folder: Path, overrides: Sequence[str] = (), assignment: str | None = None) -> None:
    """Refuse what is no run, keys that its job does not take, and an ``assignment`` that it lacks."""
    if _is_one_of_several():
        return
    run = Run.open(folder)
    load_job(run.job_file(), overrides)
    if assignment is not None and assignment != FLOAT:
        run.assignment(run.complete_id(assignment))


def check_net(folder: Path, name: str | None) -> None:
    """Refuse what is no run, and a ``name`` that is neither a switchable net of it nor an assignment."""
    run = Run.open(folder)
    if name is not None and name not in switchable_nets(run.assignments()):
        run.assignment(run.complete_id(name))


def has_run(folder: Path) -> bool:
    """Whether a folder holds a run, or what is left of one."""
    return any((folder / name).is_file() for name in (JOB, JOURNAL))


def _is_one_of_several() -> bool:
    return "RANK" in os.environ
