"""What a job leaves behind, and the laws its figures keep."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from dnas.config.file import dump_job, load_job
from dnas.config.job import JobConfig
from dnas.data.image_sets import MemoryImages
from dnas.jobs import job as job_module
from dnas.jobs import run as jobs
from dnas.jobs.context import JobContext
from dnas.jobs.planning import plan_job
from dnas.jobs.stage import Findings, Foreseen
from dnas.jobs.stages.controls import Controls
from results.run.folder import Run
from search_spaces.costs.budgets import Budget
from search_spaces.errors import InputError
from search_spaces.metrics import Metric
from tests.dnas.jobs.kills import history, outcome

Job = Callable[..., JobConfig]
CarriedOut = Callable[..., Run]


def points(run: Run) -> list[dict[str, Any]]:
    return json.loads((run.folder / "front.json").read_text())["points"]


def events(run: Run, *kinds: str) -> list[dict[str, Any]]:
    return [record for record in run.journal.records() if record["event"] in kinds]


def test_a_run_holds_the_files_it_promises(toy_run: Run, toy: Job) -> None:
    folder = toy_run.folder
    names = {"job.toml", "environment.json", "journal.jsonl", "front.json", "front.csv", "front.png"}
    names |= {"network.json", "sensitivity-hessian.json"}  # of the ILP controls
    assert {path.name for path in folder.iterdir()} == {*names, "assignments", "checkpoints", ".lock", ".origin"}
    assert load_job(str(folder / "job.toml")) == toy()
    assert torch.__version__.startswith(json.loads((folder / "environment.json").read_text())["torch"])
    assert (folder / "front.png").read_bytes().startswith(b"\x89PNG")
    assert {path.suffix for path in (folder / "checkpoints").iterdir()} == {".safetensors"}


def test_a_control_of_ones_own_is_kept_under_a_name_without_a_colon(
    smaller: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its source has one, and the journal takes no such name."""
    (tmp_path / "own_worth.py").write_text(
        "import numpy as np\n\ndef any(question):\n    return np.ones(question.evidence.space.allowed.shape)\n"
    )
    monkeypatch.chdir(tmp_path)
    config = smaller("controls.own=['own_worth:any']", "controls.ilp=false", "controls.uniform=[]")
    with Run.create(tmp_path / "run", dump_job(config), {}) as run:
        stage, findings = Controls(JobContext(config, run, lambda event: None)), Findings()
        stage.check(Foreseen())
        stage.carry_out(findings)
        assert [found.id for found in findings.found] == ["control-own_worth.any-1"]
        assert findings.found == [run.assignment("control-own_worth.any-1")]
        assert [event["run"] for event in events(run, "decoded")] == ["own_worth.any"]


def test_a_run_tells_the_layers_of_its_network_and_keeps_them_readable(toy_run: Run, tmp_path: Path) -> None:
    kept = toy_run.network()
    assert kept is not None
    assert [layer.name for layer in kept.layers] == list(toy_run.assignment("search-1").layers)
    assert {reader for _, reader in kept.flows} == {*(layer.name for layer in kept.layers), ".add1", ".add2"}
    folder = tmp_path / "run"
    shutil.copytree(toy_run.folder, folder)
    (folder / "network.json").write_text('{"format": "dnas.network/1"}')
    (folder / "front.json").unlink()  # or nothing is left to do
    with pytest.raises(InputError, match=r"network\.json"):
        Run.open(folder).network()
    with Run.open(folder, write=True) as run:
        jobs.run_job(load_job(run.job_file()), run, lambda event: None)
    assert Run.open(folder).network() == kept


def test_the_front_follows_its_schema(toy_run: Run) -> None:
    data = json.loads((toy_run.folder / "front.json").read_text())
    assert data["schema"] == "dnas.front/1"
    for point in data["points"]:
        assert {"assignment", "kind", "size_bytes", "bitops", "macs", "val_top1", "test_top1", "on_front"} <= {*point}
        for split in ("val_top1", "test_top1"):
            assert 0 <= point[split]["mean"] <= 1
            assert point[split]["std"] >= 0
            assert point[split]["n"] == 2
    assert any(point["on_front"] for point in data["points"])
    rows = list(csv.DictReader((toy_run.folder / "front.csv").read_text().splitlines()))
    assert [row["assignment"] for row in rows] == [point["assignment"] for point in data["points"]]
    assert [float(row["val_top1_mean"]) for row in rows] == [point["val_top1"]["mean"] for point in data["points"]]


def test_an_assignment_file_follows_its_schema(toy_run: Run) -> None:
    for path in (toy_run.folder / "assignments").iterdir():
        data = json.loads(path.read_text())
        assert (data["schema"], data["id"]) == ("dnas.assignment/1", path.stem)
        assert data["model"] == {"source": "zoo:tiny_resnet", "checkpoint_sha256": None, "input_shape": [1, 8, 8]}
        assert len(data["layers"]) == 6
        for layer in data["layers"].values():
            assert {*layer} == {"weight_bits", "activation_bits", "out_channels", "kept_channels"}
        assert {"size_bytes", "bitops", "macs"} <= {*data["cost"]}
        assert 0 <= data["metrics"]["val_top1"]["mean"] <= 1
        assert data["provenance"]["kind"] in ("search", "uniform", "ilp", "random")


def test_every_control_is_measured_beside_every_search(toy_run: Run) -> None:
    by_kind: dict[str, list[str]] = {}
    for point in sorted(points(toy_run), key=lambda point: point["assignment"]):
        by_kind.setdefault(point["kind"], []).append(point["assignment"])
    assert by_kind == {
        "search": ["search-1", "search-2"],
        "ilp": ["ilp-1", "ilp-2"],
        "uniform": ["uniform-2", "uniform-4"],
        "random": ["random-1-1", "random-2-1"],
    }


def test_every_budget_is_met(toy_run: Run) -> None:
    for point in points(toy_run):
        limits = toy_run.assignment(point["assignment"]).provenance.limits
        assert bool(limits) == (point["kind"] != "uniform")
        assert Budget(limits, "").met_by(point)
        assert point["feasible"]


def test_the_costs_are_those_of_the_table(toy_run: Run, toy: Job) -> None:
    config = toy()
    table = plan_job(config, job_module.load_network(config).module, (1, 8, 8)).table
    for point in points(toy_run):
        assignment = toy_run.assignment(point["assignment"])
        assert {**assignment.cost} == table.price(assignment.layers)
        assert {name: point[name] for name in ("size_bytes", "bitops", "macs")} | point[
            "extra_costs"
        ] == assignment.cost


def test_the_accuracies_are_the_means_over_seeds(toy_run: Run) -> None:
    for kind, split in (("measured", "val_top1"), ("tested", "test_top1")):
        found: dict[str, list[float]] = {}
        for record in events(toy_run, kind):
            found.setdefault(record["assignment"], []).append(record[split])
        for point in points(toy_run):
            first = toy_run.assignment(point["assignment"]).metrics.get("same_as", point["assignment"])
            values = found[first if kind == "measured" else point["assignment"]]
            assert point[split]["mean"] == pytest.approx(sum(values) / 2)


def test_equal_assignments_are_measured_once(smaller: Job, carried_out: CarriedOut, tmp_path: Path) -> None:
    fractions: list[float] = []
    one_choice = ("space.weight_bits=[4]", "space.activation_bits=[4]", "search.budgets=[{size_bytes='99%'}]")
    run = carried_out(
        smaller("controls.ilp=true", *one_choice),
        tmp_path / "run",
        lambda event: fractions.append(event.get("fraction", 0)),
    )
    assert {point["kind"] for point in points(run)} == {"search", "ilp", "uniform"}
    assert len({point["val_top1"]["mean"] for point in points(run)}) == 1
    assert len(events(run, "measured")) == 1
    assert max(fractions) == pytest.approx(1.0)


def test_the_progress_rises_to_one(toy_run: Run, toy_events: list[dict[str, Any]]) -> None:
    fractions = [event["fraction"] for event in toy_events if event["event"] == "progress"]
    assert fractions == sorted(fractions)
    assert fractions[0] < 0.1
    assert fractions[-1] == pytest.approx(1.0)


def test_events_are_journaled_before_they_are_reported(toy_run: Run, toy_events: list[dict[str, Any]]) -> None:
    told = [event for event in toy_events if event["event"] != "progress"]
    assert [event["event"] for event in told] == [record["event"] for record in toy_run.journal.records()]


@pytest.mark.whole
def test_the_same_seed_gives_the_same_front(
    smaller_run: Run, smaller: Job, carried_out: CarriedOut, tmp_path: Path
) -> None:
    again = carried_out(smaller(), tmp_path / "again")
    other = carried_out(smaller("seed=1"), tmp_path / "other")
    assert outcome(again) == outcome(smaller_run)
    assert history(again) == history(smaller_run) != history(other)


def test_the_test_images_are_read_after_the_last_choice(
    smaller: Job, carried_out: CarriedOut, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    splits = job_module.load_splits(smaller())
    journaled: list[str] = []
    journaled_at_read: list[list[str]] = []

    class Watched(MemoryImages):
        def batches(self, *args: Any, **kwargs: Any) -> Any:
            journaled_at_read.append(list(journaled))
            return super().batches(*args, **kwargs)

    assert isinstance(splits.test, MemoryImages)
    watched = Watched(splits.test.images, splits.test.labels, splits.test.mean, splits.test.std)
    monkeypatch.setattr(job_module, "load_splits", lambda config: replace(splits, test=watched))
    run = carried_out(smaller(), tmp_path / "run", lambda event: journaled.append(event["event"]))
    assert len(journaled_at_read) == len(points(run)) + 1  # the float network too
    first = journaled_at_read[0]
    for kind in ("epoch", "decoded", "searched", "measured"):
        assert first.count(kind) == len(events(run, kind))


def test_metrics_beside_that_which_decides_are_measured_of_a_finished_run(toy_run: Run, tmp_path: Path) -> None:
    shutil.copytree(toy_run.folder, tmp_path / "run")
    path = tmp_path / "run" / "job.toml"
    count = load_job(str(path)).model.arguments.get("num_classes", 10)
    error = f"{{kind = 'torchmetrics.classification:MulticlassHammingDistance', arguments = {{num_classes = {count}}}}}"
    path.write_text(dump_job(load_job(str(path), [f"task.metrics.hamming={error}"])))
    result = jobs.evaluate_assignment(Run.open(tmp_path / "run"), "search-1", "val", lambda event: None)
    assert result["beside"] == [Metric("hamming", "smaller").to_json()]
    assert result["hamming"]["n"] == result["top1"]["n"] == 2
    assert 0 <= result["hamming"]["mean"] <= 1


def test_a_net_that_its_packed_file_cannot_run_is_told_by_its_name(
    toy_run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuses(path: Path) -> Any:
        raise InputError(f"{path}: the file does not tell the network's operations: it is a detector")

    monkeypatch.setattr("dnas.jobs.packed_nets.Runtime", refuses)
    with pytest.raises(InputError) as caught:
        jobs.evaluate_assignment(toy_run, "uniform-2", "test", lambda event: None, packed=True)
    assert str(caught.value) == (
        "'uniform-2' cannot be measured as its packed file runs it: the file does not tell the network's operations: "
        "it is a detector; measure the trained net itself, without --runtime packed"
    )


def test_an_assignment_is_measured_again_as_it_was(toy_run: Run) -> None:
    by_name = {point["assignment"]: point for point in points(toy_run)}
    before = toy_run.journal.records()
    for name, split in (("search-1", "val"), ("uniform-2", "test")):
        result = jobs.evaluate_assignment(toy_run, name, split, lambda event: None)
        assert result["top1"] == by_name[name][f"{split}_top1"]
    assert toy_run.journal.records() == before
    packed = jobs.evaluate_assignment(toy_run, "uniform-2", "test", lambda event: None, packed=True)
    assert packed["top1"]["mean"] == pytest.approx(by_name["uniform-2"]["test_top1"]["mean"], abs=0.02)
    with pytest.raises(InputError, match="the float network has no packed file"):
        jobs.evaluate_assignment(toy_run, "float", "test", lambda event: None, packed=True)
    with pytest.raises(InputError, match="split 'train' is not one of val, test"):
        jobs.evaluate_assignment(toy_run, "search-1", "train", lambda event: None)
