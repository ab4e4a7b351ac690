"""Judging a proposal in a round of a choice: a short fine-tuning, and the loss on images that no weight has seen."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from statistics import fmean
from typing import Any

import torch
from torch import Tensor, nn

from dnas.config.job import ChoiceSection
from dnas.data.image_sets import ImageSet
from dnas.jobs.context import JobContext, Place
from dnas.jobs.job import Job
from dnas.jobs.progress import FORWARD_QUANTIZED, TRAIN_QUANTIZED, Work
from dnas.jobs.stages.measure import BATCHNORM_BATCHES, Measurer
from dnas.quantization.calibration import recalibrate_batchnorm
from dnas.training.processes import ALONE
from dnas.training.schedules import derived_seed
from dnas.training.trainer import Trainer, measure
from search_spaces.assignments import BitAssignment

CHOICE = "choice"
PARTS = 32
"""Of the images that judge; their losses give the standard error."""


def judged_after(context: JobContext, seed: int, proposal: Mapping[str, Any], epochs: int) -> dict[str, Any]:
    """Train a proposal on the images of the weights, in the round of that number; returns what the judges say of it."""
    job, assignment = context.job, BitAssignment.from_json(proposal)
    network = Measurer(context).fixed(assignment, 0)
    trainer = Trainer(
        network,
        job.config.finetune.model_copy(update={"epochs": epochs}),
        images=job.search_data.weights,
        batch_size=job.config.data.batch_size,
        augmentation=job.augmentation,
        seed=derived_seed(job.config.seed, seed),
        label=CHOICE,  # the same for all of a round
        device=job.device,
        teacher=job.teacher,
        task=job.task,
    )
    units = TRAIN_QUANTIZED * len(job.search_data.weights)
    checkpoint = checkpoint_name(assignment.id, seed)
    context.train(trainer, Place(CHOICE, assignment.id, checkpoint, CHOICE, units, seed, validates=False))
    recalibrate_batchnorm(network, job.batchnorm_images(BATCHNORM_BATCHES), allow_overflow=True)
    return judge(job, network.eval(), job.search_data.theta)


def checkpoint_name(proposal: str, number: int) -> str:
    """The checkpoint of a proposal's training in a round."""
    return f"{proposal}-round{number}"


def rounds(count: int, section: ChoiceSection) -> Iterator[tuple[int, int]]:
    """How many of ``count`` proposals are left in each round, and the epochs of each; one alone needs no round.

    >>> list(rounds(11, ChoiceSection(rounds=3))), list(rounds(1, ChoiceSection()))
    ([(11, 1), (6, 2), (3, 4)], [])
    """
    for number in range(section.rounds):
        if count < 2:
            return
        yield count, epochs_of(number + 1, section)
        count = math.ceil(count / 2)


def epochs_of(number: int, section: ChoiceSection) -> int:
    """The epochs of a round, from 1: each trains twice as long as the one before."""
    return section.epochs * 2 ** (number - 1)


def judge(job: Job, network: nn.Module, images: ImageSet) -> dict[str, Any]:
    """What images say of a network, as :class:`Judged` holds it."""
    sums: list[Tensor] = []
    counts: list[int] = []

    def gather(loss_sum: Tensor, count: int) -> None:
        sums.append(loss_sum)
        counts.append(count)

    # Each of several processes measures them all: the parts are to be known everywhere.
    alone = replace(job.device, processes=ALONE)
    measured = measure(network, images, math.ceil(len(images) / PARTS), alone, job.task, gather)
    losses = (torch.stack(sums).cpu().double() / torch.tensor(counts)).tolist()
    told: dict[str, Any] = {
        "metric": measured.metric.name,
        "score": measured.score if math.isfinite(measured.score) else None,
    }
    if math.isfinite(measured.loss):
        told |= {"loss": measured.loss, "losses": tuple(losses)}
    return job.device.processes.agreed(told)


def mean_judgement(told: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What is said of several nets of the same bits, of which none may have diverged, in the mean.

    >>> net = {"metric": "top1", "score": 0.5, "loss": 2.0, "losses": (1.0, 3.0)}
    >>> mean_judgement([net, {**net, "score": 0.7, "loss": 3.0, "losses": (1.0, 5.0)}])
    {'metric': 'top1', 'score': 0.6, 'loss': 2.5, 'losses': (1.0, 4.0)}
    """
    known = all("loss" in each for each in told)
    scores = [each["score"] for each in told]
    mean: dict[str, Any] = {"metric": told[0]["metric"], "score": None if None in scores else fmean(scores)}
    if known:
        mean["loss"] = fmean(each["loss"] for each in told)
        mean["losses"] = tuple(map(fmean, zip(*(each["losses"] for each in told), strict=True)))
    return mean


def judging_work(job: Job, epochs: int) -> Work:
    """Work of training one proposal for so many epochs and judging it."""
    return {CHOICE: TRAIN_QUANTIZED * len(job.search_data.weights) * epochs + measuring_units(job)}


def measuring_units(job: Job) -> float:
    """Units of judging a net: its BatchNorm is estimated anew, and it reads the images that judge."""
    images = min(len(job.data.train), BATCHNORM_BATCHES * job.config.data.batch_size)
    return FORWARD_QUANTIZED * (images + len(job.search_data.theta))
