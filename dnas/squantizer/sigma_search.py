"""A σ for every layer within a budget, by Bayesian optimization: ours, the paper (arXiv 1812.08301) sets σ by hand.

A layer's σ is searched as the share of its weights that stays, in 32 steps: the same share can be had in every layer,
whatever the shape of its weights, and its size is known exactly. A trial takes the float network, quantizes it at the
σ of its proposal, re-estimates BatchNorm and measures the loss on validation images, without any training.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, cast

from torch import Tensor, nn

from bayesopt.proposers import Proposer, make_proposer
from bayesopt.ratios import RatioSpace
from bayesopt.trials import PruningTrial, best_trials, run_trials
from dnas.jobs.context import JobContext
from dnas.jobs.job import Job
from dnas.jobs.progress import FORWARD_QUANTIZED
from dnas.jobs.stages.trial_events import BAYESIAN, as_told, known_trials, trial_event
from dnas.quantization.calibration import calibrate, recalibrate_batchnorm
from dnas.quantization.conversion import fixed_copy
from dnas.squantizer.plan import section_of
from dnas.squantizer.quantizer import moments, sparse_codes
from dnas.squantizer.storage import EPSILON, LEAST_SIGMA, Layers, Weights, set_sigmas, stored_layers
from dnas.training.schedules import derived_seed
from dnas.training.trainer import Measurement
from search_spaces.assignments import LayerBits
from search_spaces.costs.budgets import Budget
from search_spaces.costs.stored import STORED, stored_prices
from search_spaces.costs.table import CostTable
from search_spaces.errors import InputError
from search_spaces.sparse_weights.scheme import SparseWeights

STEPS = 32
BATCHNORM_BATCHES = 10
TRIAL = "trial of σ"


def layer_sigmas(
    context: JobContext, name: str, layers: Layers, weights: Weights, budget: Budget, free: Sequence[str]
) -> Layers:
    """The layers with the σ of each ``free`` one that lost least within ``budget``; every trial is journaled.

    ``weights`` are those of the float network; ``name`` tells this search from others of the job.
    """
    job = context.job
    space = SigmaSpace(job.plan.table, layers, weights, free)
    section = section_of(job.config)
    seed = derived_seed(job.config.seed, name) % 2**32
    proposer: Proposer = make_proposer(
        "scikit-optimize", space.ratios, [budget.limits], seed=seed, total=section.trials
    )
    known = known_trials(context.log, name, BAYESIAN)
    context.progress.recall({TRIAL: trial_units(job) * len(known)})
    trials = list(known)
    for trial in run_trials(proposer, _Trials(job, space), total=section.trials, known=known):
        context.log.write(trial_event(name, BAYESIAN, trial, context.job.task.metric.name))
        trials.append(trial)
        context.progress.step(TRIAL, trial_units(job), **_facts(name, section.trials, trials, job.task.metric.name))
    context.progress.correct(len(trials) - section.trials, {TRIAL: trial_units(job)})
    best = best_trials(trials, budget.limits, 1)
    if not best:
        raise InputError(f"no trial of '{name}' gave a finite loss; give squantizer.sigma instead of a budget")
    return stored_layers(weights, space.layers_at(best[0].counts))


def _facts(name: str, total: int, trials: Sequence[PruningTrial], metric: str) -> dict[str, Any]:
    """What the display shows of the last trial."""
    last = trials[-1]
    return {
        "stage": "squantizer",
        "run": name,
        "trial": len(trials),
        "trials": total,
        "loss": math.nan if last.loss is None else last.loss,
        "best": min((trial.loss for trial in trials if trial.loss is not None), default=math.nan),
        "metric": metric,
        "score": last.score,
        "expected": {name: last.cost[name] for name in last.proposal.limits},
        "budget": dict(last.proposal.limits),
    }


def trial_units(job: Job) -> float:
    """Units of one trial."""
    images = min(len(job.data.train), BATCHNORM_BATCHES * job.config.data.batch_size)
    return FORWARD_QUANTIZED * (images + len(job.search_data.validation))


class SigmaSpace:
    """For every free layer, 32 shares of its weights that may stay: the σ of each, and what is stored then."""

    def __init__(self, table: CostTable, layers: Layers, weights: Weights, free: Sequence[str]) -> None:
        self.layers = layers
        self.sigmas = {name: share_sigmas(weights[name], layers[name]) for name in free}
        others = {name for name in layers if name not in self.sigmas}
        start = stored_layers(weights, {name: bits for name, bits in layers.items() if name in others})
        at = {**layers, **start}
        steps: dict[str, list[dict[str, float]]] = {}
        for name, sigmas in self.sigmas.items():
            nothing = stored_prices(table, {**at, name: _empty(layers[name])})
            steps[name] = []
            for sigma in sigmas:
                known = stored_layers(weights, {name: _at(layers[name], sigma)})
                prices = stored_prices(table, {**at, **known})
                steps[name].append({cost: prices[cost] - nothing[cost] for cost in STORED})
        base = stored_prices(table, {**at, **{name: _empty(layers[name]) for name in self.sigmas}})

        def cost(counts: Mapping[str, int]) -> dict[str, float]:
            added = [steps[name][count - 1] for name, count in counts.items()]
            return {**base, **{name: base[name] + sum(step[name] for step in added) for name in STORED}}

        names = tuple(self.sigmas)
        self.ratios = RatioSpace(names, (STEPS,) * len(names), cost, max_ratio=1 - 1 / STEPS)

    def layers_at(self, counts: Mapping[str, int]) -> Layers:
        """The layers at the σ of so many shares each."""
        chosen = {name: _at(self.layers[name], self.sigmas[name][count - 1]) for name, count in counts.items()}
        return {**self.layers, **chosen}


def share_sigmas(weight: Tensor, bits: LayerBits) -> list[float]:
    """The σ at which 1/32, 2/32, ... all of the weights stay, those of equal magnitude together."""
    sizes = weight.detach().abs().flatten()
    if isinstance(bits.scheme, SparseWeights) and bits.scheme.order == "quantize-first":
        sizes = sparse_codes(weight, LEAST_SIGMA, bits.weight_bits, bits.scheme.order).values().abs().flatten()
    mean, std = (float(moment) for moment in moments(sizes))
    falling = sizes.sort(descending=True).values
    last = [max(1, round(sizes.numel() * share / STEPS)) - 1 for share in range(1, STEPS)]
    if not std:
        return [LEAST_SIGMA] * STEPS
    return [*((float(falling[index]) * (1 - EPSILON) - mean) / std for index in last), LEAST_SIGMA]


def _at(bits: LayerBits, sigma: float) -> LayerBits:
    return replace(bits, scheme=replace(cast(SparseWeights, bits.scheme), sigma=sigma))


def _empty(bits: LayerBits) -> LayerBits:
    """The layer as if nothing of it were stored."""
    known = cast(SparseWeights, bits.scheme)
    return replace(bits, scheme=replace(known, nonzeros=0, storage="bitmask", stored_bits=0))


class _Trials:
    """Measures proposals one after the other, all on one net whose σ are set anew; it is made for the first of them."""

    def __init__(self, job: Job, space: SigmaSpace) -> None:
        self.job, self.space = job, space
        self._images: list[Tensor] = []

    @cached_property
    def network(self) -> nn.Module:
        """The float network, quantized and calibrated."""
        job = self.job
        network = fixed_copy(job.network, job.plan.graph, self.space.layers, job.choice)
        calibrate(network.to(job.device.place), job.calibration_images())
        self._images = job.batchnorm_images(BATCHNORM_BATCHES)
        return network.eval()

    def __call__(self, asked: Sequence[Mapping[str, int]]) -> Iterator[Measurement]:
        """Yield the measurement of each."""
        validation, job = self.job.search_data.validation, self.job
        for counts in asked:
            set_sigmas(self.network, self.space.layers_at(counts))
            recalibrate_batchnorm(self.network, self._images, allow_overflow=True)
            yield as_told(job.measured(self.network, validation))
