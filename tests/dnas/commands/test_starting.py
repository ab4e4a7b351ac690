"""Ctrl-C ends the command line with a word at any moment, also while its modules are being loaded."""

from __future__ import annotations

import builtins
import runpy
import sys
from typing import Any

import pytest

from dnas.commands import cli, starting


def interrupted(name: str, *arguments: Any, **keywords: Any) -> Any:
    if name == "dnas.commands.cli":
        raise KeyboardInterrupt
    return FIND(name, *arguments, **keywords)


FIND = builtins.__import__


def test_while_its_modules_are_loaded(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(builtins, "__import__", interrupted)
    with pytest.raises(SystemExit) as ended:
        starting.main()
    assert (ended.value.code, capsys.readouterr().err) == (130, "interrupted\n")


def test_while_a_command_is_looked_up(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def app() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "app", app)
    with pytest.raises(SystemExit) as ended:
        starting.main()
    assert (ended.value.code, capsys.readouterr().err) == (130, "interrupted\n")


def test_both_ways_to_start_it_begin_there(monkeypatch: pytest.MonkeyPatch) -> None:
    assert cli.main is starting.main
    monkeypatch.setattr(sys, "argv", ["dnas", "--version"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module("dnas", run_name="__main__")
    assert not ended.value.code
