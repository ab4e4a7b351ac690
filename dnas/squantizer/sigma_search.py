"""A σ for every layer within a budget, by Bayesian optimization: ours, the paper (arXiv 1812.08301) sets σ by hand.

A layer's σ is searched as the share of its weights that stays, in 32 steps: the same share can be had in every layer,
whatever the shape of its weights, and its size is known exactly. A trial takes the float network, quantizes it at the
σ of its proposal, re-estimates BatchNorm and measures the loss on validation images, without any training.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import cast

from torch import Tensor, nn

from bayesopt.proposers import Proposal, Proposer, make_proposer
from bayesopt.ratios import RatioSpace
from bayesopt.trials import best_trials
from dnas.execution.tasks import JobTask
from dnas.jobs.context import JobContext, Recent
from dnas.jobs.job import Job
from dnas.jobs.progress import FORWARD_QUANTIZED
from dnas.jobs.stages.trial_events import BAYESIAN, as_told
from dnas.jobs.stages.trial_search import TrialPlace, TrialSearch
from dnas.quantization.calibration import calibrate, recalibrate_batchnorm
from dnas.quantization.conversion import fixed_copy
from dnas.squantizer.layers import free_names, sparse_layers, starting_weights
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
_MOST_NETS = 4
"""In memory at once, of widths whose searches take turns."""


class SigmaSearch:
    """A search of the σ of every free layer at ``bits`` within ``budget``; ``name`` tells it from others of the job."""

    def __init__(self, context: JobContext, name: str, bits: int, budget: Budget) -> None:
        job = context.job
        self._context, self._name, self._bits, self._budget = context, name, bits, budget
        self._space = sigma_space(job, bits)
        total, seed = section_of(job.config).trials, derived_seed(job.config.seed, name) % 2**32
        proposer: Proposer = make_proposer(
            "scikit-optimize", self._space.ratios, [budget.limits], seed=seed, total=total
        )
        place = TrialPlace("squantizer", name, BAYESIAN, TRIAL, trial_units(job), total)
        self.trials = TrialSearch(context, place, proposer, self._measured)

    def _measured(self, asked: Sequence[Proposal]) -> Iterator[Measurement]:
        context = self._context
        seed, work = context.job.config.seed, trial_units(context.job)
        tasks = [
            JobTask(
                f"trial {each.number} of {self._name}",
                try_sigmas,
                {"bits": self._bits, "counts": each.counts},
                seed,
                work,
                context.reads_float,
            )
            for each in asked
        ]
        context.tasks.announce(tasks)
        return map(context.outcome, tasks)

    def layers(self, weights: Weights) -> Layers:
        """The layers at the σ that lost least, once the search is over; ``weights`` are the float network's."""
        best = best_trials(self.trials.found, self._budget.limits, 1)
        if not best:
            raise InputError(
                f"no trial of '{self._name}' gave a finite loss; give squantizer.sigma instead of a budget"
            )
        return stored_layers(weights, self._space.layers_at(best[0].counts))


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


def sigma_space(job: Job, bits: int) -> SigmaSpace:
    """The space of the job's free layers at these bits, on its float network."""
    return SigmaSpace(job.plan.table, sparse_layers(job, bits, 0.0), starting_weights(job), free_names(job))


class _SigmaNets:
    """What trials go by: the same images, and for each width one net whose σ are set anew each time."""

    def __init__(self, job: Job) -> None:
        self._job, self._images = job, job.batchnorm_images(BATCHNORM_BATCHES)
        self._nets = Recent[int, tuple[SigmaSpace, nn.Module]](_MOST_NETS)

    def measured(self, bits: int, counts: Mapping[str, int]) -> Measurement:
        """What the float network measures at the σ of so many shares, its BatchNorm estimated anew."""
        space, network = self._nets.get(bits, lambda: self._made(bits))
        set_sigmas(network, space.layers_at(counts))
        recalibrate_batchnorm(network, self._images, allow_overflow=True)
        return as_told(self._job.measured(network, self._job.search_data.validation))

    def _made(self, bits: int) -> tuple[SigmaSpace, nn.Module]:
        job, space = self._job, sigma_space(self._job, bits)
        network = fixed_copy(job.network, job.plan.graph, space.layers, job.choice)
        calibrate(network.to(job.device.place), job.calibration_images())
        return space, network.eval()


def try_sigmas(context: JobContext, seed: int, bits: int, counts: Mapping[str, int]) -> Measurement:
    """What the float network measures with so many shares of the weights of each layer left."""
    return context.last_made("sigmas", lambda: _SigmaNets(context.job)).measured(bits, counts)
