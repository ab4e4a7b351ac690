"""The weights of a packed net, from their bit planes or sparse codes to values; numpy alone."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, cast

import numpy as np

from results.packed import DEFAULT_PROFILE, PackedFile, from_planes
from search_spaces import sparse
from search_spaces.errors import InputError

PLANES, FLOAT, SHARED = "planes", "float32", "shared"
"""How a weight is stored, beside the formats of :mod:`search_spaces.sparse`."""


def stored_weight(packed: PackedFile, name: str) -> Mapping[str, Any]:
    """How the weight of a layer is stored, or that of the layer whose weight it shares; refused where it cannot be."""
    weight = packed.description["layers"][name]["weight"]
    if weight["storage"] == SHARED:
        weight = packed.description["layers"][weight["layer"]]["weight"]
    known = weight["storage"] in (PLANES, FLOAT)
    if weight["storage"] == SHARED or not (known or _sparse_is_sound(packed, name, weight)):
        raise InputError(f"how the weight of layer '{name}' is stored makes no sense; export it again")
    return cast(Mapping[str, Any], weight)


def _sparse_is_sound(packed: PackedFile, name: str, weight: Mapping[str, Any]) -> bool:
    """Whether the numbers of sparse codes are such that decoding them needs no more memory than the weight."""
    bits, dense, nonzeros = (weight[key] for key in ("bits", "dense_bits", "nonzeros"))
    count = math.prod(packed.description["layers"][name]["shape"])
    return bits in range(1, 9) and dense in (bits, bits + 1) and nonzeros in range(count + 1)


def weight_codes(packed: PackedFile, name: str, profile: str = DEFAULT_PROFILE) -> np.ndarray:
    """The integer codes (int64, the weight's shape) of a layer whose weight is stored as planes."""
    weight, shape = stored_weight(packed, name), packed.description["layers"][name]["shape"]
    bits = packed.description["profiles"][profile]["layers"][name]["weight"]["bits"]
    planes, count = packed.tensors[weight["tensor"]], math.prod(shape)
    if weight["storage"] != PLANES or planes.dtype != np.uint8 or planes.shape != (weight["bits"], -(-count // 8)):
        raise InputError(f"the weight of layer '{name}' is not stored as bit planes of its shape")
    if bits not in range(1, len(planes) + 1):
        raise InputError(f"layer '{name}' needs {bits} bits of a weight that is stored in {len(planes)}")
    return from_planes(planes[:bits], count).reshape(shape)


def weight_values(packed: PackedFile, name: str, profile: str = DEFAULT_PROFILE) -> np.ndarray:
    """The weight (float32, its own shape) of a layer as it is used."""
    weight = stored_weight(packed, name)
    told = packed.description["profiles"][profile]["layers"][name]["weight"]
    if weight["storage"] == FLOAT:
        return packed.tensors[weight["tensor"]]
    if weight["storage"] != PLANES:
        return _sparse_values(packed, name, weight, told)
    codes, clip = weight_codes(packed, name, profile), packed.tensors[told["clip"]]
    step, start = (np.float32(told["grid"][key]) for key in ("step", "start"))
    if weight["axis"] is not None:
        clip = clip.reshape([-1 if axis == weight["axis"] else 1 for axis in range(codes.ndim)])
    return cast(np.ndarray, clip * (start + step * codes.astype(np.float32)))


def _sparse_values(packed: PackedFile, name: str, weight: Mapping[str, Any], told: Mapping[str, Any]) -> np.ndarray:
    """0, or ±(start + (m - 1) step) for a code of ±m."""
    data, shape = packed.tensors[weight["tensor"]].tobytes(), tuple(packed.description["layers"][name]["shape"])
    codes = sparse.decode(data, weight["storage"], shape, weight["nonzeros"], weight["bits"], weight["dense_bits"])
    start, step = packed.tensors[told["levels"]]
    sizes = start + (np.abs(codes).astype(np.float32) - 1) * step
    return cast(np.ndarray, (np.sign(codes) * np.where(codes == 0, np.float32(0), sizes)).astype(np.float32))
