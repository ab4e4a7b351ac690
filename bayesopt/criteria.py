"""Which filters of a coupled channel group are redundant, and in which order its units should go.

Guerra et al. (arXiv 2002.00523) prune redundant low-precision filters but do not publish the criterion; the ones
here are our construction. They judge *quantized* filters: on ±1 filters magnitudes are all equal, distances are not.
``geometric`` follows FPGM (He et al., arXiv 1811.00250) and ``taylor`` Molchanov et al. (arXiv 1611.06440).

A group has U units; a member layer has R filters of K weights each, and a unit may hold several of them. What the
member layers say is normalised per layer and averaged, so that no layer outweighs another by its scale.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from bayesopt.distances import (
    Ranking,
    eliminate,
    euclidean_distances,
    hamming_distances,
    mean_distances,
    scaled,
    signs,
)
from bayesopt.filters import checked_rows, filters_of, latent_weight, members, submodule
from search_spaces.errors import InputError, check_type
from search_spaces.groups import ChannelGroup, ChannelGroups
from search_spaces.models.copies import copy_network
from search_spaces.network.examples import rows_of, run_on
from search_spaces.registry import Registry, called, importable_working_directory

Scorer = Callable[[nn.Module, ChannelGroup], Any]
"""A user's own criterion: (network, group) → one finite score per unit (U,); higher stays longer."""

LossSum = Callable[[Any, Any], Tensor]
CLASSIFICATION_LOSS: LossSum = nn.CrossEntropyLoss(reduction="sum")
"""(what the network gave, targets) → the sum of the losses of these images."""
Run = Callable[[nn.Module, Any, Any], Any]
"""(network, inputs of a batch, targets) → what the network gives."""


@dataclass(frozen=True)
class Evidence:
    """What a criterion may use beyond the network: a seed, and per layer Σ w·∂L/∂w of every filter (R,)."""

    seed: int = 0
    slopes: Mapping[str, np.ndarray] = field(default_factory=dict)


@dataclass(frozen=True)
class Criterion:
    """A named way to rank the units of a group; its scores (U,) are finite but not yet in [0, 1]."""

    name: str
    rank: Callable[[nn.Module, ChannelGroup, Evidence], Ranking]
    needs_batches: bool = False


def rankings(
    network: nn.Module,
    groups: ChannelGroups,
    criterion: str | Criterion | Scorer = "geometric",
    *,
    batches: Iterable[tuple[Tensor, Any]] = (),
    loss_sum: LossSum = CLASSIFICATION_LOSS,
    run: Run = lambda network, inputs, targets: run_on(network, inputs),
    seed: int = 0,
) -> dict[str, Ranking]:
    """Rank the units of every group; the keys are the groups' names.

    ``criterion`` is a name in :data:`CRITERIA`, a ``package.module:function`` or a :data:`Scorer`. ``batches`` are
    (images (N, C, H, W), targets) and are read by ``taylor`` alone, once, whose loss over the images of a batch is
    ``loss_sum``, that of class labels where none is given, of what ``run`` gives; the network is left untouched.
    """
    check_type(groups, ChannelGroups, "channel groups", "give what bayesopt.groups(model, example) returns")
    chosen = _criterion(criterion)
    slopes = _slopes(network, groups.groups, chosen, batches, loss_sum, run) if chosen.needs_batches else {}
    evidence = Evidence(seed, slopes)
    return {group.name: _ranked(network, group, chosen, evidence) for group in groups.groups}


def removal_order(
    network: nn.Module,
    group: ChannelGroup,
    criterion: str | Criterion | Scorer = "geometric",
    *,
    batches: Iterable[tuple[Tensor, Any]] = (),
    loss_sum: LossSum = CLASSIFICATION_LOSS,
    seed: int = 0,
) -> tuple[int, ...]:
    """The units of one group, most redundant first: any ratio drops the first few, so ratios are nested."""
    check_type(group, ChannelGroup, "a channel group", "take one of groups.groups")
    found = rankings(network, ChannelGroups((group,)), criterion, batches=batches, loss_sum=loss_sum, seed=seed)
    return found[group.name].order


def importance(
    network: nn.Module,
    groups: ChannelGroups,
    criterion: str | Criterion | Scorer = "geometric",
    *,
    batches: Iterable[tuple[Tensor, Any]] = (),
    loss_sum: LossSum = CLASSIFICATION_LOSS,
    seed: int = 0,
) -> dict[str, np.ndarray]:
    """Scores (U,) in [0, 1] by group name, the higher the more worth keeping; they agree with the removal order."""
    found = rankings(network, groups, criterion, batches=batches, loss_sum=loss_sum, seed=seed)
    return {name: ranking.scores for name, ranking in found.items()}


def keep(order: tuple[int, ...], count: int) -> tuple[int, ...]:
    """The ``count`` units that stay when the first ones of ``order`` have gone, ascending.

    >>> keep((2, 0, 3, 1), 2)
    (1, 3)
    """
    if not 1 <= count <= len(order):
        raise InputError(f"cannot keep {count} of {len(order)} units; keep between 1 and {len(order)}")
    return tuple(sorted(order[len(order) - count :]))


def _criterion(given: str | Criterion | Scorer) -> Criterion:
    if isinstance(given, str):
        return CRITERIA.find(given)
    if isinstance(given, Criterion):
        return given
    name = getattr(given, "__qualname__", type(given).__name__)
    return Criterion(name, _own(given, name))


def _ranked(network: nn.Module, group: ChannelGroup, criterion: Criterion, evidence: Evidence) -> Ranking:
    ranking = criterion.rank(network, group, evidence)
    if not np.isfinite(ranking.scores).all():
        raise InputError(f"criterion '{criterion.name}' gives scores for group '{group.name}' that are not finite")
    return Ranking(ranking.order, _unit_interval(ranking.scores))


def _unit_interval(scores: np.ndarray) -> np.ndarray:
    """Divide by the largest; only where some score is negative is the smallest taken off first."""
    scores = scores / max(float(np.abs(scores).max()), np.finfo(np.float64).tiny)  # a spread could overflow
    scores = scores - min(float(scores.min()), 0.0)
    largest = float(scores.max())
    return scores / largest if largest > 0 else scores


# Rankings by distance: one unit goes at a time, and the rest is judged anew.


def hamming(network: nn.Module, group: ChannelGroup, evidence: Evidence) -> Ranking:
    """Remove, one by one, the member of a closest pair that is nearer to all the rest (distances: Hamming).

    d = min(h, n - h)/n for h differing signs of n: a BatchNorm behind absorbs a flipped filter. Only signs are
    compared, which is all there is at 1 bit; weights of more bits lose their magnitude here (zero counts as +1).
    """
    distances = mean_distances(network, group, signs, hamming_distances)
    return eliminate(distances, _latent_l1(network, group, evidence), by_pairs=True)


def geometric(network: nn.Module, group: ChannelGroup, evidence: Evidence) -> Ranking:
    """Remove, one by one, the unit with the least Σ_j ||Q_i - Q_j||₂ over the units that remain.

    FPGM, arXiv 1811.00250, eq. 4-6, applied to quantized weights and repeated after each removal. On ±1 filters the
    distance is 2·sqrt(h), h being the number of signs that differ.
    """
    distances = mean_distances(network, group, scaled, euclidean_distances)
    return eliminate(distances, _latent_l1(network, group, evidence), by_pairs=False)


# Rankings by a score per unit: the lowest goes first, ties by index.


def latent_l1(network: nn.Module, group: ChannelGroup, evidence: Evidence) -> Ranking:
    """Rank by the mean |w| of the latent (not quantized) weights."""
    return _by_score(_latent_l1(network, group, evidence))


def bn_scale(network: nn.Module, group: ChannelGroup, evidence: Evidence) -> Ranking:
    """Rank by |γ| of the BatchNorms behind the filters (Liu et al., arXiv 1708.06519)."""
    parts = []
    for name, entries in group.vectors.items():
        path, _, key = name.rpartition(".")
        owner = submodule(network, path, group)
        if key in owner._parameters or key in owner._buffers:  # a vector of its own, such as a layer scale
            continue
        norm = submodule(network, name, group)
        scale = getattr(norm, "weight", None)
        if isinstance(scale, Tensor) and hasattr(norm, "running_var"):  # also BatchNorms that are no nn.BatchNorm
            rows = checked_rows(entries, len(scale), name, group)
            sums, counts = _sums(scale.detach().double().abs().cpu().numpy(), rows, group.units)
            parts.append((sums / np.maximum(counts, 1), counts))
    if not parts:
        raise InputError(
            f"criterion 'bn_scale' needs a BatchNorm with scales behind the filters of group '{group.name}', and "
            "there is none; use 'latent_l1' or 'geometric'"
        )
    return _by_score(_average(parts, group.units))


def taylor(network: nn.Module, group: ChannelGroup, evidence: Evidence) -> Ranking:
    """Rank by |Σ w·∂L/∂w| over the unit's latent weights: the first-order change of the loss when they vanish."""
    parts = []
    for name, rows in group.rows.items():
        sums, counts = _sums(evidence.slopes[name], np.asarray(rows), group.units)
        parts.append((np.abs(sums), counts))
    return _by_score(_average(parts, group.units))


def random(network: nn.Module, group: ChannelGroup, evidence: Evidence) -> Ranking:
    """Rank at random, by the seed and the group's name."""
    return _by_score(np.random.default_rng([evidence.seed, *group.name.encode()]).random(group.units))


def _own(function: Scorer, name: str) -> Callable[[nn.Module, ChannelGroup, Evidence], Ranking]:
    """A ranking by the user's own scores."""

    def rank(network: nn.Module, group: ChannelGroup, evidence: Evidence) -> Ranking:
        with importable_working_directory():
            try:
                given = function(network, group)
                values = given.detach().cpu() if isinstance(given, Tensor) else given
                scores = np.asarray(values, dtype=np.float64)
            except Exception as error:  # the user's own code may fail in any way
                reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
                raise InputError(f"criterion '{name}' cannot score group '{group.name}': {reason}") from error
        if scores.shape != (group.units,):
            raise InputError(
                f"criterion '{name}' gives scores of shape {scores.shape} for group '{group.name}'; one score for "
                f"each of its {group.units} units is needed, shape {(group.units,)}"
            )
        return _by_score(scores)

    return rank


_SCORES = np.ndarray, Tensor, Sequence
CRITERIA = Registry(
    "criterion",
    {
        criterion.name: criterion
        for criterion in (
            Criterion("hamming", hamming),
            Criterion("geometric", geometric),
            Criterion("latent_l1", latent_l1),
            Criterion("bn_scale", bn_scale),
            Criterion("taylor", taylor, needs_batches=True),
            Criterion("random", random),
        )
    },
    lambda source, found: Criterion(
        source, _own(called(source, found, "criterion", [np.ndarray, Tensor, Sequence]), source)
    ),
)
"""The criteria by name; one of the user's own is a ``package.module:function``."""


def _by_score(scores: np.ndarray) -> Ranking:
    return Ranking(tuple(int(unit) for unit in np.argsort(scores, kind="stable")), scores)


def _latent_l1(network: nn.Module, group: ChannelGroup, evidence: Evidence) -> np.ndarray:
    parts = []
    for member in members(network, group, latent_weight):
        sums, counts = _sums(member.filters.cpu().double().abs().mean(dim=1).numpy(), member.rows, group.units)
        parts.append((sums / np.maximum(counts, 1), counts))
    return _average(parts, group.units)


def _sums(values: np.ndarray, rows: np.ndarray, units: int) -> tuple[np.ndarray, np.ndarray]:
    """Sum and count (U,) of the values (R,) of each unit's filters."""
    inside = rows >= 0
    return np.bincount(rows[inside], values[inside], units), np.bincount(rows[inside], minlength=units)


def _average(parts: Iterable[tuple[np.ndarray, np.ndarray]], units: int) -> np.ndarray:
    """Average of each part's values (U,) over their mean; a unit that no part counts gets 1, the mean."""
    total, known = np.zeros(units), np.zeros(units)
    with np.errstate(invalid="ignore", over="ignore"):  # what is not finite is refused later, by name
        for values, counts in parts:
            present = counts > 0
            mean = values[present].mean() if present.any() else 0.0
            total[present] += values[present] / (mean if mean != 0 else 1.0)
            known += present
    return np.where(known > 0, total / np.maximum(known, 1), 1.0)


def _beside(weights: Sequence[Tensor], batch: Any) -> Any:
    """The batch with its tensors where the weights are."""
    if not weights:
        return batch
    return tree_map(lambda leaf: leaf.to(weights[0].device) if isinstance(leaf, Tensor) else leaf, tuple(batch))


def _slopes(
    network: nn.Module,
    groups: Iterable[ChannelGroup],
    criterion: Criterion,
    batches: Iterable[tuple[Tensor, Any]],
    loss_sum: LossSum,
    run: Run,
) -> dict[str, np.ndarray]:
    """Per member layer, Σ w·∂L/∂w of each filter (R,), L being the mean loss over all images.

    In evaluation mode: with the statistics of the batch, a BatchNorm makes the loss indifferent to the scale of the
    filters before it, and every sum would be zero.
    """
    twin = copy_network(network).eval()
    found = {member.name: member for group in groups for member in members(twin, group, latent_weight)}
    weights = [member.layer.get_parameter("weight").requires_grad_() for member in found.values()]
    slopes = [torch.zeros_like(member.filters[:, 0], dtype=torch.float64) for member in found.values()]
    images = 0
    for batch in batches:
        if not isinstance(batch, tuple | list) or len(batch) != 2:
            raise InputError("a criterion reads batches of images (N, C, H, W) and labels (N,); give pairs of them")
        with torch.enable_grad():
            x, y = _beside(weights, batch)
            loss = loss_sum(run(twin, x, y), y)
            gradients = torch.autograd.grad(loss, weights, materialize_grads=True) if weights else ()
        for slope, member, gradient in zip(slopes, found.values(), gradients, strict=True):
            slope += (member.filters.double() * filters_of(member.layer, gradient).double()).sum(dim=1)
        images += rows_of(x)
    if not images:
        raise InputError(f"criterion '{criterion.name}' needs batches of images and labels, and none are given")
    return {name: (slope / images).cpu().numpy() for name, slope in zip(found, slopes, strict=True)}
