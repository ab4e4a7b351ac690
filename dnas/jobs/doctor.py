"""Examine a network before any training: which layers can be searched, what they cost, whether a budget can be met."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torchvision
from torch import nn

from dnas.config.fields import Amount
from dnas.config.job import CostsSection
from dnas.jobs.planning import cost_table
from search_spaces.allocation.program import check_reachable
from search_spaces.costs.budgets import parse_budget
from search_spaces.costs.table import CostTable
from search_spaces.errors import InputError
from search_spaces.fields import Pair
from search_spaces.groups import ChannelGroups
from search_spaces.layers import LayerGraph, LayerSpec, ResidualBranch
from search_spaces.network.examples import Example
from search_spaces.network.graph import read_graph
from search_spaces.options import SpaceOptions
from search_spaces.spaces import PrecisionSpace, build_space, matches

UNIFORM_BITS = (2, 4, 8, 32)
SEARCHED, FIXED, UNSUPPORTED, UNUSED = STATUSES = "searched", "fixed", "unsupported", "unused"

Shape = tuple[int, ...]


@dataclass(frozen=True)
class LayerReport:
    """One layer as the search will treat it; shapes are those of one sample.

    ``decision`` names the choice that a searched layer belongs to, ``bits`` are (weights, activations) of a fixed
    one. ``parameters`` counts its weights, its bias and the BatchNorm folded into it, where no other layer accounts for
    them. One that is unsupported (or unused: nothing reads it in eval mode) has its parameters and the reason alone.
    """

    name: str
    status: str
    reason: str = ""
    kind: str = ""
    input_shape: Shape = ()
    output_shape: Shape = ()
    weights: int = 0
    macs: int = 0
    parameters: int = 0
    decision: str | None = None
    choices: int = 0
    bits: Pair | None = None


@dataclass(frozen=True)
class ParameterReport:
    """A parameter of no layer: it stays in fp32, or is not deployed (unused)."""

    name: str
    status: str
    parameters: int
    reason: str


@dataclass(frozen=True)
class GroupReport:
    """Filters that can be removed one by one: how many such units, of which layers, and which layers read them."""

    name: str
    units: int
    layers: tuple[str, ...]
    readers: tuple[str, ...]


@dataclass(frozen=True)
class ChannelsReport:
    """What pruning can take: ``frozen`` maps the other layers to the reason, ``unknown`` says why nothing is known."""

    groups: tuple[GroupReport, ...] = ()
    frozen: Mapping[str, str] = field(default_factory=dict)
    unknown: str = ""


@dataclass(frozen=True)
class BudgetReport:
    """Whether a budget can be met: its limits, and the least that each cost alone can come to.

    ``reason`` says why it cannot, or what to know of one that can.
    """

    budget: str
    reachable: bool
    limits: Mapping[str, float]
    least: Mapping[str, float]
    reason: str = ""


@dataclass(frozen=True)
class DoctorReport:
    """All that is known of a network without training it; ``reason`` says why it cannot be searched.

    ``layers`` and ``other_parameters`` account for every parameter of the network once; ``parameters`` sums them up by
    status.
    """

    source: str
    input_shape: Shape
    searchable: bool
    reason: str
    layers: tuple[LayerReport, ...]
    decisions: int
    branches: tuple[ResidualBranch, ...]
    residual_ties: tuple[tuple[str, ...], ...]
    shared_inputs: tuple[tuple[str, ...], ...]
    couplings_unknown: str
    uniform: Mapping[int, Mapping[str, float | None]]
    other_bytes: int
    uncounted_macs: int
    budgets: tuple[BudgetReport, ...]
    channels: ChannelsReport
    other_parameters: tuple[ParameterReport, ...]
    parameters: Mapping[str, int]

    def to_json(self) -> dict[str, Any]:
        """Return the report as JSON-ready data."""
        return {"schema": "dnas.doctor/1", **asdict(self)}


def examine(
    model: nn.Module,
    example: Example,
    *,
    source: str = "",
    space: SpaceOptions | None = None,
    costs: CostsSection | None = None,
    per_channel: bool = False,
    budgets: Sequence[Mapping[str, Amount]] = (),
) -> DoctorReport:
    """Examine ``model`` on ``example``: the shape of an input (no batch dimension), or what :func:`read_graph` takes.

    The model is not changed. A network with nothing to search is reported, not raised. Raises :class:`InputError` where
    the network cannot run on such an input, or a budget is not one.
    """
    graph = read_graph(model, example)
    options = space or SpaceOptions()
    reason = ""
    try:
        decided = build_space(graph, options)
    except InputError as error:
        reason, decided = str(error), _empty_space(graph)
    layers = (*_layers(graph, decided, options), *_unsupported(graph))
    others = tuple(_other_parameters(graph))
    table = cost_table(graph, decided, costs or CostsSection(), per_channel)
    return DoctorReport(
        source=source,
        input_shape=graph.input_shape,
        searchable=not reason,
        reason=reason,
        layers=layers,
        decisions=len(decided.decisions),
        branches=graph.branches,
        residual_ties=graph.residual_ties,
        shared_inputs=graph.shared_inputs,
        couplings_unknown=graph.couplings_unknown,
        uniform={bits: _priced(table, bits) for bits in UNIFORM_BITS} if graph.layers else {},
        other_bytes=graph.other_bytes,
        uncounted_macs=graph.uncounted_macs,
        budgets=tuple(_budget(entry, table) for entry in budgets) if not reason else (),
        channels=_channels(graph.channels),
        other_parameters=others,
        parameters=_sums(layers, others),
    )


def _channels(channels: ChannelGroups) -> ChannelsReport:
    groups = (GroupReport(group.name, group.units, group.layers, tuple(group.columns)) for group in channels.groups)
    return ChannelsReport(tuple(groups), dict(channels.frozen), channels.unknown)


def _priced(table: CostTable, bits: int) -> dict[str, float | None]:
    """Uniform costs; None for a cost that has no figure there, such as a latency table without these rows."""
    costs: dict[str, float | None] = {}
    for name in table.costs:
        try:
            costs[name] = table.uniform(bits, [name])[name]
        except InputError:
            costs[name] = None
    return costs


def default_input_shape(model: nn.Module, source: str) -> Shape:
    """Return the shape that a network was made for, as far as it or its source tells; 3×224×224 otherwise."""
    settings = getattr(model, "pretrained_cfg", None) or getattr(model, "default_cfg", None)
    if isinstance(settings, Mapping) and len(settings.get("input_size", ())) == 3:
        return tuple(int(side) for side in settings["input_size"])
    prefix, _, name = source.partition(":")
    if prefix == "zoo":
        channels = int(next(model.parameters()).shape[1])
        side = {"tiny_resnet": 8, "mobilenet_v1": 224}.get(name, 32)
        return (channels, side, side)
    own: Any = getattr(model, "image_size", None)
    if isinstance(own, int):
        return (3, own, own)
    side = _published_crop(name) if prefix == "torchvision" else 224
    return (3, side, side)


def _published_crop(name: str) -> int:
    """The side of the images that torchvision's own weights of this model were measured on."""
    try:
        weights = torchvision.models.get_model_weights(name)
        return int(weights.DEFAULT.transforms.keywords["crop_size"])
    except (AttributeError, KeyError, TypeError, ValueError):
        return 224


def _empty_space(graph: LayerGraph) -> PrecisionSpace:
    """A space without a decision, so that a network that cannot be searched is priced all the same."""
    fixed = {layer.name: (32, 32) for layer in graph.layers}
    return PrecisionSpace((), (32,), (32,), np.zeros((0, 1, 1), dtype=bool), True, fixed)


def _layers(graph: LayerGraph, space: PrecisionSpace, options: SpaceOptions) -> Iterable[LayerReport]:
    decision_of = {name: number for number, decision in enumerate(space.decisions) for name in decision.layers}
    parameters = _owned(graph)
    for layer in graph.layers:
        facts: dict[str, Any] = {
            "name": layer.name,
            "kind": layer.kind,
            "input_shape": layer.input_shape,
            "output_shape": layer.output_shape,
            "weights": layer.weight_elements,
            "macs": layer.macs,
            "parameters": parameters[layer.name],
        }
        if layer.name in decision_of:
            number = decision_of[layer.name]
            shared = f"its weight is that of {layer.shares_weight_with}" if layer.shares_weight_with else ""
            choices = int(space.allowed[number].sum())
            title = space.decisions[number].name
            yield LayerReport(status=SEARCHED, reason=shared, decision=title, choices=choices, **facts)
        else:
            why = _why_fixed(layer, graph, options)
            yield LayerReport(status=FIXED, reason=why, bits=space.fixed[layer.name], **facts)


def _why_fixed(layer: LayerSpec, graph: LayerGraph, options: SpaceOptions) -> str:
    """The setting that fixed a layer, the strongest first."""
    if matches(options.exclude, layer):
        return "space.exclude"
    if not matches(options.include, layer):
        return "not in space.include"
    if matches(tuple(options.fix), layer):
        return "space.fix"
    if layer.name == graph.layers[0].name and options.first_layer != "search":
        return "first layer"
    if layer.name == graph.layers[-1].name and options.last_layer != "search":
        return "last layer"
    return "the network cannot be searched"


def _unsupported(graph: LayerGraph) -> Iterator[LayerReport]:
    parameters, deployed = _owned(graph), {spec.owner for spec in graph.parameters if spec.deployed}
    for name, why in graph.unsupported.items():
        status = UNSUPPORTED if name in deployed or not parameters[name] else UNUSED
        yield LayerReport(name=name, status=status, reason=why, parameters=parameters[name])


def _other_parameters(graph: LayerGraph) -> Iterator[ParameterReport]:
    for spec in graph.parameters:
        if spec.owner == spec.name and spec.name not in graph.unsupported and spec.reason:
            yield ParameterReport(spec.name, UNSUPPORTED if spec.deployed else UNUSED, spec.elements, spec.reason)


def _sums(layers: Iterable[LayerReport], others: Iterable[ParameterReport]) -> dict[str, int]:
    """Status → the parameters that have it."""
    sums = dict.fromkeys(STATUSES, 0)
    for status, count in [*((e.status, e.parameters) for e in layers), *((e.status, e.parameters) for e in others)]:
        sums[status] += count
    return sums


def _owned(graph: LayerGraph) -> Counter[str]:
    """Owner → the parameters that it accounts for."""
    owned: Counter[str] = Counter()
    for spec in graph.parameters:
        owned[spec.owner] += spec.elements
    return owned


def _budget(entry: Mapping[str, Amount], table: CostTable) -> BudgetReport:
    budget = parse_budget(entry, table)
    least = {name: table.least(name) for name in budget.limits}
    try:
        check_reachable(table, budget)
    except InputError as error:
        return BudgetReport(budget.label, False, dict(budget.limits), least, str(error))
    return BudgetReport(budget.label, True, dict(budget.limits), least, budget.note(table))
