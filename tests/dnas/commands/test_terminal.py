"""What is printed for people: nothing of a table is lost, however narrow the terminal is."""

from __future__ import annotations

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
    shown = capsys.readouterr().out.split()
    assert shown[-8:] == [f"cell{number}" for number in range(8)]
    assert "heading7" in shown
