"""Standard output: tables and sentences for people, JSON for programs."""

from __future__ import annotations

import json
import os
import sys
from typing import Any

from rich.console import Console, RenderableType

from results.units import scaled_unit

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


def amount_text(cost: str, value: float) -> str:
    """Return a cost as a person reads it.

    >>> amount_text("size_bytes", 300_000), amount_text("weight_bits", 1_069_056)
    ('293 KiB', '1,069,056')
    """
    unit = scaled_unit(cost, value)
    scaled = value / unit.divisor
    number = f"{scaled:,.0f}" if scaled >= 1000 else f"{scaled:.4g}"
    return f"{number} {unit.symbol}".rstrip()
