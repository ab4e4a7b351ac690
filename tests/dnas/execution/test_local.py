"""Worker processes: what they give, what a kill costs, what ends them. One test starts a few for all of it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from dnas.execution.executors import Lost, RemoteError, Setting, Told
from dnas.execution.local import LocalProcesses
from dnas.execution.scheduler import Ahead
from search_spaces.errors import InputError, JobError
from tests.dnas.execution.pieces import (
    cut_off,
    die,
    doubled,
    killed_so_often,
    prepare,
    process,
    raises_oddly,
    refuse,
    task,
    waits,
)

PATIENCE_SECONDS = 60.0


def lives(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


def until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.whole
def test_worker_processes_give_what_they_should_survive_kills_and_end(tmp_path: Path) -> None:
    scheduler = Ahead(LocalProcesses([Setting(prepare, (f"desk {n}",)) for n in range(2)]), lambda *told: None)
    heard: list[object] = []
    odd = task("odd", raises_oddly)
    once = task("once", killed_so_often, file=str(tmp_path / "once"), times=1)
    often = task("often", killed_so_often, file=str(tmp_path / "often"), times=9)
    numbers = [task(f"{n}", doubled, number=n) for n in range(5)]
    scheduler.announce([odd, once, often, *numbers])
    assert [scheduler.outcome(each, heard.append) for each in numbers] == [0, 2, 4, 6, 8]
    assert heard == [said for n in range(5) for said in ({"number": n}, {"twice": 2 * n})]
    assert scheduler.outcome(once, heard.append) == "done after 1"
    assert heard[10:] == ["try 0", "try 1"]
    with pytest.raises(RemoteError, match=r"^Odd: 1 and 2$"):
        scheduler.outcome(odd, heard.append)
    with pytest.raises(JobError, match=r"^the task 'often' was tried 3 times: its process was ended by SIGKILL; "):
        scheduler.outcome(often, heard.append)
    assert len((tmp_path / "often").read_text()) == 3
    own = {scheduler.outcome(task(f"process {n}", process), heard.append) for n in range(4)}
    assert os.getpid() not in own
    file = tmp_path / "pid"
    scheduler.announce([task("stays", waits, file=str(file))])
    until(lambda: file.exists() and file.read_text() != "")
    [left] = [each.id for each in scheduler.close()]
    assert left == "stays"
    until(lambda: not any(map(lives, [*own, int(file.read_text())])))


@pytest.mark.whole
def test_a_worker_that_cannot_begin_says_why_and_one_that_always_dies_ends_the_wait() -> None:
    scheduler = Ahead(LocalProcesses([Setting(refuse, ("this one",))]), lambda *told: None)
    with pytest.raises(InputError, match=r"^this one has no device$"):
        scheduler.outcome(task("any", process), lambda message: None)
    scheduler.close()
    scheduler = Ahead(LocalProcesses([Setting(die, ("",))]), lambda *told: None)
    with pytest.raises(JobError, match=r"SIGKILL"):
        scheduler.outcome(task("any", process), lambda message: None)
    scheduler.close()


@pytest.mark.whole
def test_workers_that_die_in_a_message_or_without_a_task_are_replaced(tmp_path: Path) -> None:
    workers = LocalProcesses([Setting(prepare, ("desk",))])
    scheduler = Ahead(workers, lambda *told: None)
    assert scheduler.outcome(task("cut", cut_off, file=str(tmp_path / "cut")), lambda message: None) == "whole"
    for number in range(5):
        own = scheduler.outcome(task(f"{number}", process), lambda message: None)
        os.kill(own, signal.SIGKILL)
        until(lambda own=own: workers._workers[0].process.pid != own)
    scheduler.close()


def test_what_a_worker_sent_last_is_heard_whenever_it_dies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    workers = LocalProcesses([Setting(prepare, ("desk",))])
    workers.start(task("once", killed_so_often, file=str(tmp_path / "once"), times=1))
    until(lambda: workers._workers[0].process.poll() is not None)
    monkeypatch.setattr("dnas.execution.local.wait", lambda *given: [])  # as if it had sent nothing until a moment ago
    told, lost = workers.reports()
    assert told == Told("once", "try 0")
    assert isinstance(lost, Lost)
    workers.close()


def test_workers_end_with_the_process_that_started_them_however_it_ends(tmp_path: Path) -> None:
    script = tmp_path / "script.py"  # not guarded by __name__: workers do not run it again
    script.write_text(
        textwrap.dedent(f"""
        import os, signal
        from pathlib import Path
        from dnas.execution.executors import Setting
        from dnas.execution.local import LocalProcesses
        from tests.dnas.execution.pieces import prepare, task, waits
        executor = LocalProcesses([Setting(prepare, ("desk",))])
        executor.start(task("stays", waits, file={str(tmp_path / "pid")!r}))
        signal.pause()
        """)
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    with subprocess.Popen([sys.executable, str(script)], env=environment) as parent:
        pid = tmp_path / "pid"
        until(lambda: pid.exists() and pid.read_text() != "")
        worker = int(pid.read_text())
        assert lives(worker)
        parent.send_signal(signal.SIGKILL)
    until(lambda: not lives(worker))
    assert not lives(worker)
