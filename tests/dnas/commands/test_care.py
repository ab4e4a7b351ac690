"""The commands that look after runs: status, stop, logs, clean, compare, and searches that go on by themselves."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from dnas.commands import detaching
from dnas.commands.cli import app
from dnas.config.file import dump_job, load_job
from results.events import Decoded, Epoch, Measured, StageEvent, Started
from results.run.folder import Run
from results.run.layout import LOG, PROGRESS
from search_spaces.errors import InputError

HOLDER = """
import signal, sys
from results.run.folder import Run
run = Run.open(sys.argv[1], write=True)
print("ready", flush=True)
signal.pause()
"""


def dnas(*words: str | Path) -> Result:
    return CliRunner().invoke(app, list(map(str, words)))


@pytest.fixture(scope="module")
def finished(smaller_run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("care") / "runs" / "one"
    shutil.copytree(smaller_run.folder, folder)
    return folder


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "one"))


@pytest.fixture
def started(tmp_path: Path) -> Path:
    """A run whose process has ended amid its work."""
    with Run.create(tmp_path / "runs" / "begun", dump_job(load_job()), {}) as run:
        told = [
            Started(),
            StageEvent(stage="measure"),
            *(Decoded(assignment=f"a{n}", kind="search", run="s", cost={"size_bytes": 2048.0}) for n in (1, 2)),
            Epoch(stage="measure", run="a1", epoch=3, epochs=5),
            Measured(assignment="a1", seed=0, val=0.5),
            Measured(assignment="a2", seed=0, val=0.75),
            Measured(assignment="a2", seed=1, val=0.5),
        ]
        for event in told:
            run.journal.append(event.to_json())
    return run.folder


@contextmanager
def held(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that works on a run meanwhile."""
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(folder)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        try:
            yield process
        finally:
            process.kill()


def test_status_tells_how_far_and_what_is_best(started: Path, finished: Path) -> None:
    shutil.copytree(finished, started.parent / "one")
    with held(started):
        (started / PROGRESS).write_text('{"fraction": 0.25, "seconds_left": 9e9, "time": 0}')
        [begun, one] = json.loads(dnas("status", started.parent, "--json").stdout)
        table = dnas("status", started.parent).stdout
    assert (begun["state"], begun["fraction"], begun["epoch"]) == ("running", 0.25, 3)
    assert begun["seconds_left"] > 1e6
    assert begun["best"] == {"assignment": "a2", "size_bytes": 2048.0, "top1": 0.625, "costs": {"size_bytes": 2048.0}}
    assert 0 <= begun["age_seconds"] < 3600
    files = [path for path in (started.parent / "one").rglob("*") if path.is_file()]
    assert (one["state"], one["fraction"]) == ("finished", 1.0)
    assert one["disk_bytes"] == sum(path.stat().st_size for path in files)
    for part in ("25 %", "a2 (2,048 B, 62.50 %)", "measure a1 epoch 3/5"):
        assert part in table
    assert json.loads(dnas("status", started, "--json").stdout)[0]["state"] == "interrupted"


def test_stop_ends_the_process_that_works_on_the_run(started: Path) -> None:
    assert "no process works on" in dnas("stop", started).stderr
    with held(started) as process:
        result = dnas("stop", started)
        assert process.wait(10) != 0
    assert result.exit_code == 0
    assert f"pid {process.pid}" in result.stdout
    assert f"has stopped; go on with: dnas resume {started}" in result.stdout


def test_stop_tells_of_a_process_that_takes_its_time(started: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with held(started) as process:
        with monkeypatch.context() as patch:
            patch.setattr("os.kill", lambda pid, number: None)
            told = json.loads(dnas("stop", started, "--wait", "0.2", "--json").stdout)
            assert told == {"run": str(started), "pid": process.pid, "stopped": False, "state": "running"}
            assert "is still at its step" in dnas("stop", started, "--wait", "0").stdout
        assert "a process is working on" in dnas("clean", started).stderr


def test_stop_knows_the_process_whatever_files_it_closes_and_whosever_it_is(
    started: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Closed:
        def exists(self) -> bool:
            return True

        def stat(self) -> None:
            raise FileNotFoundError

    def opened(path: Path) -> Iterator[Any]:
        yield Closed()
        yield from own(path)

    def hidden(path: Path) -> Iterator[Any]:
        raise PermissionError

    own = Path.iterdir
    with held(started) as process:
        with monkeypatch.context() as patch:
            patch.setattr(Path, "iterdir", hidden)
            refused = dnas("stop", started)
        assert (refused.exit_code, f"pid {process.pid}" in refused.stderr) == (1, True)
        assert "is another user's; ask its owner" in refused.stderr
        with monkeypatch.context() as patch:
            patch.setattr(Path, "iterdir", opened)
            patch.setattr("os.kill", lambda pid, number: None)
            assert "is still at its step" in dnas("stop", started, "--wait", "0").stdout


def test_logs_are_the_journal_and_what_a_detached_process_printed(started: Path) -> None:
    (started / LOG).write_text("first\nlast \x1b[31m\n")
    lines = dnas("logs", started).stdout.splitlines()
    assert len([line for line in lines if "measured a" in line]) == 3
    assert lines[-3:-1] == [f"{started / LOG}:", "first"]
    assert "\x1b" not in lines[-1]
    (started / LOG).write_bytes(b"what a program prints: \xff\n")
    assert dnas("logs", started).stdout.splitlines()[-1] == "what a program prints: \ufffd"
    (started / LOG).write_text("first\nlast\n")
    short = dnas("logs", started, "--lines", "1", "--follow").stdout.splitlines()  # nobody works on it: it ends
    assert short[0].split("  ")[-1] == "measured a2, seed 1: 50.00 % on validation"
    assert len(short) == 4


def junk(folder: Path) -> dict[str, int]:
    """What kills and training leave in a run, by name."""
    name = Run.open(folder).assignment_paths()[0].stem
    names = ["checkpoints/search-1", f"checkpoints/{name}-seed0", "checkpoints/net-unknown-seed0"]
    paths = [f"{each}.safetensors" for each in names] + ["assignments/.x.json.12.tmp", ".front.json.9.tmp"]
    for number, path in enumerate(paths, start=1):
        (folder / path).write_bytes(b"x" * number)
    return {path: number for number, path in enumerate(paths, start=1)}


def files(folder: Path) -> dict[str, bytes]:
    paths = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def test_clean_removes_what_is_not_needed_and_nothing_else(copied: Path) -> None:
    before = files(copied)
    left = junk(copied)
    told = json.loads(dnas("clean", copied, "--dry-run", "--json").stdout)
    assert told == {"run": str(copied), "files": left, "bytes": sum(left.values()), "removed": False}
    assert set(files(copied)) == {*before, *left}
    assert f"removed: {sum(left.values())} bytes in {len(left)} files" in dnas("clean", copied).stdout
    assert files(copied) == before
    assert "holds nothing that is not needed" in dnas("clean", copied).stdout


def test_clean_leaves_what_another_command_began_to_need(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    left = junk(copied)
    needed, *others = left
    found = [dict(left), {each: left[each] for each in others}]
    monkeypatch.setattr("dnas.commands.care_view.needless_files", lambda run: found.pop(0))
    assert set(json.loads(dnas("clean", copied, "--json").stdout)["files"]) == set(others)
    assert not [each for each in others if (copied / each).exists()]
    assert (copied / needed).exists()


def test_clean_leaves_a_run_that_goes_on_what_it_goes_on_from(started: Path) -> None:
    with Run.open(started, write=True) as run:
        run.save_checkpoint("a1-seed0", {}, {})
    (started / "checkpoints" / ".a.tmp").write_text("")
    (started / ".handed-in.tmp").mkdir()
    (started / ".handed-in.tmp" / "1000.pkl").write_text("left")
    files = {"checkpoints/.a.tmp": 0, ".handed-in.tmp/1000.pkl": 4}
    assert json.loads(dnas("clean", started, "--json").stdout)["files"] == files
    assert not (started / ".handed-in.tmp" / "1000.pkl").exists()
    assert Run.open(started).has_checkpoint("a1-seed0")


def test_what_reads_nets_works_after_clean(copied: Path, tmp_path: Path) -> None:
    junk(copied)
    assert dnas("clean", copied).exit_code == 0
    for point in Run.open(copied).load_front().points:
        out = tmp_path / point.assignment
        assert dnas("export", copied, point.assignment, "--format", "packed", "--out", out).exit_code == 0
    for words in (["evaluate", point.assignment], ["evaluate", "float"], ["resume"]):
        assert dnas(words[0], copied, *words[1:]).exit_code == 0


def test_a_run_is_worked_on_where_the_command_says(copied: Path) -> None:
    """As a run that was made on a GPU is where there is none, or on another one."""
    before = {path: path.read_bytes() for path in copied.rglob("*") if path.is_file()}
    search = Run.open(copied).load_front().points[0].assignment
    for words in (["evaluate", "float"], ["prune", search], ["finalise"], ["rank"], ["sensitivity"]):
        told = dnas(words[0], copied, *words[1:], "--device", "cuda:7")
        assert (told.exit_code, "device = 'cuda:7' is not here; PyTorch finds cpu" in told.stderr) == (2, True), words
    assert {path: path.read_bytes() for path in copied.rglob("*") if path.is_file()} == before
    here, anywhere = (dnas("evaluate", copied, "float", *words).stdout for words in (["--device", "cpu"], []))
    assert here == anywhere


@pytest.mark.slow  # several trainings
def test_every_command_works_after_clean(copied: Path, tmp_path: Path) -> None:
    junk(copied)
    assert dnas("clean", copied).exit_code == 0
    front = Run.open(copied).load_front().points
    commands: Sequence[Sequence[str]] = [
        *(["evaluate", p.assignment] for p in front),
        *(["show"], ["show", front[0].assignment], ["plot"], ["status"], ["logs"]),
        *(["report"], ["sensitivity"], ["rank", "--assignments", "5", "--epochs", "1"], ["resume"]),
        ["prune", front[0].assignment, "--budget", "90%", "--trials", "2"],
        ["finalise", "--profiles", front[0].assignment],
        *(["switch"], ["resume"], ["clean"], ["export", "--format", "packed", "--out", str(tmp_path / "net")]),
    ]
    for name, *words in commands:
        result = dnas(name, copied, *words)
        assert result.exit_code == 0, (name, words, result.stderr)


def test_compare_shows_settings_fronts_and_areas(copied: Path, tmp_path: Path) -> None:
    other = tmp_path / "two"
    job = dump_job(load_job(copied / "job.toml", ["seed=5", "search.epochs=9"]))
    with Run.create(other, job, {}) as run:
        run.save_front(Run.open(copied).load_front())
    picture = tmp_path / "picture.svg"
    result = dnas("compare", copied, other, "--out", picture)
    assert result.exit_code == 0, result.stderr
    rows = [line.split() for line in result.stdout.splitlines()]
    assert ["seed", "0", "5"] in rows
    assert [row[0] for row in rows if "search.epochs" in row] == ["search.epochs"]
    assert "from the reference point" in result.stdout
    assert picture.read_text().count("two") >= 1
    assert "other data sets" not in result.stdout
    job_file = other / "job.toml"
    job_file.write_text(dump_job(load_job(copied / "job.toml", ["seed=5", "search.epochs=9", "data.source=mnist"])))
    assert (
        "note: they are judged on images of other data sets" in dnas("compare", copied, other, "--out", picture).stdout
    )
    job_file.write_text(job)
    told = json.loads(dnas("compare", copied, other, "--out", picture, "--json").stdout)
    assert told["runs"] == ["one", "two"]
    assert {row["key"]: row["values"] for row in told["settings"]}["seed"] == ["0", "5"]
    assert told["hypervolume"]["one"] == told["hypervolume"]["two"] > 0
    assert "nothing to compare" in dnas("compare", copied).stderr
    for text in ("much", "nan,0.5", "1,inf", "1,2,3"):
        assert (
            f"--reference {text} is not a cost and a value of the metric"
            in dnas("compare", copied, other, "--reference", text).stderr
        )


class FakeProcess:
    """A process that does what it is told when it is first looked at."""

    pid = 4242
    work: Callable[[Sequence[str], Any], int | None]

    def __init__(self, command: Sequence[str], *, stdout: Any, start_new_session: bool, **options: Any) -> None:
        assert start_new_session
        self.command, self.stdout = command, stdout

    def poll(self) -> int | None:
        return type(self).work(self.command, self.stdout)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> type[FakeProcess]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(detaching.subprocess, "Popen", FakeProcess)
    monkeypatch.setattr(sys, "argv", ["dnas", "search", "digits", "--detach"])
    return FakeProcess


def test_a_detached_search_returns_once_its_first_stage_has_begun(fake: type[FakeProcess]) -> None:
    asked: list[Sequence[str]] = []

    def begin(command: Sequence[str], log: Any) -> None:
        asked.append(command)
        with Run.create(command[-1], dump_job(load_job()), {}) as run:
            run.journal.append(StageEvent(stage="pretrain").to_json())

    fake.work = staticmethod(begin)
    result = dnas("search", "digits", "--detach")
    assert result.exit_code == 0, result.stderr
    assert asked == [[sys.executable, "-m", "dnas", "search", "digits", "--run", "runs/digits"]]
    assert "runs/digits goes on without this terminal (pid 4242)" in result.stdout
    for name in ("status", "logs", "stop"):
        assert f"dnas {name} runs/digits" in result.stdout
    assert Path("runs/digits", LOG).is_file()
    assert "already holds a run" in dnas("search", "digits", "--detach").stderr


def test_two_detached_searches_do_not_begin_in_one_folder(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with detaching._log(folder, anew=True) as log:
        log.write(b"begun\n")
        log.flush()
        with pytest.raises(InputError, match="another search has just begun in"):
            detaching._log(folder, anew=True)
        assert (folder / LOG).read_bytes() == b"begun\n"
    with detaching._log(folder, anew=True):
        assert (folder / LOG).read_bytes() == b""


def test_a_detached_search_that_is_refused_leaves_nothing(fake: type[FakeProcess]) -> None:
    def refuse(command: Sequence[str], log: Any) -> int:
        log.write(b"error: no such thing\n")
        log.flush()
        return 2

    fake.work = staticmethod(refuse)
    result = dnas("search", "digits", "--detach")
    assert (result.exit_code, result.stderr) == (2, "error: no such thing\n")
    assert not Path("runs").exists()
    assert "no preset 'nothing'" in dnas("search", "nothing", "--detach").stderr


def test_a_detached_resume_returns_once_a_stage_has_begun_again_and_keeps_the_log(
    fake: type[FakeProcess], started: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["dnas", "resume", str(started), "--detach", "--workers", "2"])
    (started / LOG).write_text("what was printed before\n")
    asked: list[Sequence[str]] = []

    def go_on(command: Sequence[str], log: Any) -> None:
        asked.append(command)
        log.write(b"resumed\n")
        log.flush()
        if len(asked) > 1:  # the stage of the process before is none of this one's
            with Run.open(started, write=True) as run:
                run.journal.append(StageEvent(stage="measure").to_json())

    fake.work = staticmethod(go_on)
    result = dnas("resume", started, "--detach", "--workers", "2")
    assert result.exit_code == 0, result.stderr
    assert len(asked) == 2
    assert asked[0] == [sys.executable, "-m", "dnas", "resume", str(started), "--workers", "2"]
    assert f"{started} goes on without this terminal (pid 4242)" in result.stdout
    assert (started / LOG).read_text() == "what was printed before\nresumed\nresumed\n"


def test_a_detached_resume_that_ends_at_once_tells_what_it_printed(fake: type[FakeProcess], started: Path) -> None:
    codes = [2, 0]
    (started / LOG).write_text("before\n")

    def end(command: Sequence[str], log: Any) -> int:
        log.write(b"error: what is wrong\n" if codes[0] else b"nothing is left to do\n")
        log.flush()
        return codes.pop(0)

    fake.work = staticmethod(end)
    result = dnas("resume", started, "--detach")
    assert (result.exit_code, result.stderr) == (2, "error: what is wrong\n")
    result = dnas("resume", started, "--detach", "--json")
    assert (result.exit_code, result.stderr) == (0, "nothing is left to do\n")
    told = {"run": str(started), "pid": 4242, "log": str(started / LOG), "running": False}
    assert json.loads(result.stdout) == told
    with detaching._log(started, anew=False):
        assert "a detached process works on" in dnas("resume", started, "--detach").stderr
    assert "there is no run at" in dnas("resume", started / "none", "--detach").stderr
    assert not (started / "none").exists()


@pytest.mark.slow  # two real processes
def test_a_job_goes_on_without_its_terminal(tmp_path: Path) -> None:
    folder = tmp_path / "away"
    words = ["search", "digits", "--run", str(folder), "--set", "threads=1", "--detach"]
    done = subprocess.run([sys.executable, "-m", "dnas", *words], capture_output=True, text=True, check=True)
    assert f"dnas stop {folder}" in done.stdout
    assert json.loads(dnas("status", folder, "--json").stdout)[0]["state"] == "running"
    assert dnas("stop", folder).exit_code == 0
    assert json.loads(dnas("status", folder, "--json").stdout)[0]["state"] == "interrupted"
    assert "interrupted; go on with" in (folder / LOG).read_text()
    words = ["resume", str(folder), "--detach"]
    subprocess.run([sys.executable, "-m", "dnas", *words], capture_output=True, text=True, check=True)
    assert json.loads(dnas("status", folder, "--json").stdout)[0]["state"] == "running"
    assert dnas("stop", folder).exit_code == 0
