"""Pruning in a few calls, for use from Python: the groups of a network, what to keep, the smaller network."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import TypeVar

import torch
from torch import Tensor, nn

from bayesopt.criteria import Criterion, Scorer, keep, rankings
from bayesopt.ratios import is_number
from search_spaces.channels.slicing import remove_filters
from search_spaces.errors import InputError, nearest
from search_spaces.groups import ChannelGroups, Kept
from search_spaces.models.copies import copy_network
from search_spaces.network.graph import read_graph

Network = TypeVar("Network", bound=nn.Module)
_EPSILON = 1e-9  # what float arithmetic may add to a whole number before it is rounded up


def groups(model: nn.Module, example: Tensor | tuple[int, ...]) -> ChannelGroups:
    """The channel groups of an unedited network, for an example (N, C, H, W) or the shape (C, H, W) of one input.

    They hold for its quantized copies too, which keep the names of the layers.
    """
    shape = tuple(example.shape[1:]) if isinstance(example, Tensor) else tuple(example)
    return read_graph(model, shape).channels


def choose(
    network: nn.Module,
    groups: ChannelGroups,
    ratios: float | Mapping[str, float],
    criterion: str | Criterion | Scorer = "geometric",
    *,
    min_keep: int = 1,
    batches: Iterable[tuple[Tensor, Tensor]] = (),
    seed: int = 0,
) -> dict[str, tuple[int, ...]]:
    """The units that each group keeps at its ratio in [0, 1): one for all groups, or by group name (others lose none).

    Of a group of U units, ``max(min_keep, ceil(U (1 - ratio)))`` stay: those that the criterion removes last.
    """
    if groups.unknown:
        raise InputError(f"the network cannot be pruned: {groups.unknown}")
    if not is_number(ratios) and not isinstance(ratios, Mapping):
        raise InputError(f"ratios is {ratios!r}; give one ratio in [0, 1), or one by the name of each channel group")
    wanted = dict(ratios) if isinstance(ratios, Mapping) else dict.fromkeys(groups.names, float(ratios))
    for name, ratio in wanted.items():
        if name not in groups.names:
            raise InputError(f"ratios names no channel group '{name}'{nearest(str(name), groups.names)}")
        if not is_number(ratio) or not 0 <= ratio < 1:
            raise InputError(f"the ratio of channel group '{name}' is {ratio}; a ratio lies in [0, 1)")
    pruned = ChannelGroups(tuple(group for group in groups.groups if wanted.get(group.name, 0) > 0))
    found = rankings(network, pruned, criterion, batches=batches, seed=seed)
    return {
        group.name: keep(found[group.name].order, _count(group.units, wanted[group.name], min_keep))
        for group in pruned.groups
    }


def _count(units: int, ratio: float, min_keep: int) -> int:
    return min(units, max(min_keep, 1, math.ceil(units * (1 - ratio) - _EPSILON)))


def prune(
    network: Network,
    groups: ChannelGroups,
    ratios: float | Mapping[str, float],
    criterion: str | Criterion | Scorer = "geometric",
    *,
    min_keep: int = 1,
    batches: Iterable[tuple[Tensor, Tensor]] = (),
    seed: int = 0,
) -> Network:
    """A smaller copy of a network, quantized or not, by :func:`choose`; the network itself is left as it is."""
    kept = choose(network, groups, ratios, criterion, min_keep=min_keep, batches=batches, seed=seed)
    return remove_filters(network, groups, kept)


def rebuild_optimizer(
    optimizer: torch.optim.Optimizer, network: Network, smaller: Network, groups: ChannelGroups, kept: Kept
) -> torch.optim.Optimizer:
    """An optimizer of the same kind for ``smaller``, which :func:`remove_filters` made of ``network`` with ``kept``.

    Learning rates and all other options are those of each parameter group; momenta and other state tensors of a
    parameter's shape lose the same filters. Raises :class:`InputError` for a parameter that is not the network's.
    """
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    parameters = dict(smaller.named_parameters())
    rebuilt = []
    for group in optimizer.param_groups:
        foreign = [parameter for parameter in group["params"] if id(parameter) not in names]
        if foreign:
            raise InputError(f"the optimizer holds a parameter {tuple(foreign[0].shape)} that is not the network's")
        own = [parameters[names[id(parameter)]] for parameter in group["params"]]
        rebuilt.append({**group, "params": own})
    made = type(optimizer)(rebuilt, **{"lr": optimizer.defaults["lr"]} if "lr" in optimizer.defaults else {})
    for key in sorted({key for state in optimizer.state.values() for key in state}):
        _carry_over(optimizer, made, key, network, groups, kept, names, parameters)
    return made


def _carry_over(
    optimizer: torch.optim.Optimizer,
    made: torch.optim.Optimizer,
    key: str,
    network: nn.Module,
    groups: ChannelGroups,
    kept: Kept,
    names: Mapping[int, str],
    parameters: Mapping[str, nn.Parameter],
) -> None:
    """Cut one kind of state, by putting it in the place of the parameters of a copy and pruning that."""
    twin = copy_network(network)
    places = dict(twin.named_parameters())
    shaped = []
    for parameter, state in optimizer.state.items():
        value, name = state.get(key), names[id(parameter)]
        if isinstance(value, Tensor) and value.shape == parameter.shape:
            places[name].data = value.clone()
            shaped.append(name)
        elif value is not None:
            made.state[parameters[name]][key] = value.clone() if isinstance(value, Tensor) else value
    cut = dict(remove_filters(twin, groups, kept).named_parameters())
    for name in shaped:
        made.state[parameters[name]][key] = cut[name].detach().clone()
