"""Sensitivities are worked out once in a run, and read back only where they are whole and of its network."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from dnas.commands.cli import app
from dnas.config.job import JobConfig
from dnas.jobs import sensitivity
from dnas.jobs.job import Job
from dnas.jobs.sensitivity import evidence_of, remembering
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


@pytest.mark.parametrize("kind", ["hessian", "measured"])
def test_a_run_keeps_what_was_worked_out_and_reads_no_other(
    kind: SensitivityKind, smaller: MakeJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config: JobConfig = smaller("controls.sensitivity_images=16")
    job, worked, told = Job.of(config), counted(monkeypatch), list[str]()
    with Run.create(tmp_path / "run", "", {}) as run:

        def found() -> Sensitivities:
            return remembering(evidence_of(job), job, run, told.append).found(kind)

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
