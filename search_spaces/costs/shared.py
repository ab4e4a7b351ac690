"""What one file of several assignments takes: weights once, at the widest width; what differs, for each of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from search_spaces.assignments import LayerBits, kept_rows_of
from search_spaces.channels.slicing import kept_indices, pruned_graph
from search_spaces.costs.kinds import packed_weight_bytes, scale_rows
from search_spaces.groups import Kept, kept_units
from search_spaces.layers import FLOAT_BITS, LayerGraph

Layers = Mapping[str, LayerBits]


def shared_size_bytes(
    graph: LayerGraph,
    profiles: Sequence[Layers],
    *,
    per_channel: bool = False,
    nests: bool = True,
    one_scale: bool = True,
    private_norms: bool = True,
    other_norms: Mapping[str, int] | None = None,
) -> int:
    """Bytes of a switchable net's file without its header.

    ``nests`` says whether one integer serves all widths of a weight: else a layer with several is stored in fp32;
    ``one_scale`` whether all its widths have the same scale. ``other_norms`` are the channels of the whole network's
    BatchNorms that no layer accounts for, by name (they are among ``graph.other_bytes``).
    """
    kept = [kept_units(graph.channels, kept_rows_of(layers)) for layers in profiles]
    whole = union_graph(graph, profiles)
    own = [pruned_graph(graph, units) if units else graph for units in kept]
    total = whole.other_bytes
    if private_norms:
        channels = [_other_channels(graph, units, other_norms or {}) for units in (union_units(graph, kept), *kept)]
        total += 8 * (sum(channels[1:]) - channels[0])
    for spec in whole.layers:
        running = [(layers[spec.name], smaller[spec.name]) for layers, smaller in zip(profiles, own, strict=True)]
        running = [(bits, small) for bits, small in running if bits.weight_bits]
        if not running:
            continue
        widths = {bits.weight_bits for bits, _ in running}
        quantized = widths - {FLOAT_BITS}
        if spec.shares_weight_with is None:
            as_float = FLOAT_BITS in widths or (len(widths) > 1 and not nests)
            total += packed_weight_bytes(spec.weight_elements, FLOAT_BITS if as_float else max(widths))
            total += 4 * min(len(quantized), 1 if one_scale else 16) * (scale_rows(spec) if per_channel else 1)
        total += 4 * len({bits.activation_bits for bits, _ in running} - {FLOAT_BITS}) + 4 * spec.bias_elements
        norms = [small.norm_channels for _, small in running]
        total += 8 * (sum(norms) if private_norms else max(norms))
    return total


def _other_channels(graph: LayerGraph, units: Kept, other_norms: Mapping[str, int]) -> int:
    """Channels that these BatchNorms have when groups have these units left."""
    found = {name: kept_indices(graph.channels, units, "vectors", name) for name in other_norms}
    return sum(other_norms[name] if left is None else len(left) for name, left in found.items())


def union_graph(graph: LayerGraph, profiles: Sequence[Layers]) -> LayerGraph:
    """The graph of the filters that any of these assignments keeps."""
    union = union_units(graph, [kept_units(graph.channels, kept_rows_of(layers)) for layers in profiles])
    return pruned_graph(graph, union) if union else graph


def union_units(graph: LayerGraph, kept: Sequence[Kept]) -> dict[str, tuple[int, ...]]:
    """Group → the units that any of these keeps, for groups of which all of them lose some."""
    union = {}
    for group in graph.channels.groups:
        units = {unit for one in kept for unit in one.get(group.name, range(group.units))}
        if len(units) < group.units:
            union[group.name] = tuple(sorted(units))
    return union
