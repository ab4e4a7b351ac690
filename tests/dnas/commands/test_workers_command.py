"""`--workers` and `--executor`: what is refused leaves nothing behind, and a killed command goes on with any number."""

from __future__ import annotations

import random
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from dnas.commands.cli import app
from dnas.config.file import dump_job
from dnas.config.job import JobConfig
from results.run.folder import Run
from tests.dnas.jobs import test_resuming as resuming
from tests.dnas.jobs.test_workers import EVERYTHING, kept, workers_of

Job = Callable[..., JobConfig]


def refused(*words: object) -> str:
    result = CliRunner().invoke(app, [*map(str, words)])
    assert result.exit_code == 2, result.output
    return " ".join(result.stderr.split())


@pytest.mark.parametrize("workers", ["0", "-1", "many", "1.5", "100000"])
def test_a_number_of_workers_that_is_none_is_named(workers: str, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    assert "workers" in refused("search", "--run", folder, f"--workers={workers}")
    assert not folder.exists()


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_cluster_that_does_not_answer_leaves_no_run(smaller: Job, tmp_path: Path) -> None:
    job, folder = tmp_path / "job.toml", tmp_path / "run"
    job.write_text(dump_job(smaller("ray.address=127.0.0.1:9")))
    told = refused("search", job, "--run", folder, "--executor", "ray")
    assert told.startswith("error: ray.address = '127.0.0.1:9': nobody answers there")
    assert not folder.exists()


@pytest.mark.slow
def test_a_command_that_is_killed_with_its_workers_goes_on_with_any_number(
    smaller: Job, carried_out: Callable[..., Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resuming, "DEADLINE_SECONDS", 600.0)
    config = smaller(*EVERYTHING)
    alone = carried_out(config, tmp_path / "alone")
    job, folder, draw = tmp_path / "job.toml", tmp_path / "run", random.Random(0)
    job.write_text(dump_job(config))
    words = ["search", str(job), "--run", str(folder)]
    for event, stage in [("epoch", "warmup"), ("judged", None), ("measured", None), ("trial", None), ("tested", None)]:
        process = resuming.Process(folder, *words, "--workers", str(draw.choice([2, 3])))
        code, _ = process.ends_by(signal.SIGKILL, event, stage)
        assert code == -signal.SIGKILL
        words = ["resume", str(folder)]
    result = CliRunner().invoke(app, [*words, "--workers", "2"])
    assert result.exit_code == 0, result.output
    files = kept(Run.open(folder))
    files["environment.json"] = kept(alone)["environment.json"]  # of another command line
    assert files == kept(alone)
    assert workers_of(1) == []  # none was left to its fate
