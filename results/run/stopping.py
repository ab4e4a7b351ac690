"""Asking the process that works on a run to end, as Ctrl-C would; the run goes on later with `dnas resume`."""

from __future__ import annotations

import os
import platform
import signal
import time
from pathlib import Path

from results.run.folder import Run
from results.run.layout import LOCK
from results.run.locks import Owner
from search_spaces.errors import InputError, JobError

POLL_SECONDS = 0.1


def stop(run: Run) -> Owner:
    """Send SIGTERM to the process that works on the run, and say which one that is.

    Raises :class:`InputError` where nobody works on it, where that is another host's process or nobody knows whose,
    and where the process that the run names does not hold its lock: what a file says must not end another process.
    Raises :class:`JobError` where it is another user's.
    """
    owner = run.writer
    if owner is None:
        raise InputError(f"no process works on {run.folder}: there is nothing to stop")
    if not owner.pid:
        raise InputError(f"{run.folder} does not say which process works on it; end it where it was started")
    if owner.host != platform.node():
        raise InputError(f"{owner} works on {run.folder}, and this is {platform.node()}; end it there")
    try:
        if not _has_open(owner.pid, run.folder / LOCK):
            raise InputError(f"{run.folder} names {owner}, which does not hold its lock: it is left alone")
        os.kill(owner.pid, signal.SIGTERM)
    except ProcessLookupError:
        pass  # it has just ended by itself
    except PermissionError as error:
        raise JobError(f"{owner}, which works on {run.folder}, is another user's; ask its owner") from error
    return owner


def has_ended(run: Run, owner: Owner, patience_seconds: float) -> bool:
    """Wait until the process lets go of the run; False where it has not in that many seconds."""
    until = time.monotonic() + patience_seconds
    while run.writer == owner:
        if time.monotonic() > until:
            return False
        time.sleep(POLL_SECONDS)
    return True


def _has_open(pid: int, path: Path) -> bool:
    """Whether the process has the file open; taken as so where the system does not tell.

    Raises PermissionError for another user's process.
    """
    files = Path(f"/proc/{pid}/fd")
    if not Path("/proc/self/fd").exists():
        return True
    try:
        held = path.stat()
        return any(_is_same(entry, held) for entry in files.iterdir())
    except FileNotFoundError:  # it has ended
        return False


def _is_same(entry: Path, held: os.stat_result) -> bool:
    """Whether this is that file; a process opens and closes others all the time, some that nobody may look at."""
    try:
        return os.path.samestat(entry.stat(), held)
    except (FileNotFoundError, PermissionError):
        return False
