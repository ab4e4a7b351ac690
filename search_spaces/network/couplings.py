"""Which layers depend on one another: additions that tie their producers, and residual branches that can be dropped.

Read from a torch.fx trace with the layers as leaves, as a networkx graph. A network that cannot be traced still
gets its bits searched; what is missing then is said in words.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import networkx as nx
import torch
from torch import Tensor, fx, nn

from search_spaces.channels.reading import read_channels
from search_spaces.channels.shapes import note_shapes
from search_spaces.groups import ChannelGroups
from search_spaces.layers import LayerSpec, ResidualBranch
from search_spaces.models.attention import UnfoldedAttention

_ADDITIONS = {operator.add, operator.iadd, torch.add}


@dataclass(frozen=True)
class Couplings:
    """What a trace tells: outputs that meet in additions, branches that can be dropped, filters that go together."""

    residual_ties: tuple[tuple[str, ...], ...] = ()
    branches: tuple[ResidualBranch, ...] = ()
    channels: ChannelGroups = field(default_factory=ChannelGroups)
    unknown: str = ""


class _Tracer(fx.Tracer):
    """Step into containers of layers only; everything else is one node."""

    def __init__(self, layers: set[str]) -> None:
        super().__init__()
        self.prefixes = {name[:end] for name in layers for end in range(len(name)) if name[end] == "."}

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return module_qualified_name not in self.prefixes or isinstance(m, UnfoldedAttention)


def read_couplings(model: nn.Module, specs: Sequence[LayerSpec], input_shape: tuple[int, ...]) -> Couplings:
    """Trace ``model`` (in eval mode, on any device) and return the couplings between its layers."""
    layers = {spec.name for spec in specs}
    try:
        trace = _Tracer(layers).trace(model)
        example = example_input(model, input_shape)
        with torch.no_grad():
            module = fx.GraphModule(model, trace)
            note_shapes(module, example)
    except Exception as error:  # any data-dependent line of a foreign model can fail here
        unknown = f"torch.fx cannot trace it ({str(error).strip().splitlines()[0][:120]})"
        return Couplings(channels=ChannelGroups(unknown=unknown), unknown=unknown)
    graph = nx.DiGraph()
    graph.add_nodes_from(trace.nodes)
    graph.add_edges_from((source, node) for node in trace.nodes for source in node.all_input_nodes)
    additions = [node for node in trace.nodes if _is_addition(node)]
    return Couplings(
        residual_ties=_residual_ties(graph, additions, layers),
        branches=tuple(_branches(graph, additions, layers)),
        channels=read_channels(module, specs, example),
    )


def example_input(model: nn.Module, input_shape: tuple[int, ...]) -> Tensor:
    """One input of zeros, on the device and of the type of the network's parameters."""
    parameter = next(model.parameters(), torch.empty(0))
    return torch.zeros((1, *input_shape), device=parameter.device, dtype=parameter.dtype)


def _is_addition(node: fx.Node) -> bool:
    added = node.target in _ADDITIONS if node.op == "call_function" else node.target in ("add", "add_")
    return node.op.startswith("call_") and added and len(node.all_input_nodes) == 2


def _residual_ties(graph: nx.DiGraph, additions: Iterable[fx.Node], layers: set[str]) -> tuple[tuple[str, ...], ...]:
    """Components of layers whose outputs are summed, directly or through a chain of additions."""
    ties = nx.Graph()
    for addition in additions:
        producers = sorted(_producers(graph, addition, layers))
        nx.add_path(ties, producers)
    return tuple(tuple(sorted(group)) for group in nx.connected_components(ties) if len(group) > 1)


def _producers(graph: nx.DiGraph, node: fx.Node, layers: set[str]) -> set[str]:
    """The nearest layers upstream of ``node``."""
    found: set[str] = set()
    waiting, seen = list(graph.predecessors(node)), set()
    while waiting:
        source = waiting.pop()
        if source in seen:
            continue
        seen.add(source)
        held = _layers_in(source, layers)
        found.update(held)
        if not held:
            waiting.extend(graph.predecessors(source))
    return found


def _layers_in(node: fx.Node, layers: set[str]) -> list[str]:
    """The layers that a node runs: itself, or those inside a module that is not stepped into."""
    if node.op != "call_module":
        return []
    name = str(node.target)
    return [name] if name in layers else sorted(layer for layer in layers if layer.startswith(f"{name}."))


def _branches(graph: nx.DiGraph, additions: Iterable[fx.Node], layers: set[str]) -> Iterable[ResidualBranch]:
    """For every addition, the operand with the most layers that can be replaced by zeros."""
    for addition in additions:
        first, second = addition.all_input_nodes
        found = [
            branch
            for end, other in ((first, second), (second, first))
            if (branch := _branch(graph, addition, end, other, layers))
        ]
        if found:
            yield max(found, key=lambda branch: len(branch.layers))


def _branch(
    graph: nx.DiGraph, addition: fx.Node, end: fx.Node, other: fx.Node, layers: set[str]
) -> ResidualBranch | None:
    """The branch that ends in ``end``: what only it needs, if nothing else reads any of that."""
    own = ({end} | nx.ancestors(graph, end)) - {other} - nx.ancestors(graph, other)
    order = {node: position for position, node in enumerate(graph)}
    inside = [layer for node in sorted(own, key=order.__getitem__) for layer in _layers_in(node, layers)]
    leaks = any(reader not in own and reader is not addition for node in own for reader in node.users)
    calls = sum(node.op == "call_module" and node.target == end.target for node in graph)
    if end not in own or end.op != "call_module" or calls != 1 or not inside or leaks:
        return None
    shapes = {getattr(node.meta.get("tensor_meta"), "shape", None) for node in (addition, end, other)}
    if None in shapes or len(shapes) != 1:
        return None
    return ResidualBranch(str(end.target), tuple(inside))
