"""A job of ``compression = "squantizer"``: which nets it trains, and with which σ in every layer."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from dnas.jobs.context import JobContext
from dnas.jobs.job import Job
from dnas.jobs.progress import Work
from dnas.jobs.stage import Findings, Foreseen, Stage
from dnas.squantizer.plan import section_of, sparse_budgets
from dnas.squantizer.sigma_search import TRIAL, layer_sigmas, trial_units
from dnas.squantizer.storage import Layers, Weights, float_weights, sigma_within, stored_layers
from search_spaces.costs.budgets import Budget
from search_spaces.errors import InputError
from search_spaces.models.copies import fresh_copy
from search_spaces.provenance import Provenance
from search_spaces.spaces import matches
from search_spaces.sparse_weights.scheme import SparseWeights


@dataclass(frozen=True)
class SparseNet:
    """One net of the job: its width, and a common σ, or the σ of every layer within a budget, by ``trials`` or not."""

    id: str
    bits: int
    sigma: float = 0.0
    budget: Budget | None = None
    trials: int = 0


def sparse_nets(job: Job) -> Iterator[SparseNet]:
    """One net for every width and σ, and one or two for every width and budget."""
    section = section_of(job.config)
    for bits in dict.fromkeys(section.weight_bits):
        for sigma in dict.fromkeys(section.sigma):
            yield SparseNet(f"sq{bits}-sigma{str(sigma).removesuffix('.0')}", bits, sigma)
        for number, budget in enumerate(sparse_budgets(job.config, job.plan.table), start=1):
            yield SparseNet(f"sq{bits}-budget{number}", bits, budget=budget)
            if section.trials:
                yield SparseNet(f"sq{bits}-layers{number}", bits, budget=budget, trials=section.trials)


class Squantizer(Stage):
    """Makes the sparse assignments, to be measured.

    Their sizes are those on the weights before training; :class:`SquantizerCompression` gives the final ones.
    """

    name = "squantizer"

    def check(self, before: Foreseen) -> None:
        """Refuse a budget that no σ meets on the weights as they are before pretraining."""
        job = self.context.job
        if not job.config.pretrain.epochs:
            return  # without pretraining the assignments themselves are made before any training
        weights = starting_weights(job)
        for net in sparse_nets(job):
            if net.budget:
                _within(job, weights, net.bits, net.budget)

    def foresee(self, before: Foreseen) -> Foreseen:
        """Every sparse net."""
        return before.handing(net.id for net in sparse_nets(self.context.job))

    def work(self, before: Foreseen) -> Work:
        """All trials of σ."""
        job = self.context.job
        return {TRIAL: trial_units(job) * sum(net.trials for net in sparse_nets(job))}

    def carry_out(self, findings: Findings) -> None:
        """Save and journal every assignment."""
        context = self.context
        weights, made = starting_weights(context.job), Provenance(kind=Squantizer.name, run=Squantizer.name)
        for net in sparse_nets(context.job):
            layers: Layers = {}
            if net.id in context.log.decoded:
                context.progress.recall({TRIAL: trial_units(context.job) * net.trials})
            else:
                layers = _layers_of(context, net, weights)
            findings.found.append(context.log.keep(net.id, layers, made, net.budget))


def _layers_of(context: JobContext, net: SparseNet, weights: Weights) -> Layers:
    """The layers of a net on the weights as they are."""
    job = context.job
    if net.budget is None:
        return stored_layers(weights, sparse_layers(job, net.bits, net.sigma))
    if not net.trials:
        return _within(job, weights, net.bits, net.budget)
    layers = sparse_layers(job, net.bits, 0.0)
    return layer_sigmas(context, net.id, layers, weights, net.budget, _free_names(job))


def starting_weights(job: Job) -> Weights:
    """The weights of the float network, whose layers have the names of a quantized copy's."""
    layers = sparse_layers(job, section_of(job.config).weight_bits[0], 0.0)
    return float_weights(fresh_copy(job.network), layers, job.plan.graph)


def sparse_layers(job: Job, bits: int, sigma: float) -> Layers:
    """The bits of every layer, with ``sigma`` or its own σ in each sparse one; :class:`InputError` for a wrong pattern.

    Nothing is known of their non-zeros yet.
    """
    section, plan = section_of(job.config), job.plan
    for pattern in section.sigmas:
        if not any(matches([pattern], plan.graph[name]) for name in _sparse_names(job)):
            raise InputError(
                f"squantizer.sigmas: '{pattern}' fits none of the sparse layers; they are "
                f"{', '.join(_sparse_names(job))}"
            )
    layers = dict(plan.space.uniform(bits))
    for name in _sparse_names(job):
        own = [value for pattern, value in section.sigmas.items() if matches([pattern], plan.graph[name])]
        sparse = SparseWeights(own[-1] if own else sigma, section.order, section.gradient)
        layers[name] = replace(layers[name], scheme=sparse)
    return layers


def _sparse_names(job: Job) -> list[str]:
    return [name for decision in job.plan.space.decisions for name in decision.layers]


def _free_names(job: Job) -> list[str]:
    """The sparse layers whose σ `squantizer.sigmas` leaves open."""
    patterns = list(section_of(job.config).sigmas)
    names = [name for name in _sparse_names(job) if not matches(patterns, job.plan.graph[name])]
    if not names:
        raise InputError("squantizer.budgets needs a layer whose σ is free; squantizer.sigmas sets them all")
    return names


def _within(job: Job, weights: Weights, bits: int, budget: Budget) -> Layers:
    """The layers at the least common σ that meets ``budget`` on ``weights``."""
    layers, names = sparse_layers(job, bits, 0.0), _free_names(job)
    found = sigma_within(job.plan.table, layers, weights, budget, names)
    if found is None:
        raise InputError(
            f"squantizer.budgets: at {bits} bits {budget.label} is out of reach: a layer would lose its last weight; "
            "raise it, take fewer bits or exclude fewer layers"
        )
    return found
