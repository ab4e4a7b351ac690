"""The stage `pretrain`: the float network is trained, where the job asks for it."""

from __future__ import annotations

from dnas.jobs.context import Place
from dnas.jobs.progress import FORWARD, TRAIN, Work
from dnas.jobs.stage import Findings, Foreseen, Stage
from dnas.training.trainer import Trainer


class Pretrain(Stage):
    """Trains the float network; in a search without the images of θ, which must be new to the weights."""

    name = "pretrain"

    def work(self, before: Foreseen) -> Work:
        """Its epochs."""
        return {self.name: self._epoch_units() * self.context.job.config.pretrain.epochs}

    def carry_out(self, findings: Findings) -> None:
        """Train the epochs that are left."""
        job = self.context.job
        config = job.config
        if not config.pretrain.epochs:
            return
        trainer = Trainer(
            job.network,
            config.pretrain,
            images=job.search_data.weights if config.compression == "search" else job.data.train,
            batch_size=config.data.batch_size,
            augmentation=job.search_data.augmentation,
            seed=config.seed,
            label="pretrain",
            device=job.device,
            task=job.task,
        )
        self.context.train(trainer, Place(self.name, "float", "pretrain", self.name, self._epoch_units()))

    def _epoch_units(self) -> float:
        job = self.context.job
        images = job.search_data.weights if job.config.compression == "search" else job.data.train
        return TRAIN * len(images) + FORWARD * len(job.search_data.validation)
