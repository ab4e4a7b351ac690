"""The controls that every search is measured against: uniform, training-free and random assignments."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from dnas.schedules import derived_seed
from dnas.sensitivity import sensitivities
from search_spaces.allocation import allocate
from search_spaces.assignments import BitAssignment
from search_spaces.spaces import PrecisionSpace

if TYPE_CHECKING:
    from dnas.jobs import Job

_SENSITIVITY_BATCHES, _SENSITIVITY_IMAGES = 2, 64


def uniform_activation_bits(space: PrecisionSpace, weight_bits: int) -> int:
    """Activation bits of the uniform control: those of the weights, or the only width that the space offers."""
    return space.activation_bits[0] if len(space.activation_bits) == 1 else weight_bits


def control_assignments(job: Job) -> list[BitAssignment]:
    """Every control that the job asks for, saved and journaled."""
    space, section = job.plan.space, job.config.controls
    kept = []
    for bits in section.uniform:
        layers = space.uniform(bits, uniform_activation_bits(space, bits))
        kept.append(job.keep(f"uniform-{bits}", "uniform", layers, run="uniform"))
    names = [f"ilp-{number}" for number in range(1, len(job.plan.budgets) + 1)]
    known = {record["assignment"] for record in job.events("decoded")}
    if section.ilp and names:
        losses = np.zeros(space.allowed.shape) if known >= set(names) else _sensitivities(job)
        for name, budget in zip(names, job.plan.budgets, strict=True):
            cells = allocate(-losses, job.plan.table, budget)
            kept.append(job.keep(name, "ilp", cells, budget=budget, run="ilp"))
    for number, budget in enumerate(job.plan.budgets, start=1):
        generator = np.random.default_rng(derived_seed(job.config.seed, "random", number))
        for draw in range(1, section.random + 1):
            cells = allocate(generator.random(space.allowed.shape), job.plan.table, budget)
            kept.append(job.keep(f"random-{number}-{draw}", "random", cells, budget=budget, run="random"))
    return kept


def _sensitivities(job: Job) -> np.ndarray:
    batches = job.data.train.batches(
        min(_SENSITIVITY_IMAGES, job.config.data.batch_size),
        seed=derived_seed(job.config.seed, "sensitivity"),
        device=job.device,
    )
    some = [batch for _, batch in zip(range(_SENSITIVITY_BATCHES), batches, strict=False)]
    return sensitivities(job.network, job.plan.space, job.choice, some, seed=job.config.seed)
