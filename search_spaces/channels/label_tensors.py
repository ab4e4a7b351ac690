"""Tensors of labels: an int64 label for every element of the tensor that they stand for.

Labels that do not change along an axis are held with stride 0 there, so that a label per channel takes no more memory
than that.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

Labels = Tensor


def spread(channels: Tensor, shape: torch.Size, axis: int) -> Labels:
    """Labels per channel as a tensor of ``shape``, without taking its memory."""
    view = [1] * len(shape)
    view[axis] = channels.numel()
    return channels.reshape(view).expand(shape)


def one_index(x: Labels, axes: Iterable[int]) -> Labels:
    """The first index of some axes, which keep size 1."""
    sizes = list(x.shape)
    for axis in axes:
        sizes[axis] = min(1, sizes[axis])
    return x if sizes == list(x.shape) else x.as_strided(sizes, x.stride())


def squeezed(x: Labels) -> Labels:
    """One index of every axis along which the memory does not change."""
    return one_index(x, (axis for axis, step in enumerate(x.stride()) if step == 0))


def only_label(x: Labels) -> int | None:
    """The label that a whole tensor has, or None where it has several (or no element)."""
    return None if x.numel() == 0 or varying_axes(x) else int(x[(0,) * x.dim()])


def varying_axes(x: Labels) -> list[int]:
    """The axes along which the labels change."""
    small = squeezed(x)
    return [axis for axis in range(x.dim()) if small.shape[axis] > 1 and not _is_constant(small, axis)]


def constant_along(x: Labels, axis: int) -> bool:
    """Whether the labels do not change along an axis."""
    return x.dim() == 0 or x.stride(axis) == 0 or _is_constant(squeezed(x), axis)


def _is_constant(x: Labels, axis: int) -> bool:
    return x.shape[axis] < 2 or bool((x == x.narrow(axis, 0, 1)).all())


def compact(x: Any) -> Any:
    """The same labels with stride 0 along every axis on which they do not change."""
    if not isinstance(x, Tensor) or x.numel() == 0:
        return x
    shape, x = x.shape, squeezed(x)
    for axis in range(x.dim()):
        if x.shape[axis] > 1 and _is_constant(x, axis):
            x = x.narrow(axis, 0, 1)
    return x.expand(shape)
