"""The layers of a SQuantizer job before any training: their bits, which are sparse, whose σ is free, their weights."""

from __future__ import annotations

from dataclasses import replace

from dnas.jobs.job import Job
from dnas.squantizer.plan import section_of
from dnas.squantizer.storage import Layers, Weights, float_weights
from search_spaces.errors import InputError
from search_spaces.models.copies import fresh_copy
from search_spaces.spaces import matches
from search_spaces.sparse_weights.scheme import SparseWeights


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


def free_names(job: Job) -> list[str]:
    """The sparse layers whose σ `squantizer.sigmas` leaves open."""
    patterns = list(section_of(job.config).sigmas)
    names = [name for name in _sparse_names(job) if not matches(patterns, job.plan.graph[name])]
    if not names:
        raise InputError("squantizer.budgets needs a layer whose σ is free; squantizer.sigmas sets them all")
    return names
