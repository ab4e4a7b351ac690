"""A body that is answered: packed once whoever asks, and not sent to who has it already."""

from __future__ import annotations

import gzip
import hashlib
from dataclasses import dataclass
from functools import cached_property

from starlette.requests import Request
from starlette.responses import Response


@dataclass(frozen=True)
class Content:
    """A body of a kind (its media type)."""

    body: bytes
    kind: str

    @classmethod
    def of(cls, text: str, kind: str) -> Content:
        """The text in UTF-8."""
        return cls(text.encode(), kind)

    @cached_property
    def tag(self) -> str:
        """What tells it from any other body."""
        return f'"{hashlib.sha256(self.body).hexdigest()[:32]}"'

    @cached_property
    def packed(self) -> bytes:
        """The body as gzip has it."""
        return gzip.compress(self.body, compresslevel=6, mtime=0)

    def answer(self, request: Request) -> Response:
        """The answer to a request; one without a body where it says that it has this one."""
        headers = {"ETag": self.tag, "Vary": "Accept-Encoding"}
        if request.headers.get("if-none-match") == self.tag:
            return Response(status_code=304, headers=headers)
        if "gzip" not in request.headers.get("accept-encoding", ""):
            return Response(self.body, media_type=self.kind, headers=headers)
        return Response(self.packed, media_type=self.kind, headers={**headers, "Content-Encoding": "gzip"})
