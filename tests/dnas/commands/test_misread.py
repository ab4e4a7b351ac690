"""A command line that no command takes ends in one sentence that names the thing, the value and where to read on."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from dnas.commands import cli

MISREAD = {
    "serch": "no such command 'serch'; did you mean 'search', 'serve'? see: dnas --help",
    "--nope": "no such option: --nope; see: dnas --help",
    "search --sett x=1": "no such option: --sett (Possible options: --seed, --serve, --set); see: dnas search --help",
    "search digits more": "got unexpected extra argument",
    "search --set": "--set",
    "show --json=3 run": "--json",
    "show": "missing argument 'RUN",
    "export run id": "missing option '--out'",
    "search --seed -1": "'-1' for '--seed'",
    "search --seed 1.5": "'1.5' for '--seed'",
    "search --executor rya": "'rya' is not one of",
    "stop run --wait soon": "'soon' for '--wait'",
    "serve --port 99999": "'99999' for '--port'",
    "plot run --kind bitz": "'bitz' is not one of",
}


@pytest.mark.parametrize("words", MISREAD)
@pytest.mark.parametrize("columns", ["40", "120"])
def test_what_cannot_be_read_is_told_in_one_line(words: str, columns: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    monkeypatch.delenv("RANK", raising=False)
    done = CliRunner().invoke(cli.app, words.split(), prog_name="dnas")
    assert (done.exit_code, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    assert MISREAD[words] in line
    assert line.endswith(" --help")
    assert "Value error" not in line


@pytest.mark.parametrize("columns", ["40", "120"])
def test_no_word_at_all_shows_the_help(columns: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    done = CliRunner().invoke(cli.app, [], prog_name="dnas")
    assert done.exit_code == 2
    assert done.stdout.count("train-switchable") == 1
    assert done.stderr == ""
