"""The integer types of ONNX, and integers as it stores them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def bits_of(kind: str) -> int:
    """The width of an integer type.

    >>> bits_of("UINT4")
    4
    """
    return int(kind.lstrip("UINT"))


def packed(codes: np.ndarray, kind: str) -> bytes:
    """Integers as ONNX stores them: little-endian, the first of several in one byte in its lowest bits.

    >>> packed(np.array([1, -1, 0, -2, 1]), "INT2").hex()
    '8d01'
    """
    bits = bits_of(kind)
    flat = codes.reshape(-1).astype(np.int64) & (2**bits - 1)
    if bits >= 8:
        return flat.astype(f"<u{bits // 8}").tobytes()
    padded = np.zeros(-(-flat.size * bits // 8) * 8 // bits, dtype=np.int64)
    padded[: flat.size] = flat
    shifts = np.arange(0, 8, bits)
    return (padded.reshape(-1, 8 // bits) << shifts).sum(1).astype(np.uint8).tobytes()


def type_range(kind: str) -> tuple[int, int]:
    """The least and the greatest integer of an ONNX type.

    >>> type_range("INT4"), type_range("UINT2")
    ((-8, 7), (0, 3))
    """
    bits = bits_of(kind)
    return (0, 2**bits - 1) if kind.startswith("U") else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)


def holds(kind: str, low: int, high: int) -> bool:
    """Whether an ONNX type holds the integers from ``low`` to ``high``."""
    least, most = type_range(kind)
    return least <= low and high <= most


def first_holding(kinds: Sequence[str], low: int, high: int) -> str:
    """The first of these ONNX types that holds the integers from ``low`` to ``high``; empty where none does.

    >>> first_holding(("INT2", "INT4", "INT8"), -8, 7), first_holding(("UINT8", "INT8"), 0, 256)
    ('INT4', '')
    """
    return next((kind for kind in kinds if holds(kind, low, high)), "")
