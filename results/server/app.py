"""The server: pages and values of runs that are read and never written; one request more where a job may be stopped."""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import AsyncIterator, Callable, Collection
from functools import cache
from importlib import resources
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from results.report.page import PLOTLY_STYLE, PLOTLY_STYLE_ID, SCRIPTS, STYLES, fill, placeholders, plotly_script
from results.report.page import static as page_file
from results.run.stopping import stop
from results.server.guard import Guard
from results.server.shelf import Shelf
from search_spaces.errors import InputError

OWN = ("runs.html", "runs.js", "live.js")
PLOTLY = "plotly.js"
_KINDS = {"js": "text/javascript", "css": "text/css"}
SECONDS_BETWEEN_LOOKS = 1.0
LOOKS_BETWEEN_SIGNS = 15


def application(
    shelf: Shelf, *, hosts: Collection[str] = (), token: str | None = None, interval: float = SECONDS_BETWEEN_LOOKS
) -> Starlette:
    """The server of these runs; with a ``token`` those who know it may stop a job.

    ``hosts`` are the names that it is called by (any without). A running job is looked at every ``interval`` seconds.
    """
    pages = _Pages(shelf, token, interval)
    routes = [
        Route("/", pages.runs),
        Route("/runs.json", pages.rows),
        Route("/run/{name}", pages.run),
        Route("/run/{name}/report.json", pages.report),
        Route("/run/{name}/events", pages.events),
        Route("/run/{name}/stop", pages.stop, methods=["POST"]),
        Route("/static/{name}", pages.file),
    ]
    middleware = [Middleware(Guard, hosts=hosts), Middleware(GZipMiddleware, minimum_size=1000)]
    app = Starlette(routes=routes, middleware=middleware, exception_handlers={InputError: _refused})
    app.state.closing = False
    return app


class _Pages:
    """What is answered to which request."""

    def __init__(self, shelf: Shelf, token: str | None, interval: float) -> None:
        self.shelf, self.token, self.interval = shelf, token, interval

    def runs(self, request: Request) -> Response:
        """The list of runs."""
        return HTMLResponse(_own_file("runs.html"))

    def rows(self, request: Request) -> Response:
        """Where every run stands."""
        return JSONResponse({"runs": self.shelf.rows()})

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
        found = self.shelf.report(self._name(request))
        tag = f'"{found["version"]}"'
        if request.headers.get("if-none-match") == tag:
            return Response(status_code=304, headers={"ETag": tag})
        return JSONResponse(found, headers={"ETag": tag})

    async def events(self, request: Request) -> Response:
        """Where the run stands, again whenever that has changed."""
        name = await run_in_threadpool(self._name, request)
        told = changes(self.shelf, name, self.interval, lambda: request.app.state.closing)
        return StreamingResponse(told, media_type="text/event-stream")

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
        text = plotly_script() if name == PLOTLY else _own_file(name) if name in OWN else page_file(name)
        return Response(text, media_type=_KINDS.get(name.rpartition(".")[2], "text/html"))

    def _name(self, request: Request) -> str:
        """The run that a request asks for, which is one of those on the shelf."""
        name: Any = request.path_params["name"]
        if name not in self.shelf.runs():
            raise HTTPException(404, "there is no such run")
        return str(name)


async def changes(
    shelf: Shelf, name: str, interval: float, closing: Callable[[], bool] = lambda: False
) -> AsyncIterator[str]:
    """Where a run stands, as server-sent events: at once, and again whenever it has changed.

    Until the run is gone, or the server is ``closing``.
    """
    last, looks = "", 0
    while not closing():
        try:
            state = await run_in_threadpool(shelf.state, name)
        except KeyError:
            return
        except InputError as error:
            state = {"version": str(error), "error": str(error)}
        if state["version"] != last:
            last = state["version"]
            yield f"data: {json.dumps(state)}\n\n"
        elif looks % LOOKS_BETWEEN_SIGNS == 0:
            yield ": still here\n\n"  # or nobody would notice that the reader is gone
        looks += 1
        await asyncio.sleep(interval)


@cache
def _own_file(name: str) -> str:
    return resources.files("results.server").joinpath("static", name).read_text(encoding="utf-8")


def _refused(request: Request, error: Exception) -> Response:
    return JSONResponse({"error": str(error)}, status_code=409)
