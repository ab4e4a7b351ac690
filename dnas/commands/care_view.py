"""The commands that look after one run: asking it to stop, its log, what it no longer needs."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from dnas.commands.terminal import show, show_json
from results.files import read_bytes
from results.report.log import log_lines
from results.run import stopping
from results.run.cleaning import needless_files, remove
from results.run.folder import Run
from results.run.layout import LOG
from results.run.lost import sound_events
from results.run.status import run_status
from search_spaces.errors import InputError, printable, quoted

POLL_SECONDS = 0.5


def stop(folder: Path, patience_seconds: float, as_json: bool) -> None:
    """Stop the process that works on a run, and say when it has stopped."""
    run = Run.open(folder)
    owner = stopping.stop(run)
    ended = stopping.has_ended(run, owner, patience_seconds)
    state = run_status(run).state
    if as_json:
        show_json({"run": str(folder), "pid": owner.pid, "stopped": ended, "state": state})
    elif not ended:
        show(
            f"{owner} was asked to stop and is still at its step; see when it has ended with: "
            f"dnas status {quoted(folder)}"
        )
    elif state == "finished":
        show(f"{folder} had finished by then")
    else:
        show(f"{owner} has stopped; go on with: dnas resume {quoted(folder)}")


def logs(folder: Path, follow: bool, most: int | None) -> None:
    """Print the journal as lines, below it what a detached process printed; ``follow`` goes on until the run ends."""
    run = Run.open(folder)
    told = 0
    while True:
        held = run.writer is not None  # asked first: what a process wrote before it ended is then told
        events = sound_events(run)
        lines = log_lines(events[told:], len(events))
        _print(lines if told or most is None else lines[-most:])
        told = len(events)
        if not (follow and held):
            break
        time.sleep(POLL_SECONDS)
    printed = folder / LOG
    if printed.is_file():
        lines = read_bytes(printed).decode(errors="replace").splitlines()
        _print(["", f"{printed}:", *(lines if most is None else lines[-most:])])


def _print(lines: Sequence[str]) -> None:
    for line in lines:
        print(printable(line), flush=True)


def clean(folder: Path, dry_run: bool, as_json: bool) -> None:
    """Remove what no command reads any more, or only tell it."""
    run = Run.open(folder)
    if run.writer is not None:
        raise InputError(
            f"a process is working on {folder}; clean it once it has ended, or stop it: dnas stop {quoted(folder)}"
        )
    found = needless_files(run)
    if not dry_run:
        with Run.open(folder, write=True) as run:
            still = needless_files(run)  # another command may have begun with some in between
            gone = {name for name in found if not (folder / name).exists()}
            found = {name: size for name, size in found.items() if name in still or name in gone}
            remove(run, found)
    total = sum(found.values())
    if as_json:
        show_json({"run": str(folder), "files": found, "bytes": total, "removed": not dry_run})
        return
    for name, size in found.items():
        show(f"{size:>12,} B  {name}")
    verb = "would be removed" if dry_run else "removed"
    show(f"{verb}: {total:,} bytes in {len(found)} files" if found else f"{folder} holds nothing that is not needed")
