"""Tasks whose targets are values: numbers that a network learns, and several labels of one image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Self

import torch
from sklearn.metrics import average_precision_score
from torch import Tensor
from torch.nn import functional as F

from dnas.data.described import described
from dnas.data.image_sets import ImageSet
from dnas.training.device import widened
from dnas.training.metrics import Gauge
from dnas.training.task import Task
from search_spaces.errors import InputError
from search_spaces.metrics import LABEL_PRECISION, Metric

_LOSSES = {"mse": F.mse_loss, "l1": F.l1_loss, "smooth_l1": F.smooth_l1_loss}


class RootMeanSquare:
    """Gathers the root of the mean squared error over all numbers."""

    def __init__(self) -> None:
        self.total: Tensor | float = 0.0
        self.count = 0

    def update(self, outputs: Tensor, targets: Tensor) -> None:
        """Add the squared errors of one batch."""
        self.total = self.total + (widened(outputs) - widened(targets.reshape(outputs.shape))).square().sum()
        self.count += outputs.numel()

    def compute(self) -> float:
        """The root of their mean."""
        return float((float(self.total) / max(1, self.count)) ** 0.5)


@dataclass(frozen=True)
class Regression(Task):
    """Numbers (N, ...) for each image; the mean absolute error decides. Targets (N,) fit outputs (N, 1)."""

    criterion: Literal["mse", "l1", "smooth_l1"] = "mse"
    metric = Metric("mae", "smaller", title="mean absolute error")
    beside = (Gauge(Metric("rmse", "smaller", title="root mean squared error"), RootMeanSquare),)

    def __post_init__(self) -> None:
        if self.criterion not in _LOSSES:
            raise InputError(f"criterion = '{self.criterion}' is none of {', '.join(_LOSSES)}")

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The mean squared error, or another of PyTorch's."""
        return _LOSSES[self.criterion](outputs, targets.reshape(outputs.shape))

    def values(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The mean absolute error of each image."""
        return (outputs - targets.reshape(outputs.shape)).abs().reshape(len(outputs), -1).mean(1)

    def check(self, sets: Mapping[str, ImageSet], outputs: Tensor) -> None:
        """Refuse targets that are not finite numbers of the shape of the outputs."""
        for name, images in sets.items():
            labels = _whole(name, images.labels, "numbers (N, ...)")
            if not labels.is_floating_point():
                raise InputError(f"data: targets of the {name} images must be floats; got {described(labels)}")
            _check_finite(name, labels)
            if labels[0].numel() != outputs[0].numel():
                raise InputError(
                    f"data: targets of the {name} images are {described(labels)}, and the network gives "
                    f"{described(outputs)}; give it as many outputs as there are numbers"
                )


@dataclass(frozen=True)
class MultiLabel(Task):
    """Any number of classes per image: logits (N, classes), targets (N, classes) of zeros and ones.

    The loss is the mean binary cross-entropy. What decides is the mean over classes of the average precision.
    """

    label_smoothing: float = 0.0
    metric = LABEL_PRECISION

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The mean binary cross-entropy."""
        smooth = targets.to(outputs.dtype) * (1 - self.label_smoothing) + self.label_smoothing / 2
        return F.binary_cross_entropy_with_logits(outputs, smooth)

    def meter(self) -> AveragePrecision:
        """Gathers logits and targets of all batches."""
        return AveragePrecision()

    def divergence(self, outputs: Tensor, told: Tensor) -> Tensor:
        """The mean KL divergence of each class's prediction from the teacher's."""
        wanted = told.sigmoid()
        entropy = F.binary_cross_entropy_with_logits(told, wanted)
        return F.binary_cross_entropy_with_logits(outputs, wanted) - entropy

    def ensemble(self, outputs: Sequence[Tensor]) -> Tensor:
        """The logits of the mean prediction."""
        return torch.stack([logits.sigmoid() for logits in outputs]).mean(0).logit(eps=1e-6)

    def smoothed(self, amount: float) -> Self:
        """Move every target by half of ``amount`` towards one half."""
        return replace(self, label_smoothing=amount)

    def check(self, sets: Mapping[str, ImageSet], outputs: Tensor) -> None:
        """Refuse targets that are not zeros and ones, one for each output."""
        for name, images in sets.items():
            labels = _whole(name, images.labels, "zeros and ones (N, classes)")
            if labels.ndim != 2 or outputs.ndim != 2 or labels.shape[1] != outputs.shape[1]:
                raise InputError(
                    f"data: targets of the {name} images are {described(labels)}, and the network gives "
                    f"{described(outputs)}; give both a column for each class"
                )
            if not ((labels == 0) | (labels == 1)).all():
                raise InputError(f"data: targets of the {name} images hold values other than 0 and 1")
            if not labels.any():
                raise InputError(f"data: none of the {name} images has a class: all their targets are 0; give some")


class AveragePrecision:
    """Gathers the mean over classes of the average precision; classes without a positive image count nowhere."""

    def __init__(self) -> None:
        self._outputs: list[Tensor] = []
        self._targets: list[Tensor] = []

    def update(self, outputs: Tensor, targets: Tensor) -> None:
        """Take note of the logits (B, classes) and targets of one batch."""
        self._outputs.append(outputs.detach().cpu())
        self._targets.append(targets.cpu())

    def compute(self) -> float:
        """The mean; NaN where a logit is, 0 where no image has a class."""
        outputs, targets = torch.cat(self._outputs).double(), torch.cat(self._targets)
        if outputs.isnan().any():
            return float("nan")
        there = [index for index in range(targets.shape[1]) if targets[:, index].any()]
        found = [average_precision_score(targets[:, index].numpy(), outputs[:, index].numpy()) for index in there]
        return float(sum(found) / max(1, len(found)))


def _whole(name: str, labels: Any, wanted: str) -> Tensor:
    if not isinstance(labels, Tensor):
        raise InputError(f"data: targets of the {name} images must be {wanted}; got {described(labels)}")
    return labels


def _check_finite(name: str, labels: Tensor) -> None:
    bad = (~labels.isfinite()).reshape(len(labels), -1).any(1)
    if bad.any():
        raise InputError(
            f"data: the target of image {int(bad.nonzero()[0]) + 1} of the {name} images is not finite; correct it"
        )
