"""Pooling as windows along each axis: where each begins and ends inside the input, and what a mean is divided by."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

Shape = tuple[int, ...]


def _each(value: Any, count: int) -> list[int]:
    values = list(value) if isinstance(value, Sequence) else [value]
    return values * count if len(values) == 1 else values


def _outputs(size: int, kernel: int, stride: int, pad: int, ceil: bool) -> int:
    """How many windows there are; the last begins inside the input or its padding before."""
    rest = size + 2 * pad - kernel
    count = (math.ceil(rest / stride) if ceil else rest // stride) + 1
    return count - 1 if ceil and (count - 1) * stride >= size + pad else count


def _windows(
    shape: Shape, kernel: Any, stride: Any, padding: Any, ceil: bool, counted: bool
) -> dict[str, list[list[int]]]:
    """``starts`` and ``stops`` inside, and ``counts`` to divide by: those in padding too where they are ``counted``."""
    sizes = shape[1:]
    kernels = _each(kernel, len(sizes))
    strides, pads = _each(stride or kernels, len(sizes)), _each(padding, len(sizes))
    found: dict[str, list[list[int]]] = {"starts": [], "stops": [], "counts": []}
    for size, k, s, p in zip(sizes, kernels, strides, pads, strict=True):
        begins = [at * s - p for at in range(_outputs(size, k, s, p, ceil))]
        starts, stops = [max(0, begin) for begin in begins], [min(size, begin + k) for begin in begins]
        found["starts"].append(starts)
        found["stops"].append(stops)
        clipped = [min(begin + k, size + p) - begin for begin in begins]
        found["counts"].append(clipped if counted else [b - a for a, b in zip(starts, stops, strict=True)])
    return found


def _largest(
    shape: Shape, kernel: Any, stride: Any = (), padding: Any = 0, dilation: Any = 1, ceil: bool = False
) -> dict[str, Any] | None:
    if any(step != 1 for step in _each(dilation, 1)):
        return None
    return {"function": "max", **_windows(shape, kernel, stride, padding, ceil, counted=False)}


def _mean(
    shape: Shape,
    kernel: Any,
    stride: Any = (),
    padding: Any = 0,
    ceil: bool = False,
    counted: bool = True,
    divisor: int | None = None,
) -> dict[str, Any] | None:
    if divisor is not None:
        return None
    return {"function": "mean", **_windows(shape, kernel, stride, padding, ceil, counted)}


def _adaptive(function: str) -> Callable[..., dict[str, Any]]:
    def windows(shape: Shape, sizes: Any) -> dict[str, Any]:
        found: dict[str, list[list[int]]] = {"starts": [], "stops": [], "counts": []}
        for size, count in zip(shape[1:], _each(sizes, len(shape) - 1), strict=True):
            starts = [at * size // count for at in range(count)]
            stops = [-(-(at + 1) * size // count) for at in range(count)]
            found["starts"].append(starts)
            found["stops"].append(stops)
            found["counts"].append([b - a for a, b in zip(starts, stops, strict=True)])
        return {"function": function, **found}

    return windows


def _over_space(function: str) -> Callable[..., dict[str, Any] | None]:
    def windows(shape: Shape, axes: Any = None, keep: bool = False, **other: Any) -> dict[str, Any] | None:
        """Over all axes of space; without them the result has channels alone."""
        spatial = len(shape) - 1
        wanted = sorted(axis % (spatial + 2) for axis in axes or [])
        if not spatial or wanted != list(range(2, spatial + 2)) or other.get("dtype") is not None:
            return None
        return _adaptive(function)(shape, 1)

    return windows


POOLS: Mapping[str, Callable[..., dict[str, Any] | None]] = {
    "max_pool2d_with_indices": _largest,
    "max_pool3d_with_indices": _largest,
    "max_pool2d": _largest,
    "avg_pool2d": _mean,
    "avg_pool3d": _mean,
    "_adaptive_avg_pool2d": _adaptive("mean"),
    "_adaptive_avg_pool3d": _adaptive("mean"),
    "adaptive_max_pool2d": _adaptive("max"),
    "adaptive_max_pool3d": _adaptive("max"),
    "mean": _over_space("mean"),
    "amax": _over_space("max"),
}
