"""Files that are either wholly there or not there at all: written under another name, synced, then renamed."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import math
import os
import re
import shutil
import stat
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from json.encoder import encode_basestring
from pathlib import Path
from typing import Any

from search_spaces.errors import InputError, JobError
from search_spaces.plain_json import LARGEST_FIGURE, LARGEST_WHOLE
from search_spaces.plain_json import parse_json as parse_json
from search_spaces.user_files import open_regular

TEMPORARY_SUFFIX = ".tmp"
NAME = r"[A-Za-z0-9_][A-Za-z0-9._+=-]{0,120}"
"""Of what has a file of its own: it can be written everywhere, and never leads out of its folder."""
SEAL = "sha256"
"""The key that holds the checksum of a JSON file's other keys; the last one."""
MOST_BYTES, MOST_JSON_BYTES = 2**30, 2**27
"""Of what is read as a whole, such as a journal; of one JSON file, which takes several times as much memory."""
_MAY_BE_LARGE = re.compile(r"\de\+?\d{3}|\d{19}")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_SPECIAL = (
    (stat.S_ISLNK, "link"),
    (stat.S_ISCHR, "device"),
    (stat.S_ISBLK, "device"),
    (stat.S_ISFIFO, "pipe"),
    (stat.S_ISSOCK, "socket"),
)


def write_bytes(path: Path, data: bytes | bytearray) -> None:
    """Replace the file at ``path`` by ``data`` in one step; raise :class:`JobError` where the disk refuses.

    A reader sees the old file or the new one, and a failed write leaves the old one as it was. What is no regular file
    is neither replaced nor written through: :class:`InputError`.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}{TEMPORARY_SUFFIX}")
    try:
        refuse_special(path)
        temporary.unlink(missing_ok=True)
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o666)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        raise write_error(path, error) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Replace the file at ``path`` by ``text`` in UTF-8; see :func:`write_bytes`."""
    write_bytes(path, text.encode("utf-8"))


def write_json(path: Path, data: Any) -> None:
    """Replace the file at ``path`` by ``data`` as indented JSON; a NaN or an infinity is refused unwritten."""
    write_text(path, indented_json(data, what=str(path)))


def indented_json(data: Any, what: str) -> str:
    """What :func:`write_json` writes: every key on a line of its own, two blanks further in at each depth."""
    return encode_json(data, what, _indented) + "\n"


@contextlib.contextmanager
def wholly_written(path: Path) -> Iterator[Path]:
    """A path of the same name in a folder of its own, for code that is not ours to write to.

    What lies in that folder takes its place beside ``path`` at the end; nothing does where the code fails.
    """
    folder = path.with_name(f".{path.name}.{os.getpid()}{TEMPORARY_SUFFIX}")
    try:
        folder.mkdir()
    except OSError as error:
        raise write_error(path, error) from error
    try:
        yield folder / path.name
        try:
            for made in sorted(folder.iterdir(), key=lambda each: each == folder / path.name):  # the file itself last
                there = path.with_name(made.name)
                if made.is_dir() and there.is_dir():
                    shutil.copytree(made, there, dirs_exist_ok=True)
                else:
                    made.replace(there)
        except OSError as error:
            raise write_error(path, error) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def refuse_special(path: Path) -> None:
    """Raise :class:`InputError` where a link, a device, a pipe or a socket lies at ``path``."""
    try:
        mode = path.lstat().st_mode
    except OSError:  # there is nothing, or nothing that can be had
        return
    what = next((word for is_one, word in _SPECIAL if is_one(mode)), "")
    if what == "link":
        raise InputError(
            f"{path} is a link, and files are neither read nor replaced through one; name what it leads to, or put "
            "that in its place"
        )
    if what:
        raise InputError(f"{path} is a {what}, not a file; name a file, or move it away")


def write_sealed_json(path: Path, data: Mapping[str, Any]) -> None:
    """Replace the file at ``path`` by an object with the checksum of its content; see :func:`write_json`."""
    plain = parse_json(encode_json(data, what=str(path)))
    write_json(path, {**plain, SEAL: _content_sha256(plain)})


def read_sealed_json(path: Path) -> Any:
    """Return what :func:`write_sealed_json` wrote; raise :class:`InputError` where it was changed since.

    A file without a checksum is one of an earlier version and is taken as it is.
    """
    data = read_json(path)
    if isinstance(data, dict):
        told = taken_seal(data)
        if told is not None and told != _content_sha256(data):
            raise InputError(f"{path} was changed after it was written: its checksum is wrong")
    return data


def taken_seal(data: dict[str, Any]) -> str | None:
    """Take the checksum out of what a file holds, and return it.

    None in a file of an earlier version; what no checksum is, where the key of it was changed.
    """
    if SEAL in data:
        return str(data.pop(SEAL))
    last = next(reversed(data), "")
    spoilt = len(last) == len(SEAL) and sum(a != b for a, b in zip(last, SEAL, strict=True)) == 1
    return "of another name" if spoilt and _DIGEST.fullmatch(str(data[last])) else None


def _content_sha256(data: Any) -> str:
    """The SHA-256 of plain values, whatever the layout of their file."""
    text = json.dumps(data, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def read_bytes(path: Path, most: int = MOST_BYTES) -> bytes:
    """Return the content of the regular file at ``path``; raise :class:`InputError` with the path for anything else.

    A file of more than ``most`` bytes is refused before any is read.
    """
    refuse_special(path)
    try:
        with open_regular(path, follow=False) as file:  # something else may have taken its place meanwhile
            size = os.fstat(file.fileno()).st_size
            if size > most:
                raise InputError(f"cannot read {path}: no file of a run holds {size:,} bytes; move it away")
            return file.read()
    except IsADirectoryError as error:
        raise InputError(f"cannot read {path}: it is a folder where a file belongs; move it away") from error
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error


def read_text(path: Path, most: int = MOST_BYTES) -> str:
    """Return the UTF-8 text of ``path``; raise :class:`InputError` where it cannot be read."""
    try:
        return read_bytes(path, most).decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is damaged: it is not UTF-8 text (byte {error.start})") from error


def read_json(path: Path) -> Any:
    """Return the parsed content of ``path``; raise :class:`InputError` where it is not JSON."""
    try:
        return parse_json(read_text(path, MOST_JSON_BYTES))
    except ValueError as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path} is damaged: it is not JSON ({error})") from error


def encode_json(data: Any, what: str, encode: Callable[[Any], str] | None = None) -> str:
    """Return ``data`` as JSON in one line; raise :class:`JobError` naming the first number that cannot be read back."""
    try:
        text = (encode or _encoder().encode)(data)
    except ValueError as error:
        found = find_non_finite(data)
        if not found:
            raise
        raise JobError(f"{what}: {found} is not a finite number, so it is not written") from error
    if _MAY_BE_LARGE.search(text) and (found := find_too_large(data)):
        raise JobError(f"{what}: {found} is larger than any figure that is read back, so it is not written")
    return text


@cache
def _encoder(between: str = ", ") -> json.JSONEncoder:
    return json.JSONEncoder(allow_nan=False, ensure_ascii=False, separators=(between, ": "))


def _indented(data: Any, depth: int = 0) -> str:
    """What ``json.dumps`` gives with ``indent=2``, for which it leaves its C code, in a fraction of its time."""
    inner = data.values() if isinstance(data, dict) else data if isinstance(data, list | tuple) else ()
    if not inner:
        return _encoder().encode(data)
    before, after = "\n" + "  " * (depth + 1), "\n" + "  " * depth
    if not any(isinstance(each, dict | list | tuple) for each in inner):
        text = _encoder(f",{before}").encode(data)
        return f"{text[0]}{before}{text[1:-1]}{after}{text[-1]}"
    values = [_indented(each, depth + 1) for each in inner]
    if not isinstance(data, dict):
        return f"[{before}{f',{before}'.join(values)}{after}]"
    pairs = [f"{_key(key)}: {value}" for key, value in zip(data, values, strict=True)]
    return f"{{{before}{f',{before}'.join(pairs)}{after}}}"


def _key(key: Any) -> str:
    """A key as JSON has it, whatever it is: ``None`` is "null"."""
    return encode_basestring(key) if isinstance(key, str) else _encoder().encode({key: 0})[1:-4]


def find_non_finite(data: Any, where: str = "") -> str:
    """Return ``"place = value"`` of the first NaN or infinity inside nested data, or an empty string.

    >>> find_non_finite({"loss": 1.0, "expected": {"bitops": float("nan")}})
    'expected.bitops = nan'
    """
    return _first_number(data, lambda value: isinstance(value, float) and not math.isfinite(value), where)


def find_too_large(data: Any) -> str:
    """Return ``"place = value"`` of the first number that :func:`parse_json` would refuse, or an empty string.

    >>> find_too_large({"loss": 1.0, "expected": {"energy": 1e300}})
    'expected.energy = 1e+300'
    """
    return _first_number(
        data, lambda value: abs(value) > (LARGEST_WHOLE if isinstance(value, int) else LARGEST_FIGURE), ""
    )


def _first_number(data: Any, wanted: Callable[[float], bool], where: str) -> str:
    if isinstance(data, int | float) and not isinstance(data, bool):
        return f"{where or 'value'} = {_figure(data)}" if wanted(data) else ""
    if isinstance(data, Mapping):
        entries = [(str(key), value) for key, value in data.items()]
    elif isinstance(data, (list, tuple)):
        entries = [(str(index), value) for index, value in enumerate(data)]
    else:
        return ""
    hits = (_first_number(value, wanted, f"{where}.{key}" if where else key) for key, value in entries)
    return next((hit for hit in hits if hit), "")


def _figure(value: float) -> str:
    """A number in few letters, however many digits it has."""
    try:
        return f"{value:g}"
    except OverflowError:  # a whole number beyond all floats
        return "a whole number of more than 300 digits"


def sync_folder(folder: Path) -> None:
    """Make a rename or a new name in ``folder`` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some network file systems cannot sync a folder; the file itself is safe by then.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


_AGAIN = "give the command again, or for a job go on with dnas resume"


def write_error(path: Path, error: OSError) -> JobError:
    """Return the sentence for a write to ``path`` that the operating system refused."""
    reason = error.strerror or str(error)
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return JobError(f"cannot write {path}: the disk is full ({reason}); free some space and {_AGAIN}")
    if error.errno == errno.EFBIG:
        return JobError(f"cannot write {path}: {reason}; raise the limit (ulimit -f) and {_AGAIN}")
    return JobError(f"cannot write {path}: {reason}")
