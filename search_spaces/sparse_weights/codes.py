"""How a layer's sparse codes are stored: exact sizes, and encoders and decoders of exactly these sizes.

Codes are integers, zero for a weight that is not there. Folded (0, -1, 1, -2, ... become 0, 1, 2, 3, ...) a code is a
*symbol*; what is not zero is stored as symbol - 1. With N codes of which Z are not zero, v value bits and d dense bits:

``dense``       N d                       every symbol
``bitmask``     N + Z v                   which codes are not zero, then their values
``relative-i``  (Z + E) i + Z v           zeros before each value in i bits; E counts the fillers: the largest index,
                                          2^i - 1, means as many zeros and no value (Han et al., arXiv 1510.00149,
                                          whose filler is a zero value: there is no such value here)
``csr``         R p + Z c + Z v           where each of the R rows ends (p bits hold N), the column of each value

in bits; a tensor is rounded up to a byte. d = v where zero is one of the 2^v levels (two's complement); d = v + 1 where
there are 2^v levels beside it, as in SQuantizer (arXiv 1812.08301). The format, its index width and Z are in the
assignment file, N and R follow from the network: none of them is counted.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import cast

import numpy as np

from search_spaces.errors import InputError

DENSE, BITMASK, CSR, RELATIVE = "dense", "bitmask", "csr", "relative"
INDEX_BITS = range(2, 17)
"""Index widths that ``relative`` is tried with."""


@dataclass(frozen=True)
class Storage:
    """One format with the bits it takes; ``format`` is its tag, such as ``bitmask`` or ``relative-4``."""

    format: str
    bits: int

    @property
    def bytes(self) -> int:
        """The size in bytes, rounded up."""
        return -(-self.bits // 8)


def storages(codes: np.ndarray, value_bits: int, dense_bits: int | None = None) -> list[Storage]:
    """The size of ``codes`` (R, ...) in every format; ``dense_bits`` is ``value_bits`` unless given."""
    flat, rows = codes.reshape(-1), _rows(codes.shape)
    count, places = flat.size, np.flatnonzero(flat)
    values = places.size * value_bits
    found = [
        Storage(DENSE, count * (value_bits if dense_bits is None else dense_bits)),
        Storage(BITMASK, count + values),
        Storage(CSR, rows * count.bit_length() + places.size * _column_bits(codes.shape) + values),
    ]
    gaps = np.diff(places, prepend=-1) - 1
    for width in INDEX_BITS:
        fillers = int((gaps // (2**width - 1)).sum())
        found.append(Storage(f"{RELATIVE}-{width}", (places.size + fillers) * width + values))
    return found


def smallest(codes: np.ndarray, value_bits: int, dense_bits: int | None = None) -> Storage:
    """The format with the fewest bytes; of equal ones the first in the order dense, bitmask, csr, relative."""
    return min(storages(codes, value_bits, dense_bits), key=lambda storage: storage.bytes)


def encode(codes: np.ndarray, format: str, value_bits: int, dense_bits: int | None = None) -> bytes:
    """The bytes of ``codes`` (R, ...) in one format; :class:`InputError` for a code that its bits cannot hold."""
    kind, width = _parsed(format)
    flat = codes.reshape(-1).astype(np.int64)
    symbols = np.where(flat < 0, -2 * flat - 1, 2 * flat)
    places = np.flatnonzero(flat)
    if kind == DENSE:
        return _packed([_bits(symbols, value_bits if dense_bits is None else dense_bits)])
    values = _bits(symbols[places] - 1, value_bits)
    if kind == BITMASK:
        return _packed([(flat != 0).astype(np.uint8), values])
    if kind == CSR:
        rows, columns = _rows(codes.shape), _columns(codes.shape)
        ends = np.searchsorted(places, np.arange(1, rows + 1) * columns)
        return _packed(
            [_bits(ends, flat.size.bit_length()), _bits(places % columns, _column_bits(codes.shape)), values]
        )
    filler = 2**width - 1
    gaps = np.diff(places, prepend=-1) - 1
    indices = np.full(int((gaps // filler + 1).sum()), filler)
    indices[np.cumsum(gaps // filler + 1) - 1] = gaps % filler
    return _packed([_bits(indices, width), values])


def decode(
    data: bytes, format: str, shape: tuple[int, ...], nonzeros: int, value_bits: int, dense_bits: int | None = None
) -> np.ndarray:
    """The codes (int64, of this shape) that :func:`encode` was given; ``nonzeros`` of them are not zero."""
    kind, width = _parsed(format)
    count = math.prod(shape)
    bits = np.unpackbits(np.frombuffer(data, dtype=np.uint8))
    if kind == DENSE:
        return _unfolded(_integers(bits, count, value_bits if dense_bits is None else dense_bits)).reshape(shape)
    if kind == BITMASK:
        places, start = np.flatnonzero(bits[:count]), count
    elif kind == CSR:
        places, start = _csr_places(bits, shape, nonzeros)
    else:
        places, start = _relative_places(bits, width, nonzeros)
    flat = np.zeros(count, dtype=np.int64)
    flat[places] = _unfolded(_integers(bits[start:], nonzeros, value_bits) + 1)
    return flat.reshape(shape)


def _csr_places(bits: np.ndarray, shape: tuple[int, ...], nonzeros: int) -> tuple[np.ndarray, int]:
    rows, wide, narrow = _rows(shape), math.prod(shape).bit_length(), _column_bits(shape)
    ends = _integers(bits, rows, wide)
    columns = _integers(bits[rows * wide :], nonzeros, narrow)
    row = np.repeat(np.arange(rows), np.diff(ends, prepend=0))
    return row * _columns(shape) + columns, rows * wide + nonzeros * narrow


def _relative_places(bits: np.ndarray, width: int, nonzeros: int) -> tuple[np.ndarray, int]:
    indices = _integers(bits, bits.size // width, width)  # beyond the last index these are values, and not looked at
    filler = 2**width - 1
    ends = np.flatnonzero(indices != filler)[:nonzeros]
    used = int(ends[-1]) + 1 if nonzeros else 0
    steps = indices[:used] + (indices[:used] != filler)
    return np.cumsum(steps)[ends] - 1, used * width


def is_format(format: str) -> bool:
    """Whether this is the tag of a format."""
    return _kind(format) is not None


def _kind(format: str) -> tuple[str, int] | None:
    """The kind of a format, and its index width (0 where it has none); None for anything else."""
    found = re.fullmatch(rf"{RELATIVE}-(\d{{1,3}})", format)
    if found and int(found[1]) in INDEX_BITS:
        return RELATIVE, int(found[1])
    return (format, 0) if format in (DENSE, BITMASK, CSR) else None


def _parsed(format: str) -> tuple[str, int]:
    """The kind of a format and its index width; :class:`InputError` for what is none."""
    found = _kind(format)
    if found is None:
        raise InputError(
            f"'{format}' is not a format of sparse codes; there are {DENSE}, {BITMASK}, {CSR} "
            f"and {RELATIVE}-{INDEX_BITS[0]} to {RELATIVE}-{INDEX_BITS[-1]}"
        )
    return found


def _rows(shape: tuple[int, ...]) -> int:
    return shape[0] if shape else 1


def _columns(shape: tuple[int, ...]) -> int:
    return math.prod(shape[1:])


def _column_bits(shape: tuple[int, ...]) -> int:
    return max(0, _columns(shape) - 1).bit_length()


def _bits(values: np.ndarray, width: int) -> np.ndarray:
    """The bits (M * width,) of M integers, the highest first."""
    if values.size and int(values.max()) >> width:
        raise InputError(f"a code of {int(values.max())} does not fit into {width} bits")
    return cast(np.ndarray, (values[:, None] >> np.arange(width - 1, -1, -1)) & 1).astype(np.uint8).reshape(-1)


def _integers(bits: np.ndarray, count: int, width: int) -> np.ndarray:
    """The first ``count`` integers of ``width`` bits."""
    weights = 1 << np.arange(width - 1, -1, -1, dtype=np.int64)
    return cast(np.ndarray, bits[: count * width].reshape(count, width).astype(np.int64) @ weights)


def _unfolded(symbols: np.ndarray) -> np.ndarray:
    return np.where(symbols % 2, -(symbols + 1) // 2, symbols // 2)


def _packed(parts: list[np.ndarray]) -> bytes:
    return np.packbits(np.concatenate(parts)).tobytes()
