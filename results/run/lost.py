"""What a run should hold and does not, and which of its records still stand without it.

A lost file is journaled. The records that told of what it held no longer stand then, so every stage finds that part of
its work undone and does it again; nothing else is repeated.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from results.events import (
    Decoded,
    Dropped,
    Epoch,
    Event,
    Finished,
    FloatMeasured,
    Lost,
    Measured,
    Profiles,
    Searched,
    Started,
    Tested,
)
from results.run.folder import Run
from results.run.layout import ASSIGNMENTS, CHECKPOINTS, ENVIRONMENT, FRONT_CSV, FRONT_JSON, FRONT_PICTURE
from search_spaces.errors import InputError

_TRAINED = re.compile(r"(?:net-)?(?P<rest>(?P<name>.+)-seed\d+)")
_NET = re.compile(rf"{CHECKPOINTS}/net-(?P<name>.+)-seed(?P<seed>\d+)\.safetensors")


def lost_files(run: Run) -> list[Lost]:
    """What the journal says was written and is not there in a state to be read, and checkpoints that are damaged."""
    events = standing(sound_events(run))
    found = {path: damage_of(run, path) for path in expected_files(events)}
    others = {f"{CHECKPOINTS}/{path.name}" for path in run.checkpoint_paths()} - set(found)
    found |= {path: damage_of(run, path) for path in sorted(others)}
    return [Lost(file=path, why=why) for path, why in found.items() if why]


def standing(events: Sequence[Event]) -> list[Event]:
    """The events without those that a later ``lost`` one took the ground from."""
    left: list[Event] = []
    for event in events:
        if isinstance(event, Lost):
            falls = _told_of(event.file, left)
            left = [earlier for earlier in left if not falls(earlier)]
        left.append(event)
    return left


def sound_events(run: Run) -> list[Event]:
    """All events of a run; :class:`InputError` where its journal was emptied or replaced, not merely cut off."""
    events = run.journal.events()
    begins = isinstance(events[0], Started) if events else not run.holds_results
    if not begins:
        raise InputError(
            f"{run.journal.path} was emptied or replaced: it does not begin with the start of a run, though "
            f"{run.folder} holds what a run left; restore the file from a copy, or start again with another --run"
        )
    return events


def unknown_files(run: Run, events: Sequence[Event]) -> list[str]:
    """Results that no event tells of; a kill leaves one at most, a journal that was cut off or replaced many.

    A net that is ahead of the journal has the checkpoint of its training beside it, and is none of them.
    """
    told = {*expected_files(events)} | {event.file for event in events if isinstance(event, Lost)}
    paths = [f"{ASSIGNMENTS}/{path.name}" for path in run.assignment_paths()]
    nets = [path for path in run.checkpoint_paths() if path.name.startswith("net-")]
    paths += [f"{CHECKPOINTS}/{net.name}" for net in nets if not net.with_name(net.name.removeprefix("net-")).exists()]
    return [path for path in paths if path not in told]


def unasked_checkpoints(run: Run, events: Sequence[Event]) -> list[str]:
    """Checkpoints of nets that were trained ahead of a kill, and that a job asked for no more, by name.

    These are of decoded assignments that were never measured by their own name, once the job is done: others have the
    same bits.
    """
    decoded, known = {event.assignment for event in events if isinstance(event, Decoded)}, {*expected_files(events)}
    found = {path.stem: _TRAINED.fullmatch(path.stem) for path in run.checkpoint_paths()}
    return [
        name
        for name, parts in found.items()
        if parts and parts["name"] in decoded and f"{CHECKPOINTS}/net-{parts['rest']}.safetensors" not in known
    ]


def expected_files(events: Sequence[Event]) -> list[str]:
    """The files that these events say are there, in the order in which they were made."""
    nets = _nets_of_profiles(events)
    dropped = {f"switchable-{event.number}" for event in events if isinstance(event, Dropped)}
    found = [ENVIRONMENT] if events else []
    for event in events:
        match event:
            case Epoch(stage="pretrain"):
                found.append(f"{CHECKPOINTS}/pretrain.safetensors")
            case Epoch(stage="warmup"):
                found.append(f"{CHECKPOINTS}/{event.run}.safetensors")
            case Decoded():
                found.append(f"{ASSIGNMENTS}/{event.assignment}.json")
            case Measured():
                name = nets.get(event.assignment, event.assignment)
                found += [] if name in dropped else [f"{CHECKPOINTS}/net-{name}-seed{event.seed}.safetensors"]
            case Finished():
                found += [FRONT_JSON, FRONT_CSV, FRONT_PICTURE]
    return list(dict.fromkeys(found))


def damage_of(run: Run, path: str) -> str:
    """What is wrong with a file of a run: "gone", "empty", "damaged", or nothing."""
    file = run.folder / path
    if not file.is_file():
        return "gone"
    if not file.stat().st_size:
        return "empty"
    try:
        run.check_file(path)
    except InputError:
        return "damaged"
    return ""


def _told_of(path: str, events: Sequence[Event]) -> Callable[[Event], bool]:
    """Whether an event tells of what the file at ``path`` held."""
    if path.startswith(f"{ASSIGNMENTS}/"):
        name = path.removeprefix(f"{ASSIGNMENTS}/").removesuffix(".json")
        runs = {e.run for e in events if isinstance(e, Decoded) and e.assignment == name}
        # What a search found can only be found by searching again.
        return lambda e: (
            (isinstance(e, Decoded | Measured | Tested) and e.assignment == name)
            or (isinstance(e, Searched) and e.run in runs)
        )
    if net := _NET.fullmatch(path):
        profiles = {profile for profile, name in _nets_of_profiles(events).items() if name == net["name"]}
        names = profiles or {net["name"]}
        return lambda e: isinstance(e, Measured | Tested) and e.assignment in names and e.seed == int(net["seed"])
    if path == f"{CHECKPOINTS}/pretrain.safetensors":
        return lambda e: isinstance(e, FloatMeasured)
    return lambda e: False


def _nets_of_profiles(events: Sequence[Event]) -> dict[str, str]:
    """Assignment → the switchable net that it is a profile of."""
    chosen = [event for event in events if isinstance(event, Profiles)]
    return {f"{event.net}-{name}": event.net for event in chosen for name in event.profiles}
