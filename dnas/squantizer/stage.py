"""A job of ``compression = "squantizer"``: which nets it trains, and with which σ in every layer."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from dnas.jobs.job import Job
from dnas.jobs.progress import Work
from dnas.jobs.stage import Findings, Foreseen, Stage
from dnas.jobs.stages.trial_search import take_turns
from dnas.squantizer.layers import free_names, sparse_layers, starting_weights
from dnas.squantizer.plan import section_of, sparse_budgets
from dnas.squantizer.sigma_search import TRIAL, SigmaSearch, trial_units
from dnas.squantizer.storage import Layers, Weights, sigma_within, stored_layers
from search_spaces.costs.budgets import Budget
from search_spaces.errors import InputError
from search_spaces.provenance import Provenance


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
        """Save and journal every assignment; searches of σ take turns before."""
        context, job = self.context, self.context.job
        weights, made = starting_weights(job), Provenance(kind=Squantizer.name, run=Squantizer.name)
        known = set(context.log.decoded)
        searches = {}
        for net in sparse_nets(job):
            if net.id in known:
                context.progress.recall({TRIAL: trial_units(job) * net.trials})
            elif net.budget and net.trials:
                searches[net.id] = SigmaSearch(context, net.id, net.bits, net.budget)
        take_turns([each.trials for each in searches.values()])
        for net in sparse_nets(job):
            layers: Layers = {}
            if net.id in searches:
                layers = searches[net.id].layers(weights)
            elif net.id not in known:
                layers = _layers_of(job, net, weights)
            findings.found.append(context.log.keep(net.id, layers, made, net.budget))


def _layers_of(job: Job, net: SparseNet, weights: Weights) -> Layers:
    """The layers of a net without trials on the weights as they are."""
    if net.budget is None:
        return stored_layers(weights, sparse_layers(job, net.bits, net.sigma))
    return _within(job, weights, net.bits, net.budget)


def _within(job: Job, weights: Weights, bits: int, budget: Budget) -> Layers:
    """The layers at the least common σ that meets ``budget`` on ``weights``."""
    layers, names = sparse_layers(job, bits, 0.0), free_names(job)
    found = sigma_within(job.plan.table, layers, weights, budget, names)
    if found is None:
        raise InputError(
            f"squantizer.budgets: at {bits} bits {budget.label} is out of reach: a layer would lose its last weight; "
            "raise it, take fewer bits or exclude fewer layers"
        )
    return found
