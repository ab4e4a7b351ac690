"""Which layers depend on one another: additions that tie their producers, and residual branches that can be dropped.

Read from one real run, as a networkx graph of operations and calls of modules. Where a network cannot be followed
its bits are still searched; what is missing then is said in words.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import networkx as nx
import torch
from torch import Tensor, nn

from search_spaces.channels.reading import read_channels
from search_spaces.channels.running import WatchedRun, tensors
from search_spaces.groups import ChannelGroups
from search_spaces.layers import LayerSpec, ResidualBranch
from search_spaces.models.attention import UnfoldedAttention
from search_spaces.models.multiplied import memory
from search_spaces.network.examples import Call


@dataclass(frozen=True)
class Couplings:
    """What a run tells: outputs that meet in additions, branches that can be dropped, filters that go together."""

    residual_ties: tuple[tuple[str, ...], ...] = ()
    branches: tuple[ResidualBranch, ...] = ()
    channels: ChannelGroups = field(default_factory=ChannelGroups)
    flows: tuple[tuple[str, str], ...] = ()
    unknown: str = ""


def unknown_couplings(why: str) -> Couplings:
    """What is told of a network that cannot be followed."""
    return Couplings(channels=ChannelGroups(unknown=why), unknown=why)


@torch.inference_mode(False)  # inference tensors are not told operation by operation
def read_couplings(model: nn.Module, specs: Sequence[LayerSpec], call: Call) -> Couplings:
    """Run ``model`` (in eval mode) on ``call`` and return the couplings between its layers."""
    run = _CallGraph(model, {spec.name for spec in specs})
    try:
        run.follow(call)
    except Exception as error:  # a foreign model's own code runs here, and may mind being watched
        return unknown_couplings(f"its calls cannot be followed ({(str(error).strip().splitlines() or [''])[0][:120]})")
    return Couplings(
        residual_ties=run.residual_ties(),
        branches=tuple(run.branches()),
        channels=read_channels(model, specs, call),
        flows=tuple(run.flows([spec.name for spec in specs])),
    )


@dataclass(frozen=True)
class _Addition:
    """A node that adds what two other nodes gave."""

    node: int
    first: int
    second: int


_INPUT = 0


class _CallGraph(WatchedRun):
    """Operations and calls as numbered nodes in the order of the run; modules that hold no layer are one node."""

    def __init__(self, network: nn.Module, layers: set[str]) -> None:
        holders = {name[:end] for name in layers for end in range(len(name)) if name[end] == "."} | ({""} - layers)
        attentions = {name for name, module in network.named_modules() if isinstance(module, UnfoldedAttention)}
        holders -= {name for name in holders if any(f"{name}.".startswith(f"{a}.") for a in attentions)}
        leaves = {name for name, _ in network.named_modules() if name not in holders}
        outermost = {name for name in leaves if name and name.rpartition(".")[0] in holders}
        super().__init__(network, outermost | ({""} & layers))
        self.layers, self.graph, self.additions = layers, nx.DiGraph(), list[_Addition]()
        self._made_by: dict[int, int] = {}
        self._written_by: dict[int, int] = {}

    def follow(self, call: Call) -> None:
        """Run over the whole network; node 0 is its input."""
        self._add_node([], call.tensors)
        self.run(call)

    def operation(self, function: Any, args: Any, kwargs: Any, output: Any) -> None:
        """Note one operation, and whether it adds what two nodes gave."""
        read = tensors((args, kwargs))
        operands = [self._source(tensor) for tensor in read]
        operation = function.overloadpacket.__name__
        node = self._add_node(read, output, operation=operation.strip("_"))
        if operation in ("add", "add_") and len(read) == 2 and None not in operands:
            first, second = (cast(int, operand) for operand in operands)
            self.additions += [_Addition(node, first, second)] if first != second else []
        if function._schema.is_mutable:
            self._written_by[memory(read[0])] = node

    def call(self, name: str, module: nn.Module, inputs: list[Any], output: Any) -> Any:
        """Note one call of a module; one that gives back what it got gives a view, which is a node of its own."""
        given = tensors(inputs)
        if isinstance(output, Tensor) and any(output is tensor for tensor in given):
            output = output.view_as(output)
            self._keep(output)
        self._add_node(given, output, name)
        return output

    def _add_node(self, read: Sequence[Tensor], output: Any, name: str | None = None, operation: str = "module") -> int:
        node, made = self.graph.number_of_nodes(), tensors(output)
        sources = {source for tensor in read for source in self._sources(tensor)}
        layers = () if name is None else (name,) if name in self.layers else sorted(self._inside_of(name))
        told = {"name": name, "operation": operation, "layers": layers, "shape": made[0].shape if made else None}
        self.graph.add_node(node, **told)
        self.graph.add_edges_from((source, node) for source in sources)
        self._made_by |= {id(tensor): node for tensor in made}
        return node

    def _inside_of(self, name: str) -> set[str]:
        return {layer for layer in self.layers if layer.startswith(f"{name}.")}

    def _sources(self, tensor: Tensor) -> list[int]:
        """The node that made a tensor, and the last that wrote into its memory, perhaps through another view."""
        found = self._made_by.get(id(tensor)), self._written_by.get(memory(tensor))
        return [node for node in found if node is not None]

    def _source(self, tensor: Tensor) -> int | None:
        return max(self._sources(tensor), default=None)

    def residual_ties(self) -> tuple[tuple[str, ...], ...]:
        """Components of layers whose outputs are summed, directly or through a chain of additions."""
        ties = nx.Graph()
        for addition in self.additions:
            nx.add_path(ties, sorted(self._producers(addition.node)))
        return tuple(tuple(sorted(group)) for group in nx.connected_components(ties) if len(group) > 1)

    def flows(self, order: Sequence[str]) -> list[tuple[str, str]]:
        """From where to where values flow between layers, in the order of the run.

        "" stands for the input of the network; a name that begins with a dot, such as ".add1", for an operation in
        which several meet. Of layers that are called as one module, an attention, all but the last read what the module
        reads, and the last one what these give.
        """
        place = {name: index for index, name in enumerate(order)}
        given: dict[int, frozenset[str]] = {_INPUT: frozenset({""})}  # node → where its values come from
        flows: dict[tuple[str, str], None] = {}
        for node in list(self.graph)[1:]:
            sources = frozenset[str]().union(*(given[source] for source in self.graph.predecessors(node)))
            *first, last = sorted(self.graph.nodes[node]["layers"], key=place.__getitem__) or [""]
            if not last and len(sources) > 1:
                last = f".{self.graph.nodes[node]['operation']}{node}"
            flows |= dict.fromkeys((source, reader) for source in sorted(sources) for reader in first or [last] if last)
            flows |= dict.fromkeys((reader, last) for reader in first)
            given[node] = frozenset({last}) if last else sources
        return _numbered(flows, place)

    def _producers(self, node: int) -> set[str]:
        """The nearest layers upstream of ``node``."""
        found: set[str] = set()
        waiting, seen = list(self.graph.predecessors(node)), set()
        while waiting:
            source = waiting.pop()
            if source not in seen:
                seen.add(source)
                held = self.graph.nodes[source]["layers"]
                found.update(held)
                waiting.extend(() if held else self.graph.predecessors(source))
        return found

    def branches(self) -> Iterator[ResidualBranch]:
        """For every addition, the operand with the most layers that can be replaced by zeros."""
        calls = Counter(name for _, name in self.graph.nodes(data="name") if name is not None)
        for addition in self.additions:
            ends = (addition.first, addition.second), (addition.second, addition.first)
            found = [branch for end, other in ends if (branch := self._branch(addition.node, end, other, calls))]
            if found:
                yield max(found, key=lambda branch: len(branch.layers))

    def _branch(self, addition: int, end: int, other: int, calls: Mapping[str, int]) -> ResidualBranch | None:
        """The branch that ends in ``end``: what only it needs, if nothing else reads any of that."""
        nodes, kept = self.graph.nodes, {other} | nx.ancestors(self.graph, other)
        own = ({end} | nx.ancestors(self.graph, end)) - kept
        inside = [layer for node in sorted(own) for layer in nodes[node]["layers"]]
        leaks = any(reader not in own and reader != addition for node in own for reader in self.graph.successors(node))
        if end not in own or calls.get(nodes[end]["name"]) != 1 or not inside or leaks or _INPUT not in kept:
            return None
        shapes = {nodes[node]["shape"] for node in (addition, end, other)}
        if None in shapes or len(shapes) != 1:
            return None
        return ResidualBranch(nodes[end]["name"], tuple(inside))


def _numbered(flows: Collection[tuple[str, str]], layers: Collection[str]) -> list[tuple[str, str]]:
    """The flows that lead to a layer, operations numbered by kind from 1."""
    graph = nx.DiGraph(list(flows))
    kept = set(layers).union(*(nx.ancestors(graph, name) for name in graph if name in layers))
    names: dict[str, str] = {}
    counts = Counter[str]()
    for _, name in flows:
        if name not in names and name not in layers and name in kept:
            kind = name.rstrip("0123456789")
            counts[kind] += 1
            names[name] = f"{kind}{counts[kind]}"
    return [(names.get(a, a), names.get(b, b)) for a, b in flows if b in kept]
