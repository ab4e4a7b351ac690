"""Trials of pruning: a trained quantized net, filters removed from a copy, BatchNorm re-estimated, loss and accuracy.

The images are the same in every trial. Trials may run in worker processes; each makes the net again from the run's
own files, and what a trial gives does not depend on which process ran it.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from bayesopt.criteria import keep
from dnas.config.job import JobConfig, PruneSection
from dnas.data.image_sets import ImageSet, stratified_indices
from dnas.jobs.context import JobContext
from dnas.jobs.stages.measure import Measurer
from dnas.jobs.stages.trial_events import as_told
from dnas.quantization.calibration import recalibrate_batchnorm
from dnas.training.device import CPU, AnyDevice, Device
from dnas.training.processes import ALONE
from dnas.training.schedules import derived_seed
from dnas.training.task import CLASSIFICATION, Task
from dnas.training.trainer import Measurement, measure
from results.run.folder import Run
from search_spaces.channels.slicing import remove_filters
from search_spaces.errors import JobError
from search_spaces.groups import ChannelGroups, Kept

Counts = Mapping[str, int]
Orders = Mapping[str, tuple[int, ...]]
"""Group name → its units, the first to go first."""


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


def make_objective(context: JobContext, assignment: str, orders: Orders, section: PruneSection) -> PruningObjective:
    """The objective of one assignment of a run, at the job's first fine-tuning seed."""
    job = context.job
    val, batch_size = job.data.val, job.config.data.batch_size
    count = min(section.proxy_images or len(val), len(val))
    if count < len(val):
        val = val.subset(stratified_indices(val.labels, count, derived_seed(job.config.seed, "proxy")))
    measurer = Measurer(context)
    return PruningObjective(
        measurer.stored(context.log.run.assignment(assignment), 0),
        job.plan.graph.channels,
        orders,
        batchnorm_images=job.batchnorm_images(section.batchnorm_batches),
        images=val,
        batch_size=batch_size,
        device=job.device,
        task=job.task,
    )


@dataclass(frozen=True)
class _Setting:
    """What a worker process makes its objective from."""

    config: str
    folder: Path
    assignment: str
    orders: Orders
    section: str
    threads: int


_objective: PruningObjective | None = None


def _prepare(setting: _Setting) -> None:
    global _objective
    torch.set_num_threads(setting.threads)
    config, section = JobConfig.model_validate_json(setting.config), PruneSection.model_validate_json(setting.section)
    context = JobContext(config, Run.open(setting.folder), lambda event: None)
    _objective = make_objective(context, setting.assignment, setting.orders, section)


def _try(counts: Counts) -> Measurement:
    assert _objective is not None
    return _objective(counts)


class Trials:
    """Evaluates several configurations, one after the other or in worker processes, in the order asked.

    Processes that train together take them in turn, or where only one is asked for its images.
    """

    def __init__(self, objective: PruningObjective, pool: ProcessPoolExecutor | None = None) -> None:
        self.objective, self.pool = objective, pool

    def __call__(self, asked: Sequence[Counts]) -> Iterator[Measurement]:
        """Yield the measurement of each."""
        if self.pool is None and len(asked) == 1:
            yield self.objective(asked[0])
            return
        yield from self.objective.device.processes.dealt_out(self._tried, asked)

    def _tried(self, asked: Sequence[Counts]) -> Iterator[Measurement]:
        """Those that this process measures."""
        if self.pool is None:
            yield from map(self.objective.alone, asked)
            return
        try:
            yield from self.pool.map(_try, asked)
        except BrokenProcessPool as error:
            raise JobError(
                "a worker process of the trials died (out of memory?); resume with fewer prune.workers"
            ) from error


@contextmanager
def open_trials(context: JobContext, assignment: str, orders: Orders, section: PruneSection) -> Iterator[Trials]:
    """Trials of one assignment, with worker processes where the section asks for more than one."""
    objective = make_objective(context, assignment, orders, section)
    if section.workers == 1:
        yield Trials(objective)
        return
    threads = max(1, torch.get_num_threads() // section.workers)
    setting = _Setting(
        context.job.config.model_dump_json(by_alias=True),
        context.log.run.folder,
        assignment,
        dict(orders),
        section.model_dump_json(),
        threads,
    )
    # spawned, not forked: a forked process inherits locks of threads that it does not have
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(section.workers, spawn, initializer=_prepare, initargs=(setting,)) as pool:
        yield Trials(objective, pool)
