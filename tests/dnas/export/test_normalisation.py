"""Exported files say how to normalise, or do it themselves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from typer.testing import CliRunner

from dnas import load_data
from dnas.commands.cli import app
from dnas.export import graph_export
from dnas.export.aimet import export_aimet
from dnas.export.qonnx import run_qonnx
from dnas.export.save import save_packed
from dnas.jobs.normalisation import preprocessing_of
from results.pareto import ParetoFront
from results.preprocessing import Preprocessing
from results.run.folder import Run
from search_spaces.errors import InputError
from tests.exported_nets import export_onnx, export_qonnx, small_net, traced_once

TOLD = Preprocessing((1, 6, 6), (0.25,), (0.5,), 3, ("a", "b", "c"))


@pytest.fixture(autouse=True)
def _once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graph_export, "trace", traced_once)


def metadata(path: Path) -> dict[str, Any]:
    told = {entry.key: entry.value for entry in onnx.load(path).metadata_props}
    return dict(json.loads(told["dnas.preprocessing"]))


def test_the_description_round_trips_and_refuses_nonsense() -> None:
    assert Preprocessing.from_json(json.loads(json.dumps(TOLD.to_json()))) == TOLD
    for mean, std in (((0.1, 0.2), (0.5,)), ((0.1,), (0.0,)), ((float("nan"),), (0.5,)), ((), ())):
        with pytest.raises(InputError, match="do not normalise inputs of shape"):
            Preprocessing((1, 6, 6), mean, std, 3)
    with pytest.raises(InputError, match="damaged"):
        Preprocessing.from_json({"mean": [1]})


@pytest.mark.whole
def test_a_file_that_normalises_gives_for_pixels_what_another_gives_for_normalised_ones(tmp_path: Path) -> None:
    network, graph, assignment = small_net()
    pixels = np.random.default_rng(0).random((4, 1, 6, 6), dtype=np.float32)
    normalised = (pixels - 0.25) / 0.5
    results = []
    for normalise, given in ((False, normalised), (True, pixels)):
        path = tmp_path / f"{normalise}.onnx"
        export_onnx(path, network, graph, assignment, preprocessing=TOLD, normalise=normalise)
        told = metadata(path)
        assert told == TOLD.to_json(in_file=normalise)
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        results.append(session.run(None, {"input": given})[0])
    np.testing.assert_allclose(results[1], results[0], rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        expected = network(torch.from_numpy(normalised)).numpy()
    np.testing.assert_allclose(results[0], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.whole
def test_qonnx_normalises_too(tmp_path: Path) -> None:
    network, graph, assignment = small_net()
    export_qonnx(tmp_path / "a", network, graph, assignment, preprocessing=TOLD, normalise=True)
    assert metadata(tmp_path / "a")["normalised_in_file"]
    pixels = np.random.default_rng(1).random((1, 1, 6, 6), dtype=np.float32)
    with torch.no_grad():
        expected = network(torch.from_numpy((pixels - 0.25) / 0.5)).numpy()
    found = run_qonnx(onnx.load(tmp_path / "a"), {"input": pixels}, [])
    np.testing.assert_allclose(found["output"], expected, rtol=1e-4, atol=1e-4)


def test_every_other_format_tells_it(tmp_path: Path) -> None:
    network, graph, assignment = small_net()
    packed = save_packed(tmp_path / "a", network, graph, assignment, preprocessing=TOLD)
    assert Preprocessing.from_json(packed.description["preprocessing"]) == TOLD
    told = json.loads(export_aimet(tmp_path / "b", network, assignment, TOLD).path.read_text())
    assert Preprocessing.from_json(told["dnas.preprocessing"]) == TOLD


def test_it_cannot_be_normalised_without_knowing_how(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graph_export, "trace", None)  # told before it
    with pytest.raises(InputError, match="how to normalise is not known"):
        export_onnx(tmp_path / "a", *small_net(), normalise=True)
    assert not (tmp_path / "a").exists()


def test_digits_tell_the_numbers_that_their_batches_use() -> None:
    data = load_data("digits")
    told = preprocessing_of(data)
    assert told is not None
    assert (told.classes, told.class_names) == (10, tuple("0123456789"))
    images: Any = data.val
    batch = next(data.val.batches(8))[0]
    torch.testing.assert_close((images.images[:8] - told.mean[0]) / told.std[0], batch)


def test_a_front_of_an_earlier_version_reads() -> None:
    front = ParetoFront.from_points([], preprocessing=TOLD)
    data = front.to_json()
    assert ParetoFront.from_json(data).preprocessing == front.by_cost("bitops").preprocessing == TOLD
    del data["preprocessing"]
    assert ParetoFront.from_json(data).preprocessing is None


def run_export(*words: str) -> tuple[int, str, str]:
    found = CliRunner().invoke(app, ["export", *words])
    return found.exit_code, found.stdout, found.stderr


def test_the_command_tells_the_seed_and_its_accuracy(smaller_run: Run, tmp_path: Path) -> None:
    name = next(iter(smaller_run.assignments()))
    words = [str(smaller_run.folder), name, "--format", "packed", "--out", str(tmp_path / "a")]
    code, text, _ = run_export(*words, "--seed", "0")
    told = json.loads(run_export(*words, "--json")[1])
    assert code == 0
    assert f"the net of seed 0, {100 * told['val_top1']:.2f} % on validation" in text
    count = smaller_run.assignment(name).metrics["val_top1"]["n"]
    code, _, error = run_export(*words, "--seed", str(count))
    assert code == 2
    assert f"'{name}' has no net of seed {count}" in error
    code, _, error = run_export(*words, "--normalise")
    assert code == 2
    assert "holds no operations, so it cannot normalise" in error
    code, _, error = run_export(*words[:2], "--seed", "0", "--out", str(tmp_path / "b"))
    assert code == 2
    assert "leave --seed out" in error
