"""The compact header of a packed file: a description, as JSON has it, as a table of distinct values.

Every value stands once, behind all that it refers to; lists and objects refer to their parts by number, so there are no
cycles, and what is said of many layers is said once. The last value is the description. docs/packed-format.md tells the
bytes; ``dnas/runtime/runtime.c`` reads them too.
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Mapping
from typing import Any

NULL, FALSE, TRUE, INTEGER, DOUBLE, SINGLE, TEXT, JOINED, HEXADECIMAL, LIST, OBJECT = range(11)
"""The first byte of a value."""
MOST_PARTS = 50_000_000
"""Of a description, each counted as often as it is referred to: what reading may take of memory and time."""
_LEAST_JOINED = 6
_HEXADECIMAL = re.compile(r"(?:[0-9a-f]{2}){4,}")


def encode_nodes(value: Any) -> tuple[int, bytes]:
    """The number of distinct values of a description, and their bytes; the same description gives the same bytes.

    Raises :class:`ValueError` for what JSON has not, NaN, and integers beyond 64 bits.
    """
    table = _Table()
    table.add(value)
    return len(table.known), b"".join(table.known)


class _Table:
    """Distinct values by their bytes, in the order of writing."""

    def __init__(self) -> None:
        self.known: dict[bytes, int] = {}

    def add(self, value: Any) -> int:
        """The number of a value, written first where it is new."""
        data = self._bytes_of(value)
        return self.known.setdefault(data, len(self.known))

    def _bytes_of(self, value: Any) -> bytes:
        if value is None or isinstance(value, bool):
            return bytes([NULL if value is None else TRUE if value else FALSE])
        if isinstance(value, int):
            if not -(2**63) <= value < 2**63:
                raise ValueError(f"{value} is no integer of 64 bits")
            return bytes([INTEGER]) + _varint(2 * value if value >= 0 else -2 * value - 1)
        if isinstance(value, float):
            return _float(value)
        if isinstance(value, str):
            return self._text(value)
        if isinstance(value, Mapping):
            keys = self.add(list(map(str, value)))
            return bytes([OBJECT]) + _varint(keys) + self._numbers(value.values())
        if isinstance(value, (list, tuple)):
            return bytes([LIST]) + _varint(len(value)) + self._numbers(value)
        raise ValueError(f"a description has no {type(value).__name__}")

    def _numbers(self, values: Any) -> bytes:
        return b"".join([_varint(self.add(value)) for value in values])

    def _text(self, text: str) -> bytes:
        """Digests as bytes; a dotted name as that of its module and the rest, for modules have several."""
        if _HEXADECIMAL.fullmatch(text):
            return bytes([HEXADECIMAL]) + _varint(len(text) // 2) + bytes.fromhex(text)
        dot = text.rfind(".")
        if dot > 0 and len(text) >= _LEAST_JOINED:
            return bytes([JOINED]) + _varint(self.add(text[:dot])) + _varint(self.add(text[dot:]))
        data = text.encode()
        return bytes([TEXT]) + _varint(len(data)) + data


def _float(value: float) -> bytes:
    if not math.isfinite(value):
        raise ValueError(f"{value} is not a finite number")
    try:
        single = struct.pack("<f", value)
    except OverflowError:
        return bytes([DOUBLE]) + struct.pack("<d", value)
    exact = struct.unpack("<f", single)[0] == value
    return bytes([SINGLE]) + single if exact else bytes([DOUBLE]) + struct.pack("<d", value)


def _varint(number: int) -> bytes:
    """Seven bits a byte, the lowest first; the highest bit says that there are more."""
    found = bytearray()
    while number > 127:
        found.append(number & 127 | 128)
        number >>= 7
    return bytes([*found, number])


def decode_nodes(count: int, data: bytes) -> Any:
    """The description in these bytes; :class:`ValueError` for bytes that are none, or that stand for too much."""
    if not 0 < count <= len(data):
        raise ValueError("a header of no values, or of fewer bytes than values")
    reader = _Reader(data)
    for _ in range(count):
        value, parts = reader.value()
        if parts > MOST_PARTS:
            raise ValueError("a header that stands for too many values")
        reader.values.append(value)
        reader.parts.append(parts)
    if any(data[reader.at :]):
        raise ValueError("bytes behind the last value")
    return reader.values[-1]


class _Reader:
    """A position in the bytes, and what was read so far with how many parts each has."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0
        self.values: list[Any] = []
        self.parts: list[int] = []

    def value(self) -> tuple[Any, int]:
        """The next value."""
        (tag,) = self.take(1)
        if tag <= TRUE:
            return (None, False, True)[tag], 1
        if tag == INTEGER:
            folded = self.varint()
            return (folded >> 1) ^ -(folded & 1), 1
        if tag in (DOUBLE, SINGLE):
            (number,) = struct.unpack("<d" if tag == DOUBLE else "<f", self.take(8 if tag == DOUBLE else 4))
            if not math.isfinite(number):
                raise ValueError("a number that is not finite")
            return number, 1
        return self._text(tag) if tag in (TEXT, JOINED, HEXADECIMAL) else self._composed(tag)

    def _text(self, tag: int) -> tuple[str, int]:
        if tag == JOINED:
            parts = [self.reference(str) for _ in range(2)]
            text = "".join(parts)
        else:
            data = self.take(self.varint())
            text = data.decode("utf-8") if tag == TEXT else data.hex()
        return text, 1 + len(text) // 8

    def _composed(self, tag: int) -> tuple[Any, int]:
        if tag not in (LIST, OBJECT):
            raise ValueError(f"a value of the unknown kind {tag}")
        keys = self.reference(list) if tag == OBJECT else None
        numbers = [self.number() for _ in range(self._count() if keys is None else len(keys))]
        values = [self.values[number] for number in numbers]
        parts = 1 + sum(self.parts[number] for number in numbers)
        if keys is None:
            return values, parts
        if not all(isinstance(key, str) for key in keys) or len(set(keys)) < len(keys):
            raise ValueError("an object whose keys are not different texts")
        return dict(zip(keys, values, strict=True)), parts

    def _count(self) -> int:
        count = self.varint()
        if count > len(self.data) - self.at:
            raise ValueError("a list that is longer than the header")
        return count

    def take(self, count: int) -> bytes:
        """So many bytes."""
        found = self.data[self.at : self.at + count]
        if len(found) != count:
            raise ValueError("the header ends within a value")
        self.at += count
        return found

    def varint(self) -> int:
        """A number of up to 64 bits."""
        number = 0
        for shift in range(0, 64, 7):
            (byte,) = self.take(1)
            number |= (byte & 127) << shift
            if byte < 128:
                break
        else:
            raise ValueError("a number of too many bytes")
        if number >= 2**64:
            raise ValueError("a number beyond 64 bits")
        return number

    def number(self) -> int:
        """The number of an earlier value."""
        number = self.varint()
        if number >= len(self.values):
            raise ValueError("a value that refers to a later one")
        return number

    def reference(self, kind: type) -> Any:
        """An earlier value, of this type."""
        value = self.values[self.number()]
        if not isinstance(value, kind):
            raise ValueError(f"a value refers to another that is no {kind.__name__}")
        return value
