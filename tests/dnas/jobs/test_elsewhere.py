"""Every stage keeps its tensors on the job's device: on one that refuses to mix them, the front is that of the CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from dnas.config.file import dump_job, load_job
from dnas.config.job import JobConfig
from dnas.jobs.run import evaluate_assignment, run_job
from dnas.training.device import Device
from results.run.folder import Run
from tests.elsewhere import PLACE, Elsewhere, elsewhere, randomness_of_the_cpu

SMALL = [
    "threads=1",
    "model.arguments={width=4}",
    "data.train_limit=40", "data.test_limit=10", "data.batch_size=16",
    "pretrain.epochs=1", "search.warmup_epochs=1", "search.epochs=1", "finetune.epochs=1", "finetune.seeds=1",
    "finalise.epochs=1", "finalise.seeds=1",
    "space.weight_bits=[2,4]", "space.activation_bits=[2,4]",
    'search.budgets=[{size_bytes="12%"}]', 'prune.budgets=[{size_bytes="70%"}]', "prune.trials=2",
    "controls.uniform=[4]",
]  # fmt: skip
JOBS = {
    "every stage": [
        "prune.enabled=true", 'prune.assignments=["search-1"]', "prune.controls=[]", "prune.finalists=1",
        "finalise.enabled=true", 'finalise.profiles=["search-1","w4a4"]', "controls.sensitivity_images=16",
    ],
    "branches": [
        "search.engine=branches", "prune.enabled=false", "finalise.enabled=false", "finetune.start=pretrained",
        "search.distillation=0.5", "finetune.averaging=0.9", "finetune.gradient_clipping=0.5",
    ],
    "squantizer": ["compression=squantizer", "prune.enabled=false", "finalise.enabled=false"],
    "sp_nets": [
        "compression=switchable", "prune.enabled=false", "finalise.method=sp_nets", 'finalise.profiles=["w4a4","w2a2"]',
        "finalise.weights=dorefa", "finalise.activations=pact",
    ],
}  # fmt: skip


def carried_out(config: JobConfig, folder: Path) -> tuple[Any, Any]:
    """The front of a job, and one of its nets measured again."""
    with Run.create(folder, dump_job(config), {}) as run:
        front = run_job(config, run, lambda event: None)
        last = list(run.assignments())[-1]
        return front.to_json(), evaluate_assignment(run, last, "test", lambda event: None)


@pytest.mark.parametrize("name", ["every stage", *(pytest.param(n, marks=pytest.mark.slow) for n in list(JOBS)[1:])])
def test_a_job_computes_elsewhere_what_it_computes_on_the_cpu(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = load_job("digits", [*SMALL, *JOBS[name]])
    here = carried_out(config, tmp_path / "here")
    monkeypatch.setattr(Device, "own_randomness", randomness_of_the_cpu)
    monkeypatch.setattr("dnas.jobs.job.device_of", lambda config: Device(PLACE))
    with elsewhere():
        there = carried_out(config, tmp_path / "there")
    assert there == here


@pytest.mark.slow
def test_a_device_without_float64_carries_out_a_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = load_job("digits", [*SMALL, *JOBS["every stage"]])
    monkeypatch.setattr(Device, "own_randomness", randomness_of_the_cpu)
    monkeypatch.setattr("dnas.jobs.job.device_of", lambda config: Device(PLACE))
    for module in ("training.device", "search.supernet"):
        monkeypatch.setattr(f"dnas.{module}.widest", lambda place: torch.float32)
    with elsewhere(float64=False):
        front, _ = carried_out(config, tmp_path / "there")
    assert len(front["points"]) > 5


def test_the_device_that_is_not_there_refuses_what_a_gpu_refuses() -> None:
    with elsewhere() as place:
        x, index = torch.randn(3, 4).to(place), torch.tensor([0, 2])
        assert isinstance(x[index] * 2.0 + torch.tensor(1.0), Elsewhere)
        assert torch.equal((x + torch.ones(4, device=place)).cpu(), x.cpu() + 1)
        with pytest.raises(RuntimeError, match="one device"):
            x + torch.ones(4)
        with pytest.raises(RuntimeError, match="one device"):
            torch.eq(torch.arange(4), torch.arange(4, device=place))
        with pytest.raises(RuntimeError, match="generator"):
            torch.rand(3, generator=torch.Generator(), device=place)
        with pytest.raises(TypeError, match="numpy"):
            x.numpy()
        with pytest.raises(RuntimeError):
            torch.ones(4).add_(x[0])
