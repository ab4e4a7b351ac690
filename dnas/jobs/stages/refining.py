"""Proposals of a budget refined by the loss of the warm supernet, as a task: more proposals for the choice."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import torch

from dnas.data.image_sets import ImageSet, stratified_indices
from dnas.execution.tasks import JobTask
from dnas.jobs.context import JobContext
from dnas.jobs.job import Job
from dnas.jobs.progress import FORWARD_QUANTIZED
from dnas.jobs.stages.net_search import NetSearch
from dnas.jobs.stages.search_names import WARMUP, search_labels
from dnas.search.pool import Proposal, Widths
from dnas.search.ranking import loss_by_batch
from dnas.search.refinement import ROUNDS, refined
from dnas.training.schedules import derived_seed
from results.run.layout import checkpoint_file
from search_spaces.allocation.program import Cells
from search_spaces.fields import Pair

REFINE = "refine"
_MOST_IMAGES = 256


def refining_task(context: JobContext, label: str, pool: Sequence[Proposal], bound: Widths | None) -> JobTask:
    """Refining the best of a budget's proposals."""
    inputs = {"label": label, "proposals": [list(each.widths) for each in pool], "bound": bound}
    reads = (*context.reads_float, *((checkpoint_file(WARMUP),) if context.job.config.search.warmup_epochs else ()))
    units = refining_units(context.job, len(pool))
    return JobTask(f"{REFINE} {label}", refine, inputs, context.job.config.seed, units, reads)


def refine(
    context: JobContext, seed: int, label: str, proposals: Sequence[Widths], bound: Widths | None
) -> list[tuple[list[Pair], float]]:
    """Refine the proposals that are best in the warm supernet, ``choice.refined`` of them.

    Returns widths and the loss of each of ``proposals``, in order, then of those that were refined. The loss is that on
    images of θ, with BatchNorm by the statistics of each batch.
    """
    job, plan = context.job, context.job.plan
    budget = search_labels(job, pruned=False)[label]
    assert budget is not None  # the job's file is refused without any
    supernet, images = NetSearch(context, None).warm_supernet(), _images(job)

    @cache
    def loss_of(cells: tuple[tuple[int, int], ...]) -> float:
        loss = loss_by_batch(supernet, list(cells), images, job.config.data.batch_size, job.device, job.task)
        context.progress.step(REFINE, _units(job), stage="choice", run=label)
        return loss

    def loss(cells: Cells) -> float:
        return loss_of(tuple(cells))

    given = [plan.space.cells_of(widths) for widths in proposals]
    starts = sorted(given, key=loss)[: job.config.choice.refined]
    ends = [refined(start, plan.table, budget, loss, bound=bound)[0] for start in starts]
    return [([plan.space.pair(*cell) for cell in cells], loss(cells)) for cells in [*given, *ends]]


def refining_units(job: Job, count: int) -> float:
    """Units of refining the best of so many proposals, at most about."""
    allowed = job.plan.space.allowed
    chosen = sum(int((allowed.any(axis).sum(1) > 1).sum()) for axis in (1, 2))
    return _units(job) * (count + job.config.choice.refined * ROUNDS * 2 * chosen)  # one narrower, one wider


def _units(job: Job) -> float:
    return FORWARD_QUANTIZED * min(len(job.search_data.theta), _MOST_IMAGES)


def _images(job: Job) -> ImageSet:
    """Images of θ that losses are measured on, each class in proportion, in a random order: no batch has one class."""
    images = job.search_data.theta
    chosen = stratified_indices(images.labels, min(len(images), _MOST_IMAGES), derived_seed(job.config.seed, REFINE))
    generator = torch.Generator().manual_seed(derived_seed(job.config.seed, REFINE, "order"))
    return images.subset(chosen[torch.randperm(len(chosen), generator=generator)])
