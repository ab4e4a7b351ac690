"""What is wrong with a command line as far as PyTorch need not be asked, whose loading takes many times as long.

The commands check it all once more where they work, for what changes meanwhile and for several processes, which refuse
together. So a process that some launcher started checks nothing here.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from dnas.commands.exporting_bits import switchable_nets
from dnas.config.file import dump_job, load_job
from results.pareto import FLOAT
from results.run.folder import Run
from results.run.layout import JOB, JOURNAL, RUNS, is_run, refuse_occupied
from search_spaces.errors import InputError, JobError


def check_new(source: str | None, overrides: Sequence[str], folder: Path | None) -> None:
    """Refuse a job that cannot be read, and a folder that cannot become a run of it.

    A folder that holds a run of another job is left for later: what is wrong with the job is told before it.
    """
    if _is_one_of_several():
        return
    config = load_job(source, overrides)
    folder = folder or RUNS / config.name
    with told_of(folder):
        if not is_run(folder) or Run.open(folder).job_toml() == dump_job(config):
            refuse_occupied(folder)
            _check_place(folder)


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


@contextmanager
def told_of(folder: Path) -> Iterator[None]:
    """Make it wrong input where no run can be made in ``folder``; a full or broken disk stays a failure."""
    try:
        yield
    except (JobError, OSError) as error:
        cause = error.__cause__ if isinstance(error, JobError) else error
        if isinstance(cause, OSError) and cause.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EIO):
            raise InputError(
                f"{folder} cannot hold a run: {cause.strerror}; choose another folder with --run"
            ) from error
        raise


def _check_place(folder: Path) -> None:
    """Raise the :class:`OSError` that making the folder would, as far as it is known before."""
    home = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not home.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
    if not os.access(home, os.W_OK | os.X_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


def has_run(folder: Path) -> bool:
    """Whether a folder holds a run, or what is left of one."""
    return any((folder / name).is_file() for name in (JOB, JOURNAL))


def _is_one_of_several() -> bool:
    return "RANK" in os.environ
