"""The run folder of a job of several processes: the first writes to it, the others each to a copy of their own.

Every process runs the whole job and reads what earlier stages kept, so every one needs a run; no disk need be shared.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from dnas.training.processes import Processes
from results.run.folder import Run
from results.run.layout import LOCK
from results.run.locks import OWNER
from search_spaces.errors import JobError


@contextmanager
def own_run(processes: Processes, open_run: Callable[[], Run]) -> Iterator[Run]:
    """The run that ``open_run`` opens, in the first process; in another a copy of it, which ends with the block."""
    if processes.rank == 0:
        with _opened(processes, open_run) as run:
            yield run
        return
    name = processes.agreed("")
    if not name:
        raise JobError("the first process has no run")
    with TemporaryDirectory() as parent:
        folder = Path(parent) / name
        _receive(processes, folder)
        with Run.open(folder, write=True) as run:
            yield run


def _opened(processes: Processes, open_run: Callable[[], Run]) -> Run:
    """Open the run and hand it out; where it cannot be opened the others end as well."""
    try:
        run = open_run()
    except BaseException:
        processes.agreed("")
        raise
    processes.agreed(run.name)
    if processes.several:
        _hand_out(processes, run.folder)
    return run


def _hand_out(processes: Processes, folder: Path) -> None:
    paths = sorted(path for path in folder.rglob("*") if path.name not in (LOCK, OWNER))
    processes.agreed([(str(path.relative_to(folder)), path.is_dir()) for path in paths])
    for path in paths:
        if path.is_file():
            processes.agreed(path.read_bytes())


def _receive(processes: Processes, folder: Path) -> None:
    folder.mkdir()
    for name, is_folder in processes.agreed(list[tuple[str, bool]]()):
        if is_folder:
            (folder / name).mkdir()
        else:
            (folder / name).write_bytes(processes.agreed(b""))
