"""What a network is trained for: classification against its formulas, a task of one's own, and what is no task."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from unittest.mock import MagicMock

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dnas.config.job import TaskSection
from dnas.config.training import TrainingSection
from dnas.data.image_sets import DataSplits, MemoryImages, stratified_indices
from dnas.training.rehearsal import rehearse
from dnas.training.task import CLASSIFICATION, TASKS, MeanMeter, Task, smoothed, task_of
from dnas.training.trainer import Trainer, evaluate
from search_spaces.errors import InputError
from search_spaces.metrics import ACCURACY, Metric
from tests.toys import Net, images, seeded, trained

MAE = Metric("mae", "smaller")


@dataclass
class Brightness(Task):
    """One number per image, in a dict beside another output."""

    factor: float = 1.0
    metric = MAE

    def outputs(self, given: Any) -> Tensor:
        return super().outputs(given["mean"])

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return self.factor * F.mse_loss(outputs, targets)

    def values(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs - targets).abs().mean(1)


class Gathered(Brightness):
    """A metric that is no mean over images."""

    metric = Metric("largest_error", "smaller")

    def meter(self) -> Any:
        class Largest:
            found = 0.0

            def update(self, outputs: Tensor, targets: Tensor) -> None:
                self.found = max(self.found, float((outputs - targets).abs().max()))

            def compute(self) -> float:
                return self.found

        return Largest()


class Nameless(Task):
    """It does not say what decides."""


class WithoutLoss(Brightness):
    loss = Task.loss


class WithoutValues(Brightness):
    values = Task.values


class Failing(Brightness):
    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        raise ValueError("no such loss")


class PerImage(Brightness):
    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs - targets).square().mean(1)


class Broken(Brightness):
    """One method gives what it was told to."""

    def __init__(self, method: str, given: Callable[..., Any]) -> None:
        super().__init__()
        setattr(self, method, given)


def asserts(*_: Any) -> None:
    raise AssertionError


class Dict(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = trained(Net(classes=1))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"mean": self.net(x), "other": x.sum()}


def brightness(count: int = 48) -> MemoryImages:
    plain = images(count)
    x, _ = next(iter(plain.batches(count)))
    return MemoryImages(plain.images, x.mean((2, 3)), plain.mean, plain.std)


def splits() -> DataSplits:
    return DataSplits(brightness(), brightness(20), brightness(20), 0, (1, 6, 6))


def test_classification_is_cross_entropy_and_the_part_that_is_right() -> None:
    logits, labels = torch.randn(9, 4), torch.randint(0, 4, (9,))
    assert torch.equal(CLASSIFICATION.loss(logits, labels), F.cross_entropy(logits, labels))
    torch.testing.assert_close(CLASSIFICATION.loss_sum(logits, labels), 9 * F.cross_entropy(logits, labels))
    meter = CLASSIFICATION.meter()
    for part in (slice(0, 5), slice(5, 9)):
        meter.update(logits[part], labels[part])
    assert (
        meter.compute() == sum(int(row.argmax()) == int(label) for row, label in zip(logits, labels, strict=True)) / 9
    )
    assert smoothed(CLASSIFICATION, 0.0) is CLASSIFICATION
    assert CLASSIFICATION.metric == ACCURACY


def test_a_task_of_ones_own_is_trained_and_measured() -> None:
    model, task = Dict(), Brightness()
    before = evaluate(model.eval(), brightness(), task=task)
    section = TrainingSection(epochs=5, learning_rate=0.02, optimizer="AdamW")
    one = Trainer(model, section, images=brightness(), batch_size=16, task=task)
    list(one.epochs())
    after = evaluate(model.eval(), brightness(), 7, task=task)
    assert task.metric.better(after.score, before.score)
    assert after.mae == after.score
    x, y = next(iter(brightness().batches(48)))
    with torch.no_grad():
        found = model(x)["mean"]
    assert after.score == pytest.approx((found - y).abs().mean().item(), rel=1e-5)
    assert after.loss == pytest.approx(F.mse_loss(found, y).item(), rel=1e-5)
    largest = evaluate(model, brightness(), 7, task=Gathered())
    assert largest.score == pytest.approx((found - y).abs().max().item(), rel=1e-5)
    with pytest.raises(AttributeError, match="no 'top1'"):
        _ = after.top1


def test_targets_without_classes_are_split_at_random_and_kept_as_they_are() -> None:
    targets = torch.rand(50, 2)
    chosen = stratified_indices(targets, 20, seed=3)
    assert len(set(chosen.tolist())) == 20
    assert torch.equal(chosen, stratified_indices(targets, 20, seed=3))
    assert not torch.equal(chosen, stratified_indices(targets, 20, seed=4))
    assert torch.equal(MemoryImages(torch.rand(50, 1, 2, 2), targets, (0.0,), (1.0,)).labels, targets)


def named(name: str, **arguments: Any) -> TaskSection:
    return TaskSection(kind=f"{__name__}:{name}", arguments=arguments)


class Plain(Brightness):
    """The tensor that the network returns counts."""

    outputs = Task.outputs


READY = Plain(2.0)
LABELS = torch.arange(12) % 4
LEVELS = torch.linspace(0, 1, 12)[:, None]
MAPS = (torch.arange(12 * 20).reshape(12, 4, 5) ** 2) % 3
LABELLED = (torch.arange(12)[:, None] % torch.tensor([2, 3, 5]) == 0).long()
# What each task is tried on: its targets, and outputs that could not be better.
TRIED = {
    "classification": (LABELS, 9 * F.one_hot(LABELS, 4).float()),
    "segmentation": (MAPS, 9 * F.one_hot(MAPS, 3).permute(0, 3, 1, 2).float()),
    "regression": (LEVELS, LEVELS),
    "multilabel": (LABELLED, 18 * LABELLED.float() - 9),
    f"{__name__}:Plain": (LEVELS, LEVELS),
    f"{__name__}:READY": (LEVELS, LEVELS),
}


def test_every_task_of_ours_is_tried() -> None:
    assert set(TASKS) <= {*TRIED, "detection"}  # whose outputs are a network's own: test_task_detection.py


@pytest.mark.parametrize("name", TRIED)
class TestContract:
    def test_the_loss_is_one_number_that_falls_towards_the_targets(self, name: str) -> None:
        task, (targets, best) = task_of(name), TRIED[name]
        outputs = (0.3 * best).requires_grad_()
        loss = task.loss(task.outputs(outputs), targets)
        loss.backward()
        assert loss.ndim == 0
        assert outputs.grad is not None
        assert task.loss(task.outputs(best), targets) < loss
        assert task.loss(task.outputs(outputs - 0.01 * outputs.grad), targets) < loss

    def test_sums_of_losses_add_up_over_batches(self, name: str) -> None:
        task, (targets, best) = task_of(name), TRIED[name]
        outputs = best + torch.randn(best.shape, generator=torch.Generator().manual_seed(1))
        parts = [task.loss_sum(task.outputs(outputs[part]), targets[part]) for part in (slice(0, 5), slice(5, 12))]
        torch.testing.assert_close(sum(parts), 12 * task.loss(task.outputs(outputs), targets))

    def test_figures_are_those_of_all_images_however_they_are_batched(self, name: str) -> None:
        task, (targets, best) = task_of(name), TRIED[name]
        outputs = best + 9 * torch.randn(best.shape, generator=torch.Generator().manual_seed(2))
        for gauge in task.gauges:
            found = []
            for parts in ([slice(0, 12)], [slice(5, 12), slice(0, 5)]):
                meter = gauge.on(torch.device("cpu"))
                for part in parts:
                    meter.update(task.outputs(outputs[part]), targets[part])
                found.append(gauge.read(meter))
            assert found[0] == pytest.approx(found[1])
            perfect = gauge.on(torch.device("cpu"))
            perfect.update(task.outputs(best), targets)
            assert gauge.metric.better(gauge.read(perfect), found[0])

    def test_a_teacher_that_says_the_same_teaches_nothing(self, name: str) -> None:
        task, (_, best) = task_of(name), TRIED[name]
        best, worse = (task.comparable(task.outputs(each)) for each in (best, 0.3 * best))
        assert float(task.divergence(best, best)) == pytest.approx(0, abs=1e-6)
        assert float(task.divergence(worse, best)) > 0
        assert float(task.divergence(task.ensemble([best, best]), best)) == pytest.approx(0, abs=1e-3)

    def test_it_is_had_by_name_by_value_and_from_a_job(self, name: str) -> None:
        task = task_of(TaskSection(kind=name))
        assert type(task_of(name)) is type(task)
        assert task_of(task) is task


def test_a_job_names_its_task() -> None:
    assert task_of(TaskSection()) is CLASSIFICATION
    task = task_of(named("Brightness", factor=2.0))
    assert (type(task).__name__, task.factor) == ("Brightness", 2.0)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("section", "sentence"),
    [
        ("clasification", "unknown task 'clasification'; .* did you mean 'classification'"),
        ("poses", "known are classification, detection, .* and package.module:name"),
        (TaskSection(arguments={"classes": 3}), "'classification' cannot be made: .* argument 'classes'"),
        (named("Brightnes"), "has no 'Brightnes'; did you mean 'Brightness'"),
        (named("Brightness", facto=1.0), "cannot be made: TypeError"),
        (named("brightness"), "not a Task, so it is not called"),
        (named("Nameless"), "has no metric; set metric"),
        (named("READY", factor=1.0), "cannot be made: TypeError"),
        (Brightness, "task Brightness is a class; give Brightness"),
        (Nameless(), "task Nameless has no metric"),
        (3, "a task cannot be an int; give one of dnas.Task, its name, or job.task"),
        ("mine", "unknown task 'mine'"),
    ],
)
def test_what_is_no_task_is_refused(section: Any, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        task_of(section)


@pytest.mark.parametrize(
    ("task", "sentence"),
    [
        (Failing(), "task Failing fails on a batch of training images: ValueError: no such loss"),
        (WithoutLoss(), r"the task WithoutLoss has no loss; write loss\(outputs, targets\)"),
        (WithoutValues(), r"the task WithoutValues says nothing of its metric; write values\(outputs, targets\)"),
        (PerImage(), r"the loss of task PerImage is .*; give the mean over the batch"),
        (
            CLASSIFICATION,
            "the network returns a dict of 'mean', 'other' in eval mode for 2 images; .* or name a task that reads it",
        ),
    ],
)
def test_a_task_that_cannot_work_is_refused_before_training(task: Task, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        rehearse(Dict(), splits(), {"training": brightness()}, 16, task=task)


BROKEN = [
    (
        "values",
        lambda outputs, targets: torch.ones(1),
        r"values of task Broken are a float32 tensor of shape \(1,\) for 2",
    ),
    ("values", lambda outputs, targets: torch.ones(2, 2), r"shape \(2, 2\) for 2 images; give one number for each"),
    ("values", lambda outputs, targets: torch.tensor(0.5), r"shape \(\) for 2 images"),
    ("values", lambda outputs, targets: None, "values of task Broken are a NoneType for 2 images"),
    ("values", lambda outputs, targets: [0.5, 0.5], "values of task Broken are a list"),
    ("placed", lambda batch, device: batch[0], "places a batch as a float32 tensor .* returns \\(inputs, targets\\)"),
    ("placed", lambda batch, device: None, "places a batch as a NoneType"),
    ("check", asserts, "check of task Broken fails: AssertionError"),
    ("check_targets", asserts, "check_targets of task Broken fails: AssertionError"),
    ("loss_sum", lambda outputs, targets: 1.0, "loss_sum of task Broken is a float; give the sum"),
    ("loss_sum", asserts, "task Broken fails on a batch of training images: AssertionError"),
    ("divergence", lambda outputs, told: None, "the divergence of task Broken is a NoneType; give one number"),
    ("divergence", asserts, "task Broken cannot compare outputs with a teacher's: AssertionError"),
    ("comparable", asserts, "task Broken cannot compare outputs with a teacher's: AssertionError"),
    ("ensemble", asserts, "task Broken cannot compare outputs with a teacher's: AssertionError"),
]


@pytest.mark.parametrize(("method", "given", "sentence"), BROKEN)
def test_every_method_of_a_task_is_tried_before_training(method: str, given: Callable[..., Any], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        rehearse(Dict(), splits(), {"training": brightness()}, 16, task=Broken(method, given), teachers=2)


@pytest.mark.parametrize(
    ("method", "teachers"), [("divergence", 0), ("comparable", 0), ("ensemble", 0), ("ensemble", 1)]
)
def test_what_no_stage_asks_of_a_task_is_not_tried(method: str, teachers: int) -> None:
    given = MagicMock(side_effect=AssertionError)
    rehearse(Dict(), splits(), {"training": brightness()}, 16, task=Broken(method, given), teachers=teachers)
    assert not given.called


@dataclass
class Levels:
    """Outputs that PyTorch does not look into."""

    levels: Tensor


@pytest.mark.parametrize(
    "values",
    [lambda outputs, targets: (outputs.levels - targets).abs().mean(1), lambda outputs, targets: outputs.levels[:, :1]],
    ids=["(N,)", "(N, 1)"],
)
def test_values_of_any_outputs_have_a_mean(values: Callable[..., Tensor]) -> None:
    meter, total = MeanMeter(Broken("values", values)), []
    for seed in range(2):
        outputs, targets = (torch.rand(3 + seed, 2, generator=seeded(seed + each)) for each in (0, 5))
        meter.update(Levels(outputs), targets)
        total.append(values(Levels(outputs), targets).flatten())
    assert meter.compute() == pytest.approx(torch.cat(total).mean().item())


@pytest.mark.parametrize("key", ["exact_layers", "auxiliary_layers"])
@pytest.mark.parametrize("patterns", ["head", None, ("head", 3), {"head"}])
def test_patterns_of_a_task_are_told_apart_from_one_text(key: str, patterns: Any) -> None:
    task = Brightness()
    setattr(task, key, patterns)
    with pytest.raises(InputError, match=f"task Brightness: {key} is .*; give patterns in a tuple, such as"):
        task_of(task)


def test_what_is_smoothed_is_a_task() -> None:
    with pytest.raises(InputError, match="smoothed of task Broken returns a NoneType, not a task"):
        smoothed(Broken("smoothed", lambda amount: None), 0.1)


def test_a_task_without_labels_refuses_to_smooth_them() -> None:
    with pytest.raises(InputError, match=r"label_smoothing = 0.1: the task Brightness has no labels to smooth"):
        smoothed(Brightness(), 0.1)


@pytest.mark.parametrize("name", ["loss", "Top1", "a b", "", "seed"])
def test_a_metric_needs_a_name_that_files_can_have(name: str) -> None:
    with pytest.raises(InputError, match="cannot name a metric"):
        Metric(name)


def test_a_direction_is_larger_or_smaller() -> None:
    with pytest.raises(InputError, match="direction 'lower' is not 'larger' or 'smaller'"):
        Metric("mae", "lower")  # type: ignore[arg-type]


@dataclass
class Found:
    """What newer networks return: a class that PyTorch takes for one value."""

    logits: Tensor
    features: tuple[Tensor, ...]
    best: Tensor
    nothing: None = None


class Output(dict[str, Any]):
    """A dict of a class of its own, as transformers returns."""


@pytest.mark.parametrize(
    "made",
    [
        lambda a, b: Found(a, (b,), a.argmax(1)),
        lambda a, b: Output(logits=a, features=(b,), best=a.argmax(1)),
        lambda a, b: {"logits": a, "features": [b, None], "best": a.argmax(1)},
        lambda a, b: (a, b),
    ],
)
def test_every_float_of_whatever_a_network_returns_is_learned_from_a_teacher(made: Any) -> None:
    generator = torch.Generator().manual_seed(0)
    a, b, c, d = (torch.randn(5, width, generator=generator) for width in (3, 4, 3, 4))
    task = Task()
    own, told = task.comparable(made(a, b)), task.comparable(made(c, d))
    assert float(task.divergence(own, told)) == pytest.approx(float((F.mse_loss(a, c) + F.mse_loss(b, d)) / 2))
    assert float(task.divergence(task.ensemble([own, own]), own)) == 0


def test_a_structure_of_floats_is_comparable_as_it_is() -> None:
    given = {"logits": torch.rand(2), "more": (torch.rand(3),)}
    assert Task().comparable(given) is given
