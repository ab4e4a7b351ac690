"""Standard output: tables and sentences for people, JSON for programs."""

from __future__ import annotations

import json
import os
import sys
from typing import Any

from rich.console import Console, RenderableType

from results.units import amount_text as amount_text

PIPED_WIDTH = 200


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
        console.print(part, soft_wrap=isinstance(part, str), markup=False, highlight=False)


def show_json(data: Any) -> None:
    """Print one JSON document, the only thing on standard output with ``--json``."""
    print(json.dumps(data, indent=2, ensure_ascii=False))


def tell(sentence: str) -> None:
    """Print a sentence on stderr."""
    print(sentence, file=sys.stderr)
