"""Checkpoints: tensors in a safetensors file, everything else as one JSON text in its header; nothing is unpickled."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from results.files import encode_json, parse_json, refuse_special, write_bytes
from search_spaces.errors import InputError

METADATA_KEY = "dnas"
NAME_KEY = "name"


def write_checkpoint(path: Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, Any]) -> None:
    """Write ``tensors`` and JSON-able ``metadata`` to ``path`` in one step, with the name of the file.

    Every tensor is copied to contiguous CPU memory first: safetensors refuses views and shared storage.
    Raises :class:`JobError` where the disk refuses or the metadata holds a NaN.
    """
    copies = {
        name: tensor.detach().to("cpu", copy=True).clone(memory_format=torch.contiguous_format)
        for name, tensor in tensors.items()
    }
    text = encode_json({NAME_KEY: path.stem, **metadata}, what=f"checkpoint {path.name}")
    write_bytes(path, save(copies, metadata={METADATA_KEY: text}))


def read_checkpoint(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Return the tensors (on the CPU) and the metadata of ``path``; raise :class:`InputError` if it is damaged."""
    with _sound(path), safe_open(path, framework="pt", device="cpu") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, _metadata(file, path)


def check_checkpoint(path: Path) -> None:
    """Raise :class:`InputError` if ``path`` is damaged, as far as its header and its length tell."""
    with _sound(path), safe_open(path, framework="pt", device="cpu") as file:
        _metadata(file, path)


def _metadata(file: Any, path: Path) -> dict[str, Any]:
    """What the file was written with; ``ValueError`` where it is another checkpoint's file under this name."""
    found = parse_json((file.metadata() or {})[METADATA_KEY])
    if not isinstance(found, dict):
        raise ValueError("its metadata is not an object")
    name = found.pop(NAME_KEY, path.stem)  # older files do not tell
    if name != path.stem:
        raise ValueError(f"it is the file of '{name}'")
    return found


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
            f"the checkpoint {path} is damaged ({reason}); repeat what made it with: dnas resume {path.parent.parent}"
        ) from error
