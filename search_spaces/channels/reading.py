"""From a trace of labels to channel groups: what is tied becomes a unit, units of the same layers become a group.

The groups are proved before they are given out: a pruned copy of the network is followed once more, and every layer
must find in its input exactly the channels that are expected there. Code that counts its channels itself, such as a
split at a fixed position, fails this and keeps its filters, with that reason.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import networkx as nx
import numpy as np
import torch
from torch import fx
from torch.nn.modules.batchnorm import _BatchNorm

from search_spaces.channels.labels import ChannelInterpreter, ChannelTrace
from search_spaces.channels.shapes import note_shapes
from search_spaces.channels.slicing import kept_indices, remove_filters
from search_spaces.groups import ChannelGroup, ChannelGroups
from search_spaces.layers import LayerSpec
from search_spaces.models.buffers import buffer_bytes, stored_buffers

_FIXED = "the network's own code counts on their number"
_ONE_UNIT = "all its channels hang together, and none can go alone"


def read_channels(module: fx.GraphModule, specs: Sequence[LayerSpec], example: torch.Tensor) -> ChannelGroups:
    """Read the channel groups of a traced network whose nodes carry the shapes of one forward pass on ``example``."""
    by_name = {spec.name: spec for spec in specs}
    try:
        trace = ChannelInterpreter(module, by_name).follow()
    except Exception as error:  # a foreign model's own code runs here, on labels
        return ChannelGroups(unknown=f"its channels cannot be followed ({_sentence(error)})")
    groups = _groups(trace, module, by_name)
    whole = {group.name: _ONE_UNIT for group in groups.groups if group.units == 1}
    groups = _without(groups, whole)
    if not _holds(module, groups, groups.groups, by_name, example):
        alone = (group for group in groups.groups if not _holds(module, groups, [group], by_name, example))
        groups = _without(groups, dict.fromkeys((group.name for group in alone), _FIXED))
    return groups


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


def _groups(trace: ChannelTrace, module: fx.GraphModule, specs: Mapping[str, LayerSpec]) -> ChannelGroups:
    unit_of, reasons = _units(trace)
    members: dict[int, list[tuple[str, int]]] = {}
    for layer, labels in trace.rows.items():
        for row, label in enumerate(labels.tolist()):
            members.setdefault(unit_of[label], []).append((layer, row))
    signatures: dict[tuple[tuple[str, int], ...], list[int]] = {}
    for unit, places in members.items():
        if unit not in reasons:
            layers = [layer for layer, _ in places]
            signature = tuple((layer, layers.count(layer)) for layer in dict.fromkeys(layers))
            signatures.setdefault(signature, []).append(unit)
    groups = _described(trace, unit_of, list(signatures.values()))
    grouped = {layer for group in groups for layer in group.layers}
    frozen = {layer: reasons[unit_of[labels[0]]] for layer, labels in trace.rows.items() if layer not in grouped}
    frozen |= {name: "no channel of it could be followed" for name in specs if name not in trace.rows}
    return ChannelGroups(_distinct_names(groups), frozen, _entry_bytes(trace, module, specs))


def _units(trace: ChannelTrace) -> tuple[np.ndarray, dict[int, str]]:
    """The unit of every label (the first of the labels tied to it), and why the frozen units are so."""
    ties = nx.Graph()
    for first, second in trace.ties:
        ties.add_edges_from(zip(first.tolist(), second.tolist(), strict=True))
    unit_of = np.arange(trace.count)
    for component in nx.connected_components(ties):
        unit_of[list(component)] = min(component)
    reasons: dict[int, str] = {}
    for label, why in trace.frozen.items():
        reasons.setdefault(int(unit_of[label]), why)
    return unit_of, reasons


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


def _entry_bytes(trace: ChannelTrace, module: fx.GraphModule, specs: Mapping[str, LayerSpec]) -> dict[str, int]:
    folded = {spec.norm for spec in specs.values()}
    sizes = {}
    for name, labels in trace.vectors.items():
        owner = module.get_submodule(name)
        parameters = sum(parameter is not None for parameter in owner._parameters.values())
        vectors = [buffer for buffer in stored_buffers(owner).values() if buffer.shape == (len(labels),)]
        sizes[name] = 0 if name in folded else 8 if isinstance(owner, _BatchNorm) else 4 * parameters
        sizes[name] += sum(buffer_bytes(buffer) // len(labels) for buffer in vectors)
    return {name: size for name, size in sizes.items() if size}


def _holds(
    module: fx.GraphModule,
    groups: ChannelGroups,
    some: Sequence[ChannelGroup],
    specs: Mapping[str, LayerSpec],
    example: torch.Tensor,
) -> bool:
    """Whether every layer of a network without units of ``some`` reads what it should, tried in two ways."""
    tried = ({group.name: units(group.units) for group in some} for units in (_without_first, _without_last))
    return all(_holds_with(module, groups, kept, specs, example) for kept in tried)


def _without_first(units: int) -> tuple[int, ...]:
    """All units but the first: it moves every channel that is counted from the front."""
    return tuple(range(1, units))


def _without_last(units: int) -> tuple[int, ...]:
    """The first unit and about half of the others without the last: it moves what is counted from the end."""
    # not every second: a pattern could hide a shift
    return tuple(u for u in range(units) if u == 0 or (units - 1 - u) ** 2 % 7 not in (0, 4))


def _holds_with(
    module: fx.GraphModule,
    groups: ChannelGroups,
    kept: Mapping[str, tuple[int, ...]],
    specs: Mapping[str, LayerSpec],
    example: torch.Tensor,
) -> bool:
    names = {**_numbers(groups, "rows"), **{n: v for n, v in _numbers(groups, "vectors").items() if n not in specs}}
    given = {name: _kept_of(groups, kept, name in specs, name, numbers) for name, numbers in names.items()}
    try:
        smaller = remove_filters(module, groups, kept)
        note_shapes(smaller, example)
        trace = ChannelInterpreter(smaller, specs, given).follow()
    except Exception:  # whatever a foreign model's code raises, it does not run without these filters
        return False
    for part in ("columns", "vectors"):
        for name, numbers in _numbers(groups, part).items():
            expected = _selected(numbers, kept_indices(groups, kept, part, name))
            found = getattr(trace, part).get(name)
            if found is None or len(found) != len(expected):
                return False
            known = expected >= 0
            if not np.array_equal(found[known], expected[known]):
                return False
    return True


def _numbers(groups: ChannelGroups, part: str) -> dict[str, np.ndarray]:
    """Module → a number for every channel, unique to its unit over all groups; -1 for a channel of none."""
    numbers: dict[str, np.ndarray] = {}
    first = 0
    for group in groups.groups:
        for name, units in getattr(group, part).items():
            own = np.array(units)
            known = numbers.get(name, np.full(len(own), -1))
            numbers[name] = np.where(own >= 0, own + first, known)
        first += group.units
    return numbers


def _selected(numbers: np.ndarray, indices: torch.Tensor | None) -> np.ndarray:
    return numbers if indices is None else numbers[indices.numpy()]


def _kept_of(
    groups: ChannelGroups, kept: Mapping[str, tuple[int, ...]], is_layer: bool, name: str, numbers: np.ndarray
) -> np.ndarray:
    return _selected(numbers, kept_indices(groups, kept, "rows" if is_layer else "vectors", name))
