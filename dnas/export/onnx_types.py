"""The integer types of ONNX, and integers as it stores them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from search_spaces.errors import InputError

_WEIGHT_WIDTHS = (2, 4, 8, 16)
INPUT_WIDTHS = (8, 16)
"""ONNX Runtime's optimizer fails on, or miscalculates, QuantizeLinear to fewer bits behind Clip, Relu or Reshape."""


def packed(codes: np.ndarray, kind: str) -> bytes:
    """Integers as ONNX stores them: little-endian, the first of several in one byte in its lowest bits.

    >>> packed(np.array([1, -1, 0, -2, 1]), "INT2").hex()
    '8d01'
    """
    bits = int(kind.lstrip("UINT"))
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
    bits = int(kind.lstrip("UINT"))
    return (0, 2**bits - 1) if kind.startswith("U") else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)


def holds(kind: str, low: int, high: int) -> bool:
    """Whether an ONNX type holds the integers from ``low`` to ``high``."""
    least, most = type_range(kind)
    return least <= low and high <= most


def integer_type(low: int, high: int, widths: Sequence[int] = _WEIGHT_WIDTHS) -> str:
    """The smallest ONNX type of these widths that holds the integers from ``low`` to ``high``.

    >>> integer_type(-1, 1), integer_type(0, 7), integer_type(-31, 31)
    ('INT2', 'UINT4', 'INT8')
    """
    prefix = "INT" if low < 0 else "UINT"
    for bits in widths:
        if holds(f"{prefix}{bits}", low, high):
            return f"{prefix}{bits}"
    raise InputError(f"no integer type of ONNX holds the codes from {low} to {high}")
