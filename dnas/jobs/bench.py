"""What a process that carries tasks of a job out works with, and how a job's tasks are carried out.

A task's function is given a :class:`JobContext`: in the job's own process that of the job; in a worker one of its own,
made from the job and the run folder, whose log and progress are sent to the job's process, the only one that writes the
journal.
"""

from __future__ import annotations

import os
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch

from dnas.config.job import JobConfig
from dnas.execution.executors import Executor, Folder, Lost, Send, Setting, make_executor
from dnas.execution.scheduler import Ahead
from dnas.execution.tasks import JobTask
from dnas.jobs.context import PRETRAINED, JobContext
from dnas.jobs.log import RunLog, unproven_told
from dnas.jobs.progress import Progress, Work
from dnas.jobs.resources import Resources, prepare_process
from dnas.jobs.stored_nets import stored_float
from dnas.quantization.mixture import compiled_mixture
from dnas.training.device import deterministic
from results.events import Event, Note
from results.files import TEMPORARY_SUFFIX, write_bytes
from results.run.folder import Run
from results.run.layout import checkpoint_file
from search_spaces.registry import CLUSTER, QUEUE, import_limits, importing_only, refuse_reaching_out

Limits = tuple[frozenset[str], str] | None
_SECONDS_BETWEEN_STEPS = 0.25
"""Steps of training may take less than a millisecond: they are told together."""


class SentLog(RunLog):
    """Sends what is to be journaled."""

    def __init__(self, run: Run, job: Any, send: Send) -> None:
        self.run, self.job, self.report = run, job, lambda event: None
        self.history: list[Event] = []
        self._send = send

    def take(self, record: Mapping[str, Any]) -> None:
        """Send what a task tells."""
        self._send(dict(record), False)

    def write(self, event: Event) -> None:
        """Send an event."""
        self.take(event.to_json())

    def tell_once(self, sentences: list[str]) -> None:
        """Send sentences for the user."""
        for text in sentences:
            self.take(Note(text=text).to_json())


class SentProgress(Progress):
    """Sends what was done, several steps of one kind at a time."""

    def __init__(self, send: Send) -> None:
        super().__init__(lambda event: None)
        self._send = send
        self._steps: dict[str, float] = defaultdict(float)
        self._fields: dict[str, Any] = {}
        self._sent = time.monotonic()

    def step(self, kind: str, units: float, *, ahead: bool = False, **fields: Any) -> None:
        """Note the work of one step."""
        self._steps[kind] += units
        self._fields = fields
        if time.monotonic() - self._sent >= _SECONDS_BETWEEN_STEPS:
            self.flush()

    def recall(self, work: Work, *, ahead: bool = False) -> None:
        """Send work that an earlier process did."""
        self.flush()
        self._send({"recall": dict(work)}, True)

    def correct(self, count: float, work: Work) -> None:
        """Send a correction of what is planned."""
        self.flush()
        self._send({"correct": (count, dict(work))}, True)

    def flush(self) -> None:
        """Send the steps that were noted."""
        if self._steps:
            self._send({"steps": dict(self._steps), "fields": self._fields}, True)
        self._steps.clear()
        self._sent = time.monotonic()


class Tally:
    """Counts what workers tell of their progress; what a task does again after its worker died counts once."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._told: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
        self._counted: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))

    def hear(self, task: str, message: Any, asked: bool) -> None:
        """Count a message of :class:`SentProgress`; where none tells anything for a while, say where the job stands."""
        match message:
            case None:
                self._progress.tell()
            case Lost():
                self._told.pop(task, None)
            case {"recall": work}:
                new = {kind: self._new(task, kind, units) for kind, units in work.items()}
                self._progress.recall(new, ahead=not asked)
            case {"correct": correction}:
                self._progress.correct(*correction)
            case {"steps": steps, "fields": fields}:
                new = {kind: self._new(task, kind, units) for kind, units in steps.items()}
                for kind, units in new.items():
                    self._progress.step(kind, units, ahead=not asked, **fields)

    def _new(self, task: str, kind: str, units: float) -> float:
        """Those of the units that no earlier try of the task has told."""
        told, counted = self._told[task], self._counted[task]
        told[kind] += units
        new = max(0.0, min(units, told[kind] - counted[kind]))
        counted[kind] = max(counted[kind], told[kind])
        return new


class Bench:
    """A job in a worker process."""

    def __init__(
        self,
        send: Send,
        config: str,
        folder: Folder,
        device: str,
        threads: int,
        directory: str,
        limits: Limits,
        tf32: tuple[bool, bool],
    ) -> None:
        prepare_process(threads)
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = tf32
        if Path(directory).is_dir():
            os.chdir(directory)  # relative paths of the job, and the user's own modules
        job = JobConfig.model_validate_json(config).model_copy(update={"device": device})
        self._progress, self._limits = SentProgress(send), limits
        with self._importing():
            self._context = JobContext(
                job,
                Run.helping(folder.path),
                lambda event: None,
                progress=self._progress,
                log=lambda run, job: SentLog(run, job, send),
            )
        self._has_float = False

    def __call__(self, task: JobTask) -> Any:
        """Carry a task out, its network trained as the run has it."""
        if checkpoint_file(PRETRAINED) in task.reads and not self._has_float:
            config = self._context.job.config
            stored_float(self._context.log.run, self._context.job.network, config.pretrain.epochs)
            self._has_float = True
        job = self._context.job
        try:
            with (
                self._importing(),
                unproven_told(self._context.log),
                deterministic(job.config.deterministic),
                compiled_mixture(job.compiles),
            ):
                return task.carry_out(self._context)
        finally:
            self._progress.flush()

    def _importing(self) -> AbstractContextManager[None]:
        """Import no more of the user's code than the job's own process would."""
        return importing_only(*self._limits) if self._limits else nullcontext()


@contextmanager
def employed(context: JobContext, resources: Resources) -> Iterator[None]:
    """Inside, workers carry the job's tasks out, where there are to be any; none is left after it.

    What was made ahead of time and never asked for is removed, once everything that was asked for is done.
    """
    if resources.in_process:
        yield
        return
    executor = _executor(context, resources)
    for sentence in executor.told:  # not journaled: the journal is the same whoever carries tasks out
        context.log.report(Note(text=sentence).to_json())
    context.tasks = Ahead(executor, Tally(context.progress).hear)
    unasked: list[JobTask] = []
    try:
        yield
    except BaseException:
        context.tasks.close()
        raise
    else:
        unasked = context.tasks.close()
    finally:
        if context.log.run.writable:
            context.log.run.remove_leftovers()
    for name in {name for task in unasked for name in task.writes}:
        context.log.run.delete_file(name)


def _executor(context: JobContext, resources: Resources) -> Executor:
    config, settings = context.job.config, _settings(context, resources)
    if config.executor == "local":
        return make_executor("local", settings)
    options: dict[str, Any] = {
        **getattr(config, config.executor).model_dump(),
        "most": config.workers if isinstance(config.workers, int) else None,
        "threads": resources.threads,
        "folder": context.log.run.folder.absolute(),
    }
    if config.executor == "ray":
        refuse_reaching_out(CLUSTER, f"the tasks of the job are to go to a cluster at '{config.ray.address}'")
        return make_executor("ray", settings, **options, keep=write_bytes)
    refuse_reaching_out(QUEUE, f"the tasks of the job are to go to the queue of {config.submitit.cluster}")
    return make_executor("submitit", settings, **options, suffix=TEMPORARY_SUFFIX)


def _settings(context: JobContext, resources: Resources) -> list[Setting]:
    """What each worker makes its bench from."""
    config = context.job.config.model_dump_json(by_alias=True)
    folder, directory = Folder(str(context.log.run.folder.absolute())), str(Path.cwd())
    limits = import_limits()
    told = (frozenset(limits[0]), limits[1]) if limits else None
    tf32 = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    shared = resources.threads, directory, told, tf32
    return [Setting(Bench, (config, folder, device, *shared)) for device in resources.devices]
