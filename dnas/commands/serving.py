"""The command `dnas serve`, and the server that stands beside a job: runs in a browser, only read."""

from __future__ import annotations

import platform
import secrets
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from dnas.commands.terminal import tell
from results.run.folder import Run
from results.run.layout import RUNS
from search_spaces.errors import InputError

if TYPE_CHECKING:
    import uvicorn

HOST, PORT = "127.0.0.1", 8600
_NEEDED = ("starlette", "uvicorn", "plotly")
_PATIENCE_SECONDS = 5.0


def serve(folders: Sequence[Path], host: str, port: int | None, allow_stop: bool) -> None:
    """Serve these runs, or all in runs/, until Ctrl-C."""
    check_installed()
    for folder in folders:
        Run.open(folder)  # what cannot be read is told before anything is served
    token = secrets.token_urlsafe(12) if allow_stop else None
    with _listening(host, port) as listener:
        shown = f"[{host}]" if ":" in host else host
        what = ", ".join(map(str, folders)) if folders else f"{RUNS}/"
        tell(f"serving {what} at http://{shown}:{listener.getsockname()[1]}; Ctrl-C ends it")
        if not _is_own(host):
            tell("whoever can reach that address can read these runs")
        if token:
            tell(f"the token that stops a job: {token}")
        with suppress(KeyboardInterrupt):
            _server(folders, host, token).run(sockets=[listener])


def _server(folders: Sequence[Path], host: str, token: str | None) -> uvicorn.Server:
    from results.server.app import application, server  # with what it needs an extra that few have
    from results.server.shelf import Shelf

    return server(application(Shelf(folders, None if folders else RUNS), hosts=_names_of(host), token=token))


def check_installed() -> None:
    """Refuse where what serves is not installed."""
    missing = [name for name in _NEEDED if find_spec(name) is None]
    if missing:
        raise InputError(f"serving needs {', '.join(missing)}, not installed here: pip install 'dnas[serve]'")


@contextmanager
def served(folder: Path) -> Iterator[None]:
    """Serve one run while the block runs, from a process of its own: it takes nothing from the job's threads."""
    code = "import sys; from dnas.commands.serving import serve_beside; serve_beside(sys.argv[1])"
    command = [sys.executable, "-c", code, str(folder.resolve())]
    # Its input ends with this process, however that ends. A session of its own: Ctrl-C is for the job.
    server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, start_new_session=True)
    try:
        yield
    finally:
        if server.stdin:
            server.stdin.close()
        try:
            server.wait(_PATIENCE_SECONDS)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


def serve_beside(folder: str) -> None:
    """Serve one run at any port until the standard input ends."""
    with _listening(HOST, None) as listener:
        tell(f"serving {folder} at http://{HOST}:{listener.getsockname()[1]}")
        server = _server([Path(folder)], HOST, None)

        def wait() -> None:
            sys.stdin.read()
            server.should_exit = True

        threading.Thread(target=wait, daemon=True).start()
        server.run(sockets=[listener])


def _is_own(host: str) -> bool:
    return host in (HOST, "localhost", "::1")


def _names_of(host: str) -> tuple[str, ...]:
    """The names, beside addresses, that requests may call the server by: of one on all addresses this machine's."""
    others = (platform.node(), socket.getfqdn()) if host in ("", "0.0.0.0", "::") else (host,)
    return ("localhost", *(name for name in others if not _is_own(name)))


def _listening(host: str, port: int | None) -> socket.socket:
    """A socket at this port; without one at the usual one, or where that is taken at any that is free."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    *others, last = (PORT, 0) if port is None else (port,)
    for each in others:
        with suppress(OSError):
            return socket.create_server((host, each), family=family)
    try:
        return socket.create_server((host, last), family=family)
    except OSError as error:
        where = f"{host}, port {port}" if port else host
        raise InputError(
            f"cannot serve at {where}: {error.strerror or error}; choose another --port or --host"
        ) from error
