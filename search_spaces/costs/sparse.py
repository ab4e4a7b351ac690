"""What sparse weights take, with and without their index: exact once the codes of every layer are known.

A sparse layer stores its codes in the smallest format of :mod:`search_spaces.sparse_codes` and two fp32 numbers, the
threshold and the largest magnitude. "Without index" counts the values alone, as published ratios seem to do: no such
file exists.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from search_spaces.assignments import LayerBits, kept_rows_of
from search_spaces.channels.slicing import pruned_graph
from search_spaces.costs.table import Cost, CostTable
from search_spaces.groups import kept_units
from search_spaces.layers import FLOAT_BITS, LayerSpec
from search_spaces.sparse_codes import SparseWeights

SCALE_BYTES = 8
"""The threshold and the largest magnitude of a sparse layer, in fp32."""
WITHOUT_INDEX = ("size_bytes_without_index", "weight_bits_without_index")


def sparse_prices(table: CostTable, layers: Mapping[str, LayerBits]) -> dict[str, float]:
    """All costs of ``table``, with ``size_bytes`` and ``weight_bits`` as stored, and both without the index.

    Bit operations and latencies are those of dense weights of the same bits: skipping zeros is not assumed.
    """
    prices = table.price(layers)
    bare_bytes, bare_bits = prices["size_bytes"], prices["weight_bits"]
    for layer, bits in layers.items():
        spec = table.graph[layer]
        if bits.sparse is None or bits.sparse.nonzeros is None or spec.shares_weight_with is not None:
            continue
        dense = layer_costs(table.costs, spec, replace(bits, sparse=None))
        stored = layer_costs(table.costs, spec, bits)
        bare = layer_costs(table.costs, spec, replace(bits, sparse=_without_index(bits.sparse, bits.weight_bits)))
        for name in ("size_bytes", "weight_bits"):
            prices[name] += stored[name] - dense[name]
        bare_bytes += bare["size_bytes"] - dense["size_bytes"]
        bare_bits += bare["weight_bits"] - dense["weight_bits"]
    return prices | dict(zip(WITHOUT_INDEX, (bare_bytes, bare_bits), strict=True))


def costs_by_layer(table: CostTable, layers: Mapping[str, LayerBits]) -> dict[str, dict[str, float]]:
    """Layer → cost → value, of what is left of each layer."""
    kept = kept_units(table.graph.channels, kept_rows_of(layers))
    specs = (pruned_graph(table.graph, kept) if kept else table.graph).by_name
    return {name: layer_costs(table.costs, specs[name], bits) for name, bits in layers.items() if name in specs}


def layer_costs(costs: Mapping[str, Cost], spec: LayerSpec, bits: LayerBits) -> dict[str, float]:
    """All ``costs`` of one layer, as it is stored where it is known to be sparse."""
    found = {name: cost.of_layer(spec, bits.weight_bits, bits.activation_bits) for name, cost in costs.items()}
    sparse = bits.sparse
    if sparse is not None and sparse.stored_bits is not None and spec.shares_weight_with is None:
        in_fp32 = costs["size_bytes"].of_layer(spec, FLOAT_BITS, bits.activation_bits)
        # Input scale, bias and BatchNorm stay as they are.
        found["size_bytes"] = in_fp32 - 4 * spec.weight_elements + SCALE_BYTES + -(-sparse.stored_bits // 8)
        found["weight_bits"] = float(sparse.stored_bits)
    return found


def _without_index(sparse: SparseWeights, weight_bits: int) -> SparseWeights:
    """As if the values alone were stored."""
    return replace(sparse, stored_bits=(sparse.nonzeros or 0) * weight_bits)


def compression(table: CostTable, layers: Mapping[str, LayerBits], prices: Mapping[str, float]) -> dict[str, float]:
    """How many times smaller than in fp32 a net is, with and without the index, and the share of weights that are zero.

    The ratios are of the whole file, of the weights of all layers and, as the paper seems to count, of those of the
    sparse layers (where one of them has a weight left). ``sparsity`` too counts the sparse layers alone,
    ``sparsity_of_all`` the weights of every layer.
    """
    whole = table.uniform(FLOAT_BITS, ["size_bytes", "weight_bits"])
    told = {
        "with_index": whole["size_bytes"] / prices["size_bytes"],
        "without_index": whole["size_bytes"] / prices["size_bytes_without_index"],
        "weights_with_index": whole["weight_bits"] / prices["weight_bits"],
        "weights_without_index": whole["weight_bits"] / prices["weight_bits_without_index"],
    }
    owned = {n: b for n, b in layers.items() if table.graph[n].shares_weight_with is None}
    sparse = {n: b.sparse for n, b in owned.items() if b.sparse is not None and b.sparse.nonzeros is not None}
    total = sum(table.graph[name].weight_elements for name in owned)
    elements = sum(table.graph[name].weight_elements for name in sparse)
    nonzeros = sum(known.nonzeros or 0 for known in sparse.values())
    if nonzeros:
        stored_bits = sum(known.stored_bits or 0 for known in sparse.values())
        value_bits = sum((known.nonzeros or 0) * layers[name].weight_bits for name, known in sparse.items())
        told["sparse_layers_with_index"] = FLOAT_BITS * elements / stored_bits
        told["sparse_layers_without_index"] = FLOAT_BITS * elements / value_bits
    zeros = elements - nonzeros
    return {**told, "sparsity": zeros / elements if sparse else 0.0, "sparsity_of_all": zeros / total}
