"""Standard output: tables and sentences for people, JSON for programs."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from contextvars import ContextVar
from typing import Any, TextIO

from rich.console import Console, RenderableType

from results.units import amount_text as amount_text

PIPED_WIDTH = 200
_document_stream: ContextVar[TextIO | None] = ContextVar("_document_stream", default=None)


class PipeConsole(Console):
    """A console that leaves a closed pipe to its caller, who knows what is still to be done."""

    def on_broken_pipe(self) -> None:
        """Raise the BrokenPipeError that is being handled."""
        raise


def show(*parts: RenderableType) -> None:
    """Print sentences and tables; in a pipe nothing is folded to the width of a terminal that is not there."""
    wide = None if sys.stdout.isatty() or "COLUMNS" in os.environ else PIPED_WIDTH
    console = PipeConsole(width=wide)
    for part in parts:
        console.print(part, soft_wrap=isinstance(part, str), markup=False, highlight=False, crop=False)


@contextmanager
def one_document() -> Iterator[None]:
    """Send to stderr what is printed meanwhile, such as by the user's own network, but for :func:`show_json`."""
    token = _document_stream.set(sys.stdout)
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        _document_stream.reset(token)


def show_json(data: Any) -> None:
    """Print one JSON document, the only thing on standard output with ``--json``."""
    stream = _document_stream.get() or sys.stdout
    in_unicode = (stream.encoding or "utf-8").lower().startswith("utf")  # where not, JSON has an escape for the rest
    print(json.dumps(data, indent=2, ensure_ascii=not in_unicode), file=stream)


def tell(sentence: str) -> None:
    """Print a sentence on stderr."""
    print(sentence, file=sys.stderr)
