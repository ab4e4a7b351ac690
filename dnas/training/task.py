"""What a network is trained for: how its outputs are read, its loss, and the metric that decides.

Nothing else in the engine knows classes or accuracy. A task of one's own is a subclass of :class:`Task`, named in the
job file as ``package.module:Class``; docs/extending.md shows one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, Self

import torch
from torch import Tensor
from torch.nn import functional as F

from dnas.config.job import TaskSection
from dnas.data.checks import check_classes, described
from dnas.data.image_sets import DataSplits
from dnas.training.device import Device, widened
from search_spaces.errors import InputError, nearest, one_line
from search_spaces.metrics import ACCURACY, Metric
from search_spaces.registry import import_callable, importable_working_directory


class Meter(Protocol):
    """Gathers a metric over batches, as those of torchmetrics do."""

    def update(self, outputs: Tensor, targets: Any) -> Any:
        """Take note of one batch."""

    def compute(self) -> Any:
        """The figure over all batches, a number or a tensor of one element."""


class Task:
    """What a network is trained for. A subclass sets ``metric`` and has :meth:`loss` and :meth:`values`."""

    metric: Metric

    def placed(self, batch: tuple[Tensor, Any], device: Device) -> tuple[Tensor, Any]:
        """Images (N, C, H, W) and targets of one batch where the network computes."""
        x, targets = batch
        return device.laid_out(x.to(device.place)), targets.to(device.place)

    def outputs(self, given: Any) -> Tensor:
        """What the loss and the metric read of what the network returned; in fp32 at least."""
        if not isinstance(given, Tensor):
            raise InputError(f"the network returns {described(given)}; the task must say which tensor of it counts")
        return given if given.dtype == torch.float64 else given.float()

    def loss(self, outputs: Tensor, targets: Any) -> Tensor:
        """The mean loss of the images of a batch."""
        raise InputError(f"the task {type(self).__name__} has no loss; write loss(outputs, targets)")

    def loss_sum(self, outputs: Tensor, targets: Any) -> Tensor:
        """The sum of the losses of the images of a batch."""
        return self.loss(outputs, targets) * len(outputs)

    def values(self, outputs: Tensor, targets: Any) -> Tensor:
        """The metric of each image (N,), where it is a mean over images; else override :meth:`meter`."""
        raise InputError(f"the task {type(self).__name__} says nothing of its metric; write values(outputs, targets)")

    def meter(self) -> Meter:
        """What gathers the metric over all batches of a measurement."""
        return MeanMeter(self)

    def divergence(self, outputs: Tensor, told: Tensor) -> Tensor:
        """How far the outputs are from those of a teacher: the mean squared difference, where a task says no other."""
        return F.mse_loss(outputs, told)

    def ensemble(self, outputs: Sequence[Tensor]) -> Tensor:
        """The outputs of several networks as those of one teacher."""
        return torch.stack(list(outputs)).mean(0)

    def smoothed(self, amount: float) -> Task:
        """The same task with this much label smoothing in its loss."""
        raise InputError(f"label_smoothing = {amount}: the task {type(self).__name__} has no labels to smooth")

    def check(self, data: DataSplits, outputs: Tensor) -> None:
        """Raise :class:`InputError` where outputs of the network on N images do not fit the targets of some split."""


class MeanMeter:
    """The mean of a task's values over all images."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self.total: Tensor | float = 0.0
        self.images = 0

    def update(self, outputs: Tensor, targets: Any) -> None:
        """Add the values of one batch."""
        self.total = self.total + widened(self.task.values(outputs, targets)).sum()
        self.images += len(outputs)

    def compute(self) -> float:
        """The mean."""
        return float(self.total) / self.images


@dataclass(frozen=True)
class Classification(Task):
    """One class per image: logits (N, classes), cross-entropy, and the part of images whose largest logit is right."""

    label_smoothing: float = 0.0
    metric = ACCURACY

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The mean cross-entropy."""
        return F.cross_entropy(outputs, targets, label_smoothing=self.label_smoothing)

    def loss_sum(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The sum of the cross-entropies."""
        return F.cross_entropy(outputs, targets, label_smoothing=self.label_smoothing, reduction="sum")

    def values(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """1 where the largest logit is that of the label, else 0."""
        return outputs.argmax(1) == targets

    def divergence(self, outputs: Tensor, told: Tensor) -> Tensor:
        """The KL divergence of the prediction from the teacher's, at temperature 1."""
        return F.kl_div(outputs.log_softmax(1), told.log_softmax(1), log_target=True, reduction="batchmean")

    def ensemble(self, outputs: Sequence[Tensor]) -> Tensor:
        """The logarithm of the mean prediction."""
        return torch.stack([logits.softmax(1) for logits in outputs]).mean(0).log()

    def smoothed(self, amount: float) -> Self:
        """Take ``amount`` of the probability from the label and share it out among all classes."""
        return replace(self, label_smoothing=amount)

    def check(self, data: DataSplits, outputs: Tensor) -> None:
        """Refuse labels without an output, and outputs that are not logits (N, classes)."""
        check_classes(data, outputs)


CLASSIFICATION = Classification()


def load_task(section: TaskSection) -> Task:
    """The task that a job names; :class:`InputError` for one that cannot be made or does not say what decides."""
    if section.kind == "classification":
        if section.arguments:
            raise InputError(f"[task]: classification takes no arguments, got {', '.join(section.arguments)}")
        return CLASSIFICATION
    if ":" not in section.kind:
        hint = nearest(section.kind, ["classification"]) or "; write classification, or your own package.module:Class"
        raise InputError(f"there is no task '{section.kind}'{hint}")
    with importable_working_directory():
        make = import_callable(section.kind, "task")
        try:
            task = make(**section.arguments)
        except Exception as error:  # the user's own code
            raise InputError(f"task '{section.kind}' cannot be made: {one_line(error)}") from error
    if not isinstance(task, Task):
        raise InputError(f"task '{section.kind}' gives {described(task)}, not a dnas.Task")
    if not isinstance(getattr(task, "metric", None), Metric):
        raise InputError(f"task '{section.kind}' has no metric; set metric = dnas.Metric('NAME', 'smaller')")
    return task


def smoothed(task: Task, amount: float) -> Task:
    """The task as it is trained; label smoothing has no part in what is measured."""
    return task.smoothed(amount) if amount else task
