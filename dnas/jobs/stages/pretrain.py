"""The stage `pretrain`: the float network is trained, where the job asks for it."""

from __future__ import annotations

from collections.abc import Iterable

from dnas.data.image_sets import ImageSet
from dnas.execution.tasks import JobTask
from dnas.jobs.context import PRETRAINED, JobContext, Place
from dnas.jobs.job import Job
from dnas.jobs.progress import FORWARD, TRAIN, Work
from dnas.jobs.stage import Findings, Foreseen, Stage
from dnas.jobs.stored_nets import stored_float
from dnas.training.trainer import Trainer
from results.run.layout import checkpoint_file


class Pretrain(Stage):
    """Trains the float network; in a search without the images of θ, which must be new to the weights."""

    name = "pretrain"

    def work(self, before: Foreseen) -> Work:
        """Its epochs."""
        return {self.name: _epoch_units(self.context.job) * self.context.job.config.pretrain.epochs}

    def ahead(self, findings: Findings) -> Iterable[JobTask]:
        """The training."""
        job = self.context.job
        if job.config.pretrain.epochs:
            units = sum(self.work(Foreseen()).values())
            yield JobTask(PRETRAINED, pretrain, seed=job.config.seed, work=units, writes=(checkpoint_file(PRETRAINED),))

    def carry_out(self, findings: Findings) -> None:
        """Train the epochs that are left."""
        context = self.context
        for task in self.ahead(findings):
            context.outcome(task)
        if context.job.config.pretrain.epochs and not context.tasks.in_process:
            stored_float(context.log.run, context.job.network, context.job.config.pretrain.epochs)


def pretrain(context: JobContext, seed: int) -> None:
    """Train the float network of the job, in place."""
    job = context.job
    config = job.config
    trainer = Trainer(
        job.network,
        config.pretrain,
        images=_images(job),
        batch_size=config.data.batch_size,
        augmentation=job.search_data.augmentation,
        seed=seed,
        label=Pretrain.name,
        device=job.device,
        task=job.task,
    )
    context.train(trainer, Place(Pretrain.name, "float", PRETRAINED, Pretrain.name, _epoch_units(job)))


def _images(job: Job) -> ImageSet:
    return job.search_data.weights if job.config.compression == "search" else job.data.train


def _epoch_units(job: Job) -> float:
    return TRAIN * len(_images(job)) + FORWARD * len(job.search_data.validation)
