"""A job in a process of its own that goes on when the terminal closes; what it prints goes into its run folder."""

from __future__ import annotations

import contextlib
import fcntl
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO

import typer

from dnas.commands.terminal import show, show_json, tell
from dnas.config.file import load_job
from results.events import StageEvent
from results.files import refuse_special
from results.run.folder import Run
from results.run.journal import Journal
from results.run.layout import JOURNAL, LOG, RUNS, is_run, refuse_occupied
from search_spaces.errors import InputError, quoted

OPTION = "--detach"
POLL_SECONDS = 0.2
LAST_LINES = 20


def search_detached(source: str | None, overrides: Sequence[str], folder: Path | None, as_json: bool) -> None:
    """Start a search in a session of its own, and return once its first stage has begun.

    What the job is refused for is told here, and ends this process with that one's exit code.
    """
    named = folder is not None
    folder = folder or RUNS / load_job(source, overrides).name
    refuse_occupied(folder)
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    with _log(folder, anew=True) as log:
        process, code = _begun(folder, log, [] if named else ["--run", str(folder)])
        if code and not is_run(folder):
            (folder / LOG).unlink(missing_ok=True)
            for path in missing:
                with contextlib.suppress(OSError):  # somebody else has put something there
                    path.rmdir()
    _tell_begun(folder, process, code, as_json)


def resume_detached(folder: Path, as_json: bool) -> None:
    """Go on with a run in a session of its own, and return once a stage has begun, or the job has ended."""
    Run.open(folder)  # what is no run is told before a log is written there
    with _log(folder, anew=False) as log:
        process, code = _begun(folder, log, [])
    _tell_begun(folder, process, code, as_json)


def _begun(folder: Path, log: IO[bytes], more: Sequence[str]) -> tuple[subprocess.Popen[bytes], int | None]:
    """Our command line in a session of its own, once a stage has begun: the process, and its exit code if it ended.

    What it printed is told where it ended.
    """
    start, stages = log.seek(0, os.SEEK_END), _stages(folder)
    own = [argument for argument in sys.argv[1:] if argument not in (OPTION, "--json")]
    process = subprocess.Popen(
        [sys.executable, "-m", "dnas", *own, *more],
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    code: int | None = None
    with contextlib.suppress(KeyboardInterrupt):
        while (code := process.poll()) is None and _stages(folder) <= stages:
            time.sleep(POLL_SECONDS)
    if code is not None:
        log.seek(start)
        tell("\n".join(log.read().decode(errors="replace").splitlines()[-LAST_LINES:]))
    return process, code


def _stages(folder: Path) -> int:
    """How many stages were begun in a run, as far as it can be read."""
    with contextlib.suppress(InputError):
        return sum(isinstance(event, StageEvent) for event in Journal(folder / JOURNAL, read_only=True).events())
    return 0


def _tell_begun(folder: Path, process: subprocess.Popen[bytes], code: int | None, as_json: bool) -> None:
    """Say how to look after a job that goes on; end as one that has ended did."""
    if code:
        raise typer.Exit(code)
    if as_json:
        show_json({"run": str(folder), "pid": process.pid, "log": str(folder / LOG), "running": code is None})
    elif code is None:
        told = quoted(folder)
        show(
            f"{folder} goes on without this terminal (pid {process.pid}); what it prints is in {folder / LOG}",
            f"look after it: dnas status {told}, dnas logs {told} --follow, dnas stop {told}",
        )


def _log(folder: Path, anew: bool) -> IO[bytes]:
    """The log of a run, opened to be written and read: ``anew`` of one that is still to be made, else behind its end.

    It is locked as long as the process that prints into it lives: nobody else may begin here meanwhile.
    """
    path = folder / LOG
    refuse_special(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o666)
    except OSError as error:
        why = error.strerror or str(error)
        what = f"{folder} cannot hold a run: {why}; choose another folder with --run"
        raise InputError(what if anew else f"{path} cannot be written: {why}; resume without {OPTION}") from error
    log = os.fdopen(descriptor, "r+b")
    try:
        fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        log.close()
        what = f"another search has just begun in {folder}; choose another folder with --run"
        raise InputError(what if anew else f"a detached process works on {folder}; see it with: dnas status") from error
    except OSError:
        pass  # a disk without locks
    if anew:
        log.truncate(0)
    return log
