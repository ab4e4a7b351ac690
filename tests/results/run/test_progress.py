"""How far a running job is, and what a run was made from."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from results.run.environment import environment, git_revision
from results.run.folder import Run
from results.run.layout import PROGRESS
from results.run.progress import SECONDS_BETWEEN, noted, told_progress


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run.create(tmp_path / "run", "", {})


def test_progress_is_noted_now_and_then_and_gone_at_the_end(run: Run) -> None:
    now, seen = [100.0], list[Any]()
    with noted(run, seen.append, clock=lambda: now[0]) as report:
        report({"event": "stage", "stage": "search"})
        assert told_progress(run) is None
        report({"event": "progress", "fraction": 0.25, "seconds_left": 60.0})
        now[0] += SECONDS_BETWEEN - 1
        report({"event": "progress", "fraction": 0.5, "seconds_left": 30.0})
        told = told_progress(run, now=110.0)
        assert told is not None
        assert (told.fraction, told.seconds_left) == (0.25, 50.0)
        now[0] += 2
        report({"event": "progress", "fraction": 0.75, "seconds_left": None})
        told = told_progress(run, now=500.0)
        assert told is not None
        assert (told.fraction, told.seconds_left) == (0.75, None)
    assert len(seen) == 4
    assert told_progress(run) is None


@pytest.mark.parametrize("text", ["", "[]", '{"fraction": "much"}', '{"fraction": 0.5, "seconds_left": 1}', "{"])
def test_a_damaged_note_tells_nothing(run: Run, text: str) -> None:
    (run.folder / PROGRESS).write_text(text)
    assert told_progress(run) is None


def test_a_share_is_a_share(run: Run) -> None:
    (run.folder / PROGRESS).write_text('{"fraction": 7, "seconds_left": -3, "time": 0}')
    told = told_progress(run)
    assert told is not None
    assert (told.fraction, told.seconds_left) == (1.0, 0.0)


def git(folder: Path, *words: str) -> str:
    command = ["git", "-C", str(folder), "-c", "user.name=a", "-c", "user.email=a@b", *words]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def test_the_revision_of_the_users_own_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert git_revision(tmp_path) is None
    git(tmp_path, "init", "-q")
    assert git_revision(tmp_path) is None, "nothing is committed yet"
    (tmp_path / "net.py").write_text("x = 1\n")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "a")
    commit = git(tmp_path, "rev-parse", "HEAD")
    (tmp_path / "new").write_text("untracked files do not count")
    assert git_revision(tmp_path) == {"commit": commit, "changed": False}
    (tmp_path / "net.py").write_text("x = 2\n")
    inside = tmp_path / "inside"
    inside.mkdir()
    monkeypatch.chdir(inside)
    found = environment(7, "cuda:1")
    assert found["git"] == {"commit": commit, "changed": True}
    assert (found["seed"], found["device"]) == (7, "cuda:1")
    monkeypatch.setenv("PATH", "")
    assert git_revision(tmp_path) is None, "where there is no git"


def test_a_users_own_settings_of_git_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a container, where the repository belongs to somebody else and the environment says that it is safe."""
    git(tmp_path, "init", "-q")
    git(tmp_path, "commit", "-qm", "a", "--allow-empty")
    commit = git(tmp_path, "rev-parse", "HEAD")
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")
    assert git_revision(tmp_path) is None
    for name, value in (("COUNT", "1"), ("KEY_0", "safe.directory"), ("VALUE_0", "*")):
        monkeypatch.setenv(f"GIT_CONFIG_{name}", value)
    assert git_revision(tmp_path) == {"commit": commit, "changed": False}


def test_a_repository_starts_no_program_when_its_revision_is_asked_for(tmp_path: Path) -> None:
    """Its configuration names some for every occasion: a monitor, filters, a hook, and those of a submodule."""
    repository, marks = tmp_path / "repository", tmp_path / "marks"
    marks.mkdir()

    def git(*words: str, where: Path = repository) -> None:
        own = ("-c", "user.name=n", "-c", "user.email=e", "-c", "protocol.file.allow=always")
        subprocess.run(["git", *own, "-C", str(where), *words], check=True, capture_output=True)

    def program(name: str, rest: str = "") -> str:
        path = tmp_path / f"{name}.sh"
        path.write_text(f"#!/bin/sh\ntouch {marks / name}\n{rest}")
        path.chmod(0o755)
        return str(path)

    for path in (repository, tmp_path / "inner"):
        path.mkdir()
        git("init", where=path)
        (path / "file").write_text("one\n")
        (path / ".gitattributes").write_text("file filter=a=b\nother filter=slow\n")
        (path / "other").write_text("two\n")
        git("add", ".", where=path)
        git("commit", "-m", "first", where=path)
    git("submodule", "add", str(tmp_path / "inner"), "inner")
    git("commit", "-m", "second")
    for path in (repository, repository / "inner"):
        git("config", "core.fsmonitor", program("monitor"), where=path)
        git("config", "filter.a=b.clean", program("clean", "cat"), where=path)
        git("config", "filter.slow.process", program("process"), where=path)
        git("config", "filter.slow.required", "true", where=path)
        hooks = tmp_path / "hooks"
        hooks.mkdir(exist_ok=True)
        (hooks / "post-index-change").write_text(f"#!/bin/sh\ntouch {marks / 'hook'}\n")
        (hooks / "post-index-change").chmod(0o755)
        git("config", "core.hooksPath", str(hooks), where=path)
        for name in ("file", "other"):
            os.utime(path / name, (1, 1))  # git has to look into them
    told = git_revision(repository)
    assert told is not None
    assert told["changed"] is False
    assert [path.name for path in marks.iterdir()] == []
    (repository / "file").write_text("changed\n")
    told = git_revision(repository)
    assert told is not None
    assert told["changed"] is True
    assert [path.name for path in marks.iterdir()] == []
    subprocess.run(["git", "-C", str(repository), "status"], check=False, capture_output=True)
    for path in (repository, repository / "inner"):  # whose program speaks no protocol, which ended it all
        git("config", "--remove-section", "filter.slow", where=path)
    git("status")
    assert {path.name for path in marks.iterdir()} >= {"monitor", "process", "clean", "hook"}  # the trap is a trap
