"""The controls that every search is measured against: uniform, training-free and random assignments."""

from __future__ import annotations

import numpy as np

from dnas.jobs.context import JobContext
from dnas.search.sensitivity import sensitivities
from dnas.training.schedules import derived_seed
from search_spaces.allocation.program import allocate, is_reachable
from search_spaces.assignments import BitAssignment
from search_spaces.provenance import ILP, RANDOM, UNIFORM, Provenance

_SENSITIVITY_BATCHES, _SENSITIVITY_IMAGES = 2, 64


def control_assignments(context: JobContext) -> list[BitAssignment]:
    """Every control that the job asks for, saved and journaled."""
    space, section = context.plan.space, context.config.controls
    kept = []
    for bits in section.uniform:
        layers = space.uniform(bits)
        kept.append(context.keep(f"uniform-{bits}", layers, Provenance(kind=UNIFORM, run=UNIFORM)))
    names = [f"ilp-{number}" for number in range(1, len(context.plan.budgets) + 1)]
    known = set(context.decoded)
    if section.ilp and names:
        losses = np.zeros(space.allowed.shape) if known >= set(names) else sensitivity_losses(context)
        for name, budget in zip(names, context.plan.budgets, strict=True):
            if not is_reachable(context.plan.table, budget):
                context.tell_once([f"no control '{name}': {budget.label} can be met by a pruned net alone"])
                continue
            cells = allocate(-losses, context.plan.table, budget)
            kept.append(context.keep_cells(name, cells, Provenance(kind=ILP, run=ILP), budget))
    for number, budget in enumerate(context.plan.budgets, start=1):
        if section.random and not is_reachable(context.plan.table, budget):
            continue
        generator = np.random.default_rng(derived_seed(context.config.seed, "random", number))
        for draw in range(1, section.random + 1):
            cells = allocate(generator.random(space.allowed.shape), context.plan.table, budget)
            made = Provenance(kind=RANDOM, run=RANDOM)
            kept.append(context.keep_cells(f"random-{number}-{draw}", cells, made, budget))
    return kept


def sensitivity_losses(context: JobContext) -> np.ndarray:
    """What each cell of the space costs in loss, (D, Kw, Ka), by the training-free estimate."""
    batches = context.data.train.batches(
        min(_SENSITIVITY_IMAGES, context.config.data.batch_size),
        seed=derived_seed(context.config.seed, "sensitivity"),
        device=context.device.place,
    )
    some = [batch for _, batch in zip(range(_SENSITIVITY_BATCHES), batches, strict=False)]
    return sensitivities(context.network, context.plan.space, context.choice, some, seed=context.config.seed)
