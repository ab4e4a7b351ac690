"""What a table says of whole nets, and the table made to say what whole nets take."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from dnas.latency.fit import fit
from search_spaces.assignments import LayerBits, kept_rows_of
from search_spaces.channels.slicing import pruned_graph
from search_spaces.costs.latency import LatencyRow, LatencyTable, MeasuredLatencies
from search_spaces.fields import Pair
from search_spaces.groups import kept_units
from search_spaces.layers import LayerGraph

Layers = Mapping[str, LayerBits]
GAIN = 0.03
"""Widths that are not faster than wider ones by this share give nothing."""


def layer_times(latencies: MeasuredLatencies, graph: LayerGraph, layers: Layers) -> dict[str, float]:
    """Milliseconds of every layer of a net with these widths and filters."""
    kept = kept_units(graph.channels, kept_rows_of(layers))
    specs = (pruned_graph(graph, kept) if kept else graph).by_name
    return {
        name: latencies.of_layer(specs[name], bits.weight_bits, bits.activation_bits)
        for name, bits in layers.items()
        if bits.weight_bits
    }


def predicted_ms(table: LatencyTable, graph: LayerGraph, layers: Layers) -> float:
    """Milliseconds of a whole net: the sum over its layers, and the rest."""
    return sum(layer_times(MeasuredLatencies("of the net", table), graph, layers).values()) + table.rest_ms


def calibrated(
    table: LatencyTable,
    graph: LayerGraph,
    alike: Sequence[Sequence[str]],
    nets: Sequence[Layers],
    measured: Sequence[float],
) -> LatencyTable:
    """The table with its rows scaled so that its sums are what ``nets`` take; layers that are ``alike`` stay so."""
    pairs, groups = table.pairs, {name: number for number, names in enumerate(alike) for name in names}
    latencies = MeasuredLatencies("of layers alone", table)
    alone = np.zeros((len(nets), len(alike) * len(pairs)))
    for row, layers in zip(alone, nets, strict=True):
        for name, ms in layer_times(latencies, graph, layers).items():
            pair = (layers[name].weight_bits, layers[name].activation_bits)
            row[groups[name] * len(pairs) + pairs.index(pair)] += ms
    kinds = [number % len(pairs) for number in range(alone.shape[1])]
    found = fit(alone, kinds, np.asarray(measured))

    def scaled(row: LatencyRow) -> LatencyRow:
        part = groups[row.layer] * len(pairs) + pairs.index((row.weight_bits, row.activation_bits))
        return row.model_copy(update={"latency_ms": row.latency_ms * float(found.factors[part])})

    return table.model_copy(update={"rows": tuple(map(scaled, table.rows)), "rest_ms": found.rest_ms})


def without_gain(table: LatencyTable, layers: Sequence[str]) -> set[Pair]:
    """The widths of ``table`` that are no faster than wider ones in any of these whole layers."""
    whole: dict[Pair, dict[str, float]] = {}
    for row in table.rows:  # the whole layer is the largest of its rows, and the slowest
        own = whole.setdefault((row.weight_bits, row.activation_bits), {})
        own[row.layer] = max(own.get(row.layer, 0.0), row.latency_ms)
    found = set()
    for pair, times in whole.items():
        wider = [other for other in whole if other != pair and other[0] >= pair[0] and other[1] >= pair[1]]
        gains = any(times[name] < (1 - GAIN) * min(whole[other][name] for other in wider) for name in layers if wider)
        found |= set() if gains or not wider else {pair}
    return found


def capability_of(table: LatencyTable, graph: LayerGraph) -> dict[str, object]:
    """The widths that are worth searching, for ``space.capability``; by type where types of layers differ."""
    by_type = {}
    for kind in dict.fromkeys(spec.kind for spec in graph.layers):
        nothing = without_gain(table, [spec.name for spec in graph.layers if spec.kind == kind])
        by_type[kind] = [list(pair) for pair in table.pairs if pair not in nothing]
    nothing = without_gain(table, [spec.name for spec in graph.layers])
    pairs = [list(pair) for pair in table.pairs if pair not in nothing]
    return {"pairs": pairs, "by_type": {kind: found for kind, found in by_type.items() if found != pairs}}
