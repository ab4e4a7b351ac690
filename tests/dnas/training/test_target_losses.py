"""Targets that make a loss NaN are told before training, wherever they are; losses of other pairs are no fault."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dnas.data.image_sets import DataSplits, ImageSet
from dnas.data.target_images import HeldItems, TargetImages, held_images
from dnas.training.rehearsal import rehearse
from dnas.training.task import Task
from dnas.training.task_values import Regression
from search_spaces.errors import InputError
from search_spaces.metrics import Metric
from tests.toys import SHAPE, Net

MANY = 200


class Logs(Task):
    """A loss of the logarithms of targets (N, 3)."""

    metric = Metric("error", "smaller")

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return F.mse_loss(outputs, targets.log())

    def values(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs - targets).abs().mean(1)


class Roots(Regression):
    """One of ours, whose metric is NaN where its loss is not."""

    def values(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs - targets.sqrt()).abs().mean(1)


class OfDicts(Logs):
    """Targets in dicts."""

    def placed(self, batch: Any, device: Any) -> Any:
        images, targets = super().placed(batch, device)
        return images, torch.stack([target["wanted"] for target in targets])


def numbers(*bad: tuple[int, float]) -> Tensor:
    targets = torch.rand(MANY, 3) + 0.5
    for place, value in bad:
        targets[place, 1] = value
    return targets


def tensors(*bad: tuple[int, float]) -> ImageSet:
    return held_images(torch.rand(MANY, *SHAPE), numbers(*bad), (0.5,) * SHAPE[0], (0.25,) * SHAPE[0])


def dicts(*bad: tuple[int, float]) -> ImageSet:
    targets = [{"wanted": row} for row in numbers(*bad)]
    return TargetImages.of(HeldItems(torch.rand(MANY, *SHAPE), targets))


def rehearsed(task: Task, train: ImageSet, test: ImageSet | None = None, network: nn.Module | None = None) -> None:
    splits = DataSplits(train, train, test or train, 0, SHAPE)
    rehearse(network or Net(), splits, {"training": train}, 64, task=task)


@pytest.mark.parametrize(
    ("task", "made", "bad", "sentence"),
    [
        (Logs(), tensors, (150, -1.0), "the loss of task Logs is nan for image 151 of the training images before any"),
        (Logs(), tensors, (199, 0.0), "the loss of task Logs is inf for image 200 of the training images"),
        (Logs(), tensors, (70, float("nan")), "the loss of task Logs is nan for image 71 of the training images"),
        (OfDicts(), dicts, (150, -1.0), "the loss of task OfDicts is nan for image 151 of the training images"),
        (Roots(), tensors, (64, -1.0), "the mae of task Roots is not finite for image 65 of the training images"),
    ],
)
def test_a_target_anywhere_is_told(
    task: Task, made: Callable[..., ImageSet], bad: tuple[int, float], sentence: str
) -> None:
    rehearsed(task, made())
    with pytest.raises(InputError, match=f"{sentence}.*correct its target, or the task"):
        rehearsed(task, made(bad))


def test_a_target_of_the_test_images_is_told() -> None:
    with pytest.raises(InputError, match="is nan for image 8 of the test images"):
        rehearsed(Logs(), tensors(), tensors((7, -1.0)))


class Paired(Logs):
    """A loss that only an image's own target has: the network tells its mean, which the target is, too."""

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return ((outputs - targets).abs().mean() < 1e-5).float().log() + outputs.mean()


class Means(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(SHAPE[0], 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x).mean((2, 3)) * 0 + x.mean((1, 2, 3))[:, None]


def test_what_only_other_pairs_give_is_no_fault() -> None:
    images = torch.rand(20, *SHAPE)
    means = images.mean((1, 2, 3))[:, None].expand(-1, 3).contiguous()
    rehearsed(Paired(), TargetImages.of(HeldItems(images, means)), network=Means())
    with pytest.raises(InputError, match=r"the loss of task Paired is -inf for image \d+ of the training images"):
        rehearsed(Paired(), TargetImages.of(HeldItems(images, means.flip(0))), network=Means())
