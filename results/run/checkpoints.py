"""Checkpoints: tensors in a safetensors file, everything else as one JSON text in its header; nothing is unpickled."""

from __future__ import annotations

import hashlib
import re
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from results.files import SEAL, encode_json, parse_json, refuse_special, taken_seal, write_bytes
from search_spaces.errors import InputError, quoted
from search_spaces.user_files import open_regular

METADATA_KEY = "dnas"
_BLANK = b"0" * 64
_PIECE_BYTES = 2**20
NAME_KEY = "name"
_DIGEST = re.compile(r"[0-9a-f]{64}")


def write_checkpoint(path: Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, Any]) -> None:
    """Write ``tensors`` and JSON-able ``metadata`` to ``path`` in one step, with the name of the file.

    Every tensor is copied to contiguous CPU memory first: safetensors refuses views and shared storage.
    Raises :class:`JobError` where the disk refuses or the metadata holds a NaN.
    """
    copies = {
        name: tensor.detach().to("cpu", copy=True).clone(memory_format=torch.contiguous_format)
        for name, tensor in tensors.items()
    }
    sealed = {NAME_KEY: path.stem, **metadata, SEAL: _BLANK.decode()}
    data = bytearray(save(copies, metadata={METADATA_KEY: encode_json(sealed, what=f"checkpoint {path.name}")}))
    place = data.rindex(_BLANK, 0, 8 + _header_length(data))
    data[place : place + len(_BLANK)] = hashlib.sha256(data).hexdigest().encode()
    write_bytes(path, data)


def read_checkpoint(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Return the tensors (on the CPU) and the metadata of ``path``; raise :class:`InputError` if it is damaged."""
    check_checkpoint(path)
    with _sound(path), safe_open(path, framework="pt", device="cpu") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, _metadata(file, path)[0]


def check_checkpoint(path: Path) -> None:
    """Raise :class:`InputError` if ``path`` is damaged, as far as its header, its length and its checksum tell."""
    with _sound(path):
        with safe_open(path, framework="pt", device="cpu") as file:
            told = _metadata(file, path)[1]
        if told is not None and not (_DIGEST.fullmatch(told) and told == _sha256(path, told)):
            raise ValueError("its checksum is wrong")


def _sha256(path: Path, told: str) -> str:
    """The checksum of a file that tells ``told``, with zeros in its place."""
    with open_regular(path, follow=False) as file:
        start = file.read(8)
        start += file.read(_header_length(start))
        place = start.rindex(told.encode())
        found = hashlib.sha256(start[:place] + _BLANK + start[place + len(_BLANK) :])
        while piece := file.read(_PIECE_BYTES):
            found.update(piece)
    return found.hexdigest()


def _header_length(data: bytes | bytearray) -> int:
    return int(struct.unpack("<Q", data[:8])[0])


def _metadata(file: Any, path: Path) -> tuple[dict[str, Any], str | None]:
    """What the file was written with, and its checksum, which older files do not tell.

    ``ValueError`` where it is another checkpoint's file under this name.
    """
    found = parse_json((file.metadata() or {})[METADATA_KEY])
    if not isinstance(found, dict):
        raise ValueError("its metadata is not an object")
    told, name = taken_seal(found), found.pop(NAME_KEY, path.stem)  # older files do not tell
    if name != path.stem:
        raise ValueError(f"it is the file of '{name}'")
    return found, told


@contextmanager
def _sound(path: Path) -> Iterator[None]:
    """Make whatever reading the file at ``path`` raises the sentence that says how to have it again."""
    refuse_special(path)
    if path.is_dir():  # which no error tells on every system
        raise InputError(
            f"{path} is a folder where the run keeps a file; move it away, then go on with: dnas resume "
            f"{path.parent.parent}"
        )
    try:
        yield
    except (SafetensorError, OSError, KeyError, ValueError, RecursionError, RuntimeError) as error:
        reason = f"no '{METADATA_KEY}' entry" if isinstance(error, KeyError) else str(error)
        raise InputError(
            f"the checkpoint {path} is damaged ({reason}); repeat what made it with: "
            f"dnas resume {quoted(path.parent.parent)}"
        ) from error
