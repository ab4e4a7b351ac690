"""Files of tasks that are carried out where their folder is not: sent there with the task, and back with its result."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from dnas.execution.tasks import JobTask

Files = Mapping[str, bytes]
"""Path inside the folder → content."""


def needed_files(task: JobTask) -> tuple[str, ...]:
    """What a task reads, or may go on with; not all of it need be there."""
    return tuple(dict.fromkeys((*task.reads, *task.writes)))


def read_files(folder: Path, names: Iterable[str]) -> dict[str, bytes]:
    """Those of the files that are there."""
    return {name: (folder / name).read_bytes() for name in names if (folder / name).is_file()}


def written_files(task: JobTask, files: Files) -> Files:
    """Those of the files that came back that the task was to write."""
    return {name: files[name] for name in task.writes if name in files}


@contextmanager
def laid_out(folder: Path, files: Files, task: JobTask) -> Iterator[None]:
    """Inside, the folder holds these files alone, and a place for all that the task writes; then it is gone.

    Raises FileExistsError where somebody else has put one there.
    """
    folder.mkdir(mode=0o700)
    try:
        for name in (*files, *task.writes):
            (folder / PurePosixPath(name)).parent.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            (folder / name).write_bytes(content)
        yield
    finally:
        shutil.rmtree(folder, ignore_errors=True)
