"""What the controls of a job may look at; its sensitivities are worked out once, and kept in the run."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from dnas.config.file import load_job
from dnas.config.job import JobConfig, ModelSection
from dnas.jobs.job import Job
from dnas.jobs.log import check_weights
from dnas.jobs.progress import Progress, Work
from dnas.jobs.resources import memory_told, prepare_process
from dnas.jobs.stored_nets import stored_float
from dnas.search.controls import Evidence
from dnas.search.measured import single_changes
from dnas.training.device import deterministic
from dnas.training.schedules import derived_seed
from results.run.folder import Run
from search_spaces.errors import InputError
from search_spaces.network.examples import rows_of
from search_spaces.sensitivities import Sensitivities, SensitivityKind

_BATCH_SIZE = 64
"""Images in memory at once while second derivatives are taken."""

SENSITIVITIES = "sensitivities"
_KIND: dict[SensitivityKind, str] = {"hessian": "expected sensitivities", "measured": "measured sensitivities"}
SECOND_DERIVATIVES, FORWARD_MIXED, _MOST_PASSES = 15.0, 3.5, 9
"""Units (see :mod:`dnas.jobs.progress`) of one image in a pass with second derivatives and in one of a net of all
candidates (measured on the default job, on a CPU), and how many of the former there are at most."""

Tell = Callable[[str], None]


@dataclass(frozen=True)
class SensitivityImages:
    """The training images that sensitivities are read from, the same each time, one batch in memory at a time."""

    job: Job

    def __len__(self) -> int:
        return min(self.job.config.controls.sensitivity_images, len(self.job.data.train))

    def __iter__(self) -> Iterator[tuple[Any, Any]]:
        job, left = self.job, len(self)
        seed = derived_seed(job.config.seed, "sensitivity")
        batch_size = min(_BATCH_SIZE, job.config.data.batch_size)
        for x, y in job.data.train.batches(batch_size, seed=seed, device=job.device.place):
            yield job.task.placed((x[:left], y[:left]), job.device)
            left -= len(x)
            if left <= 0:
                return


def evidence_of(job: Job) -> Evidence:
    """What the controls of a job may look at; its sensitivities are worked out when they are asked for."""
    plan, images = job.plan, SensitivityImages(job)
    return Evidence(
        job.network, plan.space, plan.table, job.choice, lambda: images, seed=job.config.seed, task=job.task
    )


def sensitivity_work(job: Job, kinds: Iterable[SensitivityKind]) -> Work:
    """Units of working sensitivities of these kinds out, at most."""
    return {_KIND[kind]: len(SensitivityImages(job)) * _units_an_image(job, kind) for kind in kinds}


def _units_an_image(job: Job, kind: SensitivityKind) -> float:
    if kind == "hessian":
        return SECOND_DERIVATIVES * _MOST_PASSES
    return FORWARD_MIXED * (1 + sum(1 for _ in single_changes(job.plan.space.allowed)))


class JobSensitivities:
    """What the controls of a running job may look at: sensitivities that its run keeps, else worked out and kept there.

    Each kind is told once, and counted once as work done.
    """

    def __init__(self, job: Job, run: Run, tell: Tell, progress: Progress) -> None:
        self._job, self._run, self._tell, self._progress = job, run, tell, progress
        self._images = SensitivityImages(job)
        self._kind: SensitivityKind = "hessian"
        self._left: dict[SensitivityKind, float] = {}
        self._before: dict[SensitivityKind, bool] = {}
        self.evidence = replace(evidence_of(job), batches=lambda: self, recall=self._recall)

    def __iter__(self) -> Iterator[tuple[Any, Any]]:
        """The images, each batch counted as work once the next is asked for."""
        kind, units = self._kind, _units_an_image(self._job, self._kind)
        a_pass = SECOND_DERIVATIVES if kind == "hessian" else units
        for x, y in self._images:
            yield x, y
            done = min(self._left[kind], rows_of(x) * a_pass)
            self._left[kind] -= done
            self._progress.step(_KIND[kind], done, stage=SENSITIVITIES, run=kind)

    def kept_before(self, kind: SensitivityKind) -> bool:
        """Whether the run kept them when this process first asked: a worker may have been faster since."""
        if kind not in self._before:
            self._before[kind] = kind in self._left or _kept(self._run, self._job, self.evidence, kind) is not None
        return self._before[kind]

    def note_counted(self, kind: SensitivityKind) -> None:
        """Note that whoever worked them out told of the work."""
        self._left[kind] = 0.0

    def settle(self, kinds: Iterable[SensitivityKind]) -> None:
        """Count what an earlier process worked out: nobody may ask for it again."""
        for kind in kinds:
            if kind not in self._left and _kept(self._run, self._job, self.evidence, kind):
                self._left[kind] = 0.0
                self._progress.recall(sensitivity_work(self._job, [kind]))

    def _recall(self, kind: SensitivityKind, work: Callable[[], Sensitivities]) -> Sensitivities:
        found = _kept(self._run, self._job, self.evidence, kind)
        if found is None:
            self._kind, self._left[kind] = kind, sensitivity_work(self._job, [kind])[_KIND[kind]]
            found = work().model_copy(update={"network": digest(self.evidence.network)})
            self._progress.correct(-1, {_KIND[kind]: self._left[kind]})  # passes that were not needed
            if self._run.writable:
                self._run.save_sensitivities(found)
        self.settle([kind])
        self._tell(found.told)
        return found


def _kept(run: Run, job: Job, evidence: Evidence, kind: SensitivityKind) -> Sensitivities | None:
    """What the run keeps, if it can be read and is of this network, its choices, and as many images."""
    try:
        found = run.sensitivities(kind)
    except InputError:  # damaged: made again
        return None
    if found is None or not found.fits(evidence.space) or found.images != len(SensitivityImages(job)):
        return None
    return found if found.network == digest(evidence.network) else None


def run_sensitivities(run: Run, kind: SensitivityKind, tell: Tell, device: str | None = None) -> Sensitivities:
    """The sensitivities of a run's float network: those that it keeps, else worked out, and kept if it is writable.

    ``device`` replaces that of the job. Raises :class:`InputError` where the run has not pretrained its network yet.
    """
    job = Job.of(load_job(run.job_file(), [] if device is None else [f"device={device}"]))
    check_weights(job, run, run.journal.events())
    stored_float(run, job.network, job.config.pretrain.epochs)  # into the job's own network
    with _working(job):
        return JobSensitivities(job, run, tell, Progress(lambda event: None)).evidence.found(kind)


def job_sensitivities(config: JobConfig, source: str | None, kind: SensitivityKind, tell: Tell) -> Sensitivities:
    """The sensitivities of a job's network as it comes, or of the network of another ``source``, on the job's data."""
    if source is not None and source != config.model.source:
        config = config.model_copy(update={"model": ModelSection(source=source)})
    job = Job.of(config)
    if not config.model.checkpoint and config.pretrain.epochs:
        tell(f"note: {config.model.source} is not trained first: these are of the weights that it comes with")
    with _working(job):
        found = evidence_of(job).found(kind)
    tell(found.told)
    return found


@contextmanager
def _working(job: Job) -> Iterator[None]:
    """As a job works them out: exact and with the threads it asks for, and too little memory told."""
    prepare_process(job.config.threads)
    with deterministic(job.config.deterministic), memory_told(job, "sensitivities"):
        yield


def digest(network: nn.Module) -> str:
    """A digest of the tensors of a network."""
    found = hashlib.sha256()
    for name, value in network.state_dict().items():
        found.update(f"{name} {tuple(value.shape)} {value.dtype} ".encode())
        found.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()
