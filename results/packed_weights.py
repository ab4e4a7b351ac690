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


def weight_codes(packed: PackedFile, name: str, profile: str = DEFAULT_PROFILE) -> np.ndarray:
    """The integer codes (int64, the weight's shape) of a layer whose weight is stored as planes."""
    stored = packed.description["layers"][name]
    if stored["weight"]["storage"] == SHARED:
        name = stored["weight"]["layer"]
    weight, shape = packed.description["layers"][name]["weight"], stored["shape"]
    bits = packed.description["profiles"][profile]["layers"][name]["weight"]["bits"]
    planes = packed.tensors[weight["tensor"]]
    if weight["storage"] != PLANES or planes.ndim != 2 or planes.shape[0] != weight["bits"] or bits > len(planes):
        raise InputError(f"the weight of layer '{name}' is not stored as bit planes")
    count = math.prod(shape)
    if planes.shape[1] != -(-count // 8):
        raise InputError(f"the planes of layer '{name}' do not have its number of weights")
    return from_planes(planes[:bits], count).reshape(shape)


def weight_values(packed: PackedFile, name: str, profile: str = DEFAULT_PROFILE) -> np.ndarray:
    """The weight (float32, its own shape) of a layer as it is used."""
    stored, chosen = packed.description["layers"][name], packed.description["profiles"][profile]["layers"][name]
    weight = stored["weight"]
    if weight["storage"] == SHARED:
        return weight_values(packed, weight["layer"], profile)
    if weight["storage"] == FLOAT:
        return packed.tensors[weight["tensor"]]
    if weight["storage"] != PLANES:
        return _sparse_values(packed, stored, chosen["weight"])
    codes, told = weight_codes(packed, name, profile), chosen["weight"]
    step, start = (np.float32(told["grid"][key]) for key in ("step", "start"))
    clip = packed.tensors[told["clip"]]
    if weight["axis"] is not None:
        clip = clip.reshape([-1 if axis == weight["axis"] else 1 for axis in range(codes.ndim)])
    return cast(np.ndarray, clip * (start + step * codes.astype(np.float32)))


def _sparse_values(packed: PackedFile, stored: Mapping[str, Any], told: Mapping[str, Any]) -> np.ndarray:
    """0, or ±(start + (m - 1) step) for a code of ±m."""
    weight = stored["weight"]
    data = packed.tensors[weight["tensor"]].tobytes()
    codes = sparse.decode(
        data, weight["storage"], tuple(stored["shape"]), weight["nonzeros"], weight["bits"], weight["dense_bits"]
    )
    start, step = packed.tensors[told["levels"]]
    sizes = start + (np.abs(codes).astype(np.float32) - 1) * step
    return cast(np.ndarray, (np.sign(codes) * np.where(codes == 0, np.float32(0), sizes)).astype(np.float32))
