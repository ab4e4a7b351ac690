"""`dnas serve` and `dnas search --serve`: real processes, real sockets; what they say, and that they end."""

from __future__ import annotations

import json
import os
import platform
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.request import urlopen

import pytest
from typer.testing import CliRunner

from dnas.commands import serving
from dnas.commands.cli import app
from tests.made_runs import made_run

ROOT = Path(__file__).parents[3]


def told_address(process: subprocess.Popen[str]) -> str:
    """The address in the line that a server says first."""
    assert process.stderr
    line = process.stderr.readline()
    found = re.search(r"http://\S+?:\d+", line)
    assert found, line + process.stderr.read()
    return found[0]


@contextmanager
def started(*command: str, cwd: Path = ROOT) -> Iterator[subprocess.Popen[str]]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [sys.executable, *command], stderr=subprocess.PIPE, stdin=subprocess.PIPE, text=True, env=environment, cwd=cwd
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


def runs_at(address: str) -> list[str]:
    with urlopen(f"{address}/runs.json", timeout=10) as answer:
        return [run["name"] for run in json.loads(answer.read())["runs"]]


@pytest.mark.whole
def test_runs_are_served_until_ctrl_c(tmp_path: Path) -> None:
    made_run(tmp_path / "runs" / "made")
    with started("-m", "dnas", "serve", "--port", "0", "--allow-stop", cwd=tmp_path) as process:
        address = told_address(process)
        assert address.startswith("http://127.0.0.1:")
        assert process.stderr
        assert "token" in process.stderr.readline()
        assert runs_at(address) == ["made"]
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0
        assert process.stderr.read() == ""


@pytest.mark.whole
def test_a_server_beside_a_job_ends_with_it_however_that_ends(tmp_path: Path) -> None:
    folder = made_run(tmp_path / "made").folder
    code = "import sys; from dnas.commands.serving import serve_beside; serve_beside(sys.argv[1])"
    with started("-c", code, str(folder)) as process:
        assert runs_at(told_address(process)) == ["made"]
        assert process.stdin
        process.stdin.close()
        assert process.wait(20) == 0


@pytest.mark.whole
def test_the_server_of_a_job_is_gone_when_the_job_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, servers = made_run(tmp_path / "made").folder, []
    start = subprocess.Popen
    monkeypatch.setattr(serving.subprocess, "Popen", lambda *a, **k: servers.append(start(*a, **k)) or servers[-1])
    with suppress(KeyboardInterrupt), serving.served(folder):
        assert servers[0].poll() is None
        raise KeyboardInterrupt
    assert servers[0].poll() is not None


def test_a_port_that_is_taken_is_said_and_without_one_another_is_found() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(serving.InputError, match=rf"cannot serve at 127.0.0.1, port {port}: .*--port"):
            serving._listening("127.0.0.1", port)
    with serving._listening("127.0.0.1", None), serving._listening("127.0.0.1", None) as second:
        assert second.getsockname()[1] > 0
    with pytest.raises(serving.InputError, match="--host"):
        serving._listening("192.0.2.1", None)


def test_what_serving_needs_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(serving, "find_spec", lambda name: None)
    for command in (["serve"], ["search", "--serve", "--run", str(tmp_path / "run")]):
        result = CliRunner().invoke(app, command)
        assert (result.exit_code, r"pip install 'dnas[serve]'" in result.output) == (2, True)
    assert not (tmp_path / "run").exists()


def test_a_run_that_is_not_there_is_refused_before_anything_is_served(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["serve", str(tmp_path / "none")])
    assert (result.exit_code, "there is no run at" in result.output) == (2, True)


@pytest.mark.parametrize(
    ("host", "names"),
    [
        ("127.0.0.1", {"localhost"}),
        ("localhost", {"localhost"}),
        ("::1", {"localhost"}),
        ("0.0.0.0", {"localhost", platform.node(), socket.getfqdn()}),
        ("::", {"localhost", platform.node(), socket.getfqdn()}),
        ("gpu7.example", {"localhost", "gpu7.example"}),
    ],
)
def test_names_that_a_server_answers_to(host: str, names: tuple[str, ...]) -> None:
    assert set(serving._names_of(host)) == names
