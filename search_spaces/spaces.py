"""The precision space: which decisions a search takes, over which bit-widths, and what stays fixed."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import networkx as nx
import numpy as np

from search_spaces.assignments import LayerBits
from search_spaces.cells import refuse_cells
from search_spaces.errors import InputError, check_type, nearest
from search_spaces.fields import Pair
from search_spaces.layers import FLOAT_BITS, LayerGraph, LayerSpec, ResidualBranch
from search_spaces.options import Capability, SpaceOptions

SKIPPED: Pair = (0, 0)


@dataclass(frozen=True)
class Decision:
    """One choice of bits shared by ``layers``; ``branch`` is the residual branch that 0 bits would drop."""

    name: str
    layers: tuple[str, ...]
    branch: ResidualBranch | None = None


@dataclass(frozen=True)
class PrecisionSpace:
    """All decisions of one search.

    Choices are cells of a grid of ``weight_bits`` × ``activation_bits`` (Kw, Ka), both ascending.
    ``allowed`` (D, Kw, Ka) marks the cells each of the D decisions may take. ``independent`` spaces choose the row
    and the column separately; all others choose a cell. ``fixed`` gives the bits of the layers not searched.
    """

    decisions: tuple[Decision, ...]
    weight_bits: tuple[int, ...]
    activation_bits: tuple[int, ...]
    allowed: np.ndarray
    independent: bool
    fixed: Mapping[str, Pair]

    def pair(self, row: int, column: int) -> Pair:
        """The bits of one cell; any cell of a 0-bit row means that the branch is skipped."""
        weight, activation = self.weight_bits[row], self.activation_bits[column]
        return SKIPPED if weight == 0 else (weight, activation)

    @property
    def quantized(self) -> tuple[str, ...]:
        """The layers that any assignment of this space quantizes: all but those that stay in fp32."""
        fixed = (name for name, pair in self.fixed.items() if pair != (FLOAT_BITS, FLOAT_BITS))
        return (*fixed, *(name for decision in self.decisions for name in decision.layers))

    @property
    def widths(self) -> np.ndarray:
        """Weight bits times activation bits of every cell (Kw, Ka); 0 where the branch is skipped."""
        return np.outer(self.weight_bits, self.activation_bits).astype(np.float64)

    def layers_of(self, cells: Sequence[tuple[int, int]]) -> dict[str, LayerBits]:
        """Bits of every layer when decision d takes the cell ``cells[d]``."""
        self.check_cells(cells)
        return self.layers_with([self.pair(*cell) for cell in cells])

    def check_cells(self, cells: Sequence[tuple[int, int]], any_pair: bool = False) -> None:
        """Raise :class:`InputError` unless there is a cell for each decision, and one that it may take.

        With ``any_pair`` every pair of widths will do, as where one width alone is changed to be measured.
        """
        allowed = np.ones_like(self.allowed) if any_pair else self.allowed
        refuse_cells(cells, [decision.name for decision in self.decisions], allowed)

    def layers_with(self, pairs: Sequence[Pair]) -> dict[str, LayerBits]:
        """Bits of every layer when decision d takes ``pairs[d]``; :meth:`pairs_of` leads back."""
        chosen = {name: pair for d, pair in zip(self.decisions, pairs, strict=True) for name in d.layers}
        return {name: LayerBits(*pair) for name, pair in {**self.fixed, **chosen}.items()}

    def pairs_of(self, layers: Mapping[str, LayerBits]) -> list[Pair]:
        """Bits of every decision in an assignment of this space."""
        chosen = [layers[decision.layers[0]] for decision in self.decisions]
        return [(bits.weight_bits, bits.activation_bits) for bits in chosen]

    def cells_of(self, pairs: Sequence[Pair]) -> list[tuple[int, int]]:
        """The cell of each decision that gives it ``pairs[d]``, the first of equal ones; :meth:`pair` leads back."""
        grid = [(row, column) for row, column in np.ndindex(*self.allowed.shape[1:])]
        cells = []
        for decision, allowed, pair in zip(self.decisions, self.allowed, pairs, strict=True):
            found = next((cell for cell in grid if allowed[cell] and self.pair(*cell) == tuple(pair)), None)
            if found is None:
                raise InputError(f"decision '{decision.name}' cannot take {pair[0]} and {pair[1]} bits")
            cells.append(found)
        return cells

    def uniform(self, weight_bits: int, activation_bits: int | None = None) -> dict[str, LayerBits]:
        """The uniform control: the same bits in every searched layer, fixed layers as they are.

        Activations get the bits of the weights unless told otherwise, or the only width that the space offers.
        """
        if activation_bits is None:
            activation_bits = self.activation_bits[0] if len(self.activation_bits) == 1 else weight_bits
        searched = {name: (weight_bits, activation_bits) for d in self.decisions for name in d.layers}
        return {name: LayerBits(*pair) for name, pair in {**self.fixed, **searched}.items()}


def matches(patterns: Sequence[str], layer: LayerSpec) -> bool:
    """Whether any pattern fits the layer's name, or its type when written ``type:Conv2d``."""
    return any(
        layer.kind == pattern[5:] if pattern.startswith("type:") else fnmatchcase(layer.name, pattern)
        for pattern in patterns
    )


def build_space(graph: LayerGraph, options: SpaceOptions) -> PrecisionSpace:
    """Turn the layers of a network and a job's options into named decisions.

    Raises :class:`InputError` when nothing is left to search, a pattern fits no layer, or 0 bits are offered where
    no residual branch can be dropped.
    """
    check_type(graph, LayerGraph, "the layers of a space", "give what read_graph(model, shape) returns")
    check_type(options, SpaceOptions, "the options of a space", "give SpaceOptions(weight_bits=..., ...)")
    _check_patterns(graph, options)
    weight_bits, activation_bits, pairs = _candidates(options)
    fixed = _fixed(graph, options)
    searched = [layer for layer in graph.layers if layer.name not in fixed]
    if not searched:
        raise InputError(_nothing_to_search(graph))
    decisions = tuple(_decisions(graph, options, searched, 0 in weight_bits))
    supported = options.supported
    allowed = np.stack([_allowed(graph, supported, d, weight_bits, activation_bits, pairs) for d in decisions])
    for decision, cells in zip(decisions, allowed, strict=True):
        if not cells.any():
            raise InputError(f"decision '{decision.name}': the capability file allows none of the candidate bit-widths")
    independent = pairs is None and _is_product(allowed)
    return PrecisionSpace(decisions, weight_bits, activation_bits, allowed, independent, fixed)


def _candidates(options: SpaceOptions) -> tuple[tuple[int, ...], tuple[int, ...], set[Pair] | None]:
    """Rows, columns and, unless they are chosen independently, the pairs on offer."""
    if options.pairing == "independent":
        rows, columns, pairs = set(options.weight_bits), set(options.activation_bits), None
    elif options.pairing == "tied":
        rows = set(options.weight_bits)
        columns = rows - {0}
        pairs = {(bits, bits) for bits in rows}
    else:
        pairs = set(options.pairs)
        rows, columns = {w for w, _ in pairs}, {a for w, a in pairs if w}
    if not rows - {0} or not columns:
        raise InputError("space offers no bit-width; list at least one in weight_bits and in activation_bits")
    return tuple(sorted(rows)), tuple(sorted(columns)), pairs


def _check_patterns(graph: LayerGraph, options: SpaceOptions) -> None:
    for key, patterns in (("include", options.include), ("exclude", options.exclude), ("fix", tuple(options.fix))):
        for pattern in patterns:
            if pattern != "*" and not any(matches([pattern], layer) for layer in graph.layers):
                names = [layer.name for layer in graph.layers]
                raise InputError(f"space.{key} names '{pattern}', which fits no layer{nearest(pattern, names)}")


def _fixed(graph: LayerGraph, options: SpaceOptions) -> dict[str, Pair]:
    """Bits of the layers that are not searched: fixed by pattern, first and last, excluded ones in fp32."""
    fixed: dict[str, Pair] = {}
    for end, choice in ((0, options.first_layer), (-1, options.last_layer)):
        if choice != "search" and graph.layers:
            fixed[graph.layers[end].name] = (int(choice), int(choice))
    for layer in graph.layers:
        for pattern, pair in options.fix.items():
            if matches([pattern], layer):
                fixed[layer.name] = pair
        if not matches(options.include, layer) or matches(options.exclude, layer):
            fixed[layer.name] = (FLOAT_BITS, FLOAT_BITS)
    for layer in graph.layers:  # one stored weight has one width: a layer that shares it is fixed with its owner
        owner = layer.shares_weight_with
        if owner is not None and (owner in fixed) != (layer.name in fixed):
            pair = fixed.get(owner) or fixed[layer.name]
            fixed[owner] = fixed[layer.name] = pair
    return fixed


def _nothing_to_search(graph: LayerGraph) -> str:
    if not graph.layers:
        reasons = "; ".join(f"{name}: {why}" for name, why in list(graph.unsupported.items())[:2])
        return f"the network has no layer that can be searched ({reasons or 'no convolution and no linear layer'})"
    return (
        f"all {len(graph.layers)} layers are fixed or excluded, so there is nothing to search; "
        "widen space.include, or set space.first_layer and space.last_layer to 'search'"
    )


def _decisions(graph: LayerGraph, options: SpaceOptions, searched: list[LayerSpec], with_skip: bool) -> list[Decision]:
    """Layers joined by groups, ties, blocks and shared weights, in call order."""
    names = [layer.name for layer in searched]
    joined = nx.Graph()
    joined.add_nodes_from(names)
    titles: dict[str, str] = {}
    for layer in searched:
        if layer.shares_weight_with in names:
            joined.add_edge(layer.name, layer.shares_weight_with)
    for title, members in _named_groups(graph, options, names):
        nx.add_path(joined, members)
        titles.update(dict.fromkeys(members, title))
    decisions = []
    for members in nx.connected_components(joined):
        layers = tuple(name for name in names if name in members)
        titled = {titles.get(name, name) for name in layers}
        name = titled.pop() if len(titled) == 1 else layers[0]
        decisions.append(Decision(name, layers, _skippable(graph, name, layers) if with_skip else None))
    return sorted(decisions, key=lambda decision: names.index(decision.layers[0]))


def _named_groups(graph: LayerGraph, options: SpaceOptions, names: list[str]) -> list[tuple[str, list[str]]]:
    """Every group of at least one searched layer, with a title."""
    found: dict[str, list[str]] = {}
    for pattern in options.groups:
        before = len(found)
        for name in names:
            parts = name.split(".")
            prefixes = (".".join(parts[: end + 1]) for end in range(len(parts)))
            title = next((prefix for prefix in prefixes if fnmatchcase(prefix, pattern)), None)
            if title is not None:
                found.setdefault(title, []).append(name)
        if len(found) == before:
            raise InputError(f"space.groups names '{pattern}', which fits no searched layer and no module above one")
    if options.granularity == "block":
        if graph.couplings_unknown:
            raise InputError(f"space.granularity = 'block' needs the residual branches: {graph.couplings_unknown}")
        for branch in graph.branches:
            title = _common_prefix(branch.layers)
            found.setdefault(title, []).extend(name for name in branch.layers if name in names)
    ties = {"residual": graph.residual_ties, "shared_inputs": graph.shared_inputs}
    for tie in options.ties:
        if tie == "residual" and graph.couplings_unknown:
            raise InputError(f"space.ties = ['residual'] cannot be read from this network: {graph.couplings_unknown}")
        for members in ties[tie]:
            found.setdefault("+".join(members), []).extend(name for name in members if name in names)
    return [(title, members) for title, members in found.items() if members]


def _common_prefix(names: Sequence[str]) -> str:
    parts = [name.split(".") for name in names]
    shared = [column[0] for column in itertools.takewhile(lambda c: len(set(c)) == 1, zip(*parts, strict=False))]
    return ".".join(shared) or names[0]


def _skippable(graph: LayerGraph, name: str, layers: tuple[str, ...]) -> ResidualBranch:
    """The residual branch made of exactly these layers; the refusal of 0 bits by name where there is none."""
    for branch in graph.branches:
        if set(branch.layers) == set(layers):
            return branch
    why = graph.couplings_unknown or "its layers are not exactly one residual branch whose output can be dropped"
    raise InputError(
        f"0 bits cannot be offered for '{name}' ({', '.join(layers)}): {why}; "
        "set space.granularity = 'block', fix the layer in space.fix, or take 0 out of space.weight_bits"
    )


def _allowed(
    graph: LayerGraph,
    supported: Capability,
    decision: Decision,
    weight_bits: tuple[int, ...],
    activation_bits: tuple[int, ...],
    pairs: set[Pair] | None,
) -> np.ndarray:
    """Cells (Kw, Ka) that the candidates and the target's capability leave to this decision."""
    cells = np.ones((len(weight_bits), len(activation_bits)), dtype=bool)
    kinds = {graph[name].kind for name in decision.layers}
    for (i, weight), (j, activation) in itertools.product(enumerate(weight_bits), enumerate(activation_bits)):
        if weight == 0:
            cells[i, j] = pairs is None or j == len(activation_bits) - 1
            continue
        if pairs is not None:
            cells[i, j] = (weight, activation) in pairs
        for kind in kinds if supported else ():
            cells[i, j] &= (weight, activation) in supported.get(kind, supported.get("*", ()))
    return cells


def _is_product(allowed: np.ndarray) -> bool:
    """Whether every decision's allowed cells are all rows × all columns of some choice of each."""
    rows, columns = np.any(allowed, axis=2, keepdims=True), np.any(allowed, axis=1, keepdims=True)
    outer = np.logical_and(rows, columns)
    return np.array_equal(outer, allowed)
