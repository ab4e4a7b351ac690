"""The clip and the gain that suit a tensor.

The clip is the one of 40 fractions of the largest magnitude with the least mean squared error (the geometric mean of
the errors, where one clip serves several widths). The gain then places the levels of each width by least squares.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dnas.quantization.quantizers import SMALLEST_CLIP, Grid
from dnas.quantization.samples import TensorSample

_FRACTIONS = torch.linspace(1.0, 0.025, 40)
_VALUES_AT_ONCE = 2**17  # several fractions in one step while it stays in the cache


def best_clip(sample: TensorSample, grids: Sequence[Grid], signed: bool) -> Tensor:
    """The clip (R, 1) with the least error over all ``grids`` for each row of a ``sample`` (R, M)."""
    rows, weights = sample.values, sample.weights
    top = (rows.abs() if signed else rows.clamp_min(0)).amax(1, keepdim=True).clamp_min(SMALLEST_CLIP)
    fractions = _FRACTIONS.to(rows.device)
    scores = []
    for some in fractions.split(max(1, _VALUES_AT_ONCE // max(1, rows.numel()))):
        clips = (top * some[:, None, None]).clamp_min(SMALLEST_CLIP)  # (F, R, 1), which are the clips that are used
        errors = [_levels(rows, clips, grid, signed).sub_(rows).square_().mul_(weights).sum(-1) for grid in grids]
        scores.append((torch.stack(errors) / weights.sum(1)).clamp_min(1e-20).log().mean(0))
    return (top * fractions[torch.cat(scores).argmin(0)][:, None]).clamp_min(SMALLEST_CLIP)


def best_gain(sample: TensorSample, clip: Tensor, grid: Grid, signed: bool) -> float:
    """The factor of the levels of ``grid`` at ``clip`` (R, 1) that suits the ``sample`` (R, M) best."""
    return least_squares_gain(sample, _levels(sample.values, clip, grid, signed))


def least_squares_gain(sample: TensorSample, levels: Tensor) -> float:
    """The factor of ``levels`` (R, M) with the least squared error; 1 where that is none above 0."""
    energy = (sample.weights * levels * levels).sum()
    gain = float((sample.weights * sample.values * levels).sum() / energy) if energy > 0 else 1.0
    return gain if gain > 0 else 1.0


def _levels(rows: Tensor, clip: Tensor, grid: Grid, signed: bool) -> Tensor:
    """What ``grid`` makes of ``rows`` at ``clip``: one new tensor, since 40 clips are tried of each."""
    u = (rows / clip).clamp_(-1.0 if signed else 0.0, 1.0)
    return (
        u.mul_(grid.scale).add_(grid.offset).floor_().clamp_max_(grid.top).mul_(grid.step).add_(grid.start).mul_(clip)
    )
