"""SQuantizer as a compression of jobs: `compression = "squantizer"`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from torch import nn

from dnas.config.job import JobConfig
from dnas.jobs.compressions import Compression
from dnas.jobs.context import JobContext
from dnas.jobs.job import Job
from dnas.jobs.stage import Stage
from dnas.jobs.stages.controls import Controls
from dnas.jobs.stages.measure import Measure, Measurer
from dnas.jobs.stored_nets import stored_net
from dnas.quantization.schemes import as_stored
from dnas.squantizer.plan import section_of, sparse_budgets, squantizer_options
from dnas.squantizer.prices import compression_ratios, sparse_of, sparse_prices
from dnas.squantizer.quantizer import activate, delayed
from dnas.squantizer.stage import Squantizer
from dnas.squantizer.storage import Layers, float_weights, raised_within, set_sigmas
from search_spaces.assignments import BitAssignment, LayerBits
from search_spaces.costs.budgets import Budget
from search_spaces.costs.stored import costs_by_layer
from search_spaces.costs.table import CostTable
from search_spaces.options import SpaceOptions


class SquantizerCompression(Compression):
    """Trains sparse and low-bit weights at once, beside dense controls."""

    def options(self, config: JobConfig) -> SpaceOptions:
        """The layers that become sparse."""
        return squantizer_options(config)

    def check_costs(self, config: JobConfig, table: CostTable) -> None:
        """Refuse budgets on what does not depend on σ."""
        sparse_budgets(config, table)

    def prices(self, table: CostTable, layers: Mapping[str, LayerBits]) -> dict[str, float]:
        """All costs, and the sizes without their index, which are those of a dense net with it."""
        return sparse_prices(table, layers)

    def stages(self, context: JobContext, measurer: Measurer) -> list[Stage]:
        """Make the sparse assignments and the controls, and measure them."""
        return [Squantizer(context), Controls(context), Measure(context, measurer)]

    def introduction(self, job: Job) -> tuple[str, str]:
        """The sparse layers."""
        sparse = sum(len(decision.layers) for decision in job.plan.space.decisions)
        return f"{sparse} sparse layers of {len(job.plan.graph.layers)}", "SQuantizer"

    def on_progress(self, network: nn.Module, job: Job) -> Callable[[float], None]:
        """Start sparsity after the delay."""
        return delayed(network, section_of(job.config).delay)

    def settle(self, network: nn.Module, assignment: BitAssignment, job: Job) -> None:
        """Switch sparsity on for good; raise every σ where the trained weights are over the budget, until they fit."""
        activate(network)
        limits = assignment.provenance.limits
        if not limits or not sparse_of(assignment.layers):
            return
        weights = float_weights(network, assignment.layers, job.plan.graph)
        raised = raised_within(job.plan.table, assignment.layers, weights, Budget(limits, ""))
        set_sigmas(network, raised or {})

    def as_measured(self, assignment: BitAssignment, context: JobContext) -> BitAssignment:
        """The assignment with the σ, non-zeros, formats and costs of the largest of its trained nets.

        A net of dense weights keeps its costs, which are then also those without an index.
        """
        table, nets = context.job.plan.table, _nets(assignment, context)
        layers = max(nets, key=lambda net: sparse_prices(table, net)["size_bytes"])
        empty = [name for name, known in sparse_of(layers).items() if not known.nonzeros]
        if empty:
            context.log.tell_once([f"{assignment.id}: no weight stayed in {', '.join(empty)}; lower their σ"])
        prices, by_layer = sparse_prices(table, layers), costs_by_layer(table, layers)
        sizes = [sparse_prices(table, net)["size_bytes"] for net in nets]
        told = {**compression_ratios(table, layers, prices), "size_bytes_of_seeds": sizes}
        return replace(assignment, layers=layers, cost=prices, layer_costs=by_layer).with_metrics(compression=told)


def _nets(assignment: BitAssignment, context: JobContext) -> list[Layers]:
    """The layers as the net of each seed stores them; those of a dense net, once."""
    if not sparse_of(assignment.layers):
        return [dict(assignment.layers)]
    job, run, nets = context.job, context.log.run, []
    for seed in range(job.config.finetune.seeds):
        network = stored_net(run, job.network, job.plan.graph, assignment, job.choice, seed)
        nets.append(as_stored(network.cpu(), assignment.layers))  # the sizes are those that the CPU counts
    return nets
