"""The network of a run as a graph: what it is made of, in the order of the forward pass, and what reads what."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from results.network import INPUT, Network, NetworkLayer
from results.units import amount_text

_JOINS = {"add": "+", "mul": "×", "cat": "concatenate"}


def network_json(network: Network | None, layers: Sequence[str]) -> dict[str, Any]:
    """Nodes and edges between their numbers; ``layer`` of a node is its number in ``layers``, None of what is none.

    Of a run that does not tell its network, its ``layers`` in their order and no edge; ``told`` says why.
    """
    if network is None:
        nodes = [{"name": name, "kind": "", "about": "", "layer": number} for number, name in enumerate(layers)]
        told = "which layer reads which is not in this run: an earlier version of dnas made it"
        return {"source": "", "nodes": nodes, "edges": [], "told": told if nodes else ""}
    by_name = {layer.name: layer for layer in network.layers}
    names = dict.fromkeys([INPUT, *(name for _, name in network.flows), *by_name])
    numbers = {name: number for number, name in enumerate(names)}
    nodes = []
    for name in names:
        layer = by_name.get(name)
        node = _other(name, network) if layer is None else _layer(layer)
        nodes.append({**node, "layer": layers.index(name) if name in layers else None})
    edges = [[numbers[a], numbers[b]] for a, b in network.flows if a in numbers and b in numbers and a != b]
    told = f"which layer reads which is not known: {network.unknown}" if network.unknown else ""
    return {"source": network.source, "nodes": nodes, "edges": edges, "told": told}


def _layer(layer: NetworkLayer) -> dict[str, Any]:
    weights = math.prod(layer.weight_shape)
    about = (
        f"{layer.kind}, {_shape(layer.input_shape)} → {_shape(layer.output_shape)}, {weights:,} weights, "
        f"{amount_text('macs', layer.macs)}"
    )
    return {"name": layer.name, "kind": layer.kind, "about": about, "weights": weights}


def _other(name: str, network: Network) -> dict[str, Any]:
    if name == INPUT:
        return {"name": "input", "kind": "input", "about": _shape(network.input_shape)}
    operation = name.strip(".").rstrip("0123456789")
    return {"name": _JOINS.get(operation, operation), "kind": "join", "about": f"several outputs meet: {operation}"}


def _shape(shape: Sequence[int]) -> str:
    return "×".join(map(str, shape))
