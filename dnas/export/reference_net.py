"""A whole packed net in integer arithmetic: its operations one after the other, each layer as the reference has it.

A specification, to the bit, of ``dnas/runtime/runtime.c``, and what runs a file where there is no C compiler. Between
layers values are fp32, each operation rounded once; numpy alone.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import numpy as np

from dnas.export.integer_reference import run_layer
from results.packed.file import DEFAULT_PROFILE, PackedFile
from results.packed.weights import part_of
from search_spaces.errors import InputError

_LARGEST_EXPONENT = 700.0
_LOG2_E, _LN2_HIGH, _LN2_LOW = 1.4426950408889634, 0.6931471803691238, 1.9082149292705877e-10
_FACTORIALS = [1 / 6227020800, 1 / 479001600, 1 / 39916800, 1 / 3628800, 1 / 362880, 1 / 40320, 1 / 5040, 1 / 720]
_FACTORIALS += [1 / 120, 1 / 24, 1 / 6, 0.5, 1.0, 1.0]


def told_operations(packed: PackedFile, profile: str) -> Mapping[str, Any]:
    """The operations of a profile; :class:`InputError` where the file does not tell them."""
    told = packed.description["profiles"][profile].get("operations")
    if told is None:
        raise InputError(
            "the file does not tell the network's operations; it is of an earlier version, export it again"
        )
    if "refused" in told:
        raise InputError(f"the file does not tell the network's operations: {told['refused']}")
    return cast(Mapping[str, Any], told)


def run_net(packed: PackedFile, x: np.ndarray, profile: str = DEFAULT_PROFILE) -> np.ndarray:
    """The outputs (N, ...) fp32 of the network for inputs ``x`` (N, C, ...) fp32."""
    told = told_operations(packed, profile)
    values = [np.ascontiguousarray(x, np.float32)]
    for step in told["steps"]:
        values.append(_run(packed, profile, step, [values[number] for number in step["inputs"]], len(x)))
    return values[told["output"]]


def _run(
    packed: PackedFile, profile: str, step: Mapping[str, Any], inputs: list[np.ndarray], samples: int
) -> np.ndarray:
    """One step; all of what it gives is fp32."""
    kind = step["kind"]
    if kind == "layer":
        return run_layer(packed, step["name"], inputs[0], profile=profile).astype(np.float32)
    if kind == "norm":
        return _normalised(packed, profile, step, inputs[0])
    if kind in ("zeros", "parameter"):
        values = np.zeros(step["shape"], np.float32) if kind == "zeros" else _parameter(packed, profile, step)
        return np.broadcast_to(values, (samples, *step["shape"]))
    if kind not in _FUNCTIONS:
        raise InputError(f"an operation '{kind}' is none that this version knows; install a newer dnas")
    return _FUNCTIONS[kind](step, *inputs)


def _normalised(packed: PackedFile, profile: str, step: Mapping[str, Any], x: np.ndarray) -> np.ndarray:
    told = packed.description["profiles"][profile]
    norm = told["layers"][step["layer"]]["norm"] if "layer" in step else told["norms"][step["name"]]
    scale, shift = (packed.tensors[norm[key]].reshape(-1, *[1] * (x.ndim - 2)) for key in ("scale", "shift"))
    return scale * x + shift


def _parameter(packed: PackedFile, profile: str, step: Mapping[str, Any]) -> np.ndarray:
    tensor = packed.description["parameters"][step["name"]]
    return part_of(packed, profile, tensor, packed.tensors[tensor]).reshape(step["shape"])


def _clamped(step: Mapping[str, Any], x: np.ndarray) -> np.ndarray:
    """Between the ends; NaN stays NaN."""
    low, high = (None if step[key] is None else np.float32(step[key]) for key in ("low", "high"))
    x = x if low is None else np.where(x < low, low, x)
    return x if high is None else np.where(x > high, high, x)


def _scaled(step: Mapping[str, Any], x: np.ndarray) -> np.ndarray:
    return np.float32(step["slope"]) * x + np.float32(step["offset"])


def _hardsigmoid(step: Mapping[str, Any], x: np.ndarray) -> np.ndarray:
    shifted = x + np.float32(3)
    return np.where(shifted > 6, np.float32(6), np.where(shifted < 0, np.float32(0), shifted)) / np.float32(6)


def _sigmoid(x: np.ndarray) -> np.ndarray:
    """In float64, by our own exponential: every library's last bit is another one."""
    return cast(np.ndarray, 1.0 / (1.0 + _exponential(-x.astype(np.float64))))


def _exponential(x: np.ndarray) -> np.ndarray:
    x = np.fmin(np.fmax(x, -_LARGEST_EXPONENT), _LARGEST_EXPONENT)
    power = np.floor(x * _LOG2_E + 0.5)
    rest = (x - power * _LN2_HIGH) - power * _LN2_LOW
    total = np.zeros_like(x)
    for factor in _FACTORIALS:
        total = total * rest + factor
    return cast(np.ndarray, np.ldexp(total, power.astype(np.int64)))


def _pooled(step: Mapping[str, Any], x: np.ndarray) -> np.ndarray:
    """Each window's positions in row-major order; sums are in float64."""
    largest = step["function"] == "max"
    axes = [list(zip(*ends, strict=True)) for ends in zip(step["starts"], step["stops"], step["counts"], strict=True)]
    spatial = [len(axis) for axis in axes]
    found = np.empty((*x.shape[:2], *spatial), np.float32)
    for at in itertools.product(*map(range, spatial)):
        ends = [axis[index] for axis, index in zip(axes, at, strict=True)]
        total = np.full(x.shape[:2], -np.inf if largest else 0.0)
        for place in itertools.product(*(range(start, stop) for start, stop, _ in ends)):
            value = x[_at(place)].astype(np.float64)
            total = np.where(value > total, value, total) if largest else total + value
        divisor = 1.0 if largest else float(np.prod([count for _, _, count in ends]))
        found[_at(at)] = (total / divisor).astype(np.float32)
    return found.reshape(len(x), *step["shape"])


def _at(place: Sequence[int]) -> Any:
    """All samples and channels of one position."""
    return (..., *place)


def _taken(step: Mapping[str, Any], x: np.ndarray) -> np.ndarray:
    """Along each axis these indices, -1 for zeros."""
    for axis, indices in enumerate(step["indices"], 1):
        if indices is not None:
            chosen = np.array(indices, dtype=np.int64)
            shape = [-1 if at == axis else 1 for at in range(x.ndim)]
            x = np.where(chosen.reshape(shape) >= 0, np.take(x, np.maximum(chosen, 0), axis), np.float32(0))
    return x


def _like(x: np.ndarray, other: np.ndarray) -> np.ndarray:
    """``other`` as it broadcasts against ``x``: of the same axes, or of channels alone."""
    return other.reshape(*other.shape, *[1] * (x.ndim - other.ndim))


_FUNCTIONS: Mapping[str, Callable[..., np.ndarray]] = {
    "clamp": _clamped,
    "scale": _scaled,
    "leaky": lambda step, x: np.where(x > 0, x, np.float32(step["slope"]) * x),
    "prelu": lambda step, x, slope: np.where(x > 0, x, _like(x, slope) * x),
    "hardsigmoid": _hardsigmoid,
    "hardswish": lambda step, x: x * _hardsigmoid(step, x),
    "sigmoid": lambda step, x: _sigmoid(x).astype(np.float32),
    "silu": lambda step, x: (x.astype(np.float64) * _sigmoid(x)).astype(np.float32),
    "tanh": lambda step, x: (2.0 * _sigmoid(x + x) - 1.0).astype(np.float32),
    "add": lambda step, x, y: x + np.float32(step["factor"]) * _like(x, y),
    "multiply": lambda step, x, y: x * _like(x, y),
    "concatenate": lambda step, *parts: np.concatenate(parts, axis=1),
    "pool": _pooled,
    "take": _taken,
    "reshape": lambda step, x: x.reshape(len(x), *step["shape"]),
}
