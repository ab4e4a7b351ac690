"""The packed net: one safetensors file of bit planes and fp32 tensors, described by JSON in its header.

docs/packed-format.md is the specification. Nothing is unpickled, nothing is allocated before the file is known to
hold it, and checksums tell every change: one of the header, and (in the header) one of every tensor or bit plane, so
that a reader of one profile can check what it reads.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from results.files import encode_json, parse_json, write_bytes
from search_spaces.errors import InputError, nearest, unreadable

FAMILY = "dnas.packed/"
FORMAT, FORMAT_WITH_BUFFERS = f"{FAMILY}1", f"{FAMILY}2"
"""A reader of the first would leave buffers out; a file without any is of the first."""
DEFAULT_PROFILE = "default"
LONGEST_HEADER = 100_000_000
"""In bytes; safetensors' own limit."""
_TYPES: dict[str, np.dtype[Any]] = {"F32": np.dtype("<f4"), "U8": np.dtype("u1")}
_NO_DIGEST = "0" * 64
_DIGEST_LENGTH = 16


@dataclass(frozen=True)
class PackedFile:
    """A file that was read or written: what it says of the net, and its tensors (float32 or uint8)."""

    description: Mapping[str, Any]
    tensors: Mapping[str, np.ndarray]
    header_bytes: int

    @property
    def tensor_bytes(self) -> int:
        """What the tensors take; the figure that the cost table calls ``size_bytes``."""
        return sum(tensor.nbytes for tensor in self.tensors.values())


def to_planes(codes: np.ndarray, bits: int) -> np.ndarray:
    """Bit planes (bits, ceil(N / 8)) uint8 of N codes of any shape below 2**bits, the most significant plane first.

    Each plane holds one bit of every code, eight to a byte, the first code in the byte's highest bit.

    >>> to_planes(np.array([3, 0, 1]), 2).tolist()
    [[128], [160]]
    """
    flat = codes.reshape(-1).astype(np.int64)
    if flat.size and (flat.min() < 0 or int(flat.max()) >> bits):
        raise ValueError(f"codes from {flat.min()} to {flat.max()} do not fit into {bits} bits")
    shifts = np.arange(bits - 1, -1, -1)[:, None]
    return np.packbits(((flat >> shifts) & 1).astype(np.uint8), axis=1)


def from_planes(planes: np.ndarray, count: int) -> np.ndarray:
    """The ``count`` codes (int64) of these planes; of the first l planes only: the codes without their low bits.

    >>> from_planes(to_planes(np.array([3, 0, 1]), 2), 3).tolist()
    [3, 0, 1]
    """
    bits = np.unpackbits(planes, axis=1, count=count).astype(np.int64)
    codes = np.zeros(count, dtype=np.int64)
    for plane in bits:
        codes = 2 * codes + plane
    return codes


def write_packed(path: Path, description: Mapping[str, Any], tensors: Mapping[str, np.ndarray]) -> PackedFile:
    """Write a packed net in one step; the same net gives the same bytes. :class:`JobError` where the disk refuses."""
    ordered = {
        name: np.ascontiguousarray(tensors[name]).reshape(tensors[name].shape)
        for dtype in _TYPES.values()  # fp32 first, so that every tensor is aligned
        for name in sorted(tensors)
        if tensors[name].dtype == dtype
    }
    if len(ordered) < len(tensors):
        raise ValueError(f"a packed net has tensors of {', '.join(_TYPES)} only")
    data = b"".join(tensor.tobytes() for tensor in ordered.values())
    described = {**description, "digests": {name: _digests(tensor) for name, tensor in ordered.items()}}
    format = FORMAT_WITH_BUFFERS if description.get("buffers") else FORMAT
    header = _header(format, ordered, encode_json(described, what=f"packed net {path.name}"))
    write_bytes(path, struct.pack("<Q", len(header)) + header + data)
    return PackedFile(described, ordered, 8 + len(header))


def _header(format: str, tensors: Mapping[str, np.ndarray], description: str) -> bytes:
    """The header (a multiple of 8 bytes) with its own checksum, which is taken with zeros in its place."""
    table: dict[str, Any] = {"__metadata__": {"format": format, "header_sha256": _NO_DIGEST, "net": description}}
    start = 0
    for name, tensor in tensors.items():
        kind = next(key for key, dtype in _TYPES.items() if dtype == tensor.dtype)
        end = start + tensor.nbytes
        table[name] = {"dtype": kind, "shape": list(tensor.shape), "data_offsets": [start, end]}
        start = end
    text = json.dumps(table, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return text.replace(_NO_DIGEST.encode(), hashlib.sha256(text).hexdigest().encode(), 1)


def _digests(tensor: np.ndarray) -> list[str]:
    """The first digits of the SHA-256 of each bit plane, or of the whole tensor."""
    pieces = list(tensor) if tensor.dtype == np.uint8 and tensor.ndim == 2 else [tensor]
    return [hashlib.sha256(piece.tobytes()).hexdigest()[:_DIGEST_LENGTH] for piece in pieces]


def read_packed(path: Path, profile: str | None = None) -> PackedFile:
    """Read and check a packed net; :class:`InputError` for anything that is not one, is damaged or was changed.

    With a ``profile`` only the tensors, and of each weight only the bit planes, that this profile needs are read.
    """
    try:
        if not path.is_file():
            raise InputError(f"{path} is not a file")
        with path.open("rb") as file:
            size = path.stat().st_size
            header = _read_header(path, file, size)
            table, description = _read_table(path, header)
            begin = 8 + len(header)
            places = _places(path, table, size - begin)
            wanted = None if profile is None else _wanted(path, description, profile)
            tensors = {
                name: _read_tensor(path, file, begin, place, None if wanted is None else wanted[name])
                for name, place in places.items()
                if wanted is None or name in wanted
            }
    except OSError as error:
        raise InputError(f"cannot read {path}: {unreadable(error)}") from error
    _check_digests(path, description, tensors)
    if wanted is not None and not set(wanted) <= set(tensors):
        raise InputError(f"{path} lacks a tensor that profile '{profile}' needs; export it again")
    return PackedFile(description, tensors, begin)


def _wanted(path: Path, description: Mapping[str, Any], profile: str) -> dict[str, int | None]:
    """Tensor → how many of its bit planes a profile needs; None: all of it."""
    try:
        profiles = description["profiles"]
        if profile not in profiles:
            raise InputError(
                f"{path} has no profile '{profile}'{nearest(profile, profiles)}; there are {', '.join(profiles)}"
            )
        chosen, layers = profiles[profile], description["layers"]
        wanted: dict[str, int | None] = dict.fromkeys(description["parameters"].values())
        wanted.update(dict.fromkeys(entry["tensor"] for entry in description.get("buffers", {}).values()))
        folded = list(chosen["norms"].values())
        for name, entry in chosen["layers"].items():
            weight, own = layers[name]["weight"], entry["weight"]
            weight = layers[weight["layer"]]["weight"] if weight["storage"] == "shared" else weight
            planes = int(own["bits"]) if weight["storage"] == "planes" else None
            known = wanted.get(weight["tensor"], 0)
            wanted[weight["tensor"]] = None if planes is None or known is None else max(known, planes)
            named = [part[key] for part in (own, entry["input"]) if part for key in ("clip", "levels") if key in part]
            wanted.update(dict.fromkeys([*named, *filter(None, [layers[name]["bias"]])]))
            folded += [entry["norm"]] if entry["norm"] else []
        wanted.update(dict.fromkeys(norm[key] for norm in folded for key in ("scale", "shift")))
        return wanted
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(
            f"{path} does not describe a net that this version reads ({error!r}); export it again"
        ) from error


def _check_digests(path: Path, description: Mapping[str, Any], tensors: Mapping[str, np.ndarray]) -> None:
    known = description.get("digests")
    if not isinstance(known, dict):
        raise InputError(f"{path} is damaged: it has no checksums of its tensors; export it again")
    for name, tensor in tensors.items():
        told = known.get(name)
        found = _digests(tensor)
        if not isinstance(told, list) or told[: len(found)] != found:
            raise _changed(path, f"tensor '{name}'")


def _read_header(path: Path, file: BinaryIO, size: int) -> bytes:
    """The header's bytes, once the file is known to have as many."""
    start = file.read(8)
    length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
    if not 2 <= length <= LONGEST_HEADER:
        raise InputError(f"{path} is not a packed net: it does not start with the length of a header")
    if length > size - 8:
        raise InputError(f"{path} is not a packed net, or is cut off: its header of {length} bytes is not all there")
    return file.read(length)


def _read_table(path: Path, header: bytes) -> tuple[dict[str, Any], dict[str, Any]]:
    """The tensors' table and the net's description, both checked against the header's checksum."""
    try:
        table = parse_json(header.decode("utf-8"))
        metadata = table.pop("__metadata__")
        format, digest, text = (metadata[key] for key in ("format", "header_sha256", "net"))
        described = [format, digest, text]
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{path} is not a packed net: its header is not that of one; write one with dnas export"
        ) from error
    if not all(isinstance(value, str) for value in described) or not format.startswith(FAMILY):
        raise InputError(f"{path} is not a packed net: its format is {format!r:.60}, not '{FORMAT}'")
    if format not in (FORMAT, FORMAT_WITH_BUFFERS):
        raise InputError(
            f"{path} has the format '{format}', this version of dnas reads '{FORMAT}' and '{FORMAT_WITH_BUFFERS}'; "
            "export it again, or install a newer dnas"
        )
    if not re.fullmatch(r"[0-9a-f]{64}", digest):
        raise _changed(path, "header")
    blank = header.replace(digest.encode(), _NO_DIGEST.encode(), 1)
    if hashlib.sha256(blank).hexdigest() != digest:
        raise _changed(path, "header")
    try:
        description = parse_json(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is damaged: its description is not JSON; export it again") from error
    if not isinstance(description, dict):
        raise InputError(f"{path} is damaged: its description is not an object; export it again")
    return table, description


@dataclass(frozen=True)
class _Place:
    """Where a tensor lies behind the header."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    start: int


def _places(path: Path, table: Mapping[str, Any], size: int) -> dict[str, _Place]:
    """Where the tensors lie, which must fill the ``size`` bytes behind the header without gaps."""
    places, position = {}, 0
    for name, entry in table.items():
        try:
            dtype, shape, (start, end) = _TYPES[entry["dtype"]], entry["shape"], entry["data_offsets"]
            whole = all(type(n) is int and n >= 0 for n in (start, end, *shape))
            if not whole or start != position or end - start != math.prod(shape) * dtype.itemsize or len(shape) > 32:
                raise ValueError("offsets and shape do not agree")
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"{path} is damaged: its table does not fit tensor '{name}'; export it again") from error
        if end > size:
            raise InputError(f"{path} is cut off: tensor '{name}' is not all there; copy or export it again")
        places[name] = _Place(name, dtype, tuple(shape), start)
        position = end
    if position != size:
        raise InputError(f"{path} is damaged: {size - position} bytes behind its tensors belong to none")
    return places


def _read_tensor(path: Path, file: BinaryIO, begin: int, place: _Place, planes: int | None) -> np.ndarray:
    """One tensor, or its first ``planes`` rows."""
    shape = place.shape if planes is None else (planes, *place.shape[1:])
    if planes is not None and not (len(place.shape) == 2 and 0 < planes <= place.shape[0]):
        raise InputError(f"{path}: tensor '{place.name}' has not the {planes} bit planes that are needed of it")
    file.seek(begin + place.start)
    data = file.read(math.prod(shape) * place.dtype.itemsize)
    try:
        return np.frombuffer(data, dtype=place.dtype).reshape(shape)
    except ValueError as error:  # more dimensions than an array can have, or a file that shrank meanwhile
        raise InputError(f"{path} is damaged: its table does not fit tensor '{place.name}'; export it again") from error


def _changed(path: Path, part: str) -> InputError:
    return InputError(f"{path} was changed after it was written: the checksum of its {part} is wrong; export it again")
