"""How long a run took, what it was made with, and the commands that repeat it."""

from __future__ import annotations

import json
import shlex
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from results.events import Event, FinaliseRequested, PruneRequested, Resumed, StageEvent, Started
from results.units import duration_text

BEFORE = "preparation"
"""What comes before the first stage: reading the network and the data, a rehearsal of training."""


def stage_seconds(events: Sequence[Event]) -> dict[str, float]:
    """Stage → wall time in seconds, without the time in which no process worked on the run."""
    seconds: dict[str, float] = {}
    stage, last = BEFORE, None
    for event in events:
        if event.time is None:
            continue
        if last is not None and not isinstance(event, Started | Resumed):
            seconds[stage] = seconds.get(stage, 0.0) + max(0.0, event.time - last)
        last = event.time
        if isinstance(event, StageEvent):
            stage = event.stage if event.state == "start" else BEFORE
    return seconds


def times_json(events: Sequence[Event]) -> list[dict[str, Any]]:
    """The wall time of every stage, as a number, a share of all and a text."""
    seconds = stage_seconds(events)
    total = sum(seconds.values()) or 1.0
    return [
        {"stage": stage, "seconds": value, "share": value / total, "text": duration_text(value)}
        for stage, value in seconds.items()
    ]


def commands(folder: str, events: Sequence[Event]) -> list[str]:
    """The command lines that make the run again, in a folder beside it."""
    again = shlex.quote(f"{folder}-again")
    told = [f"dnas search {shlex.quote(f'{folder}/job.toml')} --run {again}"]
    for event in events:
        if isinstance(event, PruneRequested):
            what = f"--bits {event.bits}" if event.assignment is None else shlex.quote(event.assignment)
            told.append(f"dnas prune {again} {what}{_settings(event.section)}")
        elif isinstance(event, FinaliseRequested):
            told.append(f"dnas finalise {again}{_settings(event.section)}")
    return told


def _settings(section: Mapping[str, Any]) -> str:
    """A section of a request as ``--set`` options; what is None is the default."""
    given = {key: value for key, value in section.items() if value is not None}
    return "".join(f" --set {shlex.quote(f'{key}={_toml(value)}')}" for key, value in given.items())


def _toml(value: Any) -> str:
    """A plain value as TOML writes it inside one line."""
    match value:
        case bool():
            return str(value).lower()
        case str():
            return json.dumps(value, ensure_ascii=False)  # whose escapes are TOML's
        case Mapping():
            return "{" + ", ".join(f"{_toml(str(key))} = {_toml(each)}" for key, each in value.items()) + "}"
        case list() | tuple():
            return "[" + ", ".join(map(_toml, value)) + "]"
    return str(value)


def differences(jobs: Mapping[str, str]) -> list[dict[str, Any]]:
    """The keys of these job files, by run, that do not have the same value in all, with the values as texts."""
    flat = [dict(_flat(_parsed(text))) for text in jobs.values()]
    keys = dict.fromkeys(key for each in flat for key in each)
    rows = [{"key": key, "values": [each.get(key, "") for each in flat]} for key in keys]
    return [row for row in rows if len(set(row["values"])) > 1]


def _parsed(text: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError):
        return {}


def _flat(table: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, str]]:
    for key, value in table.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{before}{key}.")
        else:
            yield f"{before}{key}", _toml(value)
