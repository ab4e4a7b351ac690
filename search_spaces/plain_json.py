"""Strict JSON of files that anybody may have written: numbers to compute with, nesting that can be followed."""

from __future__ import annotations

import json
from typing import Any

LARGEST_WHOLE = 2**63
LARGEST_FIGURE = 1e100
"""Beyond it nothing was measured, and products of figures would overflow."""
DEEPEST = 64
MOST_VALUES = 5_000_000
"""Each takes some hundred bytes of memory, whatever it takes in the text."""


def parse_json(text: str | bytes) -> Any:
    """Parse JSON; ValueError for NaN, infinities, numbers out of all proportion and nesting beyond what files have.

    >>> parse_json("[1, 2.5e9]")
    [1, 2500000000.0]
    """
    raw = text if isinstance(text, bytes) else text.encode(errors="surrogatepass")
    brackets = raw.count(b"[") + raw.count(b"{")
    if brackets + raw.count(b",") > MOST_VALUES:
        raise ValueError("it holds too many values")
    try:
        found = json.loads(text, parse_constant=_refuse, parse_float=_figure, parse_int=_whole)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    if brackets > DEEPEST and _too_deep(found):
        raise ValueError("it is nested too deeply")
    if b"\\ud" in raw.lower():  # it may be half a letter, which nobody can write
        json.dumps(found, ensure_ascii=False).encode()
    return found


def _whole(text: str) -> int:
    if len(text) > 20 or abs(value := int(text)) > LARGEST_WHOLE:
        return _refuse(text)
    return value


def _figure(text: str) -> float:
    value = float(text)
    if not abs(value) <= LARGEST_FIGURE:
        return _refuse(text)
    return value


def _refuse(text: str) -> Any:
    raise ValueError(f"{text if len(text) < 20 else text[:17] + '...'} is not a number that can be used")


def _too_deep(data: Any) -> bool:
    level = [data]
    for _ in range(DEEPEST):
        level = [value for each in level for value in _inside(each) if isinstance(value, dict | list)]
        if not level:
            return False
    return True


def _inside(data: Any) -> Any:
    return data.values() if isinstance(data, dict) else data if isinstance(data, list) else ()
