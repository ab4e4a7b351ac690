"""One command in several processes: the launcher's own form, a process that dies, a run that goes on with others."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import typer
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from torch.distributed.run import get_args_parser
from typer.testing import CliRunner

from dnas.commands.cli import app
from dnas.commands.exits import LAUNCHER_VARIABLE, told
from dnas.commands.processes import loopback
from dnas.commands.signals import Interrupted
from results.run.folder import Run
from search_spaces.errors import InputError, JobError
from tests.dnas.conftest import SMALLER, TOY

WORDS = ["search", "job.toml", "--run", "runs/mine"]
DYING = """
import os, signal
from pathlib import Path
import torch
from torch import nn


class Dying(nn.Module):
    def forward(self, x):
        if os.environ.get("RANK") == "1" and self.training and torch.is_grad_enabled() and Path("dying").exists():
            if Path("run/journal.jsonl").read_text().count('"epoch"') >= 1:
                os.kill(os.getpid(), signal.SIGKILL)
        return x


def model():
    return nn.Sequential(nn.Conv2d(1, 4, 3), Dying(), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(64, 10))
"""


def docs() -> str:
    return (Path(__file__).parents[3] / "docs" / "several-processes.md").read_text(encoding="utf-8")


def test_torchrun_takes_the_form_that_is_documented_and_no_other() -> None:
    """Its own ``--run-path`` would catch ours."""
    torchrun = get_args_parser()
    options = ["--nproc-per-node", "2", "-m", "dnas"]
    found = torchrun.parse_args([*options, "--", *WORDS])
    assert (found.module, found.training_script) == (True, "dnas")
    assert [word for word in found.training_script_args if word != "--"] == WORDS
    assert "-m dnas -- search job.toml --run runs/mine" in docs()


@pytest.mark.parametrize("dashes", [[], ["--"]])
def test_the_two_dashes_that_torchrun_may_hand_on_say_nothing(dashes: list[str]) -> None:
    result = CliRunner().invoke(app, [*dashes, "presets"])
    assert result.exit_code == 0, result.output


def started(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[3]), str(folder)])}
    environment |= {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": loopback()}
    command = [sys.executable, "-m", *words]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)


def settings(more: Sequence[str] = ()) -> list[str]:
    own = "model.source=dying:model", "model.arguments={}", "controls.uniform=[4]", *more
    return [word for setting in (*TOY, *SMALLER, *own) for word in ("--set", setting)]


def test_more_processes_than_could_run_are_refused_before_any_is_started() -> None:
    result = CliRunner().invoke(app, ["search", "digits", "--run", "nowhere", "--nproc-per-node", "100000"])
    assert result.exit_code == 2
    (told,) = result.stderr.splitlines()
    assert told.startswith("error: --nproc-per-node 100000 is too many for this machine, which has ")
    assert not Path("nowhere").exists()


LAUNCHED = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE = 'two' in the environment is no number of a launcher; start the job with"),
        ({"WORLD_SIZE": "0"}, "WORLD_SIZE = '0' in the environment is no number"),
        ({"RANK": "first"}, "RANK = 'first' in the environment is no number"),
        ({"RANK": "2"}, "RANK = 2 is none of the 2 processes of WORLD_SIZE"),
        ({"RANK": ""}, "WORLD_SIZE = 2 in the environment goes with RANK, which is not set"),
        ({"MASTER_ADDR": ""}, "WORLD_SIZE = 2 in the environment goes with MASTER_ADDR, which is not set"),
        ({"MASTER_PORT": "70000"}, "MASTER_PORT = 70000 is no port, which are below 65536"),
        ({}, "MASTER_PORT = {port} at localhost is in use by another program; choose a free one, or let torchrun"),
    ],
)
def test_what_no_launcher_leaves_in_the_environment_is_refused(
    changed: dict[str, str], sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as other:
        other.bind(("localhost", 0))
        other.listen()
        port = str(other.getsockname()[1])
        for name, value in {**LAUNCHED, "MASTER_PORT": port, **changed}.items():
            monkeypatch.setenv(name, value)
        result = CliRunner().invoke(app, ["search", "digits", "--run", "nowhere"])
    assert result.exit_code == 2, result.output
    assert result.stderr.startswith(f"error: {sentence.format(port=port)}")
    assert len(result.stderr.splitlines()) == 1


GO_ON = "interrupted; go on with: dnas resume run"
KILLED = (
    f"error: process 1 was ended by signal {signal.SIGKILL:d}; the run can be resumed, with any number of processes"
)
MEMORY = "error: process 1 on host ended: cpu has too little memory for the stage search"


def children(codes: dict[int, int]) -> ChildFailedError:
    """What the launcher raises where processes ended with these codes, in this order."""
    failures = {rank: ProcessFailure(rank, 1, code, "") for rank, code in codes.items()}
    for when, failure in enumerate(failures.values()):
        failure.timestamp = when
    return ChildFailedError("dnas", dict(sorted(failures.items())))


@pytest.mark.parametrize(
    ("raised", "words", "code", "sentence"),
    [
        (children({1: -signal.SIGKILL, 0: 143}), {0: f"143 {GO_ON}"}, 1, KILLED),
        (children({1: -signal.SIGKILL, 0: 130}), {0: "130 interrupted"}, 1, KILLED),
        (children({1: -signal.SIGKILL}), {}, 1, KILLED),
        (children({1: 1}), {0: f"1 {MEMORY}"}, 1, MEMORY),
        (children({1: 1, 0: 143}), {1: f"1 {MEMORY}", 0: f"143 {GO_ON}"}, 1, MEMORY),
        (children({1: 1, 0: 143}), {0: f"1 {MEMORY}"}, 1, MEMORY),
        (children({1: 1}), {}, 1, "error: process 1 ended with code 1; the run can be resumed"),
        (children({0: 2, 1: 143}), {0: "2 error: no such key"}, 2, "error: no such key"),
        (children({0: 2}), {}, 2, ""),
        (children({0: 143, 1: 143}), {0: f"143 {GO_ON}"}, 143, GO_ON),
        (children({1: 130, 0: 130}), {0: f"130 {GO_ON}", 1: "130 interrupted"}, 130, GO_ON),
        (children({0: 143}), {}, 143, "interrupted"),
        (SignalException("term", signal.SIGTERM), {0: f"143 {GO_ON}"}, 143, GO_ON),
        (SignalException("int", signal.SIGINT), {}, 130, "interrupted"),
    ],
)
def test_of_whatever_ends_several_processes_one_sentence_is_told(
    raised: BaseException, words: dict[int, str], code: int, sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def launch(*arguments: str) -> None:
        for rank, word in words.items():
            Path(os.environ[LAUNCHER_VARIABLE], str(rank)).write_text(word)
        raise raised

    monkeypatch.setenv(LAUNCHER_VARIABLE, "")  # put back afterwards
    monkeypatch.setattr("dnas.commands.processes.elastic_launch", lambda config, executable: launch)
    monkeypatch.setattr("logging.disable", lambda: None)
    result = CliRunner().invoke(app, ["search", "digits", "--run", "nowhere", "--nproc-per-node", "2"])
    assert result.exit_code == code
    told = result.stderr.strip()
    assert told.startswith(sentence) if sentence else not told
    assert len(told.splitlines()) == bool(sentence)


@pytest.mark.parametrize(("error", "code"), [(Interrupted(GO_ON), 130), (JobError("no"), 1), (InputError("no"), 2)])
@pytest.mark.parametrize("rank", [None, "0"])
def test_a_process_leaves_what_it_says_to_our_launcher(
    rank: str | None, error: BaseException, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setenv(LAUNCHER_VARIABLE, str(tmp_path))
    if rank is not None:
        monkeypatch.setenv("RANK", rank)

    @told
    def command() -> None:
        raise error

    with pytest.raises(typer.Exit) as ended:
        command()
    assert ended.value.exit_code == code
    printed = capsys.readouterr().err.strip()
    left = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert (bool(printed), list(left)) == ((True, []) if rank is None else (False, [rank]))
    assert all(text.startswith(f"{code} ") and str(error) in text for text in left.values())


@pytest.mark.whole
def test_a_process_that_dies_ends_a_job_that_goes_on_with_another_number(tmp_path: Path) -> None:
    (tmp_path / "dying.py").write_text(DYING)
    (tmp_path / "dying").touch()
    first = started(tmp_path, "dnas", "search", "digits", "--run", "run", *settings(), "--nproc-per-node", "2")
    assert first.returncode == 1, first.stderr
    (told,) = first.stderr.splitlines()
    assert told.startswith(f"error: process 1 was ended by signal {signal.SIGKILL:d}; the run can be resumed")
    (tmp_path / "dying").unlink()
    again = started(tmp_path, "dnas", "resume", "run", "--json")
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout)
    kinds = {point.kind for point in Run.open(tmp_path / "run").load_front().points}
    assert {"search", "uniform"} <= kinds


@pytest.mark.slow
def test_torchrun_starts_a_job_and_goes_on_with_it(tmp_path: Path) -> None:
    """A run of one process goes on with two."""
    (tmp_path / "dying.py").write_text(DYING)
    launcher = (
        "torch.distributed.run",
        "--nproc-per-node",
        "2",
        "--rdzv-backend",
        "c10d",
        "--rdzv-endpoint",
        "localhost:0",
    )
    found = started(tmp_path, *launcher, "-m", "dnas", "--", "search", "digits", "--run", "run", *settings())
    assert found.returncode == 0, found.stderr
    assert "Wrote" in found.stdout or "front" in found.stdout
    assert Run.open(tmp_path / "run").load_front().points
