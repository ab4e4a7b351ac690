"""The first SIGINT or SIGTERM lets a job finish its step, a second one ends it at once; both say how to go on."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from dnas.commands import cli
from dnas.commands.signals import Interrupted, finishing, terminable
from dnas.config.job import JobConfig
from dnas.jobs import run as jobs
from results.pareto import ParetoFront
from results.run.folder import Run

NUMBERS = [signal.SIGINT, signal.SIGTERM]
Report = Callable[[Any], None]
EVENT = {"event": "progress", "stage": "search", "run": "search-1", "fraction": 0.5}


@pytest.fixture(autouse=True)
def _as_a_shell_starts_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RANK", raising=False)
    before = {number: signal.signal(number, signal.default_int_handler) for number in NUMBERS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def ended(monkeypatch: pytest.MonkeyPatch, job: Callable[[Report], object]) -> tuple[int, str]:
    """The exit code of a search whose job is this, and its last line on stderr."""

    def run_job(config: JobConfig, run: Run, report: Report, request: Any = None) -> ParetoFront:
        job(report)
        front = ParetoFront.from_points([])
        run.save_front(front)
        return front

    monkeypatch.setattr(jobs, "run_job", run_job)
    result = CliRunner().invoke(cli.app, ["search", "--set", "device=cpu"])
    return result.exit_code, (result.stderr.splitlines() or [""])[-1]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_job_ends_where_its_step_is_kept(number: int, code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []

    def job(report: Report) -> None:
        report(EVENT)
        signal.raise_signal(number)
        done.append("the step is finished")
        report(EVENT)
        done.append("the next one is begun")

    assert ended(monkeypatch, job) == (code, "interrupted; go on with: dnas resume runs/digits")
    assert done == ["the step is finished"]


@pytest.mark.parametrize("first", NUMBERS)
@pytest.mark.parametrize(("second", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_second_signal_ends_it_at_once(first: int, second: int, code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []

    def job(report: Report) -> None:
        signal.raise_signal(first)
        signal.raise_signal(second)
        done.append("it goes on")

    assert ended(monkeypatch, job) == (code, "interrupted; go on with: dnas resume runs/digits")
    assert not done


def test_what_a_library_makes_of_an_interruption_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def job(report: Report) -> None:
        signal.raise_signal(signal.SIGINT)
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt as error:
            raise ValueError("Error calling function `_by_name`: KeyboardInterrupt") from error

    assert ended(monkeypatch, job) == (130, "interrupted; go on with: dnas resume runs/digits")


def test_a_job_that_is_done_by_then_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    assert ended(monkeypatch, lambda report: signal.raise_signal(signal.SIGINT))[0] == 0


def test_an_error_without_a_signal_stays_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def job(report: Report) -> None:
        raise ValueError("no")

    assert ended(monkeypatch, job)[0] == 1


@pytest.mark.parametrize("open_block", [finishing, terminable])
def test_a_signal_that_is_to_be_ignored_stays_so(open_block: Callable[[], Any]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with open_block() as signals:
        signal.raise_signal(signal.SIGINT)
        signals.check()
        if open_block is finishing:
            signal.raise_signal(signal.SIGTERM)
        with pytest.raises(Interrupted) as caught:
            signal.raise_signal(signal.SIGTERM)
    assert caught.value.exit_code == 143
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    assert signal.getsignal(signal.SIGTERM) is signal.default_int_handler


def test_one_of_several_processes_ends_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(Interrupted), finishing():
        signal.raise_signal(signal.SIGTERM)
