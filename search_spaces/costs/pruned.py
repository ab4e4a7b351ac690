"""What a network costs when its channel groups keep so many units: exact, and quick enough to ask often."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace

import numpy as np

from search_spaces.assignments import LayerBits
from search_spaces.channels.slicing import resized_other_bytes, resized_spec
from search_spaces.costs.table import CostTable, cost_of_rest
from search_spaces.groups import ChannelGroups

_Terms = tuple[int, tuple[tuple[str, int], ...]]
"""A number of channels as a constant and a sum over (group, channels per unit)."""


class PrunedCosts:
    """Kept units of each group → exact costs of these bits: the figures of :meth:`CostTable.price`.

    Every unit of a group takes as many filters, inputs and entries of a module as any other, so counts are enough.
    """

    def __init__(self, table: CostTable, layers: Mapping[str, LayerBits], names: Collection[str] | None = None) -> None:
        self.table, self.pairs = table, {name: (b.weight_bits, b.activation_bits) for name, b in layers.items()}
        self.costs = [cost for cost in table.costs.values() if names is None or cost.name in names]
        self._specs = table.graph.by_name
        groups = table.graph.channels
        self._filters, self._inputs, self._entries = (_terms(groups, part) for part in ("rows", "columns", "vectors"))
        self._known: dict[tuple[str, int | None, int | None, int | None], tuple[float, ...]] = {}

    def __call__(self, counts: Mapping[str, int]) -> dict[str, float]:
        """Costs for so many kept units per group; every group of the network is named."""
        filters, inputs, entries = (_counted(part, counts) for part in (self._filters, self._inputs, self._entries))
        values = [self._layer(name, filters.get(name), inputs.get(name), entries) for name in self.pairs]
        graph = replace(self.table.graph, other_bytes=resized_other_bytes(self.table.graph, entries))
        return {
            cost.name: cost.total([value[index] for value in values], cost_of_rest(cost, graph))
            for index, cost in enumerate(self.costs)
        }

    def _layer(
        self, name: str, filters: int | None, inputs: int | None, entries: Mapping[str, int]
    ) -> tuple[float, ...]:
        spec = self._specs[name]
        norm_channels = entries.get(spec.norm) if spec.norm else None
        key = (name, filters, inputs, norm_channels)
        if key not in self._known:
            resized = resized_spec(spec, filters, inputs, norm_channels)
            self._known[key] = tuple(cost.of_layer(resized, *self.pairs[name]) for cost in self.costs)
        return self._known[key]


def _terms(groups: ChannelGroups, part: str) -> dict[str, _Terms]:
    found: dict[str, _Terms] = {}
    for group in groups.groups:
        for name, units in getattr(group, part).items():
            constant, terms = found.get(name, (len(units), ()))
            own = int(np.count_nonzero(np.array(units) >= 0))
            found[name] = (constant - own, (*terms, (group.name, own // group.units)))
    return found


def _counted(part: Mapping[str, _Terms], counts: Mapping[str, int]) -> dict[str, int]:
    return {
        name: constant + sum(counts[group] * each for group, each in terms) for name, (constant, terms) in part.items()
    }
