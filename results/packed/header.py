"""What stands before the tensors of a packed file: compact values, or the JSON of a safetensors file."""

from __future__ import annotations

import hashlib
import json
import math
import re
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from results.files import encode_json, parse_json
from results.packed.nodes import decode_nodes, encode_nodes
from search_spaces.errors import InputError

FAMILY = "dnas.packed/"
FORMAT, FORMAT_WITH_BUFFERS = f"{FAMILY}1", f"{FAMILY}2"
"""With JSON. A reader of the first would leave buffers out; a file without any is of the first."""
FORMAT_COMPACT = f"{FAMILY}3"
JSON_SUFFIX = ".safetensors"
MAGIC = b"DNASPACK"
_COMPACT = struct.Struct("<8sII8s32s")  # magic, version, bytes of values, number of values, SHA-256 of the two last
_COUNT = struct.Struct("<Q")
LONGEST_HEADER = 100_000_000
"""In bytes; safetensors' own limit."""
TYPES: dict[str, np.dtype[Any]] = {"F32": np.dtype("<f4"), "U8": np.dtype("u1")}
_NO_DIGEST = "0" * 64


def header_of(path: Path, description: Mapping[str, Any], tensors: Mapping[str, np.ndarray]) -> bytes:
    """All that stands before these tensors in a file of this name, with its own checksum."""
    text = encode_json(description, what=f"packed net {path.name}")
    if path.suffix != JSON_SUFFIX:
        return _compact_header({"tensors": _table_of(tensors), **parse_json(text)})
    header = _json_header(FORMAT_WITH_BUFFERS if description.get("buffers") else FORMAT, tensors, text)
    return struct.pack("<Q", len(header)) + header


def is_compact(path: Path) -> bool:
    """Whether the file begins as one with a compact header."""
    with path.open("rb") as file:
        return file.read(len(MAGIC)) == MAGIC


def _compact_header(described: Mapping[str, Any]) -> bytes:
    """All that stands before the tensors: a multiple of 8 bytes."""
    count, values = encode_nodes(described)
    values += bytes(-len(values) % 8)
    counted = _COUNT.pack(count)
    return _COMPACT.pack(MAGIC, 3, len(values), counted, hashlib.sha256(counted + values).digest()) + values


def _table_of(tensors: Mapping[str, np.ndarray]) -> dict[str, list[Any]]:
    """Name → type and shape; the tensors follow one another without gaps."""
    kinds = {dtype: kind for kind, dtype in TYPES.items()}
    return {name: [kinds[tensor.dtype], *tensor.shape] for name, tensor in tensors.items()}


def _json_header(format: str, tensors: Mapping[str, np.ndarray], description: str) -> bytes:
    """The header (a multiple of 8 bytes) with its own checksum, which is taken with zeros in its place."""
    table: dict[str, Any] = {"__metadata__": {"format": format, "header_sha256": _NO_DIGEST, "net": description}}
    start = 0
    for name, tensor in tensors.items():
        kind = next(key for key, dtype in TYPES.items() if dtype == tensor.dtype)
        end = start + tensor.nbytes
        table[name] = {"dtype": kind, "shape": list(tensor.shape), "data_offsets": [start, end]}
        start = end
    text = json.dumps(table, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return text.replace(_NO_DIGEST.encode(), hashlib.sha256(text).hexdigest().encode(), 1)


def read_header(path: Path, file: BinaryIO, size: int) -> tuple[dict[str, Any], dict[str, Any], int]:
    """The tensors' table, the net's description, and where the tensors begin."""
    start = file.read(_COMPACT.size)
    if start.startswith(MAGIC):
        return _read_compact(path, file, start, size)
    length = struct.unpack("<Q", start[:8])[0] if len(start) >= 8 else 0
    if not 2 <= length <= LONGEST_HEADER:
        raise InputError(f"{path} is not a packed net: it does not start with the length of a header")
    if length > size - 8:
        raise InputError(f"{path} is not a packed net, or is cut off: its header of {length} bytes is not all there")
    file.seek(8)
    return *_read_table(path, file.read(length)), 8 + length


def _read_compact(path: Path, file: BinaryIO, start: bytes, size: int) -> tuple[dict[str, Any], dict[str, Any], int]:
    """The same of a file with a compact header."""
    if len(start) < _COMPACT.size:
        raise InputError(f"{path} is cut off: it ends within its header; copy or export it again")
    _, version, length, counted, digest = _COMPACT.unpack(start)
    if version != 3:
        raise _other_format(path, f"{FAMILY}{version}")
    if length > size - len(start):
        raise InputError(f"{path} is cut off: its header of {length} bytes is not all there; copy or export it again")
    values = file.read(length)
    if hashlib.sha256(counted + values).digest() != digest:
        raise changed(path, "header")
    try:
        description = decode_nodes(int(_COUNT.unpack(counted)[0]), values)
        table = _offsets(description.pop("tensors"))
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise InputError(f"{path} is damaged: its header is not that of a packed net; export it again") from error
    return table, description, len(start) + length


def _offsets(table: Mapping[str, Any]) -> dict[str, Any]:
    """The table as a safetensors file has it."""
    found, start = {}, 0
    for name, (kind, *shape) in table.items():
        if not all(type(count) is int and 0 <= count < 2**48 for count in shape):
            raise ValueError(f"a shape {shape}")
        end = start + math.prod(shape) * TYPES[kind].itemsize
        found[name] = {"dtype": kind, "shape": shape, "data_offsets": [start, end]}
        start = end
    return found


def _other_format(path: Path, format: str) -> InputError:
    known = f"'{FORMAT}', '{FORMAT_WITH_BUFFERS}' and '{FORMAT_COMPACT}'"
    return InputError(
        f"{path} has the format '{format}', this version of dnas reads {known}; export it again, or install a newer "
        "dnas"
    )


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
        raise _other_format(path, format)
    if not re.fullmatch(r"[0-9a-f]{64}", digest):
        raise changed(path, "header")
    blank = header.replace(digest.encode(), _NO_DIGEST.encode(), 1)
    if hashlib.sha256(blank).hexdigest() != digest:
        raise changed(path, "header")
    try:
        description = parse_json(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is damaged: its description is not JSON; export it again") from error
    if not isinstance(description, dict):
        raise InputError(f"{path} is damaged: its description is not an object; export it again")
    return table, description


def changed(path: Path, part: str) -> InputError:
    """A checksum is wrong."""
    return InputError(f"{path} was changed after it was written: the checksum of its {part} is wrong; export it again")
