"""The server: pages and values of runs that are read and never written; one request more where a job may be stopped."""

from __future__ import annotations

import secrets
from collections.abc import Collection
from functools import cache
from importlib import resources
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from results.files import encode_json
from results.report.page import PLOTLY_STYLE, PLOTLY_STYLE_ID, SCRIPTS, STYLES, fill, placeholders, plotly_script
from results.report.page import static as page_file
from results.run.stopping import stop
from results.server.content import Content
from results.server.guard import Guard
from results.server.shelf import JSON, Shelf
from search_spaces.errors import InputError, JobError

OWN = ("runs.html", "runs.js", "live.js")
PLOTLY = "plotly.js"
_KINDS = {"js": "text/javascript", "css": "text/css"}
_PATIENCE_SECONDS = 3


def server(app: ASGIApp) -> uvicorn.Server:
    """What listens for an application, until it is told to end."""
    config = uvicorn.Config(
        app,
        lifespan="off",
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=_PATIENCE_SECONDS,
    )
    return uvicorn.Server(config)


def application(shelf: Shelf, *, hosts: Collection[str] = ("localhost",), token: str | None = None) -> ASGIApp:
    """The server of these runs, for requests that call it by one of ``hosts`` or by an address.

    With a ``token`` those who know it may stop a job.
    """
    pages = _Pages(shelf, token)
    routes = [
        Route("/", pages.runs),
        Route("/runs.json", pages.rows),
        Route("/run/{name}", pages.run),
        Route("/run/{name}/report.json", pages.report),
        Route("/run/{name}/state.json", pages.state),
        Route("/run/{name}/stop", pages.stop, methods=["POST"]),
        Route("/static/{name}", pages.file),
    ]
    refused: dict[Any, Any] = {InputError: _refused, JobError: _refused}
    return Guard(Starlette(routes=routes, exception_handlers=refused), hosts)


class _Pages:
    """What is answered to which request."""

    def __init__(self, shelf: Shelf, token: str | None) -> None:
        self.shelf, self.token = shelf, token

    def runs(self, request: Request) -> Response:
        """The list of runs."""
        return HTMLResponse(_own_file("runs.html"))

    def rows(self, request: Request) -> Response:
        """Where every run stands."""
        return _json({"runs": self.shelf.rows()}).answer(request)

    def run(self, request: Request) -> Response:
        """The page of a run, which asks for its values by itself."""
        name = self._name(request)
        head = [
            f'<link rel="stylesheet" href="/static/{STYLES}">',
            f'<link rel="stylesheet" id="{PLOTLY_STYLE_ID}" class="no-inline-styles" href="/static/{PLOTLY_STYLE}">',
        ]
        scripts = [*placeholders(plotly_script())]
        scripts += [f'<script src="/static/{script}"></script>' for script in (PLOTLY, *SCRIPTS, "live.js")]
        if self.token is not None:
            scripts.insert(0, '<template id="may-stop"></template>')
        return HTMLResponse(fill(name, "reading the run", head, scripts))

    def report(self, request: Request) -> Response:
        """What the page shows."""
        return self.shelf.report(self._name(request)).answer(request)

    def state(self, request: Request) -> Response:
        """Where the run stands."""
        return _json(self.shelf.state(self._name(request))).answer(request)

    def stop(self, request: Request) -> Response:
        """End the job of a run, for those who know the token."""
        given = request.headers.get("authorization", "").removeprefix("Bearer ")
        if self.token is None or not secrets.compare_digest(given.encode(), self.token.encode()):
            why = "this server stops no job: start it with --allow-stop" if self.token is None else "wrong token"
            return JSONResponse({"error": why}, status_code=403)
        owner = stop(self.shelf.open(self._name(request)))
        return JSONResponse({"stopped": str(owner)})

    def file(self, request: Request) -> Response:
        """A script or a style of the pages, from the list of all there are."""
        name = request.path_params["name"]
        if name not in (PLOTLY, STYLES, PLOTLY_STYLE, *SCRIPTS, *OWN):
            raise HTTPException(404)
        return _file(name).answer(request)

    def _name(self, request: Request) -> str:
        """The run that a request asks for, which is one of those on the shelf."""
        name: Any = request.path_params["name"]
        if name not in self.shelf.runs():
            raise HTTPException(404, "there is no such run")
        return str(name)


def _json(value: Any) -> Content:
    return Content.of(encode_json(value, what="the answer"), JSON)


@cache
def _file(name: str) -> Content:
    text = plotly_script() if name == PLOTLY else _own_file(name) if name in OWN else page_file(name)
    return Content.of(text, _KINDS.get(name.rpartition(".")[2], "text/html"))


@cache
def _own_file(name: str) -> str:
    return resources.files("results.server").joinpath("static", name).read_text(encoding="utf-8")


def _refused(request: Request, error: Exception) -> Response:
    return JSONResponse({"error": str(error)}, status_code=409)
