"""Amounts as people write them, read without a network: the fields of a job file need them before PyTorch is loaded."""

from __future__ import annotations

import itertools
import math
import re
from numbers import Real
from typing import TYPE_CHECKING

from search_spaces.errors import InputError
from search_spaces.plain_json import LARGEST_FIGURE

if TYPE_CHECKING:
    from search_spaces.costs.kinds import Cost

MOST_READ = 1e15
"""Whole numbers beyond it are told as powers of ten."""
_SYMBOLS = {
    "bytes": ("B", "bytes"),
    "bits": ("bits",),
    "bit operations": ("BitOps", "bitops"),
    "multiply-accumulates": ("MACs", "macs"),
    "ms": ("ms",),
}
"""Unit of a cost → how it may be written behind an amount."""
_PATTERN = re.compile(
    r"\s*(?P<number>\d+(?:\.\d*)?|\.\d+)\s*(?:(?P<percent>%)(?:\s*of\s*(?P<reference>fp32|uniform\s*8))?"
    rf"|(?P<prefix>[kKMGT]i?)?\s*(?P<symbol>{'|'.join(itertools.chain(*_SYMBOLS.values()))})?)\s*"
)
_PREFIXES = {"": 1.0, "k": 1e3, "K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12} | {
    f"{letter}i": 1024.0**power for power, letters in enumerate(("kK", "M", "G", "T"), start=1) for letter in letters
}


def number_text(value: float) -> str:
    """Return a number with four digits, or all in front of the point where a person reads them.

    >>> number_text(12345.6), number_text(1.23456), number_text(1.23456e30)
    ('12,346', '1.235', '1.235e+30')
    """
    return f"{value:,.0f}" if 1000 <= abs(value) < MOST_READ else f"{value:.4g}"


def parse_amount(text: str | float, fp32: float, uniform8: float, cost: Cost | None = None) -> float:
    """Turn ``"12%"``, ``"50% of uniform8"``, ``"40 KiB"``, ``"1.5 GBitOps"`` or a number into the cost's unit.

    A unit that is not that of ``cost`` is refused; without a cost any unit is taken.

    >>> parse_amount("25%", fp32=400.0, uniform8=100.0), parse_amount("2 KiB", 0, 0), parse_amount(7, 0, 0)
    (100.0, 2048.0, 7.0)
    """
    amount = _number(text)
    if amount is None:
        found = _PATTERN.fullmatch(str(text))
        if not found:
            raise InputError(f"budget {text!r} is not an amount; write 40000, '40 KiB', '12%' or '50% of uniform8'")
        if cost is not None and found["symbol"]:
            _check_symbol(found["symbol"], text, cost)
        amount = float(found["number"])
        if found["percent"]:
            whole = uniform8 if (found["reference"] or "").startswith("uniform") else fp32
            if amount and not whole:
                raise InputError(
                    f"budget {text!r} is a share of nothing: {cost.name if cost else 'the cost'} is 0 there; give "
                    "another cost, or an amount of it"
                )
            amount *= whole / 100
        else:
            amount *= _PREFIXES[found["prefix"] or ""]
    if not 0 < amount <= LARGEST_FIGURE:
        raise InputError(f"budget {text!r} must be an amount above 0 and at most {LARGEST_FIGURE:g}")
    return amount


def _number(value: object) -> float | None:
    """A number of Python or numpy as a float; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, Real):
        return None
    try:
        return float(value)
    except OverflowError:
        return math.inf


def _check_symbol(symbol: str, text: str | float, cost: Cost) -> None:
    if symbol not in _SYMBOLS.get(cost.unit, (cost.unit,)):
        has = f"is in {cost.unit}" if cost.unit else "has no unit"
        raise InputError(
            f"budget {text!r}: '{symbol}' is no unit of {cost.name}, which {has}; write it without, or a percentage"
        )
