"""Metrics of torchmetrics beside a task's own: against their formulas, in both directions, and what is no metric."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch
from torch import Tensor

from dnas.config.job import TaskSection
from dnas.training.task import Task, task_of
from dnas.training.trainer import Measurement, evaluate
from search_spaces.errors import InputError
from search_spaces.metrics import Metric
from tests.toys import Net, images, trained

F1 = {"kind": "torchmetrics.classification:MulticlassF1Score", "arguments": {"num_classes": 3, "average": "macro"}}
IMAGES = images(30)


class Confidence:
    """A gatherer of one's own that does not say which way is better."""

    def __init__(self, of: str = "mean") -> None:
        self.of, self.found = of, torch.zeros(0)

    def update(self, outputs: Tensor, targets: Tensor) -> None:
        self.found = torch.cat([self.found, outputs.softmax(1).amax(1)])

    def compute(self) -> Tensor:
        return getattr(self.found, self.of)()


class Every(Confidence):
    higher_is_better = True

    def compute(self) -> Tensor:
        return self.found


class OnlyUpdates:
    def update(self, outputs: Tensor, targets: Tensor) -> None: ...


def task(metric: str | None = None, **metrics: Any) -> Task:
    return task_of(TaskSection.model_validate({"metrics": metrics, "metric": metric}))


def own(name: str, **keys: Any) -> dict[str, Any]:
    return {"kind": f"{__name__}:{name}", **keys}


def macro_f1(predicted: Tensor, labels: Tensor, classes: int) -> float:
    """The mean over classes of 2 TP / (2 TP + FP + FN)."""
    scores = []
    for label in range(classes):
        hit = ((predicted == label) & (labels == label)).sum()
        wrong = ((predicted == label) != (labels == label)).sum()
        scores.append(2 * hit / (2 * hit + wrong))
    return float(torch.stack(scores).mean())


def measured(given: Task, batch_size: int = 7) -> Measurement:
    return evaluate(trained(Net()), IMAGES, batch_size, task=given)


def outputs() -> Tensor:
    with torch.no_grad():
        return trained(Net()).eval()(next(iter(IMAGES.batches(30)))[0])


def test_a_metric_of_torchmetrics_is_what_its_formula_says_and_may_decide() -> None:
    expected = macro_f1(outputs().argmax(1), IMAGES.labels, 3)
    beside, deciding = measured(task(f1=F1)), measured(task("f1", f1=F1))
    assert 0 < expected < 1
    assert beside.f1 == pytest.approx(expected)
    assert deciding.f1 == deciding.score == pytest.approx(expected)
    assert beside.score == beside.top1 == deciding.top1 == deciding.beside["top1"]
    assert deciding.metric == Metric("f1", "larger")
    assert beside.metric.name == "top1"


def test_the_direction_is_the_class_s_own_unless_the_job_says_it() -> None:
    error = "torchmetrics:MeanSquaredError"
    assert task("mse", mse=error).metric == Metric("mse", "smaller")
    assert task("mse", mse={"kind": error, "direction": "larger"}).metric.direction == "larger"
    assert task("sure", sure=own("Confidence", direction="smaller", unit="%")).metric.text(0.25) == "25.00 %"


def test_ones_own_gatherer_is_as_good_and_gets_its_arguments() -> None:
    given = task(sure=own("Confidence", direction="larger", arguments={"of": "min"}))
    expected = outputs().softmax(1).amax(1)
    assert measured(given).sure == pytest.approx(float(expected.min()))
    assert measured(given).sure == measured(given, 30).sure  # every measurement has a meter of its own


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: task(f1="torchmetrics.classification:MulticlassF1Scor"), "did you mean 'MulticlassF1Score'"),
        (lambda: task(f1=F1["kind"]), r"cannot be made: TypeError.*num_classes.*goes into task.metrics.f1.arguments"),
        (
            lambda: task(sure=own("Confidence")),
            "does not say whether larger or smaller .* set task.metrics.sure.direct",
        ),
        (lambda: task(it=own("OnlyUpdates", direction="larger")), "has no compute; name a class as"),
        (lambda: task("top", f1=F1), "task.metric = 'top' is none of top1, f1; did you mean 'top1'"),
        (lambda: task("f1"), "task.metric = 'f1' is none of top1"),
        (lambda: task(top1=F1), "task.metrics.top1: the task measures a 'top1' itself; choose another name"),
        (lambda: task(loss=F1), "'loss' cannot name a metric"),
        (
            lambda: measured(task(all=own("Every"))),
            r"metric 'all' gives a float32 tensor of shape \(30,\), not one numb",
        ),
    ],
)
def test_what_is_no_metric_is_refused_in_a_sentence(make: Any, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_a_missing_package_is_named_with_its_install_command(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchmetrics"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "torchmetrics", None)
    with pytest.raises(InputError, match=r"cannot import module 'torchmetrics.classification'.*pip install 'dnas\["):
        task(f1=F1)
