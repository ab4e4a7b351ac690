"""From a job's words to what is searched: the layers, the decisions, the price of every choice, the budgets."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from dnas.config.fields import Amount
from dnas.config.job import CostsSection, JobConfig, PruneSection
from dnas.search.controls import CONTROLS
from search_spaces.allocation.monotone import check_bounds
from search_spaces.allocation.program import check_reachable
from search_spaces.channels.slicing import pruned_graph
from search_spaces.costs.budgets import Budget, parse_budget
from search_spaces.costs.table import CostTable, build_costs
from search_spaces.errors import InputError, check_type
from search_spaces.layers import FLOAT_BITS, LayerGraph
from search_spaces.network.graph import read_graph
from search_spaces.options import SpaceOptions
from search_spaces.registry import importable_working_directory
from search_spaces.spaces import PrecisionSpace, build_space

SPARSE_COSTS = ("size_bytes", "weight_bits")
"""Costs that follow from the zeros among the weights."""


@dataclass(frozen=True)
class Plan:
    """What a search works on; made before any training, so that everything impossible is refused at once."""

    graph: LayerGraph
    space: PrecisionSpace
    table: CostTable
    budgets: tuple[Budget, ...]


def plan_job(config: JobConfig, model: nn.Module, input_shape: tuple[int, ...]) -> Plan:
    """Plan a job; raises :class:`InputError` for a budget out of reach or a space that does not fit the network."""
    check_type(config, JobConfig, "a job", "give what dnas.load_job(source) returns")
    graph = read_graph(model, input_shape)
    sparse = config.compression == "squantizer"
    space = build_space(graph, squantizer_options(config) if sparse else config.space)
    table = cost_table(graph, space, config.costs, config.quantizer.per_channel)
    table.require(config.search.cost)
    for bits in config.controls.uniform:  # a cost that has no figure for a control must not be found out at the end
        table.price(space.uniform(bits))
    for source in config.controls.own:
        CONTROLS.find(source)
    if sparse:
        sparse_budgets(config, table)
    if "search" not in config.order:
        return Plan(graph, space, table, ())
    smallest = _most_pruned(config.prune, table) if config.order[0] == "prune" else table
    budgets = read_budgets(config.search.budgets, table, smallest)
    if config.search.monotone:
        check_bounds(table, budgets)
    return Plan(graph, space, table, budgets)


def _most_pruned(section: PruneSection, table: CostTable) -> CostTable:
    """The table of the network with as few filters as pruning may leave: what a search of a pruned net can reach."""
    left = {
        group.name: tuple(
            range(min(group.units, max(section.min_keep, math.ceil(group.units * (1 - section.max_ratio)))))
        )
        for group in table.graph.channels.groups
    }
    return CostTable(pruned_graph(table.graph, left), table.space, list(table.costs.values()))


def squantizer_options(config: JobConfig) -> SpaceOptions:
    """The layers that SQuantizer makes sparse, as a space; first and last stay in fp32 (arXiv 1812.08301)."""
    section = config.squantizer
    return SpaceOptions(
        weight_bits=tuple(sorted(set(section.weight_bits))),
        activation_bits=(section.activation_bits,),
        first_layer=FLOAT_BITS,
        last_layer=FLOAT_BITS,
        include=config.space.include,
        exclude=config.space.exclude + section.exclude,
        fix=config.space.fix,
    )


def sparse_budgets(config: JobConfig, table: CostTable) -> tuple[Budget, ...]:
    """The budgets of ``[squantizer]``; :class:`InputError` for a cost that does not depend on σ."""
    budgets = tuple(parse_budget(entry, table) for entry in config.squantizer.budgets)
    for budget in budgets:
        for name in budget.limits:
            if name not in SPARSE_COSTS:
                raise InputError(
                    f"squantizer.budgets: sparsity does not change '{name}'; limit {' or '.join(SPARSE_COSTS)}"
                )
    return budgets


def cost_table(graph: LayerGraph, space: PrecisionSpace, section: CostsSection, per_channel: bool) -> CostTable:
    """Price every choice at every cost that the job knows."""
    latency = Path(section.latency_table) if section.latency_table else None
    with importable_working_directory():  # the user's own cost functions
        return CostTable(graph, space, build_costs(per_channel, latency, section.functions))


def read_budgets(
    entries: Sequence[Mapping[str, Amount] | Budget], table: CostTable, smallest: CostTable | None = None
) -> tuple[Budget, ...]:
    """Parse budgets and refuse those that no assignment meets, of the network or of the ``smallest`` it may become."""
    if not isinstance(entries, list | tuple):
        raise InputError(f"budgets must be a list such as [{{'size_bytes': '12%'}}], got {entries!r}")
    budgets = tuple(parse_budget(entry, table) for entry in entries)
    for budget in budgets:
        check_reachable(smallest or table, budget)
    return budgets


_EAGER_SECONDS_PER_VALUE = 4e-9
_COMPILATION_SECONDS = 60.0


def compilation_pays(config: JobConfig, plan: Plan, images: int) -> bool:
    """Whether fusing the mixture saves more time over the whole job than compiling it costs.

    Measured on one CPU thread: eager, a candidate costs about 4 ns per input value and training step more than fused;
    compiling takes up to a minute, less when its on-disk cache is warm (benchmarks/step_cost.py prints both).
    """
    search = config.search
    if "search" not in config.order:
        search = search.model_copy(update={"warmup_epochs": 0, "epochs": 0})
    values = sum(layer.input_elements * layer.calls for layer in plan.graph.layers)
    searches = max(1, len(plan.budgets))
    theta_epochs = search.epochs * searches * (search.theta_fraction if search.weight_updates == "frozen" else 1.0)
    supernet = (search.warmup_epochs + theta_epochs) * len(plan.space.activation_bits)
    candidates = searches + len(config.controls.uniform) + len(plan.budgets)
    fixed = config.finetune.epochs * config.finetune.seeds * candidates
    return images * values * (supernet + fixed) * _EAGER_SECONDS_PER_VALUE > 2 * _COMPILATION_SECONDS
