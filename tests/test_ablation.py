"""Rows of the ablation: a job that was stopped, copied and gone on with ends as if it never had been."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.ablation import DEFAULT, ROWS, STAGES, Seed
from benchmarks.finetuning import front_of

TINY = (
    "threads=1", "model.arguments={width=8,stages=1}",
    "data.train_limit=80", "data.test_limit=20", "data.batch_size=16",
    "pretrain.epochs=1", "search.warmup_epochs=1", "search.epochs=1", "finetune.epochs=1", "finetune.seeds=1",
    "space.weight_bits=[2,4]", "search.budgets=[{size_bytes='15%'}]", "choice.enabled=true", "choice.draws=1",
    "controls.sensitivity_images=16", "controls.uniform=[]", "prune.enabled=false", "finalise.enabled=false",
)  # fmt: skip


@pytest.mark.whole
def test_what_changes_nothing_ends_as_the_job_does(tmp_path: Path) -> None:
    seed = Seed(0, tmp_path, "digits", TINY)
    expected = front_of("digits", tmp_path / "at once", [*TINY, "seed=0", f"name={seed.of(DEFAULT).name}"])
    assert seed.front(DEFAULT).to_json() == expected.to_json()
    stopped = {path.name for path in tmp_path.glob("before-*")}
    assert stopped == {f"before-{stage}-0" for stage in STAGES}  # by way of every stage
    assert all(not seed.finished(name) for name in ROWS if name != DEFAULT)
