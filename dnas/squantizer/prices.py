"""What sparse weights take, with and without their index, and how many times smaller that is than fp32."""

from __future__ import annotations

from collections.abc import Mapping

from search_spaces.assignments import LayerBits
from search_spaces.costs.stored import prices_without_index, stored_prices
from search_spaces.costs.table import CostTable
from search_spaces.layers import FLOAT_BITS
from search_spaces.sparse_weights.scheme import SparseWeights


def sparse_of(layers: Mapping[str, LayerBits]) -> dict[str, SparseWeights]:
    """Layer → how it is sparse, for every sparse layer."""
    return {name: bits.scheme for name, bits in layers.items() if isinstance(bits.scheme, SparseWeights)}


def sparse_prices(table: CostTable, layers: Mapping[str, LayerBits]) -> dict[str, float]:
    """All costs of ``table`` as stored; the size and the weight bits also without the index."""
    return stored_prices(table, layers) | prices_without_index(table, layers)


def compression_ratios(
    table: CostTable, layers: Mapping[str, LayerBits], prices: Mapping[str, float]
) -> dict[str, float]:
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
    sparse = {name: known for name, known in sparse_of(owned).items() if known.nonzeros is not None}
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
