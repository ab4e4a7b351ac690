"""What a choice of bits costs: one table, computed once in float64, for the search and for the final figure alike.

``size_bytes`` is what a packed file takes: the weights of a layer as bit planes, each plane rounded up to a byte;
one fp32 scale per quantized weight tensor (or output channel) and per quantized input; biases in fp32; BatchNorm
folded to one scale and one shift per channel; everything else in fp32. 32 bits mean fp32 without scales.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, SupportsFloat

import numpy as np

from search_spaces.assignments import LayerBits, bits_by_layer, kept_rows_of
from search_spaces.channels.slicing import pruned_graph
from search_spaces.costs.latency import read_latencies
from search_spaces.errors import InputError, check_type, nearest, one_line
from search_spaces.fields import Pair
from search_spaces.groups import kept_units
from search_spaces.layers import FLOAT_BITS, LayerGraph, LayerSpec
from search_spaces.registry import importable_working_directory, imported
from search_spaces.returned import refuse_other
from search_spaces.spaces import PrecisionSpace

LayerCost = Callable[[LayerSpec, int, int], float]
"""A cost of one layer at (weight bits, activation bits); a skipped layer is never asked for."""


def _nothing(graph: LayerGraph) -> float:
    return 0.0


@dataclass(frozen=True)
class Cost:
    """A named cost: its unit, what one layer costs, and how layers combine (``"sum"`` or ``"max"``).

    ``network`` is what the rest of the network costs whatever the bits. ``shrinks`` says whether a layer with fewer
    filters or inputs costs less, so that pruning can meet a budget on it.
    """

    name: str
    unit: str
    layer: LayerCost
    combine: str = "sum"
    network: Callable[[LayerGraph], float] = _nothing
    shrinks: bool = True

    def of_layer(self, spec: LayerSpec, weight_bits: int, activation_bits: int) -> float:
        """The cost of one layer; 0 for a skipped one."""
        return float(self.layer(spec, weight_bits, activation_bits)) if weight_bits else 0.0

    def total(self, values: Sequence[float], rest: float) -> float:
        """Combine the costs of the layers with that of the rest of the network."""
        return max([rest, *values]) if self.combine == "max" else float(np.sum(values, dtype=np.float64)) + rest


def packed_weight_bytes(elements: int, bits: int) -> int:
    """Bytes of ``elements`` integers of ``bits`` bits stored as bit planes, or as fp32 at 32 bits.

    >>> packed_weight_bytes(9, 3), packed_weight_bytes(9, 32)
    (6, 36)
    """
    return 4 * elements if bits == FLOAT_BITS else bits * -(-elements // 8)


def size_bytes(per_channel: bool = False) -> Cost:
    """The size of the packed file, without its header."""
    return Cost("size_bytes", "bytes", partial(_size_bytes, per_channel=per_channel), network=_other_bytes)


def _size_bytes(spec: LayerSpec, weight_bits: int, activation_bits: int, *, per_channel: bool) -> float:
    weights = 0
    if spec.shares_weight_with is None:
        weights = packed_weight_bytes(spec.weight_elements, weight_bits)
        if weight_bits != FLOAT_BITS:
            weights += 4 * (scale_rows(spec) if per_channel else 1)
    input_scale = 0 if activation_bits == FLOAT_BITS else 4
    return weights + input_scale + 4 * spec.bias_elements + 2 * 4 * spec.norm_channels


def _other_bytes(graph: LayerGraph) -> float:
    return float(graph.other_bytes)


def scale_rows(spec: LayerSpec) -> int:
    """Rows of the weight that get a scale each: output channels (per group, where a transposed layer is grouped)."""
    return spec.out_channels // spec.groups if "Transpose" in spec.kind else spec.out_channels


def _bitops(spec: LayerSpec, weight_bits: int, activation_bits: int) -> float:
    return spec.macs * weight_bits * activation_bits


def _macs(spec: LayerSpec, weight_bits: int, activation_bits: int) -> float:
    return spec.macs


def _input_bytes(spec: LayerSpec, weight_bits: int, activation_bits: int) -> float:
    return -(-spec.input_elements * activation_bits // 8)


def _weight_bits(spec: LayerSpec, weight_bits: int, activation_bits: int) -> float:
    return 0.0 if spec.shares_weight_with else spec.weight_elements * weight_bits


WEIGHT_BITS = Cost("weight_bits", "bits", _weight_bits)
"""Bits of the weights alone, as papers count size: no scales, biases, BatchNorm or padding."""
BITOPS = Cost("bitops", "bit operations", _bitops)
MACS = Cost("macs", "multiply-accumulates", _macs)
PEAK_ACTIVATION_BYTES = Cost("peak_activation_bytes", "bytes", _input_bytes, combine="max")
"""The largest input that any layer reads, of one sample at its activation bits."""


def latency_table(path: Path) -> Cost:
    """A latency that was measured, as ``dnas bench-latency`` writes it, or in rows that a user wrote: CSV or JSON.

    Where the table has no rows of fewer channels, pruning cannot meet a budget on it.
    """
    found = read_latencies(path)
    return Cost("latency_ms", "ms", found.of_layer, network=found.of_rest, shrinks=found.shrinks)


def user_cost(name: str, given: str | LayerCost | Cost) -> Cost:
    """The user's own cost: a :class:`Cost`, a function that is summed over layers, or the import path of either."""
    if isinstance(given, str):
        if ":" not in given:
            raise InputError(f"cost '{name}' is '{given}'; give a function or its name as 'package.module:function'")
        with importable_working_directory():
            found: Any = imported(given, f"cost '{name}'")
    else:
        found = given
    if isinstance(found, Cost):
        return replace(found, name=name)
    if isinstance(given, str):
        refuse_other(given, found, f"cost '{name}'", [SupportsFloat])
    if not callable(found):
        kind = f", a {type(found).__name__}" if found is not given else ""
        raise InputError(f"cost '{name}' is {given!r}{kind}; give a function, a Cost, or 'package.module:name' of one")
    return Cost(name, "", found)


class CostTable:
    """Every cost of every choice of a space, priced once.

    ``entries[cost]`` is a float64 array (D, Kw, Ka): what decision d costs in each cell (over its layers, summed or
    the largest). ``constants[cost]`` is what the fixed layers and the rest of the network cost.
    """

    def __init__(self, graph: LayerGraph, space: PrecisionSpace, costs: Sequence[Cost]) -> None:
        check_type(graph, LayerGraph, "the layers of a table", "give what read_graph(model, shape) returns")
        check_type(space, PrecisionSpace, "the space of a table", "give what build_space(graph, options) returns")
        check_type(costs, (list, tuple), "the costs of a table", "give a list of them, such as build_costs()")
        for cost in costs:
            check_type(cost, Cost, "a cost", "name your own function by build_costs(functions={'energy': function})")
        self.graph, self.space = graph, space
        self.costs = {cost.name: cost for cost in costs}
        self._memo: dict[tuple[str, LayerSpec, int, int], float] = {}
        self.entries = {cost.name: self._entries(cost) for cost in costs}
        self.constants = {
            cost.name: cost.total(
                [self._layer(cost, graph[name], pair) for name, pair in space.fixed.items()], cost.network(graph)
            )
            for cost in costs
        }

    def _layer(self, cost: Cost, spec: LayerSpec, pair: Pair) -> float:
        key = (cost.name, spec, *pair)
        if key not in self._memo:
            value = _asked(cost, spec, pair)
            if not np.isfinite(value) or value < 0:
                raise InputError(
                    f"cost '{cost.name}' of layer '{spec.name}' at {pair} is {value}; it must be finite and >= 0"
                )
            self._memo[key] = value
        return self._memo[key]

    def _entries(self, cost: Cost) -> np.ndarray:
        entries = np.zeros(self.space.allowed.shape, dtype=np.float64)
        for d, decision in enumerate(self.space.decisions):
            for i, j in zip(*np.nonzero(self.space.allowed[d]), strict=True):
                pair = self.space.pair(int(i), int(j))
                entries[d, i, j] = cost.total(
                    [self._layer(cost, self.graph[name], pair) for name in decision.layers], 0.0
                )
        return entries

    def price(self, layers: Mapping[str, LayerBits], names: Collection[str] | None = None) -> dict[str, float]:
        """Exact costs (all, or those in ``names``) of any bits for every layer, also ones outside the space.

        Layers that keep only some filters are priced in the network that is left.
        """
        layers = bits_by_layer(layers)
        kept = kept_units(self.graph.channels, kept_rows_of(layers))
        return self.price_in(pruned_graph(self.graph, kept) if kept else self.graph, layers, names)

    def price_in(
        self, graph: LayerGraph, layers: Mapping[str, LayerBits], names: Collection[str] | None = None
    ) -> dict[str, float]:
        """Exact costs of these bits in a network with the same layers at other sizes."""
        specs = graph.by_name
        for name in layers:
            if name not in specs:
                raise InputError(f"there is no layer '{name}'{nearest(str(name), specs)}")
        return {
            cost.name: cost.total(
                [self._layer(cost, specs[name], (b.weight_bits, b.activation_bits)) for name, b in layers.items()],
                cost.network(graph),
            )
            for cost in self.costs.values()
            if names is None or cost.name in names
        }

    def uniform(self, bits: int, names: Collection[str] | None = None) -> dict[str, float]:
        """Costs with ``bits`` for weights and activations of every layer, the fixed ones included."""
        return self.price({layer.name: LayerBits(bits, bits) for layer in self.graph.layers}, names)

    def cells_cost(self, cells: Sequence[tuple[int, int]]) -> dict[str, float]:
        """Exact costs when decision d takes the cell ``cells[d]``."""
        return self.price(self.space.layers_of(cells))

    def prices_sha256(self, names: Sequence[str]) -> str:
        """The SHA-256 of what these costs say, to nine digits: of every choice, the rest, and what budgets are of."""
        told = list(names)
        for name in names:
            values = [*self.entries[name].ravel(), self.constants[name]]
            for bits in (FLOAT_BITS, 8):
                with suppress(InputError):  # a table need not know the widths that its job does not offer
                    values.append(self.uniform(bits, [name])[name])
            told += [f"{value:.8e}" for value in values]
        return hashlib.sha256(" ".join(told).encode()).hexdigest()

    def require(self, name: str) -> Cost:
        """The cost of that name; :class:`InputError` with the nearest name otherwise."""
        if name not in self.costs:
            raise InputError(f"unknown cost '{name}'; known are {', '.join(self.costs)}{nearest(name, self.costs)}")
        return self.costs[name]


def _asked(cost: Cost, spec: LayerSpec, pair: Pair) -> float:
    """What a cost says of a layer; :class:`InputError` where its function fails or gives no number."""
    try:
        return cost.of_layer(spec, *pair)
    except InputError:
        raise
    except (Exception, SystemExit) as error:  # the user's own code may fail in any way
        raise InputError(
            f"cost '{cost.name}' failed for layer '{spec.name}' at {pair}: {one_line(error)}; it is called as "
            "function(layer, weight_bits, activation_bits) and returns a number"
        ) from error


def build_costs(
    per_channel: bool = False,
    latency: Path | str | None = None,
    functions: Mapping[str, str | LayerCost] | None = None,
) -> list[Cost]:
    """All costs a job knows: the five built in, a latency table if given, and the user's own functions by name."""
    check_type(per_channel, (bool, np.bool_), "per_channel", "say whether weights have a scale for each channel")
    check_type(latency or "", (str, Path), "a latency table", "give the path of a CSV or JSON file")
    if not isinstance(functions or {}, Mapping):
        raise InputError(f"functions are by the name of their cost, such as {{'energy': function}}; got {functions!r}")
    costs: list[Any] = [size_bytes(per_channel), BITOPS, MACS, WEIGHT_BITS, PEAK_ACTIVATION_BYTES]
    if latency is not None:
        costs.append(latency_table(Path(latency)))
    for name, source in (functions or {}).items():
        if not isinstance(name, str) or not name:
            raise InputError(f"functions are by the name of their cost, such as {{'energy': function}}; got {name!r}")
        if name in {cost.name for cost in costs}:
            raise InputError(f"costs.functions: '{name}' is the name of a built-in cost; choose another")
        costs.append(user_cost(name, source))
    return costs
