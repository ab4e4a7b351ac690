"""What every stage works with: the job, what it leaves behind, how far it is; and training that resumes.

Each epoch is saved before it is journaled, and an epoch that was saved but not journaled is journaled first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from dnas.config.job import JobConfig
from dnas.jobs.job import Job
from dnas.jobs.log import RunLog
from dnas.jobs.progress import Progress, Report
from dnas.jobs.sensitivity import JobSensitivities
from dnas.search.records import EpochRecord
from dnas.search.trainer import SupernetTrainer
from dnas.training.trainer import EpochResult, StepReport, Trainer
from results.events import Epoch, read_epoch
from results.run.folder import Run
from search_spaces.errors import InputError


@dataclass(frozen=True)
class Place:
    """Where an epoch belongs: the stage, what it is run for, and the seed; ``checkpoint`` names its file.

    ``work`` is its kind of work, ``units`` are those of one epoch (see :mod:`dnas.jobs.progress`). ``validates`` says
    whether each epoch is measured on validation images.
    """

    stage: str
    run: str
    checkpoint: str
    work: str
    units: float
    seed: int = 0
    budget: Mapping[str, float] = field(default_factory=dict)
    validates: bool = True


class JobContext:
    """A job, its run and its progress; made without any training.

    Raises :class:`InputError` for what cannot work: an unknown model, a budget out of reach, missing data.
    """

    def __init__(self, config: JobConfig, run: Run, report: Report) -> None:
        self.job = Job.of(config)
        self.log = RunLog(run, self.job, report)
        self.progress = Progress(report)
        self.sensitivities = JobSensitivities(
            self.job, run, lambda sentence: self.log.tell_once([sentence]), self.progress
        )

    def train(self, trainer: Trainer, place: Place) -> None:
        """Run a trainer's remaining epochs, saving and journaling each."""
        steps = self.steps(place, trainer, trainer.section.epochs)
        for _ in self.resumed(place, trainer, lambda: trainer.epochs(steps)):
            pass

    def steps(self, place: Place, trainer: Trainer | SupernetTrainer, epochs: int) -> StepReport:
        """A callback that reports each step of training, and the share of the whole job it leaves done."""

        def step(number: int, steps: int, loss: float) -> None:
            facts = {"epoch": trainer.epoch + 1, "epochs": epochs, "step": number, "steps": steps, "loss": loss}
            self.progress.step(place.work, place.units / steps, stage=place.stage, run=place.run, **facts)

        return step

    def resumed(
        self,
        place: Place,
        trainer: Trainer | SupernetTrainer,
        epochs: Callable[[], Iterable[EpochResult | EpochRecord]],
    ) -> Iterator[Epoch]:
        """Yield the journal's event of every epoch that is left, once it is saved and journaled.

        The epoch that a checkpoint restores comes first: what follows an epoch may have been cut off by a kill.
        """
        run = self.log.run
        saved = run.load_checkpoint(place.checkpoint)
        if saved is not None:
            tensors, values = saved
            last = recorded_epoch(place.checkpoint, values)
            trainer.restore({key: value.to(self.job.device.place) for key, value in tensors.items()}, values)
            self.progress.recall({place.work: place.units * trainer.epoch})
            yield self._journaled(last)
        for result in epochs():
            fields = self._epoch_fields(place, trainer, result)
            fields["metric"] = self.job.task.metric.name
            fields |= {"budget": dict(place.budget)} if place.budget else {}
            epoch = Epoch(stage=place.stage, run=place.run, seed=place.seed, **fields)
            tensors, values = trainer.state()
            run.save_checkpoint(place.checkpoint, tensors, {**values, "record": epoch.to_json()})
            yield self._journaled(epoch)

    def _epoch_fields(
        self, place: Place, trainer: Trainer | SupernetTrainer, result: EpochResult | EpochRecord
    ) -> dict[str, Any]:
        if isinstance(result, EpochRecord) or isinstance(trainer, SupernetTrainer):
            return result.to_json()
        measured = trainer.measured(self.job.search_data.validation) if place.validates else {}
        return {**result.to_json(), "epochs": trainer.section.epochs, **measured}

    def _journaled(self, epoch: Epoch) -> Epoch:
        """The epoch, in the journal once."""
        if not any(known.place == epoch.place for known in self.log.events(Epoch)):
            self.log.write(epoch)
        return epoch


def recorded_epoch(checkpoint: str, values: Mapping[str, Any]) -> Epoch:
    """The epoch that a checkpoint was saved after; :class:`InputError` names a checkpoint that does not tell it."""
    try:
        return read_epoch(values["record"])
    except (KeyError, TypeError, ValueError, InputError) as error:
        raise InputError(
            f"the checkpoint '{checkpoint}' does not say which epoch it was saved after ({error}); "
            "delete it and resume to repeat its stage"
        ) from error
