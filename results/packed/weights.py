"""The weights of a packed net, from their bit planes, or the codes of a weight scheme, to values; numpy alone."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np

from results.packed.file import DEFAULT_PROFILE, PackedFile, from_planes
from search_spaces.errors import InputError
from search_spaces.schemes import scheme_of

PLANES, FLOAT, SHARED = "planes", "float32", "shared"
"""How a weight is stored, beside what weight schemes have of their own."""


def stored_weight(packed: PackedFile, name: str) -> Mapping[str, Any]:
    """How the weight of a layer is stored, or that of the layer whose weight it shares; refused where it cannot be."""
    weight = packed.description["layers"][name]["weight"]
    if weight["storage"] == SHARED:
        weight = packed.description["layers"][weight["layer"]]["weight"]
    known = weight["storage"] in (PLANES, FLOAT)
    if weight["storage"] == SHARED or not (known or _scheme_is_sound(packed, name, weight)):
        raise InputError(f"how the weight of layer '{name}' is stored makes no sense; export it again")
    return cast(Mapping[str, Any], weight)


def _scheme_is_sound(packed: PackedFile, name: str, weight: Mapping[str, Any]) -> bool:
    """Whether a scheme reads this weight, and decoding it needs no more memory than the weight."""
    scheme = scheme_of(weight["storage"])
    return scheme is not None and scheme.is_sound(weight, _shape(packed, name))


def _shape(packed: PackedFile, name: str) -> tuple[int, ...]:
    return tuple(packed.description["layers"][name]["shape"])


def weight_codes(packed: PackedFile, name: str, profile: str = DEFAULT_PROFILE) -> np.ndarray:
    """The integer codes (int64, the weight's shape in this profile) of a layer whose weight is quantized.

    Those of a weight stored in fp32 are computed as the net computes them; a file has none of a weight scheme.
    """
    weight = stored_weight(packed, name)
    told = packed.description["profiles"][profile]["layers"][name]["weight"]
    if weight["storage"] == FLOAT and told is not None:
        values = part_of(packed, profile, weight["tensor"], packed.tensors[weight["tensor"]])
        return _encoded(values, weight_clip(packed, name, profile), told)
    return part_of(packed, profile, weight["tensor"], _stored_codes(packed, name, told["bits"]))


def _stored_codes(packed: PackedFile, name: str, bits: int) -> np.ndarray:
    """The codes (int64, the stored shape) of the first ``bits`` planes of a layer's weight."""
    weight, shape = stored_weight(packed, name), packed.description["layers"][name]["shape"]
    planes, count = packed.tensors[weight["tensor"]], math.prod(shape)
    if weight["storage"] != PLANES or planes.dtype != np.uint8 or planes.shape[1:] != (-(-count // 8),):
        raise InputError(f"the weight of layer '{name}' is not stored as bit planes of its shape")
    if bits not in range(1, len(planes) + 1):
        raise InputError(f"layer '{name}' needs {bits} bits of a weight that is stored in {len(planes)}")
    return from_planes(planes[:bits], count).reshape(shape)


def part_of(packed: PackedFile, profile: str, tensor: str, whole: np.ndarray) -> np.ndarray:
    """What a profile uses of a stored tensor, given in its own shape: some rows, and of these some columns."""
    part = packed.description["profiles"][profile].get("parts", {}).get(tensor)
    if part is None:
        return whole
    rows, columns = part["rows"], part["columns"]
    if rows is not None:
        whole = whole[_some(rows, whole.shape[0], tensor)]
    if columns is not None:
        whole = whole.reshape(len(whole), -1)
        whole = whole[:, _some(columns, whole.shape[1], tensor)]
    return whole.reshape(part["shape"])


def _some(indices: Sequence[int], count: int, tensor: str) -> Sequence[int]:
    """These rows or columns of ``count``; refused where they are more, which would take any amount of memory."""
    if len(indices) > count:
        raise InputError(f"a profile uses {len(indices)} of {count} rows or columns of tensor '{tensor}'")
    return indices


def weight_clip(packed: PackedFile, name: str, profile: str) -> np.ndarray:
    """The clip of a layer's weight in this profile, as it broadcasts against the weight."""
    told = packed.description["profiles"][profile]["layers"][name]["weight"]
    clip = part_of(packed, profile, told["clip"], packed.tensors[told["clip"]])
    axis, dimensions = stored_weight(packed, name)["axis"], len(packed.description["layers"][name]["shape"])
    return clip if axis is None else clip.reshape([-1 if index == axis else 1 for index in range(dimensions)])


def _encoded(values: np.ndarray, clip: np.ndarray, told: Mapping[str, Any]) -> np.ndarray:
    """Codes of fp32 weights: floor(u scale + offset), at most top, for u = transform(w) / clip within ±1."""
    if told.get("transform") == "tanh":
        values = np.tanh(values)
    scale, offset, top = (np.float32(told["grid"][key]) for key in ("scale", "offset", "top"))
    u = np.clip(values / clip, np.float32(-1), np.float32(1))
    return np.minimum(np.floor(u * scale + offset), top).astype(np.int64)


def weight_values(packed: PackedFile, name: str, profile: str = DEFAULT_PROFILE) -> np.ndarray:
    """The weight (float32, its shape in this profile) of a layer as it is used."""
    weight = stored_weight(packed, name)
    told = packed.description["profiles"][profile]["layers"][name]["weight"]
    if weight["storage"] == FLOAT and told is None:
        return part_of(packed, profile, weight["tensor"], packed.tensors[weight["tensor"]])
    scheme = None if weight["storage"] in (PLANES, FLOAT) else scheme_of(weight["storage"])
    if scheme is not None:
        return scheme.decode(weight, told, _shape(packed, name), packed.tensors)
    codes, clip = weight_codes(packed, name, profile), weight_clip(packed, name, profile)
    step, start = (np.float32(told["grid"][key]) for key in ("step", "start"))
    return cast(np.ndarray, clip * (start + step * codes.astype(np.float32)))


def shared_values(packed: PackedFile, name: str, nests: bool) -> np.ndarray:
    """A weight (float32, as stored) whose codes at every width are those of the stored bit planes.

    Where the grid nests that is the middle of each cell at the width stored, without any gain; else the one value.
    """
    weight, shape = stored_weight(packed, name), packed.description["layers"][name]["shape"]
    layers = [profile["layers"].get(name) for profile in packed.description["profiles"].values()]
    told = max((layer["weight"] for layer in layers if layer is not None), key=lambda weight: int(weight["bits"]))
    bits = len(packed.tensors[weight["tensor"]])
    codes = _stored_codes(packed, name, max(bits, told["bits"])).astype(np.float32)
    clip = packed.tensors[told["clip"]]
    if weight["axis"] is not None:
        clip = clip.reshape([-1 if axis == weight["axis"] else 1 for axis in range(len(shape))])
    if not nests:
        return cast(np.ndarray, clip * (np.float32(told["grid"]["start"]) + np.float32(told["grid"]["step"]) * codes))
    cells = np.float32(2.0**bits)
    return cast(np.ndarray, clip * ((2 * codes + 1) / cells - 1))
