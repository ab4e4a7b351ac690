"""A few elements of a large tensor that stand for all of it, so that a range fitted on them fits the tensor.

Positions are drawn by chance with a fixed seed: a stride that divides a dimension would read one column of every
feature map, or one tap of every kernel. The few largest magnitudes, which decide where a clip pays, are all kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

_MOST = 65536  # values of one row
_MOST_IN_ALL = 2**21  # values of all rows, where there are many
_LEAST = 512  # values of each of very many rows
_TAIL = 16  # values of a sample that lie in its tail: so many of one row, one in so many where there are several rows


@dataclass(frozen=True)
class TensorSample:
    """Elements of a tensor and how many of its elements each stands for; both (R, M), one row per clip.

    The extremes of every row are among ``values``, with weight 0 where they are there for the range alone.
    """

    values: Tensor
    weights: Tensor

    def to(self, device: torch.device) -> TensorSample:
        """The same sample on another device."""
        return TensorSample(self.values.to(device), self.weights.to(device))

    @property
    def least(self) -> float:
        """The smallest element of the tensor."""
        return float(self.values.min())


def whole(rows: Tensor) -> TensorSample:
    """Every element of ``rows`` (R, N), each for itself."""
    return TensorSample(rows, torch.ones_like(rows))


def sampled(x: Tensor) -> TensorSample:
    """A sample of all elements of ``x`` (any shape), in one row and at least float32."""
    flat = x.detach().reshape(1, -1)
    return thinned(whole(flat.to(torch.promote_types(x.dtype, torch.float32))))


def joined(samples: Sequence[TensorSample]) -> TensorSample:
    """One sample for several tensors, each with as much weight as it has elements; a zero where there is none."""
    if not samples:
        return whole(torch.zeros(1, 1))
    values, weights = (torch.cat(parts, 1) for parts in zip(*((s.values, s.weights) for s in samples), strict=True))
    return thinned(TensorSample(values, weights))


def thinned(sample: TensorSample) -> TensorSample:
    """Fewer elements that stand for the same tensor: some by chance, and the tail or the extremes of every row."""
    rows, count = sample.values.shape
    columns = min(_MOST, max(_MOST_IN_ALL // rows, _LEAST))
    if count <= columns:
        return sample
    drawn = torch.randint(count, (columns,), generator=torch.Generator().manual_seed(count))
    positions = drawn.to(sample.values.device)
    values, weights = sample.values[:, positions], sample.weights[:, positions]
    # What exceeds a magnitude that few elements exceed is kept whole, and the draw stands for the rest.
    tail, starts = _tail_of_one(sample, values) if rows == 1 else _tail_of_each(sample, columns // _TAIL)
    weights = torch.where(values.abs() > starts, 0.0, weights)
    scale = (sample.weights.sum(1, keepdim=True) - tail.weights.sum(1, keepdim=True)) / weights.sum(1, keepdim=True)
    extremes = torch.stack([sample.values.amin(1), sample.values.amax(1)], dim=1)
    return TensorSample(
        torch.cat([values, tail.values, extremes], 1),
        torch.cat([weights * scale, tail.weights, torch.zeros_like(extremes)], 1),
    )


def _tail_of_one(sample: TensorSample, drawn: Tensor) -> tuple[TensorSample, Tensor]:
    """The tail of a single, perhaps very long row, and the magnitude above which it starts; one pass, no sorting."""
    starts = drawn.abs().flatten().topk(_TAIL).values[-1]
    inside = sample.values.abs() > starts
    return TensorSample(sample.values[inside][None], sample.weights[inside][None]), starts


def _tail_of_each(sample: TensorSample, most: int) -> tuple[TensorSample, Tensor]:
    """The tail of every row, and the magnitudes (R, 1) above which they start."""
    largest = sample.values.abs().topk(most, dim=1)
    starts = largest.values[:, -1:]
    weights = torch.where(largest.values > starts, sample.weights.gather(1, largest.indices), 0.0)
    return TensorSample(sample.values.gather(1, largest.indices), weights), starts
