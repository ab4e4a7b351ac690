"""The search in two calls, for tasks that are no classification: their loss, outputs and metric at every step."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, TensorDataset

import dnas
from dnas import InputError, Metric, Task
from dnas.config.job import FinetuneSection, SearchSection
from tests.made_runs import made_assignment
from tests.toys import SHAPE, Net, seeded, trained

X = torch.rand(48, *SHAPE, generator=seeded(5))
Y = torch.stack([X.mean((1, 2, 3)), X.amax((1, 2, 3))], 1)


class Brightness(Task):
    """Mean and largest pixel, judged by the squared error."""

    metric = Metric("mse", "smaller")

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return F.mse_loss(outputs, targets)

    def values(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs - targets).square().mean(1)


class FromDict(Brightness):
    """The same, of a network that returns more than one thing."""

    def outputs(self, given: Any) -> Tensor:
        return super().outputs(given["levels"])


class Dict(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = Net(classes=2)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"levels": self.net(x), "features": x.flatten(1)}


class Items(Dataset[Any]):
    """A dataset whose targets are numbers of Python, which come as float64."""

    def __len__(self) -> int:
        return len(X)

    def __getitem__(self, index: int) -> Any:
        return X[index], Y[index].double().numpy()


CASES: dict[str, tuple[Any, Any, Any]] = {
    "tensors": (lambda: Net(classes=2), Brightness(), (X, Y)),
    "loader": (lambda: Net(classes=2), Brightness(), DataLoader(TensorDataset(X, Y), 16)),
    "dataset of double": (lambda: Net(classes=2), Brightness(), Items()),
    "by name": (lambda: Net(classes=2), f"{__name__}:Brightness", (X, Y)),
    "dict": (Dict, FromDict(), (X, Y)),
}


@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=() if case in ("by name", "dict") else pytest.mark.whole) for case in CASES]
)
def test_another_task_is_searched_fine_tuned_and_measured(case: str) -> None:
    make, task, data = CASES[case]
    model = trained(make())
    searching = SearchSection(warmup_epochs=1, epochs=1, distillation=0.5)
    (found,) = dnas.search_bits(
        model,
        data,
        {"size_bytes": "60%"},
        section=searching,
        space=dnas.SpaceOptions(weight_bits=(2, 8), activation_bits=(8,)),
        batch_size=8,
        task=task,
    )
    section = FinetuneSection(epochs=8, learning_rate=0.02, optimizer="AdamW", distillation=0.1)
    network, measured = dnas.finetune(model, found, data, section, batch_size=8, task=task)
    before, _ = dnas.finetune(model, found, data, FinetuneSection(epochs=0), batch_size=8, task=task)
    again = dnas.evaluate(network, (X, Y), task=task)
    with torch.no_grad():
        given = network(X)
    outputs = given["levels"] if case == "dict" else given
    assert again.mse == again.score == pytest.approx(F.mse_loss(outputs, Y).item(), rel=1e-4)
    assert again.loss == pytest.approx(again.mse, rel=1e-4)
    assert measured.metric == Metric("mse", "smaller")
    assert measured.metric.better(again.score, dnas.evaluate(before, (X, Y), task=task).score)


def test_the_task_of_a_job_is_taken_with_its_metrics() -> None:
    job = dnas.load_job(
        "digits", ["task.metrics.error=torchmetrics:MeanSquaredError", f"task.kind={__name__}:Brightness"]
    )
    measured = dnas.evaluate(trained(Net(classes=2)), (X, Y), task=job.task)
    assert measured.error == pytest.approx(measured.mse, rel=1e-5)


TWO: dict[str, Any] = {"section": SearchSection(warmup_epochs=0, epochs=1), "batch_size": 8}


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda net: dnas.evaluate(net, (X, Y)), r"labels of the given images must be integers \(N,\)"),
        (lambda net: dnas.evaluate(net, (X, torch.full((48,), 2))), "label 2 of the given images has no output"),
        (lambda net: dnas.evaluate(Dict(), (X, Y), task=Brightness()), "the network returns a dict of 'levels'"),
        (lambda net: dnas.search_bits(net, (X, Y), [{"size_bytes": "60%"}], **TWO), "must be integers"),
        (lambda net: dnas.search_bits(net, (X, Y), {"size_bytes": "60%"}, task=Brightness, **TWO), "is a class; give"),
        (
            lambda net: dnas.search_bits(
                net,
                (X, Y),
                {"size_bytes": "60%"},
                section=SearchSection(label_smoothing=0.1),
                task=Brightness(),
            ),
            "label_smoothing = 0.1: the task Brightness has no labels to smooth",
        ),
    ],
)
def test_what_does_not_fit_the_task_is_refused_in_a_sentence(call: Any, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        call(trained(Net(classes=2)))


BUDGET = {"size_bytes": "25%"}
LABELS = torch.zeros(48, dtype=torch.long)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"seed": "a"}, "seed = 'a': give a whole number"),
        ({"seed": 1.5}, "seed = 1.5: give a whole number"),
        ({"seed": True}, "seed = True: give a whole number"),
        ({"seed": None}, "seed = None: give a whole number"),
        ({"batch_size": 0}, "batch_size = 0: give a whole number from 1 on"),
        ({"batch_size": -4}, "batch_size = -4: give a whole number from 1 on"),
        ({"batch_size": 2.5}, "batch_size = 2.5: give a whole number from 1 on"),
        ({"batch_size": "8"}, "batch_size = '8': give a whole number from 1 on"),
        ({"device": None}, "a device cannot be a NoneType; give a name such as 'cpu'"),
        ({"device": 0}, "a device cannot be an int"),
        ({"augmentation": "flip"}, "an augmentation cannot be a str; give Augmentation"),
        ({"data": (X[:0], LABELS[:0])}, "the training images: there are none; give pairs"),
        ({"data": ((X, LABELS), (X[:0], LABELS[:0]))}, "the validation images: there are none; give pairs"),
    ],
)
@pytest.mark.parametrize("call", ["search_bits", "finetune"])
def test_a_value_of_another_kind_is_refused_before_any_training(
    call: str, given: dict[str, Any], sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dnas.jobs.api.rehearse", None)  # what is refused is refused before it
    asked = {"data": (X, LABELS)} | given
    subject = BUDGET if call == "search_bits" else made_assignment("a", [4, 4, 4, 4])
    rest = [asked.pop("data"), subject] if call == "search_bits" else [subject, asked.pop("data")]
    with pytest.raises(InputError, match=sentence):
        getattr(dnas, call)(Net(), *rest, **asked)


@pytest.mark.parametrize("budgets", [[], ()])
def test_a_search_needs_a_budget(budgets: Any) -> None:
    with pytest.raises(InputError, match="there is no budget to search under; give one"):
        dnas.search_bits(Net(), (X, LABELS), budgets)


def test_quantizers_are_no_name() -> None:
    with pytest.raises(InputError, match=r"the quantizers cannot be a str; give QuantizerChoice\("):
        dnas.search_bits(Net(), (X, LABELS), BUDGET, quantizers="pact")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"images": (X[:0], LABELS[:0])}, "the images: there are none; give pairs"),
        ({"batch_size": 0}, "batch_size = 0: give a whole number from 1 on"),
        ({"device": None}, "a device cannot be a NoneType"),
    ],
)
def test_what_nothing_can_be_measured_with_is_refused(given: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        dnas.evaluate(Net(), **{"images": (X, LABELS)} | given)
