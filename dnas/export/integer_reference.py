"""A packed net's layers in integer arithmetic: a checker and a specification, not a fast engine. numpy alone.

A quantized tensor is ``value = a code + b`` with integer codes, a = clip · step and b = clip · start. A product sum
over a window is therefore four integer sums, scaled once::

    sum w x  =  a_w a_x sum(q_w q_x)  +  a_w b_x sum(q_w)  +  b_w a_x sum(q_x)  +  b_w b_x sum(1)

where every sum runs over the positions of the window that lie inside the input: zero padding has the value 0, which
need not be any code's value, so it takes part in no sum. A tensor in fp32 is its own code with a = 1 and b = 0.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np

from results.packed.file import DEFAULT_PROFILE, PackedFile
from results.packed.weights import FLOAT, PLANES, part_of, stored_weight, weight_clip, weight_codes, weight_values
from search_spaces.errors import InputError

Dot = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""Windows (N, G, P, M) and filters (G, F, M), both integer, to their product sums (N, G, P, F)."""
_PAD_MODES = {"reflect": "reflect", "replicate": "edge", "circular": "wrap"}
_ONES_OF_BYTE = np.array([bin(byte).count("1") for byte in range(256)], dtype=np.int64)


@dataclass(frozen=True)
class Affine:
    """A tensor as codes with ``value = slope * codes + start``; both broadcast against the codes."""

    codes: np.ndarray
    slope: np.ndarray
    start: np.ndarray

    def values(self) -> np.ndarray:
        """What the codes stand for."""
        return cast(np.ndarray, self.slope * self.codes + self.start)


def integer_dot(windows: np.ndarray, filters: np.ndarray) -> np.ndarray:
    """Product sums (N, G, P, F) of windows (N, G, P, M) and filters (G, F, M)."""
    return cast(np.ndarray, windows @ filters.swapaxes(1, 2))


def ordered_dot(windows: np.ndarray, filters: np.ndarray) -> np.ndarray:
    """The same of which one is fp32: in float64, each sum in the order of the window, so that its bits are told."""
    total = np.zeros((*windows.shape[:3], filters.shape[1]))
    for at in range(windows.shape[-1]):
        total += windows[..., at, None].astype(np.float64) * filters[None, :, None, :, at]
    return total


def ordered_sum(values: np.ndarray) -> np.ndarray:
    """Sums along the last axis, in its order."""
    return np.cumsum(values, axis=-1)[..., -1]


def plane_dot(windows: np.ndarray, filters: np.ndarray) -> np.ndarray:
    """The same for codes that are not negative, plane by plane: sum over i, j of 2^(i+j) popcount(w_i & x_j)."""
    total = np.zeros((*windows.shape[:3], filters.shape[1]), dtype=np.int64)
    for i, w in enumerate(_planes(filters)):
        for j, x in enumerate(_planes(windows)):
            total += (1 << (i + j)) * _popcount(x[:, :, :, None, :] & w[None, :, None, :, :])
    return total


def signed_plane_dot(windows: np.ndarray, codes: np.ndarray, bits: int) -> np.ndarray:
    """Sums of x (2 q - 2^bits + 1), weights on the odd grid: sum 2^(i+j) (2 popcount(w_i & x_j) - popcount(x_j)).

    ``windows`` (N, G, P, M) are codes x that are not negative, ``codes`` (G, F, M) the codes q of ``bits`` bits.
    """
    total = np.zeros((*windows.shape[:3], codes.shape[1]), dtype=np.int64)
    for i in range(bits):
        w = np.packbits(((codes >> i) & 1).astype(np.uint8), axis=-1)
        for j, x in enumerate(_planes(windows)):
            both = _popcount(x[:, :, :, None, :] & w[None, :, None, :, :])
            total += (1 << (i + j)) * (2 * both - _popcount(x)[..., None])
    return total


def xnor_dot(windows: np.ndarray, filters: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """Product sums of ±1, given as bits (1 for +1): n - 2 popcount(x ^ w), over the n positions ``inside``.

    ``windows`` (N, G, P, M), ``filters`` (G, F, M), ``inside`` (1, G, P, M) is 0 where there is padding.
    """
    x, w, valid = (np.packbits(bits.astype(np.uint8), axis=-1) for bits in (windows, filters, inside))
    differ = (x[:, :, :, None, :] ^ w[None, :, None, :, :]) & valid[:, :, :, None, :]
    return _popcount(valid)[..., None] - 2 * _popcount(differ)


def _planes(codes: np.ndarray) -> list[np.ndarray]:
    """Bit planes of codes (..., M), packed along the last axis, the least significant first."""
    if codes.size and codes.min() < 0:
        raise ValueError("bit planes hold codes that are not negative")
    bits = int(codes.max()).bit_length() if codes.size else 0
    return [np.packbits(((codes >> i) & 1).astype(np.uint8), axis=-1) for i in range(bits)]


def _popcount(packed: np.ndarray) -> np.ndarray:
    return cast(np.ndarray, _ONES_OF_BYTE[packed].sum(-1))


def input_codes(x: np.ndarray, clip: float, grid: Mapping[str, float], signed: bool) -> np.ndarray:
    """Codes (int64) of an input, computed in the dtype of ``x`` as the net computes them."""
    scale, offset, top, divisor = (x.dtype.type(number) for number in (*_staircase(grid), clip))
    u = np.fmin(np.fmax(x / divisor, x.dtype.type(-1 if signed else 0)), x.dtype.type(1))  # NaN: the lowest code
    return np.minimum(np.floor(u * scale + offset), top).astype(np.int64)


def _staircase(grid: Mapping[str, float]) -> tuple[float, float, float]:
    return grid["scale"], grid["offset"], grid["top"]


def layer_input(packed: PackedFile, name: str, x: np.ndarray, profile: str = DEFAULT_PROFILE) -> Affine:
    """The input ``x`` of a layer, any shape, as the layer's codes."""
    told = packed.description["profiles"][profile]["layers"][name]["input"]
    if told is None:
        return Affine(x.astype(np.float64), np.ones(1), np.zeros(1))
    clip = np.float64(packed.tensors[told["clip"]][0])
    codes = input_codes(x, float(clip), told["grid"], told["signed"])
    return Affine(codes, clip * told["grid"]["step"], clip * told["grid"]["start"])


def layer_weight(packed: PackedFile, name: str, profile: str = DEFAULT_PROFILE) -> Affine:
    """The weight of a layer, in its own shape, as codes; one that is not stored as planes is its own code."""
    stored, told = stored_weight(packed, name), packed.description["profiles"][profile]["layers"][name]["weight"]
    if told is None or stored["storage"] not in (PLANES, FLOAT):
        return Affine(weight_values(packed, name, profile).astype(np.float64), np.ones(1), np.zeros(1))
    codes, clip = weight_codes(packed, name, profile), weight_clip(packed, name, profile).astype(np.float64)
    return Affine(codes, clip * told["grid"]["step"], clip * told["grid"]["start"])


def run_layer(
    packed: PackedFile, name: str, x: np.ndarray, dot: Dot = integer_dot, profile: str = DEFAULT_PROFILE
) -> np.ndarray:
    """The output (float64) of one layer for its float input ``x`` (N, C, ...), before any BatchNorm.

    Integer product sums are formed by ``dot``. Raises :class:`InputError` for a layer with a forward of its own.
    """
    entry = packed.description["layers"][name]
    groups = packed.description["profiles"][profile]["layers"][name].get("groups")
    if groups is not None:  # a pruned depthwise layer has fewer than the one stored
        entry = {**entry, "geometry": {**entry["geometry"], "groups": groups}}
    if not entry["geometry"]["standard"]:
        raise InputError(f"layer '{name}' does more than a {entry['kind']}: the file does not say what")
    inputs, weight = layer_input(packed, name, x, profile), layer_weight(packed, name, profile)
    sums = _linear_sums if entry["kind"] == "Linear" else _convolution_sums
    y = sums(inputs, weight, entry, dot)
    if entry["bias"] is None:
        return y
    bias = part_of(packed, profile, entry["bias"], packed.tensors[entry["bias"]]).astype(np.float64)
    return y + bias if entry["kind"] == "Linear" else y + bias.reshape(-1, *[1] * (x.ndim - 2))


def _linear_sums(x: Affine, weight: Affine, entry: Mapping[str, Any], dot: Dot) -> np.ndarray:
    """A linear layer is a convolution whose windows are the rows of its input."""
    windows = x.codes.reshape(1, 1, -1, x.codes.shape[-1])
    inside = np.ones((1, 1, 1, x.codes.shape[-1]), dtype=np.int64)
    slope, start = (np.broadcast_to(part, (len(weight.codes), 1))[:, 0] for part in (weight.slope, weight.start))
    sums = _scaled(windows, inside, Affine(weight.codes[None], slope, start), x, dot)
    return sums.reshape(*x.codes.shape[:-1], -1)


def _convolution_sums(x: Affine, weight: Affine, entry: Mapping[str, Any], dot: Dot) -> np.ndarray:
    """Product sums (N, F, ...) of a convolution; a transposed one is one over an input spread apart."""
    form, groups = entry["geometry"], int(entry["geometry"]["groups"])
    codes, mask = x.codes, np.ones((1, *x.codes.shape[1:]), dtype=np.int64)
    spatial, kernel = codes.ndim - 2, entry["shape"][2:]
    if "Transpose" in entry["kind"]:
        grouped = weight.codes.reshape(groups, -1, *weight.codes.shape[1:]).swapaxes(1, 2)
        filters = np.flip(grouped, tuple(range(3, 3 + spatial))).reshape(groups, grouped.shape[1], -1)
        codes, mask = (_spread(part, form, kernel) for part in (codes, mask))
        strides, pads, per_filter = [1] * spatial, [(0, 0)] * spatial, weight.codes.shape[1]
    else:
        filters = weight.codes.reshape(groups, len(weight.codes) // groups, -1)
        strides, pads, per_filter = form["stride"], _pads(form, kernel), len(weight.codes)
    codes, mask = (_padded(part, pads, form["padding_mode"]) for part in (codes, mask))
    windows, places = _windows(codes, kernel, strides, form["dilation"], groups)
    inside, _ = _windows(mask, kernel, strides, form["dilation"], groups)
    # One clip for all filters, or one each; a grouped transposed layer repeats its own in every group.
    repeat = filters.shape[0] * filters.shape[1] // per_filter
    slope, start = (np.tile(np.broadcast_to(p.reshape(-1), per_filter), repeat) for p in (weight.slope, weight.start))
    sums = _scaled(windows, inside, Affine(filters, slope, start), x, dot)
    return np.moveaxis(sums, 1, -1).reshape(len(codes), -1, *places)


def _scaled(windows: np.ndarray, inside: np.ndarray, filters: Affine, x: Affine, dot: Dot) -> np.ndarray:
    """The four sums, scaled: (N, P, G F) from windows (N, G, P, M), inside (1, G, P, M) and filters (G, F, M)."""
    if not all(np.issubdtype(codes.dtype, np.integer) for codes in (windows, filters.codes)):
        dot = ordered_dot  # one of them stays fp32
    count = filters.codes.shape[1]

    def flat(sums: np.ndarray) -> np.ndarray:
        return np.moveaxis(sums, 1, 2).reshape(sums.shape[0], sums.shape[2], -1)

    products, weights = flat(dot(windows, filters.codes)), flat(dot(inside, filters.codes))
    inputs, ones = (flat(np.repeat(ordered_sum(part)[..., None], count, -1)) for part in (windows, inside))
    total = filters.slope * (x.slope * products + x.start * weights)
    return cast(np.ndarray, total + filters.start * (x.slope * inputs + x.start * ones))


def _windows(
    x: np.ndarray, kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int], groups: int
) -> tuple[np.ndarray, tuple[int, ...]]:
    """The windows (N, G, P, M) of x (N, C, ...) in row-major order, and how they lie: P = product of these places."""
    spatial = len(kernel)
    reach = tuple(d * (k - 1) + 1 for k, d in zip(kernel, dilations, strict=True))
    views = np.lib.stride_tricks.sliding_window_view(x, reach, axis=tuple(range(2, 2 + spatial)))
    views = views[(slice(None), slice(None), *(slice(None, None, step) for step in (*strides, *dilations)))]
    places = views.shape[2 : 2 + spatial]
    grouped = views.reshape(len(x), groups, x.shape[1] // groups, *places, *kernel)
    moved = np.moveaxis(grouped, 2, 2 + spatial)
    return moved.reshape(len(x), groups, int(np.prod(places)), -1), places


def _pads(form: Mapping[str, Any], kernel: Sequence[int]) -> list[tuple[int, int]]:
    """Positions added before and after each spatial axis."""
    padding = form["padding"]
    if padding == "valid":
        return [(0, 0)] * len(kernel)
    if padding == "same":
        totals = [d * (k - 1) for k, d in zip(kernel, form["dilation"], strict=True)]
        return [(total // 2, total - total // 2) for total in totals]
    return [(count, count) for count in padding]


def _padded(x: np.ndarray, pads: Sequence[tuple[int, int]], mode: str) -> np.ndarray:
    """Pad the spatial axes: with code 0 (and mask 0) for zeros, with the input's own codes in the other modes."""
    width = [(0, 0), (0, 0), *pads]
    return np.pad(x, width) if mode == "zeros" else np.pad(x, width, mode=cast(Any, _PAD_MODES[mode]))


def _spread(x: np.ndarray, form: Mapping[str, Any], kernel: Sequence[int]) -> np.ndarray:
    """The input of a transposed convolution, zeros between its elements and around, as a plain one reads it."""
    strides = form["stride"]
    wide = np.zeros((*x.shape[:2], *((n - 1) * s + 1 for n, s in zip(x.shape[2:], strides, strict=True))), x.dtype)
    wide[(slice(None), slice(None), *(slice(None, None, s) for s in strides))] = x
    edges = [d * (k - 1) - p for k, d, p in zip(kernel, form["dilation"], form["padding"], strict=True)]
    ends = [edge + extra for edge, extra in zip(edges, form["output_padding"], strict=True)]
    cut = tuple(slice(max(0, -a), n - max(0, -b)) for a, b, n in zip(edges, ends, wide.shape[2:], strict=True))
    grown = [(0, 0), (0, 0), *((max(0, a), max(0, b)) for a, b in zip(edges, ends, strict=True))]
    return np.pad(wide[(slice(None), slice(None), *cut)], grown)
