"""Costs and measurements as a person reads them: one place that knows a name's unit, for axes, tables and sentences."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from search_spaces.costs.amounts import number_text as number_text
from search_spaces.metrics import Metric

Item = TypeVar("Item")
MEASURED_LATENCY = "measured_latency_ms"
"""What a net took where it will run, beside ``latency_ms``, what the job's table says of it."""

_STEPS: dict[str, tuple[str, tuple[tuple[float, str], ...]]] = {
    "size_bytes": ("size", ((1, "B"), (2**10, "KiB"), (2**20, "MiB"), (2**30, "GiB"))),
    "size_bytes_without_index": (
        "size without index",
        ((1, "B"), (2**10, "KiB"), (2**20, "MiB"), (2**30, "GiB")),
    ),
    "peak_activation_bytes": ("peak activation memory", ((1, "B"), (2**10, "KiB"), (2**20, "MiB"), (2**30, "GiB"))),
    "bitops": (
        "bit operations",
        ((1, "BitOps"), (1e3, "kBitOps"), (1e6, "MBitOps"), (1e9, "GBitOps"), (1e12, "TBitOps")),
    ),
    "macs": ("multiply-accumulates", ((1, "MACs"), (1e3, "kMACs"), (1e6, "MMACs"), (1e9, "GMACs"))),
    "latency_ms": ("latency", ((1, "ms"),)),
    MEASURED_LATENCY: ("measured latency", ((1, "ms"),)),
}


@dataclass(frozen=True)
class Unit:
    """How to show a cost: divide by ``divisor``, then write ``symbol`` (empty for a cost without a known unit)."""

    quantity: str
    symbol: str
    divisor: float

    @property
    def axis_label(self) -> str:
        """The label of an axis in this unit."""
        return f"{self.quantity} ({self.symbol})" if self.symbol else self.quantity


def scaled_unit(cost: str, largest: float) -> Unit:
    """Return the unit in which the ``largest`` value of this cost is a number of at least two digits, where it can.

    >>> scaled_unit("size_bytes", 300_000).axis_label
    'size (KiB)'
    """
    quantity, steps = _STEPS.get(cost, (cost.replace("_", " "), ((1, ""),)))
    divisor, symbol = next(((d, s) for d, s in reversed(steps) if abs(largest) >= 10 * d), steps[0])
    return Unit(quantity, symbol, divisor)


def amount_text(cost: str, value: float) -> str:
    """Return a cost as a person reads it.

    >>> amount_text("size_bytes", 300_000), amount_text("weight_bits", 1_069_056)
    ('293 KiB', '1,069,056')
    """
    unit = scaled_unit(cost, value)
    return f"{number_text(value / unit.divisor)} {unit.symbol}".rstrip()


def measured(metric: Metric, mean: float, std: float, n: int) -> str:
    """A figure over ``n`` seeds as it is shown, without its unit."""
    return metric.number(mean) if n == 1 else f"{metric.number(mean)} ±{metric.number(std)}"


def duration_text(seconds: float) -> str:
    """Say a duration in its two largest units.

    >>> duration_text(5.4), duration_text(7384), duration_text(90000)
    ('5 s', '2 h 3 min', '1 d 1 h')
    """
    whole = round(seconds)
    for unit, size, next_unit, next_size in (("d", 86400, "h", 3600), ("h", 3600, "min", 60), ("min", 60, "s", 1)):
        if whole >= size:
            return f"{whole // size} {unit} {whole % size // next_size} {next_unit}"
    return f"{whole} s"


def share_text(fraction: float, seconds_left: float | None) -> str:
    """Say how much is done and how long the rest takes.

    >>> share_text(0.25, 200)
    '25 % done, 3 min 20 s left'
    """
    left = "" if seconds_left is None else f", {duration_text(seconds_left)} left"
    return f"{100 * fraction:.0f} % done{left}"


def spread(items: Sequence[Item], most: int) -> list[Item]:
    """``most`` of the items at even distances, the first and the last among them; all where there are no more.

    >>> spread(range(9), 3)
    [0, 4, 8]
    """
    if len(items) <= most:
        return list(items)
    return [items[round(place * (len(items) - 1) / (most - 1))] for place in range(most)]
