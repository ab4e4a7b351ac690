"""The compact header: any JSON comes back as it was, equal parts are written once, and hostile bytes are refused."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from results.packed.file import read_packed, write_packed
from results.packed.nodes import HEXADECIMAL, INTEGER, JOINED, LIST, OBJECT, TEXT, decode_nodes, encode_nodes
from search_spaces.errors import InputError

NUMBERS = st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False, allow_infinity=False)
SCALARS = st.none() | st.booleans() | NUMBERS | st.text() | st.from_regex(r"[a-f0-9]{4,20}|[a-z]{0,9}\.[a-z.]{0,9}")
JSON = st.recursive(SCALARS, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=30)


def same(a: Any, b: Any) -> bool:
    """Types too: 1, 1.0 and True are equal in Python."""
    return json.dumps(a) == json.dumps(b)


@settings(deadline=None)
@given(JSON)
def test_what_is_written_is_read(value: Any) -> None:
    count, data = encode_nodes(value)
    assert same(decode_nodes(count, data), value)
    assert same(decode_nodes(count, data + bytes(7)), value)
    assert encode_nodes(value) == (count, data)


def test_equal_parts_are_written_once_and_digests_as_bytes() -> None:
    grid = {"scale": 7.5, "offset": 8.0, "top": 15.0}
    once, often = (len(encode_nodes({f"layer{at}.grid": grid for at in range(n)})[1]) for n in (1, 11))
    assert often - once < 10 * 20
    assert len(encode_nodes("0123456789abcdef" * 4)[1]) == 2 + 32
    assert [encode_nodes(text)[1][-4] for text in ("0ab", "0aB1cdef")] != [HEXADECIMAL] * 2


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 2**63, {1, 2}, b"x"])
def test_what_json_has_not_is_not_written(value: Any) -> None:
    with pytest.raises(ValueError, match=r"no|not"):
        encode_nodes(value)


def bomb(levels: int) -> tuple[int, bytes]:
    """Lists of two equal lists of two equal lists: few bytes that stand for 2**levels values."""
    parts = [bytes([LIST, 0]), *(bytes([LIST, 2, at, at]) for at in range(levels))]
    return len(parts), b"".join(parts)


HOSTILE: dict[str, tuple[int, bytes]] = {
    "nothing": (0, b""),
    "more values than bytes": (5, b"\0\0"),
    "a later value": (1, bytes([LIST, 1, 0])),
    "a list of any length": (1, bytes([LIST, 255, 255, 255, 127])),
    "a text of any length": (1, bytes([TEXT, 255, 255, 255, 255, 127]) + b"a"),
    "a number without an end": (1, bytes([INTEGER]) + b"\xff" * 30),
    "a number beyond 64 bits": (1, bytes([INTEGER]) + b"\xff" * 9 + b"\x7f"),
    "an unknown kind": (1, bytes([11])),
    "no text joined": (2, bytes([INTEGER, 0, JOINED, 0, 0])),
    "no list of keys": (2, bytes([INTEGER, 0, OBJECT, 0])),
    "keys that are none": (3, bytes([INTEGER, 0, LIST, 1, 0, OBJECT, 1, 0])),
    "keys that are equal": (3, bytes([TEXT, 1, 97, LIST, 2, 0, 0, OBJECT, 1, 0, 0])),
    "no UTF-8": (1, bytes([TEXT, 1, 255])),
    "a number that is none": (1, bytes([5]) + struct.pack("<f", float("nan"))),
    "something behind": (1, b"\0\0\1"),
    "too many values": bomb(60),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_bytes_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r" "):
        decode_nodes(*HOSTILE[name])


def test_texts_that_double_are_refused() -> None:
    doubled = [bytes([TEXT, 1, 97]), *(bytes([JOINED, at, at]) for at in range(60))]
    with pytest.raises(ValueError, match="too many values"):
        decode_nodes(len(doubled), b"".join(doubled))


@settings(deadline=None, max_examples=200)
@given(st.integers(0, 40), st.binary(max_size=60))
def test_random_bytes_are_refused_or_a_description_that_can_be_written(count: int, data: bytes) -> None:
    try:
        value = [decode_nodes(count, data)]
    except ValueError:
        value = []  # refused, and in no other way
    assert [decode_nodes(*encode_nodes(each)) for each in value] == value


@pytest.fixture
def compact(tmp_path: Path) -> Path:
    path = tmp_path / "net.dnas"
    write_packed(path, {"layers": {}, "profiles": {}}, {"a": np.ones((2, 3), np.float32), "b": np.zeros(5, np.uint8)})
    return path


def refusal(path: Path, data: bytes) -> str:
    path.write_bytes(data)
    with pytest.raises(InputError) as caught:
        read_packed(path)
    assert str(caught.value).startswith(str(path))
    return str(caught.value)


def test_a_compact_file_is_read_and_its_changes_are_told(compact: Path) -> None:
    found, data = read_packed(compact), compact.read_bytes()
    assert {name: tensor.shape for name, tensor in found.tensors.items()} == {"a": (2, 3), "b": (5,)}
    assert len(data) == found.header_bytes + 29
    assert found.header_bytes % 8 == 0
    for end in range(len(data)):
        assert "is cut off" in refusal(compact, data[:end]) or end < 8
    assert "behind its tensors belong to none" in refusal(compact, data + b"x")
    for at in range(len(data)):
        changed = bytearray(data)
        changed[at] ^= 1
        refusal(compact, bytes(changed))
    assert "this version of dnas reads" in refusal(compact, data[:8] + struct.pack("<I", 4) + data[12:])


def test_the_name_says_whether_the_header_is_json(tmp_path: Path) -> None:
    for name, start in (("a.safetensors", b"{"), ("a.dnas", b"\3"), ("a", b"\3")):
        write_packed(tmp_path / name, {"profiles": {}}, {})
        assert (tmp_path / name).read_bytes()[8:9] == start
        assert read_packed(tmp_path / name).description["profiles"] == {}
