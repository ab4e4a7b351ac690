"""What the pages quote of the default job is what a recorded run of it gives."""

from __future__ import annotations

import shlex

import pytest

from benchmarks.quoted_output import PAGES, agrees, example_assignment, output_of, quotations, rewritten

QUOTED = [
    pytest.param(words, lines, id=f"{page.name}:{shlex.join(words)}")
    for page in PAGES
    for words, lines in quotations(page.read_text(encoding="utf-8"))
    if lines
]


@pytest.mark.parametrize(("words", "quoted"), QUOTED)
def test_quoted_output_is_that_of_the_recorded_run(words: list[str], quoted: list[str]) -> None:
    real = output_of(words)
    if real is not None:
        assert agrees(quoted, real), "run: python -m benchmarks.quoted_output\n" + "\n".join(real)


def test_the_commands_that_show_figures_are_quoted_and_checked() -> None:
    checked = {parameter.values[0][0] for parameter in QUOTED if output_of(list(parameter.values[0])) is not None}
    assert checked == {"search", "show", "switch", "doctor", "evaluate", "export"}


def test_the_example_of_an_assignment_is_that_of_the_recorded_run() -> None:
    [page] = [page for page in PAGES if page.name == "file-formats.md"]
    assert example_assignment() in page.read_text(encoding="utf-8")


def test_another_figure_is_noticed_and_written_anew() -> None:
    page = "```console\n$ dnas evaluate digits a\na: 1.00 %\n...\nend\n$ dnas status\nsomething\n```\n"
    assert quotations(page) == [(["evaluate", "digits", "a"], ["a: 1.00 %", "...", "end"]), (["status"], ["something"])]
    real = ["a: 1.00 %", "more", "and more", "end"]
    assert agrees(["a: 1.00 %", "...", "end"], real)
    assert agrees(["a: … %", "...", "end"], real)
    assert not agrees(["a: 2.00 %", "...", "end"], real)
    assert not agrees(["a: 1.00 %", "more", "end"], real)
    known = {"evaluate": ["a: 2.00 %"]}
    assert "a: 2.00 %\n$ dnas status\nsomething\n" in rewritten(page, lambda words: known.get(words[0]))
