"""From a trace of labels to channel groups: what is tied becomes a unit, units of the same layers become a group.

The groups are proved before they are given out (:mod:`search_spaces.channels.proof`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from search_spaces.channels.following import ChannelRun
from search_spaces.channels.proof import Proof
from search_spaces.channels.rules import FIXED
from search_spaces.channels.running import NetworkCall
from search_spaces.channels.trace import ChannelTrace
from search_spaces.groups import ChannelGroup, ChannelGroups
from search_spaces.layers import LayerSpec
from search_spaces.models.buffers import buffer_bytes, stored_buffers

_ONE_UNIT = "all its channels hang together, and none can go alone"


def read_channels(network: nn.Module, specs: Sequence[LayerSpec], call: NetworkCall) -> ChannelGroups:
    """Read the channel groups of a network (in eval mode) from one real run."""
    by_name = {spec.name: spec for spec in specs}
    try:
        trace = ChannelRun(network, by_name).follow(call)
    except Exception as error:  # a foreign model's own code runs here
        return ChannelGroups(unknown=f"its channels cannot be followed ({_sentence(error)})")
    groups = _groups(trace, network, by_name)
    whole = {group.name: _ONE_UNIT for group in groups.groups if group.units == 1}
    groups = _without(groups, whole)
    proved = {group.name for group in Proof(network, by_name, call, trace, groups).sound()}
    return _without(groups, {group.name: FIXED for group in groups.groups if group.name not in proved})


def _without(groups: ChannelGroups, reasons: Mapping[str, str]) -> ChannelGroups:
    """The groups without some; layers that are left with none are frozen for these reasons."""
    left = tuple(group for group in groups.groups if group.name not in reasons)
    held = {layer for group in left for layer in group.layers}
    gone = [group for group in groups.groups if group.name in reasons]
    frozen = {layer: reasons[group.name] for group in gone for layer in group.layers if layer not in held}
    return replace(groups, groups=left, frozen={**groups.frozen, **frozen})


def _sentence(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:120]


def _groups(trace: ChannelTrace, network: nn.Module, specs: Mapping[str, LayerSpec]) -> ChannelGroups:
    unit_of, reasons = trace.units(), trace.frozen
    members: dict[int, list[tuple[str, int]]] = {}
    for layer, labels in trace.rows.items():
        for row, label in enumerate(labels.tolist()):
            members.setdefault(int(unit_of[label]), []).append((layer, row))
    signatures: dict[tuple[tuple[str, int], ...], list[int]] = {}
    for unit, places in members.items():
        if unit not in reasons:
            layers = [layer for layer, _ in places]
            signature = tuple((layer, layers.count(layer)) for layer in dict.fromkeys(layers))
            signatures.setdefault(signature, []).append(unit)
    groups = _described(trace, unit_of, list(signatures.values()))
    grouped = {layer for group in groups for layer in group.layers}
    frozen = {layer: reasons[int(unit_of[labels[0]])] for layer, labels in trace.rows.items() if layer not in grouped}
    frozen |= {name: "no channel of it could be followed" for name in specs if name not in trace.rows}
    return ChannelGroups(_distinct_names(groups), frozen, _entry_bytes(trace, network, specs))


def _described(trace: ChannelTrace, unit_of: np.ndarray, groups: Sequence[Sequence[int]]) -> list[ChannelGroup]:
    """The records of groups given by their units, which are in the order of the first layer's filters."""
    group_of, number_of = np.full(trace.count, -1), np.full(trace.count, -1)
    for index, units in enumerate(groups):
        group_of[units], number_of[units] = index, np.arange(len(units))
    found: list[dict[str, dict[str, tuple[int, ...]]]] = [{"rows": {}, "columns": {}, "vectors": {}} for _ in groups]
    for part in ("rows", "columns", "vectors"):
        for name, labels in getattr(trace, part).items():
            units = unit_of[labels]
            owners = group_of[units]
            for index in np.unique(owners[owners >= 0]):
                found[index][part][name] = tuple(np.where(owners == index, number_of[units], -1).tolist())
    return [ChannelGroup(next(iter(p["rows"])), len(u), **p) for p, u in zip(found, groups, strict=True)]


def _distinct_names(groups: Sequence[ChannelGroup]) -> tuple[ChannelGroup, ...]:
    """Groups that begin with the same layer are told apart by a number."""
    seen: dict[str, int] = {}
    named = []
    for group in groups:
        seen[group.name] = seen.get(group.name, 0) + 1
        suffix = f"#{seen[group.name]}" if seen[group.name] > 1 else ""
        named.append(ChannelGroup(group.name + suffix, group.units, group.rows, group.columns, group.vectors))
    return tuple(named)


def _entry_bytes(trace: ChannelTrace, network: nn.Module, specs: Mapping[str, LayerSpec]) -> dict[str, int]:
    folded, modules = {spec.norm for spec in specs.values()}, dict(network.named_modules())
    sizes = {}
    for name, labels in trace.vectors.items():
        owner = modules.get(name)
        if owner is not None:
            held = [parameter for parameter in owner._parameters.values() if parameter is not None]
            vectors = [buffer for buffer in stored_buffers(owner).values() if buffer.shape == (len(labels),)]
            if isinstance(owner, _BatchNorm):  # a class of one's own may hold more than what is folded
                more = [tensor for tensor in held if tensor is not owner.weight and tensor is not owner.bias]
                sizes[name] = 8 * (name not in folded) + 4 * sum(tensor.numel() == len(labels) for tensor in more)
            else:
                sizes[name] = 4 * len(held)
        else:
            path, _, key = name.rpartition(".")
            owner = network.get_submodule(path)
            vectors = [buffer for own, buffer in stored_buffers(owner).items() if own == key]
            counted = path in specs and key == "bias"  # with its layer, whoever else reads it
            sizes[name] = 4 * (key in owner._parameters and not counted)
        sizes[name] += sum(buffer_bytes(buffer) // len(labels) for buffer in vectors)
    return {name: size for name, size in sizes.items() if size}
