"""From a job's words to what is searched: the layers, the decisions, the price of every choice, the budgets."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from torch import nn

from dnas.config.fields import Amount
from dnas.config.job import CostsSection, DeploymentSection, JobConfig, PruneSection
from dnas.jobs.compressions import compression_of
from dnas.search.controls import CONTROLS
from dnas.search.sandwich import warmup_passes
from search_spaces.allocation.monotone import check_bounds
from search_spaces.allocation.program import check_reachable
from search_spaces.channels.slicing import pruned_graph
from search_spaces.costs.budgets import Budget, parse_budget
from search_spaces.costs.latency import MeasuredLatencies, read_latencies
from search_spaces.costs.table import CostTable, build_costs
from search_spaces.errors import InputError, check_type
from search_spaces.layers import LayerGraph
from search_spaces.network.examples import Example
from search_spaces.network.graph import read_graph
from search_spaces.options import SpaceOptions
from search_spaces.registry import importable_working_directory
from search_spaces.spaces import PrecisionSpace, build_space, matches


@dataclass(frozen=True)
class Plan:
    """What a search works on; made before any training, so that everything impossible is refused at once."""

    graph: LayerGraph
    space: PrecisionSpace
    table: CostTable
    budgets: tuple[Budget, ...]

    @property
    def front_cost(self) -> str:
        """The cost that the job's front is over: the first that its first budget limits, else the size."""
        return next(iter(self.budgets[0].limits)) if self.budgets else "size_bytes"


def plan_job(config: JobConfig, model: nn.Module, example: Example, exact: Sequence[str] = ()) -> Plan:
    """Plan a job of a network that is called as in ``example``, such as an input's shape.

    Layers that fit a pattern of ``exact`` stay in fp32, unless the job fixes their bits. Raises :class:`InputError` for
    a budget out of reach or a space that does not fit the network.
    """
    check_type(config, JobConfig, "a job", "give what dnas.load_job(source) returns")
    graph = read_graph(model, example)
    compression = compression_of(config)
    space = build_space(graph, keeping_exact(compression.options(config), graph, exact))
    table = cost_table(graph, space, config.costs, config.quantizer.per_channel)
    table.require(config.search.cost, "search.cost")
    for bits in config.controls.uniform:  # a cost that has no figure for a control must not be found out at the end
        table.price(space.uniform(bits))
    for source in config.controls.own:
        CONTROLS.find(source)
    compression.check_costs(config, table)
    if "search" not in config.order:
        return Plan(graph, space, table, ())
    smallest = _most_pruned(config.prune, table) if config.order[0] == "prune" else table
    budgets = read_budgets(config.search.budgets, table, smallest)
    if config.search.monotone:
        check_bounds(table, budgets)
    return Plan(graph, space, table, budgets)


def keeping_exact(options: SpaceOptions, graph: LayerGraph, exact: Sequence[str]) -> SpaceOptions:
    """The options with layers that fit a pattern of ``exact`` excluded, but for those whose bits are fixed."""
    own = tuple(options.fix)
    names = [layer.name for layer in graph.layers if matches(exact, layer) and not matches(own, layer)]
    return replace(options, exclude=(*options.exclude, *names)) if names else options


def _most_pruned(section: PruneSection, table: CostTable) -> CostTable:
    """The table of the network with as few filters as pruning may leave: what a search of a pruned net can reach."""
    left = {
        group.name: tuple(
            range(min(group.units, max(section.min_keep, math.ceil(group.units * (1 - section.max_ratio)))))
        )
        for group in table.graph.channels.groups
    }
    return CostTable(pruned_graph(table.graph, left), table.space, list(table.costs.values()))


def cost_table(graph: LayerGraph, space: PrecisionSpace, section: CostsSection, per_channel: bool) -> CostTable:
    """Price every choice at every cost that the job knows."""
    latency = Path(section.latency_table) if section.latency_table else None
    _check_deployment(section.deployment, latency)
    with importable_working_directory():  # the user's own cost functions
        return CostTable(graph, space, build_costs(per_channel, latency, section.functions))


def _check_deployment(deployment: DeploymentSection | None, latency: Path | None) -> None:
    """Refuse a latency table of another place than the job says nets will run at."""
    wanted = deployment.model_dump(exclude_none=True) if deployment else {}
    if not wanted:
        return
    if latency is None:
        raise InputError("costs.deployment says where a latency table is of, and there is no costs.latency_table")
    found = read_latencies(latency)
    if not isinstance(found, MeasuredLatencies):
        raise InputError(
            f"latency table {latency} does not tell where it was measured, as costs.deployment asks; make one with: "
            "dnas bench-latency"
        )
    for key, value in wanted.items():
        there = getattr(found.table, key)
        if value != there and not (key == "processor" and value.casefold() in there.casefold()):
            raise InputError(
                f"latency table {latency} was measured with {key} = {there!r}, and costs.deployment.{key} is "
                f"{value!r}; make one there with: dnas bench-latency"
            )


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


_EAGER_SECONDS_PER_VALUE = 1.5e-9
_COMPILATION_SECONDS = 60.0


def compilation_pays(config: JobConfig, plan: Plan, images: int) -> bool:
    """Whether fusing the mixture saves more time over the whole job than compiling it costs.

    Measured on one CPU thread: eager, a candidate costs about 1.5 ns an input value and training step more than fused;
    compiling takes up to a minute, less when its on-disk cache is warm (benchmarks/step_cost.py prints both).
    """
    search = config.search
    if "search" not in config.order:
        search = search.model_copy(update={"warmup_epochs": 0, "epochs": 0})
    values = sum(layer.input_elements * layer.calls for layer in plan.graph.layers)
    searches = max(1, len(plan.budgets))
    theta_epochs = search.epochs * searches * (search.theta_fraction if search.weight_updates == "frozen" else 1.0)
    warmup_epochs = search.warmup_epochs * warmup_passes(search)
    supernet = (warmup_epochs + theta_epochs) * len(plan.space.activation_bits)
    candidates = searches + len(config.controls.uniform) + len(plan.budgets)
    fixed = config.finetune.epochs * config.finetune.seeds * candidates
    return images * values * (supernet + fixed) * _EAGER_SECONDS_PER_VALUE > 2 * _COMPILATION_SECONDS
