"""Times that were taken, kept in a file while a table is in the making, so that a stopped measurement goes on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import Field

from dnas.latency.clock import Timing
from results.files import read_sealed_json, write_sealed_json
from search_spaces.errors import InputError
from search_spaces.records import Amount, Record, check_schema

SCHEMA = "dnas.latency-times/1"


class KeptTime(Record):
    """One :class:`~dnas.latency.clock.Timing`."""

    ms: Amount
    median_ms: Amount
    spread: Amount


class TimesFile(Record):
    """What was timed so far: ``of`` tells in which measurement, ``turns`` the times of what took turns, by name."""

    schema_version: str = Field(default=SCHEMA, alias="schema")
    of: dict[str, Any]
    turns: dict[str, tuple[KeptTime, ...]]


class KeptTimes:
    """The times in the file at ``path``, of the measurement that ``of`` describes in plain values; without a path none.

    The file is written anew, in one step, whenever something was timed; whoever has the table deletes it. Raises
    :class:`InputError` where it holds the times of another measurement.
    """

    def __init__(self, path: Path | None = None, of: Mapping[str, Any] | None = None) -> None:
        self.path, self.of = path, dict(of or {})
        self._turns = dict(_read(path, self.of).turns) if path is not None and path.exists() else {}

    def find(self, name: str, count: int) -> list[Timing] | None:
        """The times of ``count`` runs that took turns under this name; None where they did not yet."""
        known = self._turns.get(name)
        if known is None or len(known) != count:
            return None
        return [Timing(time.ms, time.median_ms, time.spread) for time in known]

    def keep(self, name: str, times: Sequence[Timing]) -> None:
        """Add the times of what took turns."""
        self._turns[name] = tuple(KeptTime(ms=t.ms, median_ms=t.median_ms, spread=t.spread) for t in times)
        if self.path is not None:
            write_sealed_json(self.path, TimesFile(of=self.of, turns=self._turns).model_dump(by_alias=True))


def _read(path: Path, of: Mapping[str, Any]) -> TimesFile:
    """The file's content; :class:`InputError` that says what to do unless it belongs to this measurement."""
    try:
        data = read_sealed_json(path)
        check_schema(data, SCHEMA, "times of an unfinished measurement")
        found = TimesFile.read(data)
    except InputError as error:
        raise InputError(f"{error}; move {path} away to measure from the start") from error
    other = next((key for key in {**of, **found.of} if found.of.get(key) != of.get(key)), None)
    if other is not None:
        there, here = found.of.get(other), of.get(other)
        raise InputError(
            f"{path} keeps times of an unfinished measurement with {other} = {there!r}, which is {here!r} here; go on "
            "as it was begun, delete it to measure from the start, or name another --out"
        )
    return found
