"""An application that listens, until it is told to end."""

from __future__ import annotations

import socket

import uvicorn
from starlette.applications import Starlette

_PATIENCE_SECONDS = 3


class Server(uvicorn.Server):
    """Lets streams end by themselves when it is told to end, or it would have to break them off."""

    def __init__(self, app: Starlette) -> None:
        super().__init__(
            uvicorn.Config(app, log_level="warning", access_log=False, timeout_graceful_shutdown=_PATIENCE_SECONDS)
        )
        self.app = app

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Say that it ends, then wait for what is still answered."""
        self.app.state.closing = True
        await super().shutdown(sockets)
