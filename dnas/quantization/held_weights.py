"""Networks whose layers hold, as plain parameters, the weights that they multiply with."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from torch import nn

from dnas.quantization.branches import direct_layer
from dnas.quantization.layers import float_weight
from search_spaces.layers import LayerGraph, LayerSpec
from search_spaces.models.computed import computed_names, make_plain
from search_spaces.models.copies import copy_network, fresh_copy


def with_plain_layers(network: nn.Module, graph: LayerGraph) -> nn.Module:
    """``network``, or a copy of it whose layers hold as parameters what they compute of others."""
    computing = [spec.name for spec in graph.layers if computed_names(network.get_submodule(spec.name))]
    twin = copy_network(network) if computing else network
    for name in computing:
        make_plain(twin.get_submodule(name))
    return twin


def with_held_weights(model: nn.Module, graph: LayerGraph) -> tuple[nn.Module, LayerGraph]:
    """A copy of a float network whose layers hold the weights that they multiply with, and the record of its layers."""
    twin = fresh_copy(model)
    hold_weights(twin, graph.layers)
    return twin, replace(graph, layers=tuple(replace(spec, weight_from="parameter") for spec in graph.layers))


def hold_weights(network: nn.Module, layers: Iterable[LayerSpec]) -> None:
    """Let these layers of a float network hold the weights that they multiply with, in place."""
    for spec in layers:
        layer = network.get_submodule(spec.name)
        make_plain(layer)
        if spec.weight_from == "made":
            weight = float_weight(layer, spec).detach().clone()
            direct_layer(layer).weight = nn.Parameter(weight)
