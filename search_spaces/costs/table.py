"""What a choice of bits costs: one table, computed once in float64, for the search and for the final figure alike."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, SupportsFloat

import numpy as np

from search_spaces.assignments import LayerBits, bits_by_layer, kept_rows_of
from search_spaces.channels.slicing import pruned_graph
from search_spaces.costs.kinds import LATENCY, Cost, LayerCost, built_in_costs, require_cost
from search_spaces.costs.latency import read_latencies
from search_spaces.errors import InputError, check_type, kind_of, nearest, told_as
from search_spaces.fields import Pair
from search_spaces.groups import kept_units
from search_spaces.layers import FLOAT_BITS, LayerGraph, LayerSpec
from search_spaces.plain_json import LARGEST_FIGURE
from search_spaces.registry import importable_working_directory, imported
from search_spaces.returned import refuse_other
from search_spaces.spaces import PrecisionSpace

_MOST = LARGEST_FIGURE / 1e10
"""Of one layer: what all of them come to is kept in files, too."""


def latency_table(path: Path) -> Cost:
    """A latency that was measured, as ``dnas bench-latency`` writes it, or in rows that a user wrote: CSV or JSON.

    Where the table has no rows of fewer channels, pruning cannot meet a budget on it.
    """
    found = read_latencies(path)
    return Cost(LATENCY, "ms", found.of_layer, network=found.of_rest, shrinks=found.shrinks)


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
        kind = f", {kind_of(found)}" if found is not given else ""
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
                [self._layer(cost, graph[name], pair) for name, pair in space.fixed.items()], cost_of_rest(cost, graph)
            )
            for cost in costs
        }

    def _layer(self, cost: Cost, spec: LayerSpec, pair: Pair) -> float:
        key = (cost.name, spec, *pair)
        if key not in self._memo:
            value = _asked(cost, spec, pair)
            self._memo[key] = _checked(value, f"cost '{cost.name}' of layer '{spec.name}' at {pair}")
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
                cost_of_rest(cost, graph),
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

    def least(self, name: str) -> float:
        """What no choice costs less than: every decision by itself at its cheapest cell."""
        cheapest = np.where(self.space.allowed, self.entries[name], np.inf).min((1, 2), initial=np.inf)
        return self.costs[name].total(cheapest.tolist(), self.constants[name])

    def most(self, name: str) -> float:
        """What no choice costs more than: every decision at its dearest cell."""
        dearest = np.where(self.space.allowed, self.entries[name], -np.inf).max((1, 2), initial=-np.inf)
        return self.costs[name].total(dearest.tolist(), self.constants[name])

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

    def require(self, name: str, key: str = "") -> Cost:
        """The cost of that name, which a ``key`` names; :class:`InputError` with the nearest name otherwise."""
        require_cost(name, self.costs, key)
        return self.costs[name]


def _asked(cost: Cost, spec: LayerSpec, pair: Pair) -> float:
    """What a cost says of a layer; :class:`InputError` where its function fails or gives no number."""
    what = f"cost '{cost.name}' failed for layer '{spec.name}' at {pair}"
    called = "it is called as function(layer, weight_bits, activation_bits) and returns a number"
    with told_as(lambda reason: f"{what}: {reason}; {called}"):
        return cost.of_layer(spec, *pair)


def cost_of_rest(cost: Cost, graph: LayerGraph) -> float:
    """What a cost says of the rest of the network; :class:`InputError` where it fails or gives no number."""
    what = f"cost '{cost.name}' of the rest of the network"
    called = "Cost.network is called as function(graph) and returns a number"
    with told_as(lambda reason: f"{what} failed: {reason}; {called}"):
        value = float(cost.network(graph))
    return _checked(value, what)


def _checked(value: float, what: str) -> float:
    """The value, where sums of such can be computed with and kept in files."""
    if not 0 <= value <= _MOST:
        raise InputError(f"{what} is {value}; it must be a number from 0 to {_MOST:g}")
    return value


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
    costs: list[Any] = built_in_costs(bool(per_channel))
    if latency is not None:
        costs.append(latency_table(Path(latency)))
    for name, source in (functions or {}).items():
        if not isinstance(name, str) or not name:
            raise InputError(f"functions are by the name of their cost, such as {{'energy': function}}; got {name!r}")
        if name in {cost.name for cost in costs}:
            raise InputError(f"costs.functions: '{name}' is the name of a built-in cost; choose another")
        costs.append(user_cost(name, source))
    return costs
