"""What a run should hold and does not, and which of its records still stand without it.

A lost file is journaled. The records that told of what it held no longer stand then, so every stage finds that part of
its work undone and does it again; nothing else is repeated.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from results.run.folder import ASSIGNMENTS, CHECKPOINTS, ENVIRONMENT, FRONT_CSV, FRONT_JSON, FRONT_PICTURE, Run
from search_spaces.errors import InputError

LOST = "lost"
_NET = re.compile(rf"{CHECKPOINTS}/net-(?P<name>.+)-seed(?P<seed>\d+)\.safetensors")

Record = Mapping[str, Any]


@dataclass(frozen=True)
class LostFile:
    """A file of a run, by its path inside the folder; ``why`` is "gone", "empty" or "damaged"."""

    path: str
    why: str

    def to_json(self) -> dict[str, Any]:
        """The journal's record of it."""
        return {"event": LOST, "file": self.path, "why": self.why}


def lost_files(run: Run) -> list[LostFile]:
    """What the journal says was written and is not there in a state to be read, and checkpoints that are damaged."""
    records = standing(sound_records(run))
    found = {path: damage_of(run, path) for path in expected_files(records)}
    others = {f"{CHECKPOINTS}/{path.name}" for path in run.checkpoint_paths()} - set(found)
    found |= {path: damage_of(run, path) for path in sorted(others)}
    return [LostFile(path, why) for path, why in found.items() if why]


def standing(records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The records without those that a later ``lost`` one took the ground from."""
    left: list[dict[str, Any]] = []
    for record in records:
        if record["event"] == LOST:
            falls = _told_of(str(record["file"]), left)
            left = [earlier for earlier in left if not falls(earlier)]
        left.append(record)
    return left


def sound_records(run: Run) -> list[dict[str, Any]]:
    """All records of a run; :class:`InputError` where its journal was emptied or replaced, not merely cut off."""
    records = run.journal.records()
    begins = records[0]["event"] == "started" if records else not run.holds_results
    if not begins:
        raise InputError(
            f"{run.journal.path} was emptied or replaced: it does not begin with the start of a run, though "
            f"{run.folder} holds what a run left; restore the file from a copy, or start again with another --run"
        )
    return records


def unknown_files(run: Run, records: Sequence[Record]) -> list[str]:
    """Results that no record tells of; a kill leaves one at most, a journal that was cut off or replaced many."""
    told = {*expected_files(records)} | {str(record["file"]) for record in records if record["event"] == LOST}
    paths = [f"{ASSIGNMENTS}/{path.name}" for path in run.assignment_paths()]
    paths += [f"{CHECKPOINTS}/{path.name}" for path in run.checkpoint_paths() if path.name.startswith("net-")]
    return [path for path in paths if path not in told]


def expected_files(records: Sequence[Record]) -> list[str]:
    """The files that these records say are there, in the order in which they were made."""
    nets = _nets_of_profiles(records)
    dropped = {f"switchable-{record['number']}" for record in records if record["event"] == "dropped"}
    found = [ENVIRONMENT] if records else []
    for record in records:
        match record["event"]:
            case "epoch" if record["stage"] in ("pretrain", "warmup"):
                name = "pretrain" if record["stage"] == "pretrain" else record["run"]
                found.append(f"{CHECKPOINTS}/{name}.safetensors")
            case "decoded":
                found.append(f"{ASSIGNMENTS}/{record['assignment']}.json")
            case "measured":
                name = nets.get(record["assignment"], record["assignment"])
                found += [] if name in dropped else [f"{CHECKPOINTS}/net-{name}-seed{record['seed']}.safetensors"]
            case "finished":
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


def _told_of(path: str, records: Sequence[Record]) -> Callable[[Record], bool]:
    """Whether a record tells of what the file at ``path`` held."""
    if path.startswith(f"{ASSIGNMENTS}/"):
        name = path.removeprefix(f"{ASSIGNMENTS}/").removesuffix(".json")
        runs = {r["run"] for r in records if r["event"] == "decoded" and r["assignment"] == name}
        # What a search found can only be found by searching again.
        return lambda r: r.get("assignment") == name or (r["event"] == "searched" and r["run"] in runs)
    if net := _NET.fullmatch(path):
        profiles = {profile for profile, name in _nets_of_profiles(records).items() if name == net["name"]}
        names = profiles or {net["name"]}
        return lambda r: (
            r["event"] in ("measured", "tested") and r["assignment"] in names and r["seed"] == int(net["seed"])
        )
    if path == f"{CHECKPOINTS}/pretrain.safetensors":
        return lambda r: r["event"] == "float"
    return lambda r: False


def _nets_of_profiles(records: Sequence[Record]) -> dict[str, str]:
    """Assignment → the switchable net that it is a profile of."""
    chosen = [record for record in records if record["event"] == "profiles"]
    return {f"{record['net']}-{name}": record["net"] for record in chosen for name in record["profiles"]}
