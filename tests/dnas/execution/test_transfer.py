"""What a task reads is where it is carried out, what it writes comes back, and nothing else goes either way."""

from __future__ import annotations

from pathlib import Path

import pytest

from dnas.execution.executors import Folder, Setting
from dnas.execution.transfer import laid_out, needed_files, read_files, written_files
from tests.dnas.execution.pieces import joined, prepare_in, task


def test_a_task_finds_what_it_reads_and_leaves_what_it_writes(tmp_path: Path) -> None:
    home, away = tmp_path / "home", tmp_path / "away"
    (home / "in").mkdir(parents=True)
    (home / "in" / "word").write_text("word")
    (home / "out").write_text("half ")
    (home / "secret").write_text("")
    asked = task("asked", joined, reads=("in/word", "in/none"), writes=("out", "deep/never"), more=" more")
    setting = Setting(prepare_in, (Folder(str(home)),))
    sent = read_files(home, needed_files(asked))
    with laid_out(away, sent, asked):
        seen = setting.moved(Folder(str(away))).prepare(None, Folder(str(away)))(asked)
        (away / "left").write_text("by chance")
        came = read_files(away, ("out", "left", "deep/never"))
    assert seen == ["in/word", "out"]
    assert written_files(asked, came) == {"out": b"half word more"}
    assert not away.exists()
    assert (home / "out").read_text() == "half "


def test_a_setting_is_moved_in_its_folder_alone() -> None:
    setting = Setting(prepare_in, ("home", Folder("home"), 1))
    assert setting.moved(Folder("away")).arguments == ("home", Folder("away"), 1)


@pytest.mark.parametrize("name", ["../outside", "/etc/outside"])
def test_what_comes_back_is_written_where_the_task_said_and_nowhere_else(name: str) -> None:
    assert written_files(task("one", joined, writes=("mine",), more=""), {name: b"evil", "mine": b"1"}) == {
        "mine": b"1"
    }


def test_a_place_that_somebody_else_has_taken_is_refused_and_left(tmp_path: Path) -> None:
    (tmp_path / "kept").write_text("")
    with pytest.raises(FileExistsError), laid_out(tmp_path, {}, task("one", joined, more="")):
        raise AssertionError
    assert (tmp_path / "kept").exists()


def test_an_error_leaves_nothing_behind(tmp_path: Path) -> None:
    away = tmp_path / "away"
    with pytest.raises(KeyError, match=r"^1$"), laid_out(away, {"a/b": b"1"}, task("one", joined, more="")):
        raise KeyError(int((away / "a" / "b").read_bytes()))
    assert not away.exists()
