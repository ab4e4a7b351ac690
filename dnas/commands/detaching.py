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
from results.run.journal import Journal
from results.run.layout import JOURNAL, LOG, RUNS, is_run, refuse_occupied
from search_spaces.errors import InputError

OPTION = "--detach"
POLL_SECONDS = 0.2
LAST_LINES = 20


def search_detached(source: str | None, overrides: Sequence[str], folder: Path | None, as_json: bool) -> None:
    """Start this command line in a session of its own, and return once its first stage has begun.

    What the job is refused for is told here, and ends this process with that one's exit code.
    """
    named = folder is not None
    folder = folder or RUNS / load_job(source, overrides).name
    refuse_occupied(folder)
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    with _log(folder) as log:
        own = [argument for argument in sys.argv[1:] if argument not in (OPTION, "--json")]
        command = [sys.executable, "-m", "dnas", *own, *([] if named else ["--run", str(folder)])]
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            code = _code_or_begun(process, folder)
        except KeyboardInterrupt:
            code = None
        if code:
            _tell_end(log, folder, missing)
            raise typer.Exit(code)
    if as_json:
        show_json({"run": str(folder), "pid": process.pid, "log": str(folder / LOG)})
        return
    show(
        f"{folder} goes on without this terminal (pid {process.pid}); what it prints is in {folder / LOG}",
        f"look after it: dnas status {folder}, dnas logs {folder} --follow, dnas stop {folder}",
    )


def _log(folder: Path) -> IO[bytes]:
    """The log of a run that is still to be made, opened to be written and read.

    It is locked as long as the process that prints into it lives: nobody else may begin a run here meanwhile.
    """
    path = folder / LOG
    refuse_special(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o666)
    except OSError as error:
        why = error.strerror or str(error)
        raise InputError(f"{folder} cannot hold a run: {why}; choose another folder with --run") from error
    log = os.fdopen(descriptor, "r+b")
    try:
        fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        log.close()
        raise InputError(f"another search has just begun in {folder}; choose another folder with --run") from error
    except OSError:
        pass  # a disk without locks
    log.truncate(0)
    return log


def _code_or_begun(process: subprocess.Popen[bytes], folder: Path) -> int | None:
    """The exit code of a process that has ended; None once its first stage has begun."""
    while (code := process.poll()) is None:
        with contextlib.suppress(InputError):
            if any(isinstance(event, StageEvent) for event in Journal(folder / JOURNAL, read_only=True).events()):
                return None
        time.sleep(POLL_SECONDS)
    return code


def _tell_end(log: IO[bytes], folder: Path, missing: Sequence[Path]) -> None:
    """Tell what the process printed last; where it left no run, nothing of it stays."""
    log.seek(0)
    tell("\n".join(log.read().decode(errors="replace").splitlines()[-LAST_LINES:]))
    if is_run(folder):
        return
    (folder / LOG).unlink(missing_ok=True)
    for path in missing:
        with contextlib.suppress(OSError):  # somebody else has put something there
            path.rmdir()
