"""On a real GPU: stages and whole jobs give what the CPU gives. Run it with ``pytest -m gpu``.

Costs and choices are equal; losses agree as far as float32 does, since sums are taken in another order.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from dnas.commands.exporting import export
from dnas.config.file import dump_job, load_job
from dnas.config.job import JobConfig
from dnas.export.formats import NET_EXPORTERS
from dnas.jobs.run import evaluate_assignment, run_job
from dnas.training.device import CPU, Device
from results.pareto import ParetoFront
from results.run.folder import Run
from tests.dnas.jobs.test_elsewhere import JOBS, SMALL
from tests.dnas.training.test_processes import STAGES, trained_stages

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device here"),
]
DEVICE = "cuda"


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


@pytest.fixture(scope="module")
def stages() -> tuple[Any, Any]:
    """Losses and tensors of every stage, on the CPU and on the device."""
    return trained_stages(CPU), trained_stages(Device(torch.device(DEVICE)))


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_trains_as_on_the_cpu(stage: str, stages: tuple[Any, Any]) -> None:
    (expected, _), (losses, tensors) = (found[stage] for found in stages)
    assert losses == pytest.approx(expected, rel=1e-2)
    assert all(tensor.device.type == DEVICE for name, tensor in tensors.items() if "weight" in name)


@pytest.mark.parametrize(("name", "compiled"), [*((name, "off") for name in JOBS), ("branches", "on")])
def test_a_whole_job_has_the_front_of_the_cpu(name: str, compiled: str, tmp_path: Path) -> None:
    there = run_of(job(name, f'search.compile="{compiled}"'), tmp_path / "there")
    here = run_of(job(name, device="cpu"), tmp_path / "here")
    sizes = {point.assignment: (point.size_bytes, point.bitops) for point in here.points}
    assert {point.assignment for point in there.points} == set(sizes)
    for point in there.points:  # what is searched may choose otherwise over a last digit
        if point.assignment.startswith(("uniform", "float")):
            assert (point.size_bytes, point.bitops) == sizes[point.assignment]


def test_a_run_of_the_device_is_exported_and_measured_like_any_other(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    run_of(job("every stage"), folder)
    run = Run.open(folder)
    for name in run.assignments():
        assert evaluate_assignment(run, name, "val", lambda event: None)["images"] > 0
    for number, format in enumerate(NET_EXPORTERS):
        if format not in ("torchao", "aimet"):  # which hold only some assignments
            export(folder, "uniform-4", format, tmp_path / f"{number}.out", as_json=False)
            assert (tmp_path / f"{number}.out").stat().st_size > 0


class _Stop(Exception):
    pass


@pytest.mark.parametrize("events", [9, 20])
def test_a_deterministic_job_repeats_itself_bit_for_bit_however_it_was_stopped(events: int, tmp_path: Path) -> None:
    config, seen = job("every stage", "deterministic=true"), []

    def stop(event: Any) -> None:
        seen.append(event)
        if len(seen) == events:
            raise _Stop

    whole = run_of(config, tmp_path / "whole")
    with pytest.raises(_Stop):
        run_of(config, tmp_path / "stopped", stop)
    with Run.open(tmp_path / "stopped", write=True) as run:
        assert run_job(config, run, lambda event: None).to_json() == whole.to_json()


def test_automatic_precision_trains(tmp_path: Path) -> None:
    config = load_job("digits", [*SMALL, *JOBS["every stage"], f"device={DEVICE}"])
    assert run_of(config, tmp_path / "run").points


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="there are fewer than two CUDA devices here")
def test_two_devices_train_together(tmp_path: Path) -> None:
    sets = [part for setting in [*SMALL, *JOBS["every stage"]] for part in ("--set", setting)]
    command = [sys.executable, "-m", "dnas", "search", "digits", "--run", str(tmp_path / "run"), *sets]
    subprocess.run([*command, "--nproc-per-node", "2"], check=True, env=dict(os.environ), timeout=170)
    assert Run.open(tmp_path / "run").load_front().points
