"""What the controls of a job may look at; its sensitivities are worked out once, and kept in the run."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from dnas.config.file import load_job
from dnas.config.job import JobConfig, ModelSection
from dnas.jobs.job import Job
from dnas.jobs.stored_nets import stored_float
from dnas.search.controls import Evidence
from dnas.training.schedules import derived_seed
from results.run.folder import Run
from search_spaces.errors import InputError
from search_spaces.sensitivities import Sensitivities, SensitivityKind

_BATCH_SIZE = 64
"""Images in memory at once while second derivatives are taken."""

Tell = Callable[[str], None]


@dataclass(frozen=True)
class SensitivityImages:
    """The training images that sensitivities are read from, the same each time, one batch in memory at a time."""

    job: Job

    def __len__(self) -> int:
        return min(self.job.config.controls.sensitivity_images, len(self.job.data.train))

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        job, left = self.job, len(self)
        seed = derived_seed(job.config.seed, "sensitivity")
        batch_size = min(_BATCH_SIZE, job.config.data.batch_size)
        for x, y in job.data.train.batches(batch_size, seed=seed, device=job.device.place):
            yield x[:left], y[:left]
            left -= len(x)
            if left <= 0:
                return


def evidence_of(job: Job) -> Evidence:
    """What the controls of a job may look at; its sensitivities are worked out when they are asked for."""
    plan, images = job.plan, SensitivityImages(job)
    return Evidence(
        job.network, plan.space, plan.table, job.choice, lambda: images, seed=job.config.seed, task=job.task
    )


def remembering(evidence: Evidence, job: Job, run: Run, tell: Tell) -> Evidence:
    """The same evidence, whose sensitivities are those that the run keeps, else kept in it; and told."""

    def recall(kind: SensitivityKind, work: Callable[[], Sensitivities]) -> Sensitivities:
        found = _kept(run, job, evidence, kind)
        if found is None:
            found = work().model_copy(update={"network": digest(evidence.network)})
            if run.writable:
                run.save_sensitivities(found)
        tell(found.told)
        return found

    return replace(evidence, recall=recall)


def _kept(run: Run, job: Job, evidence: Evidence, kind: SensitivityKind) -> Sensitivities | None:
    """What the run keeps, if it can be read and is of this network, its choices, and as many images."""
    try:
        found = run.sensitivities(kind)
    except InputError:  # damaged: made again
        return None
    if found is None or not found.fits(evidence.space) or found.images != len(SensitivityImages(job)):
        return None
    return found if found.network == digest(evidence.network) else None


def run_sensitivities(run: Run, kind: SensitivityKind, tell: Tell) -> Sensitivities:
    """The sensitivities of a run's float network: those that it keeps, else worked out, and kept if it is writable.

    Raises :class:`InputError` where the run has not pretrained its network yet.
    """
    job = Job.of(load_job(str(run.folder / "job.toml")))
    stored_float(run, job.network, job.config.pretrain.epochs)  # into the job's own network
    return remembering(evidence_of(job), job, run, tell).found(kind)


def job_sensitivities(config: JobConfig, source: str | None, kind: SensitivityKind, tell: Tell) -> Sensitivities:
    """The sensitivities of a job's network as it comes, or of the network of another ``source``, on the job's data."""
    if source is not None and source != config.model.source:
        config = config.model_copy(update={"model": ModelSection(source=source)})
    job = Job.of(config)
    if not config.model.checkpoint and config.pretrain.epochs:
        tell(f"note: {config.model.source} is not trained first: these are of the weights that it comes with")
    found = evidence_of(job).found(kind)
    tell(found.told)
    return found


def digest(network: nn.Module) -> str:
    """A digest of the tensors of a network."""
    found = hashlib.sha256()
    for name, value in network.state_dict().items():
        found.update(f"{name} {tuple(value.shape)} {value.dtype} ".encode())
        found.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()
