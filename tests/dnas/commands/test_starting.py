"""The command line has streams to write to, and Ctrl-C ends it with a word while its modules are being loaded."""

from __future__ import annotations

import atexit
import builtins
import contextlib
import io
import json
import runpy
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from typing import Any

import pytest

from dnas.commands import cli, starting, terminal


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


@pytest.mark.parametrize(("before", "after"), [(signal.default_int_handler, signal.SIG_DFL), (signal.SIG_IGN,) * 2])
@pytest.mark.parametrize("ending", [None, SystemExit(2), KeyboardInterrupt()])
def test_once_all_is_said_ctrl_c_shows_no_traceback(
    before: Any, after: Any, ending: BaseException | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However the command ended; one that whoever started it wants ignored stays so."""

    def app() -> None:
        if ending:
            raise ending

    registered: list[Callable[[], None]] = []
    monkeypatch.setattr(cli, "app", app)
    monkeypatch.setattr(atexit, "register", registered.append)
    with contextlib.suppress(SystemExit):
        starting.main()
    (last,) = registered
    own = signal.signal(signal.SIGINT, before)
    try:
        last()
        assert signal.getsignal(signal.SIGINT) is after
    finally:
        signal.signal(signal.SIGINT, own)


def test_both_ways_to_start_it_begin_there(monkeypatch: pytest.MonkeyPatch) -> None:
    assert cli.main is starting.main
    monkeypatch.setattr(sys, "argv", ["dnas", "--version"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module("dnas", run_name="__main__")
    assert not ended.value.code


def test_what_an_encoding_lacks_ends_no_command(monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, "latin-1"))
    starting.prepare_streams()
    terminal.show("5 \u00b11 B, \u03b8 is undecided")
    terminal.show_json({"class": "K\u00e4se, \u03b8"})
    sys.stdout.flush()
    sentence, document = written.getvalue().decode("latin-1").split("\n", 1)
    assert sentence == "5 \u00b11 B, ? is undecided"
    assert json.loads(document) == {"class": "K\u00e4se, \u03b8"}


def test_a_closed_stream_is_no_file_that_is_opened_later() -> None:
    """In a process of its own, whose standard streams are closed before Python starts."""
    code = (
        "import sys; from dnas.commands.starting import prepare_streams; prepare_streams(); print('lost'); "
        "kept = open(sys.argv[1], 'w'); kept.write(str(kept.fileno())); kept.close()"
    )
    shell = f'exec {sys.executable} -c "{code}" "$0" <&- >&- 2>&-'
    with tempfile.NamedTemporaryFile() as file:
        assert subprocess.run(["sh", "-c", shell, file.name], check=False).returncode == 0
        assert int(file.read()) > 2
