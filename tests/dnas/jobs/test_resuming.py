"""A job that is killed at any moment ends as if it never had been."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from dnas.commands.cli import app
from dnas.config.file import dump_job
from dnas.config.job import JobConfig
from dnas.jobs.run import run_job
from results.run.folder import Run
from results.run.journal import Journal
from results.run.status import run_status
from tests.dnas.jobs.kills import LASTING, Event, history, killed_everywhere, outcome

Job = Callable[..., JobConfig]
ROOT = Path(__file__).parents[3]
DEADLINE_SECONDS = 60.0


@pytest.fixture(scope="module")
def busy(smaller: Job) -> JobConfig:
    """A short job with everything in it that a kill could leave half done."""
    return smaller(
        "search.weight_updates=epoch",
        "search.sample_every=1",
        "search.samples=1",
        "finetune.optimizer=AdamW",
        "finetune.learning_rate=0.002",
        "finetune.averaging=0.9",
        "finetune.accumulation=2",
        "finetune.distillation=0.3",
        "search.averaging=0.9",
        "data.crop_padding=1",
        "data.flip=true",
        "controls.uniform=[]",
        "controls.ilp=true",
        "choice.enabled=true",
        "choice.draws=1",
        "choice.programs=1",
        "choice.refined=1",
        "choice.learned=1",
        "choice.finalists=2",
        "choice.from_supernet=true",
        "space.first_layer=search",
        "space.last_layer=search",
        "search.budgets=[{size_bytes='12%'}]",
    )


@pytest.fixture(scope="module")
def uninterrupted(busy: JobConfig, carried_out: Callable[..., Run], tmp_path_factory: pytest.TempPathFactory) -> Run:
    return carried_out(busy, tmp_path_factory.mktemp("busy") / "run")


@pytest.mark.whole
def test_a_kill_around_any_journal_entry_changes_nothing(busy: JobConfig, uninterrupted: Run, tmp_path: Path) -> None:
    run, places = killed_everywhere(busy, tmp_path / "run", entry=lambda record: record["event"] in LASTING)
    assert len(places) == len(history(uninterrupted)) > 15
    assert sum('"event": "judged"' in record for record in history(uninterrupted)) > 2  # in two rounds
    assert history(run) == history(uninterrupted)
    assert outcome(run) == outcome(uninterrupted)


@pytest.mark.whole
def test_a_kill_amid_any_epoch_changes_nothing(busy: JobConfig, uninterrupted: Run, tmp_path: Path) -> None:
    fractions: list[float] = []

    def place(event: Event) -> tuple[Any, ...] | None:
        if event["event"] != "progress":
            return None
        fractions.append(round(event["fraction"], 9))
        return tuple(event.get(key) for key in ("stage", "run", "epoch", "epochs", "round"))

    run, places = killed_everywhere(busy, tmp_path / "run", amid=place)
    silent = (
        "hessian",
        "measured",
        "refined",
    )  # sensitivities and losses in the supernet: no journal entry tells of them
    assert len(places) == len(silent) + sum(
        record["event"] in ("epoch", "judged", "measured", "tested") for record in uninterrupted.journal.records()
    )
    assert history(run) == history(uninterrupted)
    assert outcome(run) == outcome(uninterrupted)
    # What was done before a kill counts as done after it.
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1.0


class Process:
    """The command line in a process of its own, watched through the journal."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "dnas.commands.cli", *arguments]
        self.journal = Journal(folder / "journal.jsonl", read_only=True)
        self.process = subprocess.Popen(
            command, env=environment, cwd=folder.parent, text=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )

    def ends_by(self, number: signal.Signals, event: str, stage: str | None = None) -> tuple[int, str]:
        """Signal the process once an event is journaled; returns its exit code and its stderr."""
        deadline = time.monotonic() + DEADLINE_SECONDS
        with self.process as process:
            try:
                while not any(r["event"] == event and r.get("stage") == stage for r in self.journal.records()):
                    assert process.poll() is None, "the job ended by itself"
                    assert time.monotonic() < deadline, f"no {event} within {DEADLINE_SECONDS} s"
                    time.sleep(0.02)
                process.send_signal(number)
                return process.wait(DEADLINE_SECONDS), process.communicate()[1]
            finally:
                process.kill()


def a_killed_run(config: JobConfig, folder: Path) -> None:
    """Leave a run whose process was killed in its search."""
    job = folder.parent / "job.toml"
    job.write_text(dump_job(config))
    killed = Process(folder, "search", str(job), "--run", str(folder))
    assert killed.ends_by(signal.SIGKILL, "epoch", "search")[0] == -signal.SIGKILL
    assert run_status(Run.open(folder)).state == "interrupted"


@pytest.mark.whole
def test_a_process_that_is_killed_is_resumed_and_interrupted_and_resumed_again(
    smaller: Job, smaller_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, append = tmp_path / "run", Journal.append
    a_killed_run(smaller(), folder)

    def interrupting(journal: Journal, record: Event) -> None:
        append(journal, record)
        if record["event"] == "measured":
            signal.raise_signal(signal.SIGINT)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a test process may ignore Ctrl-C
    try:
        with monkeypatch.context() as patch:
            patch.setattr(Journal, "append", interrupting)
            result = CliRunner().invoke(app, ["resume", str(folder)])
    finally:
        signal.signal(signal.SIGINT, before)
    assert result.exit_code == 130
    assert result.stderr == f"interrupted; go on with: dnas resume {folder}\n"
    assert sum(record["event"] == "measured" for record in Run.open(folder).journal.records()) == 1

    with Run.open(folder, write=True) as run:
        run_job(smaller(), run, lambda event: None)
    assert history(run) == history(smaller_run)
    assert outcome(run) == outcome(smaller_run)


@pytest.mark.slow
def test_a_process_of_its_own_can_be_interrupted(smaller: Job, smaller_run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    a_killed_run(smaller(), folder)
    interrupted = Process(folder, "resume", str(folder))
    code, told = interrupted.ends_by(signal.SIGINT, "measured")
    assert code == 130
    words = "stopping after this step; once more to stop at once"
    assert told.split("\n") == ["", words, f"interrupted; go on with: dnas resume {folder}", ""]

    with Run.open(folder, write=True) as run:
        run_job(smaller(), run, lambda event: None)
    assert history(run) == history(smaller_run)
    assert outcome(run) == outcome(smaller_run)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_processes_that_are_killed_at_random_moments_end_as_one_that_never_was(workers: int) -> None:
    """Twenty kills over all stages and exports; the benchmark of a hundred compares fronts, nets and journals."""
    command = [sys.executable, "-m", "benchmarks.kills", "--kills", "20", "--workers", str(workers)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "\n20 kills, " in done.stdout
