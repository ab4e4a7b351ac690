"""Budgets as people write them: absolute, or in % of fp32 or of uniform 8 bit; on one or several costs at once."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from search_spaces.costs.table import Cost, CostTable
from search_spaces.errors import InputError, check_type

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


@dataclass(frozen=True)
class Budget:
    """Upper limits on one or several costs, in their units; ``label`` is how the user wrote it."""

    limits: Mapping[str, float]
    label: str

    def check(self, table: CostTable) -> None:
        """Raise :class:`InputError` for a limit that is no amount, or on a cost that the table does not know."""
        for name, limit in self.limits.items():
            parse_amount(limit, 0.0, 0.0, table.require(name))

    def met_by(self, costs: Mapping[str, float]) -> bool:
        """Whether no limit is exceeded."""
        for name in self.limits:
            if name not in costs:
                raise InputError(f"budget '{self.label}' limits {name}, which the given costs lack: {', '.join(costs)}")
        return all(costs[name] <= limit for name, limit in self.limits.items())


def parse_amount(text: str | float, fp32: float, uniform8: float, cost: Cost | None = None) -> float:
    """Turn ``"12%"``, ``"50% of uniform8"``, ``"40 KiB"``, ``"1.5 GBitOps"`` or a number into the cost's unit.

    A unit that is not that of ``cost`` is refused; without a cost any unit is taken.

    >>> parse_amount("25%", fp32=400.0, uniform8=100.0), parse_amount("2 KiB", 0, 0), parse_amount(7, 0, 0)
    (100.0, 2048.0, 7.0)
    """
    if isinstance(text, (int, float, np.integer, np.floating)) and not isinstance(text, bool):
        try:
            amount = float(text)
        except OverflowError:
            amount = math.inf
    else:
        found = _PATTERN.fullmatch(str(text))
        if not found:
            raise InputError(f"budget {text!r} is not an amount; write 40000, '40 KiB', '12%' or '50% of uniform8'")
        if cost is not None and found["symbol"]:
            _check_symbol(found["symbol"], text, cost)
        amount = float(found["number"])
        if found["percent"]:
            amount *= (uniform8 if (found["reference"] or "").startswith("uniform") else fp32) / 100
        else:
            amount *= _PREFIXES[found["prefix"] or ""]
    if not math.isfinite(amount) or amount <= 0:
        raise InputError(f"budget {text!r} must be a finite amount above 0")
    return amount


def _check_symbol(symbol: str, text: str | float, cost: Cost) -> None:
    if symbol not in _SYMBOLS.get(cost.unit, (cost.unit,)):
        has = f"is in {cost.unit}" if cost.unit else "has no unit"
        raise InputError(
            f"budget {text!r}: '{symbol}' is no unit of {cost.name}, which {has}; write it without, or a percentage"
        )


def parse_budget(
    entry: Mapping[str, str | float] | Budget, table: CostTable, own: Mapping[str, float] | None = None
) -> Budget:
    """Read one budget of a job file, such as ``{size_bytes = "12%", bitops = "5%"}``; one that is read stays as it is.

    A plain percentage is of fp32, or of the costs ``own`` where these are given.
    """
    check_type(table, CostTable, "the table of a budget", "give CostTable(graph, space, build_costs())")
    if isinstance(entry, Budget):
        entry.check(table)
        return entry
    if not isinstance(entry, Mapping):
        raise InputError(f"budget {entry!r} does not say of which cost; write for example {{ size_bytes = '12%' }}")
    if not entry:
        raise InputError("a budget is empty; write for example { size_bytes = '12%' }")
    limits = {}
    for name, amount in entry.items():
        cost = table.require(name)
        fp32 = uniform8 = 0.0
        if "%" in str(amount):  # asked for only then: a latency table need not hold these widths
            fp32, uniform8 = (table.uniform(bits, [name])[name] for bits in (32, 8))
        if own is not None and "of" not in str(amount):
            fp32 = own[name]
        limits[name] = parse_amount(amount, fp32, uniform8, cost)
    return Budget(limits, " & ".join(f"{name} {amount}" for name, amount in entry.items()))
