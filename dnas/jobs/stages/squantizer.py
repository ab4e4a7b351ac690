"""A job of ``compression = "squantizer"``: which nets it trains, and what each of them takes once it is trained."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor, nn

from dnas.export.sparse_storage import Layers, as_stored, raised_within, set_sigmas, sigma_within
from dnas.jobs.context import JobContext
from dnas.jobs.planning import sparse_budgets
from dnas.jobs.stages.sigma_search import layer_sigmas, trial_work
from dnas.quantization.sparsity import activate
from search_spaces.assignments import BitAssignment
from search_spaces.costs.budgets import Budget
from search_spaces.costs.sparse import compression, costs_by_layer, sparse_prices
from search_spaces.errors import InputError
from search_spaces.models.copies import fresh_copy
from search_spaces.provenance import SQUANTIZER, Provenance
from search_spaces.spaces import matches
from search_spaces.sparse_codes import SparseWeights


def squantizer_assignments(context: JobContext) -> list[BitAssignment]:
    """One assignment for every width and σ, and one or two for every width and budget; saved and journaled.

    Their sizes are those on the weights before training; :func:`as_measured` gives the final ones.
    """
    section = context.config.squantizer
    weights, made = starting_weights(context), Provenance(kind=SQUANTIZER, run=SQUANTIZER)
    known = set(context.decoded)
    kept = []
    for bits in dict.fromkeys(section.weight_bits):
        for sigma in dict.fromkeys(section.sigma):
            name = f"sq{bits}-sigma{str(sigma).removesuffix('.0')}"
            layers = as_stored(weights, sparse_layers(context, bits, sigma))
            kept.append(context.keep(name, layers, made))
        for number, budget in enumerate(sparse_budgets(context.config, context.plan.table), start=1):
            name = f"sq{bits}-budget{number}"
            layers = {} if name in known else _within(context, weights, bits, budget)
            kept.append(context.keep(name, layers, made, budget))
            if section.trials:
                name = f"sq{bits}-layers{number}"
                layers = _by_trials(context, name, weights, bits, budget) if name not in known else {}
                context.progress.advance(trial_work(context) * section.trials if name in known else 0.0)
                kept.append(context.keep(name, layers, made, budget))
    return kept


def check_budgets(context: JobContext) -> None:
    """Raise :class:`InputError` for a budget that no σ meets on the weights as they are before pretraining."""
    if context.config.compression != "squantizer" or not context.config.pretrain.epochs:
        return  # without pretraining the assignments themselves are made before any training
    weights = starting_weights(context)
    for budget in sparse_budgets(context.config, context.plan.table):
        for bits in dict.fromkeys(context.config.squantizer.weight_bits):
            _within(context, weights, bits, budget)


def starting_weights(context: JobContext) -> Mapping[str, Tensor]:
    """The state of the float network, under the names that its quantized copy has."""
    return fresh_copy(context.network).state_dict()


def sparse_layers(context: JobContext, bits: int, sigma: float) -> Layers:
    """The bits of every layer, with ``sigma`` or its own σ in each sparse one; :class:`InputError` for a wrong pattern.

    Nothing is known of their non-zeros yet.
    """
    section, plan = context.config.squantizer, context.plan
    for pattern in section.sigmas:
        if not any(matches([pattern], plan.graph[name]) for name in _sparse_names(context)):
            raise InputError(
                f"squantizer.sigmas: '{pattern}' fits none of the sparse layers; they are "
                f"{', '.join(_sparse_names(context))}"
            )
    layers = dict(plan.space.uniform(bits))
    for name in _sparse_names(context):
        own = [value for pattern, value in section.sigmas.items() if matches([pattern], plan.graph[name])]
        sparse = SparseWeights(own[-1] if own else sigma, section.order, section.gradient)
        layers[name] = replace(layers[name], sparse=sparse)
    return layers


def _sparse_names(context: JobContext) -> list[str]:
    return [name for decision in context.plan.space.decisions for name in decision.layers]


def _free_names(context: JobContext) -> list[str]:
    """The sparse layers whose σ `squantizer.sigmas` leaves open."""
    patterns = list(context.config.squantizer.sigmas)
    names = [name for name in _sparse_names(context) if not matches(patterns, context.plan.graph[name])]
    if not names:
        raise InputError("squantizer.budgets needs a layer whose σ is free; squantizer.sigmas sets them all")
    return names


def _by_trials(context: JobContext, name: str, weights: Mapping[str, Tensor], bits: int, budget: Budget) -> Layers:
    """The layers with a σ each, found by trials within ``budget``."""
    return layer_sigmas(context, name, sparse_layers(context, bits, 0.0), weights, budget, _free_names(context))


def sigma_work(context: JobContext) -> float:
    """Work of all trials of σ in image passes."""
    section = context.config.squantizer
    if context.config.compression != "squantizer":
        return 0.0
    return trial_work(context) * section.trials * len(section.budgets) * len(set(section.weight_bits))


def _within(context: JobContext, weights: Mapping[str, Tensor], bits: int, budget: Budget) -> Layers:
    """The layers at the least common σ that meets ``budget`` on ``weights``."""
    layers, names = sparse_layers(context, bits, 0.0), _free_names(context)
    found = sigma_within(context.plan.table, layers, weights, budget, names)
    if found is None:
        raise InputError(
            f"squantizer.budgets: at {bits} bits {budget.label} is out of reach: a layer would lose its last weight; "
            "raise it, take fewer bits or exclude fewer layers"
        )
    return found


def settle(network: nn.Module, assignment: BitAssignment, context: JobContext) -> None:
    """Switch sparsity on for good; where the trained weights are over the budget, raise every σ until they are not."""
    activate(network)
    limits = assignment.provenance.limits
    sparse = {name for name, bits in assignment.layers.items() if bits.sparse is not None}
    if not limits or not sparse:
        return
    # On the CPU, as the sizes are counted: another device may add up the statistics to another last digit.
    weights = {key: value.cpu() for key, value in network.state_dict().items()}
    raised = raised_within(context.plan.table, assignment.layers, weights, Budget(limits, ""))
    set_sigmas(network, raised or {})


def as_measured(assignment: BitAssignment, context: JobContext) -> BitAssignment:
    """The assignment with what its trained nets take: the σ, non-zeros, formats and costs of the largest one.

    The nets of all seeds are read from their checkpoints. A net of dense weights keeps its costs, which are then
    also those without an index.
    """
    table, nets = context.plan.table, []
    for seed in range(context.config.finetune.seeds if any(b.sparse for b in assignment.layers.values()) else 0):
        saved = context.run.load_checkpoint(f"net-{assignment.id}-seed{seed}")
        if saved is None:
            raise InputError(f"the checkpoint 'net-{assignment.id}-seed{seed}' is gone; restore it or search again")
        nets.append(as_stored(saved[0], assignment.layers))
    layers = max(nets, key=lambda net: sparse_prices(table, net)["size_bytes"], default=dict(assignment.layers))
    empty = [name for name, bits in layers.items() if bits.sparse and not bits.sparse.nonzeros]
    if empty:
        context.tell_once([f"{assignment.id}: no weight stayed in {', '.join(empty)}; lower their σ"])
    prices = sparse_prices(table, layers)
    sizes = [sparse_prices(table, net)["size_bytes"] for net in nets or [layers]]
    told = {**compression(table, layers, prices), "size_bytes_of_seeds": sizes}
    by_layer = costs_by_layer(table, layers)
    return replace(assignment, layers=layers, cost=prices, layer_costs=by_layer).with_metrics(compression=told)
