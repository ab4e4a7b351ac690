"""Regression and several labels against formulas and other libraries, and what does not fit them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torchmetrics
from torch import Tensor, nn
from torch.nn import functional as F

from dnas.config.job import TaskSection
from dnas.config.training import TrainingSection
from dnas.data.image_sets import DataSplits, MemoryImages
from dnas.training.rehearsal import rehearse
from dnas.training.task import smoothed, task_of
from dnas.training.task_values import AveragePrecision, MultiLabel, Regression
from dnas.training.trainer import Trainer, evaluate
from search_spaces.errors import InputError, JobError

SHAPE = (3, 6, 6)


class Pooled(nn.Module):
    def __init__(self, outputs: int = 3) -> None:
        super().__init__()
        self.layer, self.head = nn.Conv2d(3, 6, 1), nn.Linear(6, outputs)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.layer(x).relu().mean((2, 3)))
        return out


def given(targets: Tensor | None = None, count: int = 32) -> MemoryImages:
    """Images whose targets are, unless told, the means of their channels."""
    images = torch.rand(count, *SHAPE, generator=torch.Generator().manual_seed(3)) * torch.rand(
        count, 3, 1, 1, generator=torch.Generator().manual_seed(4)
    )
    return MemoryImages(images, images.mean((2, 3)) if targets is None else targets, (0.0,) * 3, (1.0,) * 3)


def learned(images: MemoryImages, task: Any, outputs: int = 3) -> tuple[float, float]:
    torch.manual_seed(0)
    network = Pooled(outputs)
    before = evaluate(network, images, task=task).score
    section = TrainingSection(epochs=20, optimizer="AdamW", learning_rate=0.03)
    for _ in Trainer(network, section, images=images, batch_size=8, task=task).epochs():
        pass
    return before, evaluate(network, images, task=task).score


def test_numbers_are_learned_and_measured() -> None:
    before, after = learned(given(), "regression")
    assert after < 0.5 * before
    one = given(given().labels.mean(1))  # numbers (N,) for outputs (N, 1)
    before, after = learned(one, TaskSection(kind="regression", arguments={"criterion": "l1"}), 1)
    assert after < 0.5 * before


def test_errors_are_those_of_the_formulas() -> None:
    outputs, targets = torch.randn(7, 2), torch.randn(7, 2)
    for name, loss in (("mse", F.mse_loss), ("l1", F.l1_loss), ("smooth_l1", F.smooth_l1_loss)):
        task = Regression(name)  # type: ignore[arg-type]
        assert torch.equal(task.loss(outputs, targets), loss(outputs, targets))
    task = Regression()
    assert float(task.values(outputs, targets).mean()) == pytest.approx(float((outputs - targets).abs().mean()))
    meter = task.beside[0].make()
    for part in (slice(0, 5), slice(5, 7)):
        meter.update(outputs[part], targets[part])
    assert meter.compute() == pytest.approx(float(F.mse_loss(outputs, targets).sqrt()), rel=1e-6)
    with pytest.raises(InputError, match=r"criterion = 'l3' is none of mse, l1, smooth_l1"):
        Regression("l3")  # type: ignore[arg-type]


def test_several_labels_are_learned_and_measured() -> None:
    labels = (given().labels > given().labels.median(0).values).long()
    before, after = learned(given(labels), "multilabel")
    assert after > max(0.8, before)


def test_average_precision_is_that_of_another_library() -> None:
    generator = torch.Generator().manual_seed(2)
    logits = torch.randn(40, 4, generator=generator).round(decimals=1)  # with ties
    labels = (torch.rand(40, 4, generator=generator) < 0.3).long()
    meter = AveragePrecision()
    for part in (slice(0, 13), slice(13, 40)):
        meter.update(logits[part], labels[part])
    theirs = torchmetrics.classification.MultilabelAveragePrecision(num_labels=4, average="macro")
    assert meter.compute() == pytest.approx(float(theirs(logits, labels)), abs=1e-6)
    labels[:, 1] = 0
    meter = AveragePrecision()
    meter.update(logits, labels)
    left = torchmetrics.classification.MultilabelAveragePrecision(num_labels=3, average="macro")
    some = [0, 2, 3]
    assert meter.compute() == pytest.approx(float(left(logits[:, some], labels[:, some])), abs=1e-6)
    meter.update(logits * float("nan"), labels)
    assert meter.compute() != meter.compute()


def test_smoothing_moves_targets_towards_one_half() -> None:
    outputs, targets = torch.randn(5, 2), torch.tensor([[0, 1]] * 5)
    expected = F.binary_cross_entropy_with_logits(outputs, torch.tensor([[0.1, 0.9]] * 5))
    assert smoothed(MultiLabel(), 0.2).loss(outputs, targets) == pytest.approx(float(expected))


def check(task: Any, targets: Tensor, outputs: int = 3) -> None:
    sets = given(targets, len(targets))
    rehearse(Pooled(outputs), DataSplits(sets, sets, sets, 0, SHAPE), {"training": sets}, 4, task=task_of(task))


@pytest.mark.parametrize(
    ("task", "targets", "sentence"),
    [
        ("regression", torch.rand(8, 2), r"targets of the training images are .* \(8, 2\), and the network gives"),
        ("regression", torch.arange(8), "must be floats; got an int64"),
        ("regression", torch.full((8, 3), torch.nan), r"the target of image 1 of the training images is not finite"),
        ("multilabel", torch.ones(8, 2), r"give both a column for each class"),
        ("multilabel", torch.full((8, 3), 2), "hold values other than 0 and 1"),
        ("multilabel", torch.full((8, 3), 0.5), "hold values other than 0 and 1"),
        ("multilabel", torch.zeros(8, 3), "none of the training images has a class: all their targets are 0"),
    ],
)
def test_targets_that_do_not_fit_are_told_before_training(task: str, targets: Tensor, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        check(task, targets)


def test_a_loss_that_is_nan_is_told_before_training() -> None:
    class Roots(Regression):
        def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
            return (outputs - targets.sqrt()).square().mean()

    with pytest.raises(InputError, match="the loss of task Roots is NaN on training images before any training"):
        check(Roots(), -torch.rand(8, 3))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_target_that_makes_the_loss_nan_is_blamed_where_it_is_met(bad: float) -> None:
    targets = given().labels.clone()
    targets[20, 1] = bad
    trainer = Trainer(Pooled(), TrainingSection(), images=given(targets), batch_size=8, task="regression")
    with pytest.raises(JobError, match=r"every layer's output is finite, the targets of this batch are not"):
        next(trainer.epochs())
