"""On a real GPU: stages, commands and whole jobs give what the CPU gives. Run it with ``pytest -m gpu``.

``DNAS_GPU=cpu pytest -m gpu`` runs it with the CPU in the GPU's place, to try the tests themselves where there is none;
``DNAS_GPU=cuda:1`` takes that device. Costs and choices are equal; losses agree as far as float32 does, since sums are
taken in another order. What needs a package that is not here is skipped with its name; nothing needs a network.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

import dnas
from dnas.commands import cli
from dnas.config.file import dump_job, load_job
from dnas.config.job import JobConfig
from dnas.data.augmentation import Augmentation
from dnas.data.decoding import cannot_decode
from dnas.data.load import load_data
from dnas.data.loaders import Loaders
from dnas.export.formats import NET_EXPORTERS
from dnas.jobs.run import run_job
from dnas.quantization import mixture, mixture_kernels
from dnas.training.device import CPU, Device, deterministic
from results.events import Epoch
from results.pareto import ParetoFront
from results.run.folder import Run
from tests.dnas.data.test_decoding import AUGMENTATIONS, JPEG, OTHERS, written
from tests.dnas.jobs.test_elsewhere import JOBS, SMALL
from tests.dnas.quantization.test_mixture_kernels import CASES, arguments
from tests.dnas.training.test_processes import STAGES, trained_stages
from tests.toys import images, seeded

DEVICE = os.environ.get("DNAS_GPU", "cuda")
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(DEVICE != "cpu" and not torch.cuda.is_available(), reason="there is no CUDA device here"),
]
PLACE = torch.device(DEVICE)
NEEDED = {
    "onnx": ("onnx", "onnxruntime", "onnxscript"),
    "qonnx": ("onnx", "onnxscript", "qonnx"),
    "torchao": ("torchao",),
}
EVERY = (
    "space.weight_bits=[2,3,4]",
    "controls.random=1",
    "controls.measured_ilp=true",
    "controls.sensitivity_images=16",
    "prune.workers=2",
    "prune.batch=2",
    "prune.finalists=2",
    "prune.finetune_epochs=1",
    'finalise.profiles=["uniform-4","search-1-pruned-1"]',
)


@pytest.fixture(autouse=True)
def _whole_float32() -> Iterator[None]:
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def job(name: str, *more: str, device: str = DEVICE) -> JobConfig:
    return load_job("digits", [*SMALL, *JOBS[name], f"device={device}", "precision=fp32", *more])


def run_of(config: JobConfig, folder: Path, report: Callable[[Any], None] = lambda event: None) -> ParetoFront:
    with Run.create(folder, dump_job(config), {}) as run:
        return run_job(config, run, report)


def losses(folder: Path, stage: str) -> list[float]:
    """The loss of each epoch of a stage."""
    events = Run.open(folder).journal.events()
    return [event.loss for event in events if isinstance(event, Epoch) and event.stage == stage]


def command(*words: str | Path) -> str:
    """What a command prints, which must end well."""
    result = CliRunner().invoke(cli.app, [str(word) for word in words])
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.fixture(scope="module")
def stages() -> tuple[Any, Any, list[str]]:
    """Losses and tensors of every stage, on the CPU and on the device, and the warnings that these gave."""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        found = trained_stages(Device(PLACE))
    return trained_stages(CPU), found, [str(each.message) for each in told]


def test_recorded_steps_end_bit_for_bit_like_others() -> None:
    without = "segmentation", "detection"  # these networks cannot be deterministic
    with deterministic(True):  # of two runs step by step the last bits may differ otherwise
        recorded, alone = (trained_stages(Device(PLACE, cuda_graphs=graphs), without) for graphs in (True, False))
    for stage in recorded:
        assert recorded[stage][0] == alone[stage][0]
        assert all(torch.equal(tensor, alone[stage][1][name]) for name, tensor in recorded[stage][1].items())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("case", CASES)
def test_kernels_compute_what_the_functions_do(case: str, dtype: torch.dtype) -> None:
    """On many elements: blocks that are full, rows of many programs."""
    own = [tensor.to(PLACE) for tensor in arguments(*CASES[case])]
    rows = own[0].shape[0]
    x, g = (torch.randn(rows, 3_000_001, generator=seeded(seed)).to(PLACE, dtype) for seed in (1, 2))
    off = 1e-6 if dtype == torch.float32 else 1e-2
    chosen = mixture_kernels if PLACE.type == "cuda" else mixture._active
    torch.testing.assert_close(chosen.forward(x, *own, True), mixture._forward(x, *own, True), rtol=off, atol=off)
    rest = (*own, True, "full", True, 0.3, 0.7)
    found, again, expected = chosen.backward(g, x, *rest), chosen.backward(g, x, *rest), mixture._backward(g, x, *rest)
    assert all(torch.equal(first, second) for first, second in zip(found, again, strict=True))
    torch.testing.assert_close(found[0], expected[0], rtol=off, atol=off)
    for value, sums in zip(found[1:], expected[1:], strict=True):
        torch.testing.assert_close(value, sums, rtol=1e-2, atol=1e-3 * 3e6**0.5)


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_trains_as_on_the_cpu(stage: str, stages: tuple[Any, Any, Any]) -> None:
    (expected, _), (found, tensors) = (each[stage] for each in stages[:2])
    assert found == pytest.approx(expected, rel=1e-2)
    assert all(tensor.device.type == PLACE.type for name, tensor in tensors.items() if "weight" in name)


def test_no_step_but_a_detectors_runs_without_a_recording(stages: tuple[Any, Any, list[str]]) -> None:
    """A detector chooses boxes on the host."""
    told = [message for message in stages[2] if "cannot be recorded" in message]
    assert len(told) == (PLACE.type == "cuda")


@pytest.mark.parametrize(("name", "compiled"), [*((name, "off") for name in list(JOBS)[1:]), ("branches", "on")])
def test_a_whole_job_has_the_front_of_the_cpu(name: str, compiled: str, tmp_path: Path) -> None:
    run_of(job(name, f'search.compile="{compiled}"'), tmp_path / "there")
    run_of(job(name, device="cpu"), tmp_path / "here")
    there, here = (Run.open(tmp_path / where).load_front() for where in ("there", "here"))
    assert {point.assignment for point in there.points} == {point.assignment for point in here.points}
    _same_job(tmp_path / "there", tmp_path / "here")


def _same_job(there: Path, here: Path) -> None:
    """The assignments are those of the CPU, with their sizes where nothing was searched; so are the first losses."""
    fronts = [Run.open(folder).load_front() for folder in (there, here)]
    sizes = {point.assignment: (point.size_bytes, point.bitops) for point in fronts[1].points}
    assert {point.assignment for point in fronts[0].points} == set(sizes)
    for point in fronts[0].points:  # what is searched may choose otherwise over a last digit
        if point.assignment.startswith(("uniform", "float")):
            assert (point.size_bytes, point.bitops) == sizes[point.assignment]
    for stage in ("pretrain", "warmup"):
        assert losses(there, stage) == pytest.approx(losses(here, stage), rel=1e-2)


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of every stage on the device, with controls of every kind and trials in worker processes."""
    folder = tmp_path_factory.mktemp("gpu") / "run"
    run_of(job("every stage", *EVERY), folder)
    return folder


def test_every_stage_gives_what_it_gives_on_the_cpu(everything: Path, tmp_path: Path) -> None:
    run_of(job("every stage", *EVERY, "prune.workers=1", device="cpu"), tmp_path / "here")
    _same_job(everything, tmp_path / "here")
    kinds = {point.kind for point in Run.open(everything).load_front().points}
    assert {"uniform", "search", "ilp", "measured-ilp", "random", "pruned", "switchable"} <= kinds
    profiles = [each for each in Run.open(everything).assignments().values() if each.provenance.kind == "switchable"]
    assert any(bits.kept_channels for profile in profiles for bits in profile.layers.values())


def test_every_point_is_measured_again(everything: Path) -> None:
    for point in Run.open(everything).load_front().points:
        found = json.loads(command("evaluate", everything, point.assignment, "--json"))
        assert found["images"] == 10
        assert found["top1"]["mean"] == pytest.approx(point.val.mean, abs=0.101)  # one image may change sides


@pytest.mark.parametrize("format", NET_EXPORTERS)
@pytest.mark.parametrize("name", ["uniform-4", "search-1-pruned-1"])
def test_a_run_of_the_device_is_exported(name: str, format: str, everything: Path, tmp_path: Path) -> None:
    for package in NEEDED.get(format, ()):
        pytest.importorskip(package)
    command("export", everything, name, "--format", format, "--out", tmp_path / "net")
    assert (tmp_path / "net").stat().st_size > 0


def test_a_switchable_net_of_the_device_is_packed(everything: Path, tmp_path: Path) -> None:
    command("export", everything, "--format", "packed", "--out", tmp_path / "net")
    x, _ = next(load_data("digits", test_limit=10).test.batches(10))
    net = dnas.load(tmp_path / "net")
    for profile in net.profiles:
        assert bool(net.use(profile)(x).isfinite().all())


def test_every_command_goes_on_with_a_run_of_the_device(everything: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(everything, run)
    command("resume", run)
    command("sensitivity", run)
    command("sensitivity", run, "--measured")
    command("rank", run, "--assignments", "5", "--epochs", "1")
    command("doctor", "--job", run / "job.toml")
    command("prune", run, "uniform-4", "--budget", "60%", "--trials", "2", "--set", "workers=1")
    command("finalise", run, "--profiles", "w4a4,uniform-4-pruned-1", "--set", "epochs=1")
    for words in (["switch"], ["status"], ["show"], ["show", "--json"]):
        command(words[0], run, *words[1:])
    points = Run.open(run).load_front().points
    assert {"uniform-4-pruned-1"} < {point.assignment for point in points}
    assert len(points) > len(Run.open(everything).load_front().points)


def test_a_switchable_net_is_trained_by_itself_on_the_device(tmp_path: Path) -> None:
    settings = [*SMALL, f"device={DEVICE}", 'finalise.profiles=["w4a4","w2a2"]', "prune.enabled=false"]
    words = [word for setting in settings for word in ("--set", setting)]
    command("train-switchable", "digits", "--run", tmp_path / "run", *words)
    assert len(Run.open(tmp_path / "run").load_front().points) > 2


class _Stop(Exception):
    pass


@pytest.mark.parametrize(
    ("events", "more"), [(9, ()), (20, ()), (20, ("precision=bf16", "channels_last=true"))], ids=["9", "20", "bf16"]
)
def test_a_deterministic_job_repeats_itself_bit_for_bit_however_it_was_stopped(
    events: int, more: tuple[str, ...], tmp_path: Path
) -> None:
    config, seen = job("every stage", "deterministic=true", *more), []

    def stop(event: Any) -> None:
        seen.append(event)
        if len(seen) == events:
            raise _Stop

    whole = run_of(config, tmp_path / "whole")
    with pytest.raises(_Stop):
        run_of(config, tmp_path / "stopped", stop)
    with Run.open(tmp_path / "stopped", write=True) as run:
        assert run_job(config, run, lambda event: None).to_json() == whole.to_json()


def test_automatic_precision_trains_like_full_precision(everything: Path, tmp_path: Path) -> None:
    """bfloat16 has 8 bits of fraction, so losses agree to a few per cent."""
    config = load_job("digits", [*SMALL, *JOBS["every stage"], f"device={DEVICE}"])
    assert run_of(config, tmp_path / "run").points
    assert losses(tmp_path / "run", "pretrain") == pytest.approx(losses(everything, "pretrain"), rel=0.05)


# --- images ---


@pytest.mark.filterwarnings("ignore:.* decodes upright JPEG")
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_files_decoded_on_the_device_are_those_of_the_cpu(name: str, workers: int, tmp_path: Path) -> None:
    """Up to the rounding of another decoder: some levels of 255 in the mean."""
    assert not cannot_decode(PLACE)
    files = replace(written(tmp_path, {**JPEG, **OTHERS}), loaders=Loaders(workers))
    options: dict[str, Any] = {"seed": 3, "augmentation": AUGMENTATIONS[name] or Augmentation()}
    here = list(files.batches(4, **options))
    there = list(replace(files, decoding="device").batches(4, **options, device=PLACE))
    for (x, y), (expected, labels) in zip(there, here, strict=True):
        assert (x.device.type, y.device.type) == (PLACE.type, PLACE.type)
        assert torch.equal(y.cpu(), labels)
        difference = (x.cpu() - expected).abs().mean((1, 2, 3))
        assert float(difference.max()) < (6 if name != "transforms" else 40) / 127.5


@pytest.mark.parametrize("held", [True, False])
def test_images_in_memory_are_augmented_on_the_device(held: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not held:
        monkeypatch.setattr("dnas.data.image_sets.HELD_BYTES", 0)
    options: dict[str, Any] = {"seed": 3, "augmentation": Augmentation(2, True, 3)}
    for (x, y), (expected, labels) in zip(
        images(40).batches(16, **options, device=PLACE), images(40).batches(16, **options), strict=True
    ):
        torch.testing.assert_close(x.cpu(), expected, rtol=0, atol=1e-5)
        assert torch.equal(y.cpu(), labels)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="there are fewer than two CUDA devices here")
def test_two_devices_train_together(tmp_path: Path) -> None:
    sets = [part for setting in [*SMALL, *JOBS["every stage"]] for part in ("--set", setting)]
    command = [sys.executable, "-m", "dnas", "search", "digits", "--run", str(tmp_path / "run"), *sets]
    subprocess.run([*command, "--nproc-per-node", "2"], check=True, env=dict(os.environ), timeout=170)
    assert Run.open(tmp_path / "run").load_front().points
