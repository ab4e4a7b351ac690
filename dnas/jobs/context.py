"""What every stage works with: the job, what it leaves behind, how far it is, its tasks; and training that resumes.

Each epoch is saved before it is journaled, with all that were before it, and what was saved but not journaled is
journaled first: whoever carries a task out may be far ahead of the journal.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from dnas.config.job import JobConfig
from dnas.execution.scheduler import InThisProcess, Scheduler
from dnas.execution.tasks import JobTask
from dnas.jobs.job import Job
from dnas.jobs.log import RunLog, check_weights
from dnas.jobs.progress import Progress, Report
from dnas.jobs.sensitivity import JobSensitivities
from dnas.search.records import EpochRecord
from dnas.search.trainer import SupernetTrainer
from dnas.training.trainer import EpochResult, StepReport, Trainer
from results.events import Epoch, read_epoch
from results.run.folder import Run
from results.run.layout import checkpoint_file
from search_spaces.errors import InputError

PRETRAINED = "pretrain"
"""The checkpoint of the float network, where the job trains it."""

Key = TypeVar("Key", bound=Hashable)
Made = TypeVar("Made")
Records = Iterable[Mapping[str, Any]]


class Recent(Generic[Key, Made]):
    """What was made last by its key, so many things at most: the oldest is let go of before another is made."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._made: dict[Key, Made] = {}

    def get(self, key: Key, make: Callable[[], Made]) -> Made:
        """What ``make`` gives, or gave for an equal key."""
        if key not in self._made:
            while len(self._made) >= self._most:
                del self._made[next(iter(self._made))]
            self._made[key] = make()
        self._made[key] = self._made.pop(key)  # the last one now
        return self._made[key]

    def clear(self) -> None:
        """Let go of everything."""
        self._made.clear()


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

    def __init__(
        self,
        config: JobConfig,
        run: Run,
        report: Report,
        *,
        progress: Progress | None = None,
        log: Callable[[Run, Job], RunLog] | None = None,
    ) -> None:
        self.job = Job.of(config)
        self.log = log(run, self.job) if log else RunLog(run, self.job, report)
        check_weights(self.job, run, self.log.history)
        self.progress = progress or Progress(report)
        self.tasks: Scheduler = InThisProcess(self)
        self._last_made = Recent[Hashable, Any](1)
        self.sensitivities = JobSensitivities(
            self.job, run, lambda sentence: self.log.tell_once([sentence]), self.progress
        )

    def outcome(self, task: JobTask) -> Any:
        """What a task gives, once it is done; what it tells is journaled meanwhile."""
        return self.tasks.outcome(task, self.log.take)

    def outcomes(self, tasks: Sequence[JobTask]) -> list[Any]:
        """What tasks give that may be carried out at once, in their order."""
        self.tasks.announce(tasks)
        return [self.outcome(task) for task in tasks]

    @property
    def reads_float(self) -> tuple[str, ...]:
        """The files that a task reads which works on the trained float network."""
        return (checkpoint_file(PRETRAINED),) if self.job.config.pretrain.epochs else ()

    def last_made(self, key: Hashable, make: Callable[[], Made]) -> Made:
        """What ``make`` gives, or gave for an equal key where that was the last one: many tasks need the same."""
        return self._last_made.get(key, make)

    def forget(self) -> None:
        """Let go of what was made last: it may fill a device's memory."""
        self._last_made.clear()

    def train(self, trainer: Trainer, place: Place) -> None:
        """Run a trainer's remaining epochs, saving and journaling each."""
        steps = self.steps(place, trainer, trainer.section.epochs)
        self.carry_on(place, trainer, lambda: trainer.epochs(steps))

    def steps(self, place: Place, trainer: Trainer | SupernetTrainer, epochs: int) -> StepReport:
        """A callback that reports each step of training, and the share of the whole job it leaves done."""

        def step(number: int, steps: int, loss: float) -> None:
            facts: dict[str, Any] = {
                "epoch": trainer.epoch + 1,
                "epochs": epochs,
                "step": number,
                "steps": steps,
                "loss": loss,
            }
            self.progress.step(place.work, place.units / steps, stage=place.stage, run=place.run, **facts)

        return step

    def carry_on(
        self,
        place: Place,
        trainer: Trainer | SupernetTrainer,
        epochs: Callable[[], Iterable[EpochResult | EpochRecord]],
        after: Callable[[Epoch], Records] = lambda epoch: (),
    ) -> Epoch | None:
        """Train the epochs that are left; each is saved, then told, with what comes ``after`` it; returns the last one.

        What a checkpoint remembers is told first: what follows a saved epoch may have been cut off by a kill.
        """
        run = self.log.run
        saved = run.load_checkpoint(place.checkpoint)
        records: list[Mapping[str, Any]] = []
        last: Epoch | None = None
        if saved is not None:
            tensors, values = saved
            last = recorded_epoch(place.checkpoint, values)
            records = list(values.get("records", [values["record"]]))
            trainer.restore({key: value.to(self.job.device.place) for key, value in tensors.items()}, values)
            self.progress.recall({place.work: place.units * trainer.epoch})
            self._tell(records)
        for result in epochs():
            fields = self._epoch_fields(place, trainer, result)
            fields["metric"] = self.job.task.metric.name
            fields |= {"budget": dict(place.budget)} if place.budget else {}
            last = Epoch(stage=place.stage, run=place.run, seed=place.seed, **fields)
            news = [last.to_json(), *after(last)]
            records += news
            tensors, values = trainer.state()
            run.save_checkpoint(place.checkpoint, tensors, {**values, "record": last.to_json(), "records": records})
            self._tell(news)
        return last

    def _tell(self, records: Records) -> None:
        for record in records:
            self.log.take(record)

    def _epoch_fields(
        self, place: Place, trainer: Trainer | SupernetTrainer, result: EpochResult | EpochRecord
    ) -> dict[str, Any]:
        if isinstance(result, EpochRecord) or isinstance(trainer, SupernetTrainer):
            return result.to_json()
        measured = trainer.measured(self.job.search_data.validation) if place.validates else {}
        return {**result.to_json(), "epochs": trainer.section.epochs, **measured}


def recorded_epoch(checkpoint: str, values: Mapping[str, Any]) -> Epoch:
    """The epoch that a checkpoint was saved after; :class:`InputError` names a checkpoint that does not tell it."""
    try:
        return read_epoch(values["record"])
    except (KeyError, TypeError, ValueError, InputError) as error:
        raise InputError(
            f"the checkpoint '{checkpoint}' does not say which epoch it was saved after ({error}); "
            "delete it and resume to repeat its stage"
        ) from error
