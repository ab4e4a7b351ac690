"""Whole jobs on real images: the default one, and ResNet-20 on JPEG CIFAR-10 from its published checkpoint."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from dnas.config.file import load_job
from results.run.folder import Run

pytestmark = pytest.mark.slow
SHARED = Path(__file__).resolve().parents[4] / "shared" / "data"
ARCHIVES = [SHARED / f"cifar10-jpeg-{part}.zip" for part in ("train-a", "train-b", "test")]
CHECKPOINT = SHARED / "resnet20-12fca82f.th"


def test_the_default_job_gives_a_front_of_at_least_five_points(carried_out: Callable[..., Run], tmp_path: Path) -> None:
    front = carried_out(load_job(None, ["device=cpu", "threads=1"]), tmp_path / "run").load_front()
    assert len(front.front) >= 5
    assert front.reference is not None
    assert front.front[-1].val.mean > 0.9
    assert all(point.feasible for point in front.points)


@pytest.mark.skipif(
    not all(path.exists() for path in (*ARCHIVES, CHECKPOINT)), reason="needs shared/data beside the repository"
)
def test_resnet20_on_jpeg_cifar10_starts_from_its_checkpoint(carried_out: Callable[..., Run], tmp_path: Path) -> None:
    for archive in ARCHIVES:
        with zipfile.ZipFile(archive) as file:
            file.extractall(tmp_path / "cifar10")
    settings = [
        "name=cifar10-resnet20",
        "device=cpu",
        "threads=1",
        "model.source=zoo:resnet20",
        "model.arguments={}",
        f"model.checkpoint={CHECKPOINT}",
        "data.source=imagefolder",
        f"data.root={tmp_path / 'cifar10'}",
        "data.train_limit=500",
        "data.test_limit=500",
        "pretrain.epochs=0",
        "search.warmup_epochs=1",
        "search.epochs=1",
        "search.budgets=[{size_bytes='13%'}]",
        "search.compile=off",
        "finetune.epochs=1",
        "finetune.learning_rate=0.01",
        "finetune.seeds=1",
        "controls.uniform=[4,8]",
    ]
    run = carried_out(load_job("digits", settings), tmp_path / "run")
    front = run.load_front()
    assert front.reference is not None
    assert front.reference.test is not None
    assert front.reference.test > 0.7  # 81 % on all JPEG test images
    by_name = {point.assignment: point for point in front.points}
    assert by_name.keys() == {"search-1", "ilp-1", "uniform-4", "uniform-8"}
    assert by_name["uniform-8"].test is not None
    assert by_name["uniform-8"].test.mean > 0.6
    assert run.assignment("search-1").model.checkpoint_sha256 is not None
