"""Whole jobs of every kind of task, as small as they can be: data, training, search, controls, pruning, one net."""

from __future__ import annotations

import json
from enum import Enum
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dnas import Metric, Run, Task, dump_job, evaluate, load, load_job, run_job, search_bits
from dnas.commands.doctor_view import consult
from dnas.commands.exporting import export
from dnas.export.formats import ExportOptions
from dnas.jobs import job as job_module
from dnas.jobs.job import Job
from dnas.jobs.run import auxiliary_sentences, evaluate_assignment
from results.pareto import ParetoFront
from search_spaces.errors import InputError

SMALL = (
    "name=small",
    "device=cpu",
    "threads=1",
    "data.train_limit=20",
    "data.test_limit=6",
    "data.batch_size=8",
    "space.weight_bits=[2, 8]",
    "space.activation_bits=[8]",
    "pretrain.epochs=1",
    "pretrain.optimizer=AdamW",
    "pretrain.learning_rate=0.01",
    "search.warmup_epochs=1",
    "search.epochs=1",
    "search.distillation=0.5",
    "search.budgets=[{size_bytes = '22%'}]",
    "search.compile=off",
    "finetune.epochs=1",
    "finetune.seeds=1",
    "choice.enabled=false",
    "controls.uniform=[8]",
    "controls.sensitivity_images=8",
    "prune.enabled=true",
    "prune.criterion=taylor",
    "prune.trials=2",
    "prune.finalists=1",
    "prune.finetune_epochs=0",
    "prune.controls=['uniform']",
    "prune.budgets=[{size_bytes = '85%'}]",
    "finalise.enabled=true",
    "finalise.epochs=1",
)
KINDS = {
    "segmentation": ("task.kind=segmentation", "model.source=zoo:tiny_segmenter", "data.source=segmentation-shapes"),
    "detection": (
        "task.kind=detection",
        "task.exact_layers=[]",
        "model.source=zoo:tiny_ssd",
        "data.source=detection-shapes",
        "prune.trials=1",
        "controls.ilp=false",  # second derivatives of its losses take a while: the slow test has them
    ),
    "regression": (
        "task.kind=regression",
        f"model.source={__name__}:pooled",
        f"data.source={__name__}:brightness",
        "prune.enabled=false",
    ),
    "multilabel": (
        "task.kind=multilabel",
        f"model.source={__name__}:pooled",
        f"data.source={__name__}:bright",
        "prune.enabled=false",
    ),
    "inputs": (
        f"task.kind={__name__}:Beside",
        f"model.source={__name__}:TwoInputs",
        f"data.source={__name__}:pairs",
        "prune.trials=1",
    ),
}
SIZES = {
    "segmentation": ("model.arguments={width = 4}", "data.image_size=16", "data.flip=true", "data.crop_padding=1"),
    "detection": ("model.arguments={width = 4, size = 32}", "data.image_size=32", "data.flip=true"),
}


class Pooled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.second(self.first(x).relu()).relu().mean((2, 3)))
        return out


class TwoInputs(Pooled):
    """A network whose forward takes two inputs by name and returns a tuple."""

    def forward(self, image: Tensor, gain: Tensor) -> Any:  # type: ignore[override]
        return super().forward(image) * gain[:, None], gain


class Way(Enum):
    """A value that no file can tell."""

    SCALED = 1


class Chosen(TwoInputs):
    """The same, told how."""

    def forward(self, image: Tensor, gain: Tensor, way: Way) -> Any:  # type: ignore[override]
        return super().forward(image, gain if way is Way.SCALED else gain * 0)


def pooled() -> nn.Module:
    return Pooled()


def _images(count: int = 30) -> Tensor:
    return torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(count))


def brightness() -> tuple[Tensor, ...]:
    train, test = _images(), _images(8)
    return train, train.mean((2, 3)), test, test.mean((2, 3))


def bright() -> tuple[Tensor, ...]:
    train, test = _images(), _images(8)
    return train, (train.mean((2, 3)) > 0.5).long(), test, (test.mean((2, 3)) > 0.5).long()


def pairs() -> tuple[Any, ...]:
    """Images whose targets hold another input and what is to be learned."""

    def targets(images: Tensor) -> list[dict[str, Tensor]]:
        return [{"gain": torch.tensor(1 + index % 3.0), "mean": x.mean((1, 2))} for index, x in enumerate(images)]

    train, test = _images(), _images(8)
    return train, targets(train), test, targets(test)


class Beside(Task):
    """A second input comes with the targets; of what the network returns the first counts."""

    metric = Metric("mae", "smaller")

    def placed(self, batch: Any, device: Any) -> Any:
        images, targets = super().placed(batch, device)
        gains, means = (torch.stack([target[key] for target in targets]) for key in ("gain", "mean"))
        return {"image": images, "gain": gains}, means * gains[:, None]

    def outputs(self, given: Any) -> Tensor:
        found: Tensor = super().outputs(given[0])
        return found

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return F.mse_loss(outputs, targets)

    def values(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs - targets).abs().mean(1)


class Choosing(Beside):
    """Its network is told how."""

    def placed(self, batch: Any, device: Any) -> Any:
        inputs, targets = super().placed(batch, device)
        return {**inputs, "way": Way.SCALED}, targets


def job_of(kind: str, *more: str) -> Any:
    return load_job("digits", [*SMALL, "model.arguments={}", *KINDS[kind], *SIZES.get(kind, ()), *more])


def run_of(kind: str, folder: Path) -> tuple[Run, ParetoFront]:
    job = job_of(kind)
    with Run.create(folder / "run", dump_job(job), {}) as run:
        return run, run_job(job, run, lambda event: None)


NAMES = {
    "segmentation": "miou",
    "detection": "map50_95",
    "regression": "mae",
    "multilabel": "mean_average_precision",
    "inputs": "mae",
}


@pytest.mark.whole
@pytest.mark.parametrize("kind", KINDS)
def test_a_whole_job_ends_with_a_front_of_its_metric(kind: str, tmp_path: Path) -> None:
    run, front = run_of(kind, tmp_path)
    assert front.metric.name == NAMES[kind]
    kinds = {point.kind for point in front.points}
    job = load_job(run.job_file())
    assert {"search", "uniform", *(["ilp"] if job.controls.ilp else [])} <= kinds
    assert ("pruned" in kinds) == job.prune.enabled
    assert ("switchable" in kinds) == job.finalise.enabled
    told = (run.folder / "front.csv").read_text().splitlines()[0]
    assert f"val_{NAMES[kind]}_mean" in told
    again = evaluate_assignment(Run.open(run.folder), "search-1", "val", lambda event: None)
    point = next(point for point in front.points if point.assignment == "search-1")
    assert again[NAMES[kind]]["mean"] == point.val.mean


@pytest.mark.whole
def test_a_network_of_two_inputs_goes_all_the_way_to_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, front = run_of("inputs", tmp_path)
    pruned = next(point.assignment for point in front.points if point.kind == "pruned")
    for name in ("search-1", pruned, None):
        export(run.folder, name, "packed", tmp_path / f"{name}.dnas", as_json=True)
    export(run.folder, "search-1", "onnx", tmp_path / "net.onnx", True, options=ExportOptions(residual_bits=8))
    export(run.folder, pruned, "pt2e", tmp_path / "net.pt2", as_json=True)
    for name in ("search-1", "None"):
        net = load(tmp_path / f"{name}.dnas", TwoInputs())
        found = evaluate(net, Job.of(load_job(run.job_file())).data.val, task=Beside())
        told = run.assignment(net.profiles[net.active].assignment.id).metrics["val_mae"]["mean"]
        assert found.mae == pytest.approx(told, rel=0.02)
    session = onnxruntime.InferenceSession(tmp_path / "net.onnx", providers=["CPUExecutionProvider"])
    assert [entry.name for entry in session.get_inputs()] == ["image", "gain"]


def test_doctor_reads_a_network_on_what_the_task_makes_of_an_image(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "job.toml").write_text(dump_job(job_of("inputs")))
    assert consult(None, None, [], str(tmp_path / "job.toml"), as_json=True)
    told = json.loads(capsys.readouterr().out)
    assert [layer["name"] for layer in told["layers"]] == ["first", "second", "head"]


@pytest.mark.slow
def test_a_detector_is_held_against_an_integer_program(tmp_path: Path) -> None:
    with Run.create(tmp_path / "run", "", {}) as run:
        settings = ("controls.ilp=true", "prune.enabled=false", "finalise.enabled=false")
        front = run_job(job_of("detection", *settings), run, lambda event: None)
    assert "ilp" in {point.kind for point in front.points}


@pytest.mark.whole
@pytest.mark.parametrize(
    ("said", "exact"),
    [
        ((), {"regression_head"}),
        (("task.exact_layers=['head.classification_head.*']",), {"classification_head"}),
        (("space.fix={'head.regression_head.*' = [8, 8]}",), set()),
    ],
)
def test_a_detectors_box_regressors_stay_in_fp32_unless_the_job_says_otherwise(said: Any, exact: set[str]) -> None:
    settings = [*SMALL, *KINDS["detection"], *SIZES["detection"], "search.budgets=[{size_bytes='90%'}]", *said]
    job = load_job("digits", [each for each in settings if said[:1] == (each,) or "exact_layers" not in each])
    fixed = Job.of(job).plan.space.fixed
    assert {name.split(".")[1] for name, pair in fixed.items() if pair == (32, 32)} == exact


def test_an_unknown_metric_is_told_with_the_known_ones() -> None:
    with pytest.raises(InputError, match=r"task.metric = 'map' is none of map50_95"):
        Job.of(job_of("detection", "task.metric=map"))


def test_a_folder_that_is_not_there_is_told_before_weights_are_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(job_module, "load_network", lambda config: pytest.fail("the network was made"))
    with pytest.raises(InputError, match=r"^dataset 'coco': root 'data/coco' does not exist .*; give the folder"):
        Job.of(load_job("squantizer-ssdlite-coco-4bit"))


class Auxiliary(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.features, self.classifier = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 4, 1)
        self.aux_classifier = nn.Sequential(nn.Conv2d(8, 4, 1))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        features = self.features(x).relu()
        return {"out": self.classifier(features), "aux": self.aux_classifier(features)}


@pytest.mark.whole
def test_what_auxiliary_heads_take_is_told() -> None:
    job = Job.of(
        job_of(
            "segmentation",
            f"model.source={__name__}:Auxiliary",
            "model.arguments={}",
            "search.budgets=[{size_bytes='90%'}]",
        )
    )
    (told,) = auxiliary_sentences(job)
    assert "hold 32 weights, 11% of all" in told
    assert not auxiliary_sentences(Job.of(job_of("segmentation")))


def test_inputs_that_no_file_holds_are_told_before_any_training(monkeypatch: pytest.MonkeyPatch) -> None:
    job = job_of("inputs", f"model.source={__name__}:Chosen", f"task.kind={__name__}:Choosing")
    with pytest.raises(InputError, match="called with a Way, which no file can hold"):
        Job.of(job)
    monkeypatch.setattr("dnas.jobs.api.Supernet", lambda *given: pytest.fail("it was begun"))
    images, targets, *_ = pairs()
    with pytest.raises(InputError, match="called with a Way, which no file can hold"):
        search_bits(Chosen(), (images, targets), {"size_bytes": "60%"}, batch_size=8, task=Choosing())
