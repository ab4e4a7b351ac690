"""What is printed for people: nothing of a table is lost, however narrow the terminal is."""

from __future__ import annotations

import re

import pytest

from dnas.commands.terminal import show
from results.tables.plain import PlainTable


@pytest.mark.parametrize("columns", ["10", "40", "200"])
def test_a_narrow_terminal_costs_no_column(
    columns: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    table = PlainTable()
    for number in range(8):
        table.add_column(f"heading{number}", right=number % 2 == 0, fold=number < 2)
    table.add_row(*(f"cell{number}" for number in range(8)))
    monkeypatch.setenv("COLUMNS", columns)
    show(table)
    shown = re.split(r"[\s,]+", capsys.readouterr().out.strip())
    assert [word for word in shown if word.startswith("cell")] == [f"cell{number}" for number in range(8)]
    assert "heading7" in shown


@pytest.mark.parametrize("columns", [20, 30, 40, 60, 75, 90, 130])
def test_whatever_the_width_words_stay_whole_and_lines_fit(
    columns: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ["search-1-pruned-random-1", "switchable-1-w4a8", "uniform-4", ""]
    table = PlainTable()
    table.add_column("assignment", fold=True)
    for heading in ("kept", "B", "val %", "test %"):
        table.add_column(heading, right=True)
    for name in names:
        table.add_row(name, "82 %", "1,328", "9.33 ±0.00", "11.00 ±0.20")
    monkeypatch.setenv("COLUMNS", str(columns))
    show(table)
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= max(columns, len("search-1-pruned-random-1"))
    words = [word for line in lines for word in re.split(r"[\s,]+|(?<=-)", line) if word]
    assert set(words) >= {part for name in names for part in re.split("(?<=-)", name) if part}
    assert [words.count(word) for word in ("±0.00", "±0.20", "82")] == [4, 4, 4]


def test_a_figure_that_has_no_column_keeps_its_heading(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    table = PlainTable("title")
    for heading in ("run", "state", "val %"):
        table.add_column(heading)
    table.add_row("runs/digits", "finished", "9.33 ±0.00")
    table.add_row("runs/another", "", "8.00")
    monkeypatch.setenv("COLUMNS", "25")
    show(table)
    told = ["title", "runs/digits", "  state finished,", "  val % 9.33 ±0.00", "runs/another", "  val % 8.00"]
    assert capsys.readouterr().out.splitlines() == told
