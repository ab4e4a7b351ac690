"""Operations that only move values: what comes out is known by running them on positions as well."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from search_spaces.errors import InputError

MOST_AXES = 4
"""Of a sample: channels and three of space."""
MOVEMENTS = frozenset(
    """view _unsafe_view reshape _reshape_alias transpose t permute slice select narrow squeeze unsqueeze expand clone
    alias detach contiguous lift_fresh flip roll split split_with_sizes chunk unbind index_select index unfold
    constant_pad_nd reflection_pad1d reflection_pad2d reflection_pad3d replication_pad1d replication_pad2d
    replication_pad3d pixel_shuffle pixel_unshuffle channel_shuffle native_channel_shuffle repeat as_strided
    upsample_nearest1d upsample_nearest2d upsample_nearest3d _to_copy unsafe_split
    unsafe_chunk""".split()
)


@dataclass(frozen=True)
class Moved:
    """Values of ``value`` in another place: ``positions`` (float64, that of the tensor) count from 1, 0 is a zero.

    ``shape`` is that of one sample of the value. ``through`` is the last place on the way that one step makes, and
    ``rest`` where these values are in it.
    """

    value: int
    shape: tuple[int, ...]
    positions: Tensor
    through: Moved | None = None
    rest: Tensor | None = None

    @functools.cached_property
    def step(self) -> dict[str, Any] | None:
        """The step that makes this of the value: a new shape, or taken indices; none where it is the value itself.

        Raises :class:`InputError` where no step does.
        """
        to, ids = tuple(self.positions.shape[1:]), self.positions.long()
        if self.positions.ndim < 2 or not _same_samples(ids, math.prod(self.shape)):
            raise InputError("the network moves values between samples")
        ids = ids[0]
        if ids.numel() == math.prod(self.shape) and torch.equal(ids.flatten(), torch.arange(1, ids.numel() + 1)):
            return None if to == self.shape else {"kind": "reshape", "to": to}
        indices = _taken(ids, self.shape)
        if indices is None:
            raise InputError("the network moves values in a way that is no choice of indices along each axis")
        full = [list(range(count)) for count in self.shape]
        chosen = [None if found == all_of else found for found, all_of in zip(indices, full, strict=True)]
        return {"kind": "take", "indices": chosen, "to": to}

    @property
    def is_one_step(self) -> bool:
        """Whether one step makes this of the value."""
        try:
            return self.step is None or len(self.step["to"]) <= MOST_AXES
        except InputError:
            return False


def whole(value: int, shape: tuple[int, ...]) -> Moved:
    """A value where it is; ``shape`` is that of all samples."""
    return Moved(value, shape[1:], _counted(shape))


def _counted(shape: Sequence[int]) -> Tensor:
    return torch.arange(1, math.prod(shape) + 1, dtype=torch.float64).reshape(*shape)


def moved(func: Any, args: Any, kwargs: Any, source: Tensor, found: Moved) -> list[tuple[int, Moved]]:
    """What an operation makes of a tensor that is ``found``: for each of its results where that is."""
    others = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor) and leaf is not source]
    if any(tensor.is_floating_point() for tensor in others):
        raise InputError("the network moves values of two tensors at once")
    filled = [leaf for leaf in tree_leaves((args[2:], kwargs)) if isinstance(leaf, float) and leaf]
    if filled and "pad" in str(func):
        raise InputError(f"the network pads with {filled[0]:g}, and a packed file can tell zeros alone")
    kwargs = {key: value for key, value in kwargs.items() if not (key == "dtype" and value == torch.float32)}

    def run(positions: Tensor) -> list[Any]:
        given = tree_map(lambda leaf: positions if leaf is source else leaf, (args, kwargs))
        return tree_leaves(func(*given[0], **given[1]))

    through, rest = (found, _counted(found.positions.shape)) if found.is_one_step else (found.through, found.rest)
    rests = run(rest) if rest is not None else []
    return [
        (at, Moved(found.value, found.shape, result, through, rests[at] if rests else None))
        for at, result in enumerate(run(found.positions))
        if isinstance(result, Tensor)
    ]


def _same_samples(ids: Tensor, size: int) -> bool:
    """Whether each sample is made of itself, all in the same way."""
    first, second = ids[0], ids[1] if len(ids) == 2 else ids[0]
    expected = torch.where(first > 0, first + size, 0)
    return len(ids) == 2 and torch.equal(second, expected) and bool((first <= size).all())


def _taken(ids: Tensor, shape: tuple[int, ...]) -> list[list[int]] | None:
    """Per axis the index that each index comes from, -1 for zeros; None where that is not how values move."""
    if ids.ndim != len(shape):
        return None
    present = ids > 0
    places = torch.unravel_index((ids - 1).clamp_min(0), shape)
    found: list[list[int]] = []
    for axis, place in enumerate(places):
        rows, seen = (part.movedim(axis, 0).reshape(ids.shape[axis], -1) for part in (place, present))
        largest = torch.where(seen, rows, -1).amax(1) if rows.numel() else rows.new_zeros(len(rows)) - 1
        found.append([int(index) for index in largest])
    return found if torch.equal(_composed(found, shape), ids) else None


def _composed(indices: list[list[int]], shape: tuple[int, ...]) -> Tensor:
    """The positions that these indices give."""
    total = torch.ones([1] * len(shape), dtype=torch.int64)
    inside = torch.ones([1] * len(shape), dtype=torch.bool)
    strides = [*itertools.accumulate(reversed(shape[1:]), lambda a, b: a * b, initial=1)][::-1]
    for axis, (chosen, stride) in enumerate(zip(indices, strides, strict=True)):
        along = torch.tensor(chosen).reshape([-1 if at == axis else 1 for at in range(len(shape))])
        total, inside = total + along * stride, inside & (along >= 0)
    return torch.where(inside, total, 0)
