"""Trials of pruning: a trained quantized net, filters removed from a copy, BatchNorm re-estimated, loss and accuracy.

The images are the same in every trial. A trial is a task: whoever carries it out makes the net again from the run's own
files, and what it gives does not depend on who that is.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from bayesopt.criteria import keep
from bayesopt.proposers import Proposal
from dnas.config.job import PruneSection
from dnas.data.image_sets import ImageSet, stratified_indices
from dnas.execution.tasks import JobTask
from dnas.jobs.context import JobContext, Recent
from dnas.jobs.job import Job
from dnas.jobs.progress import FORWARD_QUANTIZED
from dnas.jobs.stages.measure import Measurer
from dnas.jobs.stages.trial_events import as_told
from dnas.quantization.calibration import recalibrate_batchnorm
from dnas.training.device import CPU, AnyDevice, Device
from dnas.training.processes import ALONE
from dnas.training.schedules import derived_seed
from dnas.training.task import CLASSIFICATION, Task
from dnas.training.trainer import Measurement, measure
from search_spaces.assignments import BitAssignment
from search_spaces.channels.slicing import remove_filters
from search_spaces.groups import ChannelGroups, Kept

Counts = Mapping[str, int]
Orders = Mapping[str, tuple[int, ...]]
"""Group name → its units, the first to go first."""
_MOST_NETS = 4
"""In memory at once, of assignments that are pruned in turns."""


class PruningObjective:
    """Loss and accuracy of a trained net without some of its filters, before any fine-tuning."""

    def __init__(
        self,
        network: nn.Module,
        groups: ChannelGroups,
        orders: Orders,
        *,
        batchnorm_images: Sequence[Tensor],
        images: ImageSet,
        batch_size: int,
        device: AnyDevice = CPU,
        task: Task = CLASSIFICATION,
    ) -> None:
        self.device, self.task = Device.of(device), task
        self.network, self.groups, self.orders = network, groups, orders
        self.batchnorm_images, self.images, self.batch_size = batchnorm_images, images, batch_size

    def kept(self, counts: Counts) -> Kept:
        """The units that stay when each group keeps so many."""
        return {name: keep(order, counts[name]) for name, order in self.orders.items() if name in counts}

    def pruned(self, counts: Counts) -> nn.Module:
        """The smaller net."""
        return remove_filters(self.network, self.groups, self.kept(counts))

    def __call__(self, counts: Counts) -> Measurement:
        """Measure the net whose groups keep so many units; several processes do so together."""
        return self._measured(counts, self.device)

    def alone(self, counts: Counts) -> Measurement:
        """The same, in this process."""
        return self._measured(counts, replace(self.device, processes=ALONE))

    def _measured(self, counts: Counts, device: Device) -> Measurement:
        smaller = self.pruned(counts).eval()
        recalibrate_batchnorm(smaller, self.batchnorm_images, allow_overflow=True)
        return as_told(measure(smaller, self.images, self.batch_size, device, self.task))


class TrialNets:
    """What the trials of many assignments go by: the same images, and the nets of the assignments tried last."""

    def __init__(self, context: JobContext, section: PruneSection) -> None:
        self._context, job = context, context.job
        val = job.data.val
        count = min(section.proxy_images or len(val), len(val))
        if count < len(val):
            val = val.subset(stratified_indices(val.labels, count, derived_seed(job.config.seed, "proxy")))
        self._images, self._batchnorm_images = val, job.batchnorm_images(section.batchnorm_batches)
        self._objectives = Recent[Hashable, PruningObjective](_MOST_NETS)

    def objective(self, assignment: str, orders: Orders) -> PruningObjective:
        """The objective of one assignment of the run, at the job's first fine-tuning seed."""
        return self._objectives.get((assignment, *orders.items()), lambda: self._made(assignment, orders))

    def _made(self, assignment: str, orders: Orders) -> PruningObjective:
        job = self._context.job
        return PruningObjective(
            Measurer(self._context).stored(self._context.log.run.assignment(assignment), 0),
            job.plan.graph.channels,
            orders,
            batchnorm_images=self._batchnorm_images,
            images=self._images,
            batch_size=job.config.data.batch_size,
            device=job.device,
            task=job.task,
        )


class Trials:
    """Tasks on one assignment without some of its filters.

    ``label`` is that of the pruning: one assignment may be pruned several times in a job.
    """

    def __init__(
        self, context: JobContext, assignment: BitAssignment, orders: Orders, section: PruneSection, label: str
    ) -> None:
        self.context, self.assignment, self.label = context, assignment, label
        self.inputs: dict[str, Any] = {
            "assignment": assignment.id,
            "orders": {name: list(order) for name, order in orders.items()},
            "section": section.model_dump(mode="json"),
        }
        self.work = trial_units(context.job, section)
        self._reads = (*context.reads_float, *Measurer(context).net_files(assignment.id, 0))

    def measured(self, kind: str, asked: Sequence[Proposal]) -> Iterator[Measurement]:
        """Let proposals of a search be measured; yields what each gives."""
        if self.context.job.device.processes.several:
            return self._together([proposal.counts for proposal in asked])
        tasks = [self.task(f"{kind} trial {each.number}", try_filters, each.counts, self.work) for each in asked]
        self.context.tasks.announce(tasks)
        return map(self.context.outcome, tasks)

    def _together(self, asked: Sequence[Counts]) -> Iterator[Measurement]:
        yield from tried_together(objective_of(self.context, **self.inputs), asked)

    def task(
        self,
        what: str,
        function: Callable[..., Any],
        counts: Counts,
        work: float,
        writes: tuple[str, ...] = (),
        **more: Any,
    ) -> JobTask:
        """A task on the net whose groups keep so many units; ``what`` tells it from others of this pruning."""
        inputs = {**self.inputs, "counts": dict(counts), **more}
        seed = self.context.job.config.seed
        return JobTask(f"{what} of {self.label}", function, inputs, seed, work, self._reads, writes)


def tried_together(objective: PruningObjective, asked: Sequence[Counts]) -> Iterator[Measurement]:
    """Measurements by processes that train together: they take several in turn, or of a single one its images."""
    if len(asked) == 1:
        yield objective(asked[0])
        return
    yield from objective.device.processes.dealt_out(lambda own: map(objective.alone, own), asked)


def objective_of(
    context: JobContext, assignment: str, orders: Mapping[str, Sequence[int]], section: Mapping[str, Any]
) -> PruningObjective:
    """The objective that these plain values describe; those of the assignments tried last are at hand."""
    wanted = {name: tuple(order) for name, order in orders.items()}
    options = PruneSection.model_validate(section)
    key = ("trials", options.proxy_images, options.batchnorm_batches)
    return context.last_made(key, lambda: TrialNets(context, options)).objective(assignment, wanted)


def try_filters(context: JobContext, seed: int, counts: Counts, **objective: Any) -> Measurement:
    """What the net measures whose groups keep so many units."""
    return objective_of(context, **objective)(counts)


def trial_units(job: Job, section: PruneSection) -> float:
    """Units of one trial."""
    images = min(section.proxy_images or len(job.data.val), len(job.data.val))
    return FORWARD_QUANTIZED * (
        images + min(len(job.data.train), section.batchnorm_batches * job.config.data.batch_size)
    )
