"""Tensors of labels: an int64 label for every element of the tensor that they stand for.

Labels that do not change along an axis are held with stride 0 there, so that a label per channel takes no more memory
than that.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeGuard

import torch
from torch import Tensor

Labels = Tensor


def is_tensor(value: Any) -> TypeGuard[Tensor]:
    """Whether a value is a tensor."""
    return isinstance(value, Tensor)


def tensors(values: Any) -> Iterator[Tensor]:
    """All tensors in nested tuples, lists and dictionaries."""
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, (tuple, list)):
        for value in values:
            yield from tensors(value)
    elif isinstance(values, dict):
        yield from tensors(list(values.values()))


def spread(channels: Tensor, shape: torch.Size, axis: int) -> Labels:
    """Labels per channel as a tensor of ``shape``, without taking its memory."""
    view = [1] * len(shape)
    view[axis] = channels.numel()
    return channels.reshape(view).expand(shape)


def squeezed(x: Labels) -> Labels:
    """One index of every axis along which the memory does not change."""
    for axis in range(x.dim()):
        if x.shape[axis] > 1 and x.stride(axis) == 0:
            x = x.narrow(axis, 0, 1)
    return x


def constant_along(x: Labels, axis: int) -> bool:
    """Whether the labels do not change along an axis."""
    return x.stride(axis) == 0 or bool((squeezed(x) == squeezed(x).narrow(axis, 0, 1)).all())


def compact(x: Any) -> Any:
    """The same labels with stride 0 along every axis on which they do not change."""
    if not is_tensor(x) or x.numel() == 0:
        return x
    shape, x = x.shape, squeezed(x)
    for axis in range(x.dim()):
        if x.shape[axis] > 1 and bool((x == x.narrow(axis, 0, 1)).all()):
            x = x.narrow(axis, 0, 1)
    return x.expand(shape)


def per_channel(x: Labels, axis: int) -> Tensor | None:
    """One label for every index of ``axis``, or None where they change along another."""
    if x.dim() < 2 or x.numel() == 0:
        return None
    count, flat = x.shape[axis], squeezed(compact(x)).movedim(axis, 0).flatten(1)
    return flat[:, 0].expand(count).contiguous() if flat.shape[1] == 1 else None
