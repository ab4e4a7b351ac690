"""What layers take as they are stored: exact once it is known what the codes of a weight scheme take."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from search_spaces.assignments import LayerBits, kept_rows_of
from search_spaces.channels.slicing import pruned_graph
from search_spaces.costs.kinds import Cost
from search_spaces.costs.table import CostTable
from search_spaces.groups import kept_units
from search_spaces.layers import FLOAT_BITS, LayerSpec
from search_spaces.schemes import WeightScheme

STORED = ("size_bytes", "weight_bits")
"""The costs that a weight scheme changes. Bit operations and latencies are those of plain weights of the same bits."""


def stored_prices(table: CostTable, layers: Mapping[str, LayerBits]) -> dict[str, float]:
    """All costs of ``table``, with those of :data:`STORED` as the layers are stored."""
    return _prices(table, layers, lambda bits, scheme: scheme.stored_bits or 0)


def prices_without_index(table: CostTable, layers: Mapping[str, LayerBits]) -> dict[str, float]:
    """``COST_without_index`` of :data:`STORED`: the values alone, without what says where they are."""
    prices = _prices(table, layers, lambda bits, scheme: scheme.bits_without_index(bits.weight_bits))
    return {f"{cost}_without_index": prices[cost] for cost in STORED}


def _prices(
    table: CostTable, layers: Mapping[str, LayerBits], code_bits: Callable[[LayerBits, WeightScheme], int]
) -> dict[str, float]:
    """All costs, where the codes of a layer with a scheme take ``code_bits``."""
    prices = table.price(layers)
    for name, bits in layers.items():
        spec, scheme = table.graph[name], _known_scheme(table.graph[name], bits)
        if scheme is not None:
            for cost, stored in _stored_costs(table.costs, spec, bits, scheme, code_bits(bits, scheme)).items():
                prices[cost] += stored - table.costs[cost].of_layer(spec, bits.weight_bits, bits.activation_bits)
    return prices


def costs_by_layer(table: CostTable, layers: Mapping[str, LayerBits]) -> dict[str, dict[str, float]]:
    """Layer → cost → value, of what is left of each layer."""
    kept = kept_units(table.graph.channels, kept_rows_of(layers))
    specs = (pruned_graph(table.graph, kept) if kept else table.graph).by_name
    return {name: layer_costs(table.costs, specs[name], bits) for name, bits in layers.items() if name in specs}


def layer_costs(costs: Mapping[str, Cost], spec: LayerSpec, bits: LayerBits) -> dict[str, float]:
    """All ``costs`` of one layer, as it is stored where that is known."""
    found = {name: cost.of_layer(spec, bits.weight_bits, bits.activation_bits) for name, cost in costs.items()}
    scheme = _known_scheme(spec, bits)
    return found if scheme is None else found | _stored_costs(costs, spec, bits, scheme, scheme.stored_bits or 0)


def _known_scheme(spec: LayerSpec, bits: LayerBits) -> WeightScheme | None:
    """The scheme of a layer, where it is known what its own weight takes."""
    known = bits.scheme is not None and bits.scheme.stored_bits is not None and spec.shares_weight_with is None
    return bits.scheme if known else None


def _stored_costs(
    costs: Mapping[str, Cost], spec: LayerSpec, bits: LayerBits, scheme: WeightScheme, code_bits: int
) -> dict[str, float]:
    """The costs of :data:`STORED` of a layer whose codes take so many bits."""
    in_fp32 = costs["size_bytes"].of_layer(spec, FLOAT_BITS, bits.activation_bits)
    others = in_fp32 - 4 * spec.weight_elements  # the scale of inputs, the bias, the BatchNorm
    return {"size_bytes": others + scheme.scale_bytes + -(-code_bits // 8), "weight_bits": float(code_bits)}
