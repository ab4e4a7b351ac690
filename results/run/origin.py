"""Which code a run may name: that of jobs which this user started on this machine, as a mark in the folder proves.

The mark is made with a key that never leaves the user's own folder, so nobody else can write one. It goes with the
folder wherever that is moved or copied, and holds as long as the job file is what it was.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import json
import os
import re
import secrets
from collections.abc import Iterable
from pathlib import Path

from results.files import parse_json, read_bytes, write_json
from results.run.layout import JOB, JOURNAL, ORIGIN
from search_spaces.errors import InputError, JobError

KEY_BYTES = 32
_CODE = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")
_REQUESTS = (b'"event": "prune"', b'"event": "finalise"')


def names_in(text: str) -> set[str]:
    """All that could name code in a text, as ``package.module:name``.

    >>> names_in('optimizer = "mine:Lion"')
    {'mine:Lion'}
    """
    return set(_CODE.findall(text))


def own_names(folder: Path) -> set[str]:
    """What a run may import: the names of its job and those kept beside them, where its mark is this user's."""
    try:
        told = parse_json(read_bytes(folder / ORIGIN))
        names, mac = sorted(map(str, told["names"])), str(told["mac"])
        if hmac.compare_digest(mac.encode(), _mac(folder, names).encode()):
            return {*names, *_names_of_job(folder)}
    except (InputError, JobError, OSError, ValueError, KeyError, TypeError):
        pass  # no mark, another's, or no key to prove it with
    return set()


def unproven(folder: Path) -> str:
    """Why a run is not taken for this user's, where :func:`own_names` has no names of it."""
    try:
        _key()
    except (InputError, JobError, OSError) as error:
        return (
            f"whether {folder} was made on this machine by this user cannot be told: the key in "
            f"~/.local/state/dnas, or $XDG_STATE_HOME/dnas, can be neither read nor made ({error})"
        )
    if not (folder / ORIGIN).exists():
        return f"{folder} has no mark ({ORIGIN}) of having been made on this machine by this user"
    return f"{folder} was not made on this machine by this user, or its {JOB} was changed since"


def mark_own(folder: Path, names: Iterable[str] = ()) -> None:
    """Mark a run as this user's, with the names of code that may be imported beside those of its job.

    Where no key or no mark can be written, the run is like one from elsewhere.
    """
    with contextlib.suppress(InputError, JobError, OSError):
        kept = sorted(set(names) - _names_of_job(folder))
        write_json(folder / ORIGIN, {"names": kept, "mac": _mac(folder, kept)})


def requested_names(folder: Path) -> set[str]:
    """The names of code in what was asked of a run beyond its job."""
    lines = read_bytes(folder / JOURNAL).splitlines()
    return {
        name
        for line in lines
        if any(word in line for word in _REQUESTS)
        for name in names_in(line.decode(errors="replace"))
    }


def _names_of_job(folder: Path) -> set[str]:
    return names_in(read_bytes(folder / JOB).decode(errors="replace"))


def _mac(folder: Path, names: list[str]) -> str:
    content = hashlib.sha256(read_bytes(folder / JOB)).hexdigest()
    return hmac.new(_key(), json.dumps([content, names]).encode(), hashlib.sha256).hexdigest()


def _key() -> bytes:
    """The user's key on this machine, made when it is first needed; OSError where it cannot be kept."""
    home = _key_folder()
    path = home / "key"
    if not path.exists():
        home.mkdir(parents=True, exist_ok=True, mode=0o700)
        _make_key(path)
    key = read_bytes(path)
    if len(key) != KEY_BYTES:
        raise OSError("it is no key")
    return key


def _key_folder() -> Path:
    """Where the key lies; OSError where the user has no home."""
    try:
        state = os.environ.get("XDG_STATE_HOME") or Path("~/.local/state").expanduser()
    except RuntimeError as error:
        raise OSError(str(error)) from error
    return Path(state) / "dnas"


def _make_key(path: Path) -> None:
    """Write a new key in one step, unless another process is faster: jobs that start together read whole keys only."""
    made = path.with_name(f"{path.name}.{secrets.token_hex(8)}")
    descriptor = os.open(made, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(secrets.token_bytes(KEY_BYTES))
        with contextlib.suppress(FileExistsError):
            os.link(made, path)
    finally:
        made.unlink()
