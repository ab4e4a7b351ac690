"""The packed net: one file of bit planes and fp32 tensors behind a header that describes them.

The header is compact (:mod:`results.packed.nodes`), or JSON in what is then a safetensors file, where the file's name
says so. docs/packed-format.md is the specification. Nothing is unpickled, nothing is allocated before the file is known
to hold it, and checksums tell every change: one of the header, and (in the header) one of every tensor or bit plane,
so that a reader of one profile can check what it reads.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from results.files import write_bytes
from results.packed.header import TYPES, changed, header_of, read_header
from search_spaces.errors import InputError, nearest, unreadable
from search_spaces.user_files import open_regular

DEFAULT_PROFILE = "default"
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
    """Write a packed net in one step; the same net gives the same bytes. :class:`JobError` where the disk refuses.

    With a compact header, or with JSON where the path ends in ``.safetensors``: such a file is one.
    """
    ordered = {
        name: np.ascontiguousarray(tensors[name]).reshape(tensors[name].shape)
        for dtype in TYPES.values()  # fp32 first, so that every tensor is aligned
        for name in sorted(tensors)
        if tensors[name].dtype == dtype
    }
    if len(ordered) < len(tensors):
        raise ValueError(f"a packed net has tensors of {', '.join(TYPES)} only")
    data = b"".join(tensor.tobytes() for tensor in ordered.values())
    described = {**description, "digests": {name: _digests(tensor) for name, tensor in ordered.items()}}
    start = header_of(path, described, ordered)
    write_bytes(path, start + data)
    return PackedFile(described, ordered, len(start))


def _digests(tensor: np.ndarray) -> list[str]:
    """The first digits of the SHA-256 of each bit plane, or of the whole tensor."""
    pieces = list(tensor) if tensor.dtype == np.uint8 and tensor.ndim == 2 else [tensor]
    return [hashlib.sha256(piece.tobytes()).hexdigest()[:_DIGEST_LENGTH] for piece in pieces]


def read_packed(path: Path, profile: str | None = None) -> PackedFile:
    """Read and check a packed net; :class:`InputError` for anything that is not one, is damaged or was changed.

    With a ``profile`` only the tensors, and of each weight only the bit planes, that this profile needs are read.
    """
    try:
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            table, description, begin = read_header(path, file, size)
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
                f"{path} has no profile '{profile}'; there are {', '.join(profiles)}{nearest(profile, profiles)}"
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
            raise changed(path, f"tensor '{name}'")


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
            dtype, shape, (start, end) = TYPES[entry["dtype"]], entry["shape"], entry["data_offsets"]
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
