"""What of a run no command reads any more."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from results.events import Event, Finished, Searched
from results.files import TEMPORARY_SUFFIX, write_error
from results.run.folder import Run
from results.run.layout import ASSIGNMENTS, CHECKPOINTS
from results.run.lost import expected_files, sound_events, standing
from results.run.status import Life

_NET = re.compile(r"net-(?P<name>.+)-seed\d+")


def needless_files(run: Run) -> dict[str, int]:
    """Files by their paths inside the run, with their sizes in bytes, that neither a command nor a resume reads.

    These are what kills left of files that were being written, states of searches that are done and, once the job is
    finished, states of all training: the trained nets, the float network and the warmed-up supernet stay.
    """
    events = standing(sound_events(run))
    kept = _kept(run, events)
    homes = (run.folder / name for name in ("", ASSIGNMENTS, CHECKPOINTS))
    left = [path for home in homes for path in home.glob(f".*{TEMPORARY_SUFFIX}")]
    found = [file for path in left for file in (path.rglob("*") if path.is_dir() else (path,)) if not file.is_dir()]
    found += [path for path in run.checkpoint_paths() if path.stem in _done(events) or path.stem not in kept]
    return {str(path.relative_to(run.folder)): path.stat().st_size for path in sorted(found)}


def _done(events: Sequence[Event]) -> set[str]:
    """The searches that are done, by the names of their checkpoints."""
    return {event.run for event in events if isinstance(event, Searched)}


def _kept(run: Run, events: Sequence[Event]) -> set[str]:
    """The checkpoints that are read yet, by name: all of a job that is not finished; of another what commands read."""
    every = {path.stem for path in run.checkpoint_paths()}
    life = [event for event in events if isinstance(event, Life)]
    if not life or not isinstance(life[-1], Finished):
        return every
    assignments = run.assignments()
    nets = {*assignments, *(item.provenance.net for item in assignments.values())}
    of_nets = {name for name in every if (found := _NET.fullmatch(name)) and found["name"] in nets}
    told = {Path(path).stem for path in expected_files(events)}
    return told | of_nets | {name for name in every if name.startswith(("pretrain", "warmup"))}


def remove(run: Run, files: Mapping[str, int]) -> None:
    """Remove these files of a run that is opened for writing; :class:`JobError` where the disk refuses."""
    for name in files:
        try:
            (run.folder / name).unlink(missing_ok=True)
        except OSError as error:
            raise write_error(run.folder / name, error) from error
