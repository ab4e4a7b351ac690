"""Sensitivities are worked out once in a run, and read back only where they are whole and of its network."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from dnas.commands.cli import app
from dnas.config.file import dump_job
from dnas.config.job import JobConfig
from dnas.jobs import sensitivity
from dnas.jobs.context import JobContext
from dnas.jobs.job import Job
from dnas.jobs.progress import Progress
from dnas.jobs.run import _checked, job_stages
from dnas.jobs.sensitivity import JobSensitivities, sensitivity_work
from results.files import SEAL
from results.pictures.sensitivity import draw_sensitivities, sensitivity_panels
from results.run.folder import Run
from search_spaces.errors import InputError
from search_spaces.sensitivities import Sensitivities, SensitivityKind

MakeJob = Callable[..., JobConfig]


def counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The kinds of sensitivities that are worked out from now on."""
    worked: list[str] = []
    for kind in ("_expected", "_measured"):
        whole = getattr(sensitivity.Evidence, kind)
        monkeypatch.setattr(sensitivity.Evidence, kind, lambda self, k=kind, w=whole: (worked.append(k), w(self))[1])
    return worked


@pytest.mark.parametrize("kind", ["hessian", pytest.param("measured", marks=pytest.mark.whole)])
def test_a_run_keeps_what_was_worked_out_and_reads_no_other(
    kind: SensitivityKind, smaller: MakeJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config: JobConfig = smaller("controls.sensitivity_images=16")
    job, worked, told = Job.of(config), counted(monkeypatch), list[str]()
    with Run.create(tmp_path / "run", "", {}) as run:

        def found() -> Sensitivities:
            progress = Progress(lambda event: None)
            return JobSensitivities(job, run, told.append, progress).evidence.found(kind)

        first = found()
        assert found() == first == Sensitivities.read(json.loads(json.dumps(first.to_json())))
        assert len(worked) == 1
        assert first.images == 16
        assert told == [first.told] * 2
        (path,) = (tmp_path / "run").glob("sensitivity-*.json")
        whole = path.read_text()
        plain = {key: value for key, value in json.loads(whole).items() if key != SEAL}
        others = [{}, {**plain, "images": 15}, {**plain, "network": "other"}, {**plain, "weight_bits": [1, 4, 8]}]
        for damage in ("{", whole.replace('"images": 16', '"images":  15'), *map(json.dumps, others)):
            path.write_text(damage)
            assert found() == first
        assert len(worked) == 7
        path.write_text(json.dumps(plain))  # of somebody who writes no checksum
        assert found() == first
        assert len(worked) == 7


@pytest.mark.parametrize("kind", ["hessian", "measured"])
def test_what_is_worked_out_is_counted_and_what_is_kept_as_much(
    kind: SensitivityKind, smaller: MakeJob, tmp_path: Path
) -> None:
    """Batch by batch up to what was planned, at once where an earlier process did it, and once whoever asks."""
    job = Job.of(smaller("controls.sensitivity_images=20", "data.batch_size=8"))
    (units,) = sensitivity_work(job, [kind]).values()
    assert units > 20 * len(job.plan.space.decisions)
    with Run.create(tmp_path / "run", "", {}) as run:
        for steps in (5, 0):
            events: list[dict[str, Any]] = []
            progress = Progress(events.append)
            progress.plan([{**sensitivity_work(job, [kind]), "later": units}])
            found = JobSensitivities(job, run, lambda sentence: None, progress)
            found.evidence.found(kind)
            found.settle([kind])
            assert len(events) >= steps
            assert sorted(event["fraction"] for event in events) == [event["fraction"] for event in events]
            assert progress.fraction == pytest.approx(0.5) or kind == "hessian"
            assert 0.1 < progress.fraction <= 0.5
            assert {event["run"] for event in events} <= {kind}
    progress.plan([{**sensitivity_work(job, [kind]), "later": units}])
    done = progress.fraction
    unasked = JobSensitivities(job, run, lambda sentence: None, progress)
    for _ in range(2):  # an earlier process took from it what was asked for
        unasked.settle([kind])
        assert done < progress.fraction < 1


def test_each_kind_is_planned_where_it_is_asked_for_first(smaller: MakeJob, tmp_path: Path) -> None:
    asked = {
        ("controls.ilp=true",): {"controls": {"expected"}},
        ("controls.ilp=true", "controls.measured_ilp=true"): {"controls": {"expected", "measured"}},
        ("controls.ilp=true", "choice.enabled=true"): {"controls": {"expected"}, "choice": {"measured"}},
        ("choice.enabled=true", "choice.programs=0"): {},
        ("prune.enabled=true", "prune.controls=['fewer-bits']"): {"prune": {"expected"}},
        ("prune.enabled=true", "prune.controls=['fewer-bits']", "controls.ilp=true"): {"controls": {"expected"}},
    }
    for settings, expected in asked.items():
        config = smaller(*settings)
        with Run.create(tmp_path / "run", "", {}) as run:
            context = JobContext(config, run, lambda event: None)
            stages = job_stages(context)
            works = dict(zip([stage.name for stage in stages], _checked(context, stages), strict=True))
        shutil.rmtree(tmp_path / "run")
        kinds = {name: {kind.split()[0] for kind in work if "sensitivities" in kind} for name, work in works.items()}
        assert {name: found for name, found in kinds.items() if found} == expected, settings


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    rows = {"weight_bits": [2, 4], "activation_bits": [8], "inputs": {"a": [0.0]}, "images": 1, "kind": "hessian"}
    with Run.create(tmp_path / "run", "", {}) as run:
        for weights, sentence in (({"a": [1.0]}, "'a' has 1 values for 2"), ({"b": [1.0, 2.0]}, "the same layers")):
            (tmp_path / "run" / "sensitivity-hessian.json").write_text(json.dumps({**rows, "weights": weights}))
            with pytest.raises(InputError, match=rf"sensitivity-hessian.json: .*{sentence}"):
                run.sensitivities("hessian")
        assert run.sensitivities("measured") is None


def test_what_is_drawn_is_every_layer_and_width() -> None:
    found = Sensitivities(
        kind="hessian",
        weight_bits=(1, 8),
        activation_bits=(2, 4),
        weights={"a": (0.5, 0.0), "b": (1.0, -0.1)},
        inputs={"a": (0.1, 0.01), "b": (0.2, 0.0)},
        images=3,
    )
    weights, inputs = sensitivity_panels(found)
    assert (weights.widths, inputs.widths, weights.layers) == (("1", "8"), ("2", "4"), ("a", "b"))
    assert weights.losses.tolist() == [[0.5, 0.0], [1.0, -0.1]]
    texts = [text.get_text() for text in draw_sensitivities(found).axes[0].texts]
    assert texts == ["0.5", "0", "1", "-0.1"]
    assert len(sensitivity_panels(found.model_copy(update={"activation_bits": (2,)}))) == 1


def test_the_command_wants_a_run_or_a_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for words in ([], ["zoo:resnet20"], ["nothing"]):
        result = CliRunner().invoke(app, ["sensitivity", *words])
        assert result.exit_code == 2
        assert "--job" in result.stderr


def test_the_command_computes_where_it_says_and_as_exactly_as_the_job(
    smaller: MakeJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job, exact = tmp_path / "job.toml", list[bool]()
    config: JobConfig = smaller("deterministic=true")
    job.write_text(dump_job(config))
    with Run.create(tmp_path / "run", dump_job(config), {}):
        pass
    for words in (["--job", str(job)], [str(tmp_path / "run")]):
        result = CliRunner().invoke(app, ["sensitivity", *words, "--device", "cuda:7"])
        assert (result.exit_code, "device = 'cuda:7' is not here; PyTorch finds cpu" in result.stderr) == (2, True)

    def worked(evidence: sensitivity.Evidence) -> Sensitivities:
        exact.append(torch.are_deterministic_algorithms_enabled())
        return Sensitivities(kind="hessian", weight_bits=(), activation_bits=(), weights={}, inputs={}, images=1)

    monkeypatch.setattr(sensitivity.Evidence, "_expected", worked)
    monkeypatch.setattr(Sensitivities, "told", "")
    result = CliRunner().invoke(app, ["sensitivity", "--job", str(job), "--device", "cpu", "--json"])
    assert (result.exit_code, exact) == (0, [True]), result.output
