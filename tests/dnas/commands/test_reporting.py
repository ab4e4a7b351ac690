"""`dnas report` on the command line: what it writes, where, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from dnas.commands.cli import app
from results.run.folder import Run
from tests.made_runs import made_run


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return made_run(tmp_path / "runs" / "made")


def dnas(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["report", *arguments])
    return result.exit_code, result.output


def test_the_page_of_a_run_lies_in_it_unless_told(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    code, said = dnas("made")
    assert (code, said.startswith("written: runs/made/report.html (")) == (0, True)
    assert "<title>made</title>" in (run.folder / "report.html").read_text()
    code, said = dnas("made", "--out", "sent.html", "--json")
    assert (code, json.loads(said)) == (0, {"file": "sent.html", "bytes": Path("sent.html").stat().st_size})
    assert Path("sent.html").read_text() == (run.folder / "report.html").read_text()


def test_several_runs_are_one_page(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    made_run(tmp_path / "runs" / "other", ("a", "b", "c", "d"))
    code, _ = dnas("made", "other", "made")
    assert code == 0
    assert "<title>made, other</title>" in Path("report.html").read_text()


def test_the_values_are_told_as_json(run: Run) -> None:
    code, said = dnas(str(run.folder), "--json")
    told = json.loads(said)
    assert (code, told["schema"], [each["name"] for each in told["runs"]]) == (0, "dnas.report/1", ["made"])


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["nothing"], "there is no run at"),
        (["made", "--out", "."], "is a folder"),
        (["made", "--out", "no/where.html"], "there is no folder"),
        (["nothing", "--out", "page.txt"], "cannot write a page as page.txt"),
    ],
)
def test_what_cannot_be_reported_is_said_and_nothing_is_written(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], sentence: str
) -> None:
    monkeypatch.chdir(tmp_path)
    code, said = dnas(*arguments)
    assert (code, sentence in said) == (2, True)
    assert not list(tmp_path.rglob("*.html"))
