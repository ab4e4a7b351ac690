"""The journal of a run: one JSON object per line, only ever appended, on disk before ``append`` returns."""

from __future__ import annotations

import hashlib
import os
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from io import FileIO
from pathlib import Path
from typing import Any

from results.events import Event, read_event
from results.files import encode_json, parse_json, read_bytes, refuse_special, sync_folder, write_error
from search_spaces.errors import InputError

_DIGEST_LENGTH = 16
_SEALED = re.compile(rb'(.*), "sha256": "(.{16})"}', re.DOTALL)
"""A line of earlier versions has no checksum, and comes before all that have one."""


@dataclass(frozen=True)
class _Known:
    """What was read already: whole lines, what they say (the first of them as events), whether they have checksums."""

    data: bytes = b""
    records: tuple[dict[str, Any], ...] = ()
    events: tuple[Event, ...] = ()
    sealed: bool = False


class Journal:
    """Records of what happened, each with its ``event`` and its ``time`` in seconds since the epoch.

    A last line torn by a kill is ignored by :meth:`records` and cut off before the next :meth:`append`. As long as the
    file still begins with what was read, that is not parsed again.
    """

    def __init__(self, path: Path, *, read_only: bool = False, clock: Callable[[], float] = time.time) -> None:
        self.path = path
        self.read_only = read_only
        self._clock = clock
        self._sound = False
        self._known = _Known()

    def append(self, record: Mapping[str, Any]) -> None:
        """Write one record as one synced line.

        Raises :class:`JobError` for a NaN or an infinity (nothing is written) and where the disk refuses (what was
        written of the line is taken back), ValueError without a text ``event``.
        """
        if self.read_only:
            raise RuntimeError(f"{self.path} was opened for reading; open the run with write=True")
        if not isinstance(record.get("event"), str):
            raise ValueError(f"a journal record needs an 'event', got the keys {sorted(record)}")
        stamped = {"event": record["event"], "time": self._clock()}
        stamped |= {key: value for key, value in record.items() if key not in stamped}
        line = _sealed(encode_json(stamped, what=f"journal event '{record['event']}'").encode("utf-8")) + b"\n"
        if not self._sound:
            self._cut_torn_line()
        try:
            self._write(line)
        except OSError as error:
            raise write_error(self.path, error) from error

    def records(self) -> list[dict[str, Any]]:
        """Return all complete records in order; raise :class:`InputError` for a corrupt line before the last."""
        return list(self._read().records)

    def events(self) -> list[Event]:
        """Return what the records say, in order; raise :class:`InputError` naming the line that says nothing known."""
        known = self._read()
        events = list(known.events)
        for number, record in enumerate(known.records[len(events) :], start=len(events) + 1):
            try:
                events.append(read_event(record))
            except InputError as error:
                raise InputError(
                    f"{self.path} at line {number}: {error}; "
                    "restore the file from a copy, or start again with another --run"
                ) from error
        self._known = replace(known, events=tuple(events))
        return events

    def _read(self) -> _Known:
        """Read what was added since, or all where the file no longer begins with what is known."""
        data = read_bytes(self.path) if self.path.exists() else b""
        known = self._known if data.startswith(self._known.data) else _Known()
        *lines, rest = data[len(known.data) :].split(b"\n")
        first, last = len(known.records) + 1, len(known.records) + len(lines)
        records: list[dict[str, Any]] = []
        sound_bytes, sound_seals = len(known.data), known.sealed
        for number, line in enumerate(lines, start=first):
            sealed = _SEALED.fullmatch(line)
            record = _parse_line(sealed[1] + b"}" if sealed else line)
            if record and (sealed[2] != _digest(sealed[1]) if sealed else sound_seals):
                raise InputError(
                    f"{self.path} was changed at line {number}: its checksum is wrong; "
                    "restore the file from a copy, or start the job again with another --run"
                )
            if record is None:
                if number == last and not rest:
                    break
                raise InputError(
                    f"{self.path} is corrupt at line {number}: it is not a journal record; "
                    "restore the file from a copy, or start the job again with another --run"
                )
            records.append(record)
            sound_seals |= sealed is not None
            sound_bytes += len(line) + 1
        self._known = _Known(data[:sound_bytes], (*known.records, *records), known.events, sound_seals)
        return self._known

    def _cut_torn_line(self) -> None:
        sound_bytes = len(self._read().data)
        try:
            if self.path.exists() and self.path.stat().st_size > sound_bytes:
                with FileIO(self.path, "r+b", opener=_own_file) as file:
                    file.truncate(sound_bytes)
        except OSError as error:
            raise write_error(self.path, error) from error
        self._sound = True

    def _write(self, line: bytes) -> None:
        refuse_special(self.path)
        is_new = not self.path.exists()
        # Unbuffered: a buffer that could not be flushed would be written again when the file is closed.
        with FileIO(self.path, "ab", opener=_own_file) as file:
            start = os.fstat(file.fileno()).st_size
            try:
                written = 0
                while written < len(line):
                    written += file.write(line[written:]) or 0
                os.fsync(file.fileno())
            except OSError:
                file.truncate(start)
                raise
        if is_new:
            sync_folder(self.path.parent)


def _sealed(line: bytes) -> bytes:
    """An object's line with the checksum of what comes before it as its last key."""
    begin = line.removesuffix(b"}")
    return begin + b', "sha256": "' + _digest(begin) + b'"}'


def _digest(begin: bytes) -> bytes:
    return hashlib.sha256(begin).hexdigest()[:_DIGEST_LENGTH].encode()


def _own_file(path: str, flags: int) -> int:
    """Open the journal itself, never what a link of its name leads to, and wait for no pipe."""
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)


def _parse_line(line: bytes) -> dict[str, Any] | None:
    try:
        record = parse_json(line.decode("utf-8"))
    except ValueError:
        return None
    sound = isinstance(record, dict) and isinstance(record.get("event"), str)
    return record if sound and isinstance(record.get("time"), (int, float)) else None
