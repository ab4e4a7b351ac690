"""What sparse weights take in all, with and without their index, by hand."""

from __future__ import annotations

from dataclasses import replace

from dnas.squantizer.prices import compression_ratios, sparse_prices
from search_spaces.sparse_weights.scheme import SparseWeights
from tests.toys import Net, SharedWeight, plan


def test_prices_count_what_is_stored_and_two_numbers_in_the_place_of_one_scale() -> None:
    graph, space, table = plan(Net(), weight_bits=(4,), activation_bits=(4,), first_layer=32, last_layer=32)
    dense = space.uniform(4)
    assert sparse_prices(table, dense) == table.price(dense) | {
        "size_bytes_without_index": table.price(dense)["size_bytes"],
        "weight_bits_without_index": table.price(dense)["weight_bits"],
    }
    known = SparseWeights(0.0, nonzeros=10, storage="bitmask", stored_bits=81 + 40)
    layers = {**dense, "first": replace(dense["first"], scheme=known)}
    prices, before = sparse_prices(table, layers), table.price(dense)
    packed = 4 * 11 + 4  # 81 weights as four bit planes of 11 bytes, and the scale
    assert prices["size_bytes"] == before["size_bytes"] - packed + 16 + 8
    assert prices["size_bytes_without_index"] == before["size_bytes"] - packed + 5 + 8
    assert prices["weight_bits"] == before["weight_bits"] - 81 * 4 + 121
    assert prices["weight_bits_without_index"] == before["weight_bits"] - 81 * 4 + 40
    assert prices["bitops"] == before["bitops"]

    told = compression_ratios(table, layers, prices)
    assert told["sparsity"] == 71 / 81
    assert (told["sparse_layers_with_index"], told["sparse_layers_without_index"]) == (32 * 81 / 121, 32 * 81 / 40)
    assert told["sparsity_of_all"] == 71 / sum(layer.weight_elements for layer in graph.layers)
    assert told["with_index"] == table.uniform(32)["size_bytes"] / prices["size_bytes"]
    assert told["weights_without_index"] == table.uniform(32)["weight_bits"] / prices["weight_bits_without_index"]


def test_a_shared_weight_is_stored_once() -> None:
    _, space, table = plan(SharedWeight(), weight_bits=(4,), activation_bits=(4,), first_layer="search", last_layer=32)
    known = SparseWeights(0.0, nonzeros=100, storage="bitmask", stored_bits=1696)
    layers = {n: replace(b, scheme=known) if n != "head" else b for n, b in space.uniform(4).items()}
    once = {**layers, "second": replace(layers["second"], scheme=None)}
    assert sparse_prices(table, layers) == sparse_prices(table, once)
    assert compression_ratios(table, layers, sparse_prices(table, layers))["sparsity"] == 1196 / 1296
