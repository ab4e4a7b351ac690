"""How far filters are from one another, and the order in which units go that are near to others."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from bayesopt.filters import members, quantized_weight
from search_spaces.groups import ChannelGroup

_STEPS = 2.0**36
"""Distances are rounded to this many steps per unit: float64 then adds them exactly, in whatever order, and a tie
is a tie whatever the order of the filters."""

_SAME = 1e-12  # squared distances below this share of the squared norms are rounding errors of the Gram matrix


@dataclass(frozen=True)
class Ranking:
    """The units of a group, first to go first, and the score (U,) of each in [0, 1], which never falls along it."""

    order: tuple[int, ...]
    scores: np.ndarray


def eliminate(distances: np.ndarray, latent: np.ndarray, *, by_pairs: bool) -> Ranking:
    """Remove unit after unit of ``distances`` (U, U); exact ties go to the smaller latent weight, then index."""
    units = len(distances)
    apart = np.round(distances * _STEPS) / _STEPS
    np.fill_diagonal(apart, 0.0)
    totals = apart.sum(axis=1)
    np.fill_diagonal(apart, np.inf)
    closest = apart.min(axis=1)
    remaining = np.ones(units, dtype=bool)
    order: list[int] = []
    levels: list[float] = []
    for others in range(units - 1, 0, -1):
        keys = (closest, totals, latent) if by_pairs else (totals, closest, latent)
        gone = _least(np.flatnonzero(remaining), keys)
        order.append(gone)
        levels.append(float(closest[gone] if by_pairs else totals[gone] / others))
        remaining[gone] = False
        totals -= apart[:, gone]
        stale = remaining & (apart[:, gone] == closest)
        apart[:, gone] = np.inf
        closest[stale] = apart[stale].min(axis=1)
    order.append(int(np.flatnonzero(remaining)[0]))
    levels.append(levels[-1] if levels else 1.0)  # the last one has nothing left to be compared with
    scores = np.empty(units)
    scores[order] = np.maximum.accumulate(levels)
    return Ranking(tuple(order), scores)


def _least(candidates: np.ndarray, keys: tuple[np.ndarray, ...]) -> int:
    for key in keys:
        values = key[candidates]
        candidates = candidates[values == values.min()]
    return int(candidates[0])


def mean_distances(
    network: nn.Module,
    group: ChannelGroup,
    prepare: Callable[[Tensor], Tensor],
    distances: Callable[[Tensor], np.ndarray],
) -> np.ndarray:
    """Distances (U, U) averaged over the member layers; units that never meet in a layer are as far as any two."""
    total, known = np.zeros((group.units, group.units)), np.zeros((group.units, group.units))
    for member in members(network, group, quantized_weight):
        present, filters = _by_unit(prepare(member.filters), member.rows, group.units)
        pairs = np.ix_(present, present)
        total[pairs] += distances(filters)
        known[pairs] += 1
    mean = total / np.maximum(known, 1)
    mean = np.where(known > 0, mean, mean.max())
    return (mean + mean.T) / 2  # a Gram matrix is symmetric only up to rounding


def _by_unit(filters: Tensor, rows: np.ndarray, units: int) -> tuple[np.ndarray, Tensor]:
    """The units (P,) that are present and their filters (R, K) joined end to end, (P, M·K) for up to M per unit."""
    counts = np.bincount(rows[rows >= 0], minlength=units)
    members = np.argsort(rows, kind="stable")[int((rows < 0).sum()) :]
    places = np.arange(len(members)) - np.repeat(np.cumsum(counts) - counts, counts)
    table = np.full((units, max(int(counts.max()), 1)), len(rows))  # a unit with fewer filters is filled with zeros
    table[rows[members], places] = members
    present = np.flatnonzero(counts)
    padded = torch.cat([filters, filters.new_zeros(1, filters.shape[1])])
    return present, padded[torch.from_numpy(table[present]).to(filters.device)].flatten(1)


def signs(filters: Tensor) -> Tensor:
    """+1 from zero on, -1 below."""
    return torch.where(filters < 0, -1.0, 1.0)  # float32: sums of ±1 are exact up to 2^24


def hamming_distances(signs: Tensor) -> np.ndarray:
    """min(h, n - h)/n for every two rows of ±1 (U, n), h being how many differ."""
    agreement = (signs @ signs.T).cpu().double() / signs.shape[1]  # (n - 2h)/n
    return ((1 - agreement.abs()) / 2).cpu().numpy()


def scaled(filters: Tensor) -> Tensor:
    """The filters in float64, divided by the largest magnitude; on the CPU, as not every device has that type."""
    largest = filters.abs().max().cpu()
    return filters.cpu().double() / (largest if largest > 0 else 1.0)


def euclidean_distances(filters: Tensor) -> np.ndarray:
    """Pairwise distances, divided by their mean."""
    gram = filters @ filters.T
    norms = gram.diagonal()[:, None] + gram.diagonal()
    squares = norms - 2 * gram
    distances = torch.where(squares > _SAME * norms, squares, 0.0).sqrt().fill_diagonal_(0)
    count = len(distances)
    mean = distances.sum() / max(count * (count - 1), 1)
    return (distances / (mean if mean > 0 else 1.0)).cpu().numpy()
