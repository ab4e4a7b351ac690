"""What lies in a run folder is the run's own: nothing is read or written through a link, a pipe or a device."""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from results.files import read_bytes, write_bytes
from results.run.checkpoints import read_checkpoint
from results.run.folder import Run
from results.run.journal import Journal
from results.run.locks import FolderLock, lock_holder
from search_spaces.errors import InputError

FILES = ("journal.jsonl", "job.toml", ".lock", ".owner", "environment.json", "front.json", "front.csv", "front.png")
INSIDE = ("assignments/a.json", "checkpoints/net-a-seed0.safetensors")


def link(path: Path) -> None:
    """Replace a file or a folder by a link to what it was."""
    target = path.parents[1] / f"outside-{path.name}"
    if path.exists():
        path.rename(target)
    else:
        target.write_text("precious")
    path.symlink_to(target)


def dangling(path: Path) -> None:
    path.unlink(missing_ok=True)
    path.symlink_to(path.parent / "gone")


def pipe(path: Path) -> None:
    path.unlink(missing_ok=True)
    os.mkfifo(path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    with Run.create(tmp_path / "run", "seed = 1\n", {}) as run:
        run.journal.append({"event": "started", "version": 2})
    return tmp_path / "run"


@pytest.mark.parametrize("make", [link, pipe])
@pytest.mark.parametrize("name", [*FILES, *INSIDE])
def test_a_run_with_a_link_or_a_pipe_is_refused(name: str, make: Callable[[Path], None], folder: Path) -> None:
    make(folder / name)
    before = {path: path.read_bytes() for path in folder.parent.glob("**/outside-*") if path.is_file()}
    for write in (False, True):
        with pytest.raises(InputError) as caught:
            Run.open(folder, write=write)
        assert name == "job.toml" or str(folder / name) in str(caught.value) or "journal" in name
    assert {path: path.read_bytes() for path in before} == before


@pytest.mark.parametrize("name", ["assignments", "checkpoints"])
@pytest.mark.parametrize("make", [link, lambda path: (path.rmdir(), dangling(path))])
def test_a_folder_of_a_run_is_no_link(name: str, make: Callable[[Path], None], folder: Path) -> None:
    make(folder / name)
    with pytest.raises(InputError, match=f"{name} is a link"):
        Run.open(folder, write=True)


@pytest.mark.parametrize("name", ["assignments", ".lock", "job.toml"])
def test_a_run_is_not_begun_over_links(name: str, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".lock").touch()
    (tmp_path / "outside").mkdir()
    (tmp_path / "run" / name).unlink(missing_ok=True)
    (tmp_path / "run" / name).symlink_to(tmp_path / "outside")
    with pytest.raises(InputError):
        Run.create(tmp_path / "run", "seed = 1\n", {})
    assert not list((tmp_path / "outside").iterdir())


def test_each_writer_looks_itself(tmp_path: Path) -> None:
    """What was a file when the run was opened may be a link by now."""
    target = tmp_path / "precious"
    target.write_text("precious")
    path = tmp_path / "link"
    path.symlink_to(target)
    calls: list[Callable[[], object]] = [
        lambda: write_bytes(path, b"x"),
        lambda: read_bytes(path),
        lambda: Journal(path).append({"event": "note", "text": "x"}),
        lambda: Journal(path).records(),
        lambda: FolderLock(path),
        lambda: lock_holder(path),
        lambda: read_checkpoint(path),
    ]
    for call in calls:
        with pytest.raises(InputError, match="is a link"):
            call()
    assert target.read_text() == "precious"
    assert path.is_symlink()


def test_a_name_that_is_planted_for_the_unfinished_file_is_not_followed(tmp_path: Path) -> None:
    target = tmp_path / "precious"
    target.write_text("precious")
    (tmp_path / f".out.{os.getpid()}.tmp").symlink_to(target)
    write_bytes(tmp_path / "out", b"new")
    assert (target.read_text(), (tmp_path / "out").read_text()) == ("precious", "new")


def test_devices_pipes_and_sockets_stay_what_they_are(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "socket"))
        for path, word in ((tmp_path / "pipe", "pipe"), (tmp_path / "socket", "socket"), (Path("/dev/null"), "device")):
            for call in (lambda path=path: write_bytes(path, b"x"), lambda path=path: read_bytes(path)):
                with pytest.raises(InputError, match=f"{path} is a {word}"):
                    call()
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)
    assert stat.S_ISCHR(Path("/dev/null").stat().st_mode)


def test_a_run_that_may_not_be_read_is_one_sentence(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(*args: object, **kwargs: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "scandir", denied)
    with pytest.raises(InputError, match=r"the run .* cannot be read: Permission denied"):
        Run.open(folder)
    with pytest.raises(InputError, match="File name too long"):
        Run.open(folder.parent / ("x" * 300))
