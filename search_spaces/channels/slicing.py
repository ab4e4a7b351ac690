"""Remove filters for real: a smaller network from an unedited one, and the smaller :class:`LayerGraph` that it has."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, TypeVar, cast, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn

from search_spaces.groups import ChannelGroups, Kept, check_kept
from search_spaces.layers import LayerGraph, LayerSpec
from search_spaces.models.copies import copy_network
from search_spaces.models.zoo import SubsampleShortcut

Network = TypeVar("Network", bound=nn.Module)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


@dataclass(frozen=True)
class Selection:
    """What one layer keeps: filters, input channels, and those along its weight's own input axis (None: all).

    ``groups`` is its number of groups afterwards. ``sliced`` remembers parameters that were cut already, so that
    layers that share one go on sharing it.
    """

    filters: Tensor | None
    inputs: Tensor | None
    weight_inputs: Tensor | None
    groups: int
    sliced: dict[int, nn.Parameter | None] = field(default_factory=dict)


@runtime_checkable
class Sliceable(Protocol):
    """A layer that cuts itself, such as one that wraps another and holds its weight."""

    def keep_channels(self, selection: Selection) -> None:
        """Keep only what the selection names, in place."""


def remove_filters(network: Network, groups: ChannelGroups, kept: Kept) -> Network:
    """Return a smaller copy of ``network`` in which each group has only the units in ``kept``.

    The network may be the one that the groups were read from, or a quantized twin with the same layer names. Its
    parameters are new: an optimizer must be made anew (:func:`bayesopt.rebuild_optimizer` carries its state over).
    Raises :class:`InputError` for a group or unit that does not exist, and where a group would lose all its units.
    """
    check_kept(groups, kept)
    smaller = copy_network(network)
    remaining = {group.name: kept.get(group.name, tuple(range(group.units))) for group in groups.groups}
    touched = [group for group in groups.groups if len(remaining[group.name]) < group.units]
    sliced: dict[int, nn.Parameter | None] = {}
    for name in dict.fromkeys(name for group in touched for name in (*group.rows, *group.columns)):
        module = smaller.get_submodule(name)
        slice_layer(module, _selection(groups, remaining, name, module, sliced))
    for name in dict.fromkeys(name for group in touched for name in group.vectors):
        entries = kept_indices(groups, remaining, "vectors", name)
        if entries is not None:
            width = next(len(group.vectors[name]) for group in touched if name in group.vectors)
            _slice_vector(smaller, name, entries, width, sliced)
    return smaller


def kept_indices(groups: ChannelGroups, kept: Kept, part: str, name: str) -> Tensor | None:
    """Indices that module ``name`` keeps of its "rows", "columns" or "vectors"; None where it keeps all."""
    stays: np.ndarray | None = None
    for group in groups.groups:
        units = getattr(group, part).get(name)
        if units is None or group.name not in kept or len(kept[group.name]) == group.units:
            continue
        unit_stays = np.zeros(group.units + 1, dtype=bool)
        unit_stays[[*kept[group.name], -1]] = True  # the last is that of -1, a channel outside the group
        own = unit_stays[np.array(units)]
        stays = own if stays is None else stays & own
    return None if stays is None else torch.from_numpy(stays.nonzero()[0])


def _selection(
    groups: ChannelGroups, kept: Kept, name: str, module: Any, sliced: dict[int, nn.Parameter | None]
) -> Selection:
    filters, inputs = (kept_indices(groups, kept, part, name) for part in ("rows", "columns"))
    number = int(getattr(module, "groups", 1))
    weight_inputs = inputs
    if inputs is not None and number > 1:
        per_group = module.in_channels // number
        weight_inputs = None if per_group == 1 else inputs[inputs < per_group]
        number = len(inputs) if per_group == 1 else number
    return Selection(filters, inputs, weight_inputs, number, sliced)


def slice_layer(layer: nn.Module, selection: Selection) -> None:
    """Cut a convolution, a linear layer, or a :class:`Sliceable`, in place."""
    if isinstance(layer, Sliceable):
        layer.keep_channels(selection)
    else:
        cut_layer(layer, selection)


def cut_layer(layer: nn.Module, selection: Selection) -> None:
    """Cut the weight and bias of a convolution or a linear layer, in place."""
    module: Any = layer
    axes = (1, 0) if isinstance(layer, _TRANSPOSED) else (0, 1)
    along = dict(zip(axes, (selection.filters, selection.weight_inputs), strict=True))
    module.weight = _cut(module.weight, along, selection.sliced)
    if module.bias is not None:
        module.bias = _cut(module.bias, {0: selection.filters}, selection.sliced)
    unit = "features" if isinstance(module, nn.Linear) else "channels"
    if selection.inputs is not None:
        setattr(module, f"in_{unit}", len(selection.inputs))
    if selection.filters is not None:
        setattr(module, f"out_{unit}", len(selection.filters))
    if hasattr(module, "groups"):
        module.groups = selection.groups


def _slice_vector(
    network: nn.Module, name: str, entries: Tensor, width: int, sliced: dict[int, nn.Parameter | None]
) -> None:
    """Cut a module that has ``width`` entries, one per channel, or a parameter or buffer of its own, in place."""
    path, _, key = name.rpartition(".")
    owner = network.get_submodule(path)
    module: Any = owner._modules.get(key)
    if module is None:
        _slice_tensors(owner, {key}, entries, width, sliced)
    elif isinstance(module, SubsampleShortcut):
        first, last = module.before, width - module.after
        module.before, module.after = int((entries < first).sum()), int((entries >= last).sum())
    else:
        _slice_tensors(module, {*module._parameters, *module._buffers}, entries, width, sliced)
        _resize_norm(module, len(entries))


def _slice_tensors(
    module: nn.Module, keys: Collection[str], entries: Tensor, width: int, sliced: dict[int, nn.Parameter | None]
) -> None:
    """Cut those of a module's tensors that hold ``width`` entries along their only axis of more than one."""
    for key in keys:
        parameter, buffer = module._parameters.get(key), module._buffers.get(key)
        tensor = buffer if parameter is None else parameter
        if tensor is None or tensor.numel() != width or width not in tensor.shape:
            continue
        axis = tensor.shape.index(width)
        if parameter is not None:
            setattr(module, key, _cut(parameter, {axis: entries}, sliced))
        elif buffer is not None:
            setattr(module, key, buffer.index_select(axis, entries.to(buffer.device)))


def _resize_norm(module: Any, count: int) -> None:
    """Tell a normalization or PReLU how many channels it has."""
    if isinstance(module, nn.GroupNorm):
        module.num_groups = module.num_groups * count // module.num_channels
        module.num_channels = count
    else:
        setattr(module, "num_parameters" if isinstance(module, nn.PReLU) else "num_features", count)


def _cut(
    parameter: nn.Parameter, along: Mapping[int, Tensor | None], sliced: dict[int, nn.Parameter | None]
) -> nn.Parameter:
    """A new parameter with the kept indices along each axis; one that was cut already is only looked up."""
    if id(parameter) not in sliced:
        value = parameter.detach()
        for axis, indices in along.items():
            if indices is not None:
                value = value.index_select(axis, indices.to(value.device))
        new = nn.Parameter(value.clone() if value is parameter else value.contiguous(), parameter.requires_grad)
        sliced[id(parameter)] = sliced[id(new)] = new
    return cast(nn.Parameter, sliced[id(parameter)])


def pruned_graph(graph: LayerGraph, kept: Kept) -> LayerGraph:
    """The :class:`LayerGraph` of the network that :func:`remove_filters` makes; it has no groups of its own."""
    groups = graph.channels
    check_kept(groups, kept)
    return resized_graph(graph, *(_sizes(groups, kept, part) for part in ("rows", "columns", "vectors")))


def _sizes(groups: ChannelGroups, kept: Kept, part: str) -> dict[str, int]:
    """Module → how many it keeps of its rows, columns or vectors, where some go."""
    names = dict.fromkeys(name for group in groups.groups for name in getattr(group, part))
    found = {name: kept_indices(groups, kept, part, name) for name in names}
    return {name: len(indices) for name, indices in found.items() if indices is not None}


def resized_graph(
    graph: LayerGraph, filters: Mapping[str, int], inputs: Mapping[str, int], vectors: Mapping[str, int]
) -> LayerGraph:
    """The graph with so many filters, input channels and entries in the modules that these name."""
    layers = tuple(
        resized_spec(spec, filters.get(spec.name), inputs.get(spec.name), vectors.get(spec.norm) if spec.norm else None)
        for spec in graph.layers
    )
    channels = ChannelGroups(frozen={layer.name: "its network is pruned already" for layer in layers})
    return replace(graph, layers=layers, other_bytes=resized_other_bytes(graph, vectors), channels=channels)


def resized_other_bytes(graph: LayerGraph, vectors: Mapping[str, int]) -> int:
    """``other_bytes`` when modules with one entry per channel have as many entries as ``vectors`` says."""
    groups = graph.channels
    widths = {name: len(units) for group in groups.groups for name, units in group.vectors.items()}
    gone = {name: widths[name] - count for name, count in vectors.items()}
    return graph.other_bytes - sum(groups.entry_bytes.get(name, 0) * count for name, count in gone.items())


def resized_spec(spec: LayerSpec, filters: int | None, inputs: int | None, norm_channels: int | None) -> LayerSpec:
    """A layer's record with another number of filters, input channels and BatchNorm entries (None: as it is)."""
    if filters is None and inputs is None and norm_channels is None:
        return spec
    out_axis, in_axis = (1, 0) if "Transpose" in spec.kind else (0, 1)
    shape, number = list(spec.weight_shape), spec.groups
    if filters is not None:
        shape[out_axis] = filters
    if inputs is not None and spec.groups > 1 and shape[in_axis] == 1:
        number = inputs
    elif inputs is not None:
        shape[in_axis] = inputs // spec.groups
    macs = spec.macs
    for axis in (out_axis, in_axis):
        macs = macs * shape[axis] // spec.weight_shape[axis]
    spatial = len(shape) - 2
    return replace(
        spec,
        weight_shape=tuple(shape),
        input_shape=_with_channels(spec.input_shape, spatial, inputs),
        output_shape=_with_channels(spec.output_shape, spatial, filters),
        macs=macs,
        out_channels=spec.out_channels if filters is None else filters,
        groups=number,
        bias_elements=filters if spec.bias_elements and filters is not None else spec.bias_elements,
        norm_channels=spec.norm_channels if norm_channels is None else norm_channels,
    )


def _with_channels(shape: tuple[int, ...], spatial: int, count: int | None) -> tuple[int, ...]:
    """The shape of one sample with another number of channels; they stand before the spatial axes."""
    if count is None:
        return shape
    axis = len(shape) - 1 - spatial
    return (*shape[:axis], count, *shape[axis + 1 :])
