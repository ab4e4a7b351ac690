"""The packed file: planes, checksums, what any safetensors reader sees, and what is refused."""

from __future__ import annotations

import hashlib
import json
import os
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file

from results.packed.file import from_planes, read_packed, to_planes, write_packed
from results.packed.header import FORMAT
from search_spaces.errors import InputError, JobError

TENSORS = {
    "a.planes": np.arange(6, dtype=np.uint8).reshape(2, 3),
    "a.clip": np.array([0.25, 2.0], dtype=np.float32),
    "empty": np.zeros((0, 4), dtype=np.float32),
    "scalar": np.array(3.5, dtype=np.float32),
}
DESCRIPTION = {"layers": {"a": {"kind": "Lineär"}}, "profiles": {}}


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    path = tmp_path / "net.safetensors"
    write_packed(path, DESCRIPTION, TENSORS)
    return path


@given(st.integers(1, 16), st.integers(0, 40), st.data())
def test_planes_hold_codes_and_their_first_planes_the_high_bits(bits: int, count: int, data: st.DataObject) -> None:
    codes = np.array(data.draw(st.lists(st.integers(0, 2**bits - 1), min_size=count, max_size=count)), dtype=np.int64)
    planes = to_planes(codes, bits)
    assert planes.shape == (bits, -(-count // 8))
    for read in range(1, bits + 1):
        assert np.array_equal(from_planes(planes[:read], count), codes >> (bits - read))


@pytest.mark.parametrize("codes", [[4], [-1]])
def test_codes_that_do_not_fit_are_no_planes(codes: list[int]) -> None:
    with pytest.raises(ValueError, match="do not fit into 2 bits"):
        to_planes(np.array(codes), 2)


def test_what_is_written_is_read(packed: Path) -> None:
    found = read_packed(packed)
    assert found.description["layers"] == DESCRIPTION["layers"]
    assert set(found.tensors) == set(TENSORS)
    for name, tensor in TENSORS.items():
        assert found.tensors[name].dtype == tensor.dtype
        assert np.array_equal(found.tensors[name], tensor)
        assert found.tensors[name].shape == tensor.shape
    assert found.tensor_bytes == 6 + 8 + 0 + 4
    assert found.header_bytes % 8 == 0
    assert packed.stat().st_size == found.header_bytes + found.tensor_bytes


def test_any_safetensors_reader_reads_it(packed: Path) -> None:
    found = load_file(packed)
    assert all(np.array_equal(found[name], tensor) for name, tensor in TENSORS.items())


def test_other_types_are_not_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="F32, U8 only"):
        write_packed(tmp_path / "a", {}, {"a": np.zeros(3)})
    with pytest.raises(JobError, match="not a finite number"):
        write_packed(tmp_path / "a", {"a": float("nan")}, {})
    with pytest.raises(JobError, match="cannot write"):
        write_packed(tmp_path / "nowhere" / "a", {}, {})


def refusal(path: Path, data: bytes) -> str:
    path.write_bytes(data)
    with pytest.raises(InputError) as caught:
        read_packed(path)
    text = str(caught.value)
    assert text.startswith(str(path))
    assert "\n" not in text
    return text


def with_header(header: bytes, rest: bytes = b"") -> bytes:
    return struct.pack("<Q", len(header)) + header + rest


def signed(table: dict[str, Any], rest: bytes = b"", **metadata: Any) -> bytes:
    """A file with right checksums, whatever is in it."""
    net = json.dumps({"digests": {name: [hashlib.sha256(rest).hexdigest()[:16]] for name in table}})
    told = {"format": FORMAT, "header_sha256": "0" * 64, "net": net, **metadata}
    text = json.dumps({"__metadata__": told, **table}).encode()
    return with_header(text.replace(b"0" * 64, hashlib.sha256(text).hexdigest().encode(), 1), rest)


def test_what_is_not_a_packed_net(packed: Path, tmp_path: Path) -> None:
    for data in (b"", b"1234567", bytes(100), struct.pack("<Q", 2**63) + b"{}", struct.pack("<Q", 10**8 + 1)):
        assert "does not start with the length of a header" in refusal(packed, data)
    assert "its header of 99999999 bytes is not all there" in refusal(packed, struct.pack("<Q", 99_999_999) + b"{}")
    for header in (b"{}", b"[]", b"nonsense", b"\xff\xff", b'{"__metadata__":{}}', b'{"__metadata__":7}', b"[" * 9999):
        assert "its header is not that of one" in refusal(packed, with_header(header))
    other = {"format": "pt", "header_sha256": "", "net": ""}
    assert "its format is 'pt', not 'dnas.packed/1'" in refusal(
        packed, with_header(json.dumps({"__metadata__": other}).encode())
    )
    with pytest.raises(InputError, match="it is a folder; name a file"):
        read_packed(tmp_path)
    with pytest.raises(InputError, match="No such file"):
        read_packed(tmp_path / "gone")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match="it is a pipe or a device; name a file"):
        read_packed(tmp_path / "pipe")


def test_another_version_is_told(packed: Path) -> None:
    assert "has the format 'dnas.packed/4', this version of dnas reads 'dnas.packed/1', " in refusal(
        packed, signed({}, format="dnas.packed/4")
    )


def test_changes_are_told(packed: Path) -> None:
    data = packed.read_bytes()
    assert "the checksum of its header is wrong" in refusal(packed, data.replace(b"scalar", b"sca1ar"))
    assert "the checksum of its tensor '" in refusal(packed, data[:-1] + bytes([data[-1] ^ 1]))
    assert "is cut off: tensor" in refusal(packed, data[:-1])
    assert "1 bytes behind its tensors belong to none" in refusal(packed, data + b"x")


@pytest.mark.parametrize(
    "entry",
    [
        {"dtype": "F64", "shape": [1], "data_offsets": [0, 8]},
        {"dtype": "U8", "shape": [9], "data_offsets": [0, 8]},
        {"dtype": "U8", "shape": [-8], "data_offsets": [0, -8]},
        {"dtype": "U8", "shape": [8], "data_offsets": [8, 16]},
        {"dtype": "U8", "shape": [8.0], "data_offsets": [0, 8]},
        {"dtype": "U8", "shape": [True] * 3, "data_offsets": [0, 1]},
        {"dtype": "U8", "shape": [8], "data_offsets": [0]},
        {"dtype": ["U8"], "shape": [8], "data_offsets": [0, 8]},
        {"dtype": "U8", "shape": 8, "data_offsets": [0, 8]},
        {"dtype": "U8", "shape": [8] + [1] * 99, "data_offsets": [0, 8]},
        {"dtype": "U8"},
        7,
        None,
    ],
)
def test_a_table_that_does_not_fit_is_told_although_its_checksum_is_right(packed: Path, entry: Any) -> None:
    assert "its table does not fit tensor 'a'" in refusal(packed, signed({"a": entry}, bytes(8)))


def test_a_tensor_of_any_size_costs_nothing_before_it_is_there(packed: Path) -> None:
    entry = {"dtype": "U8", "shape": [2**60], "data_offsets": [0, 2**60]}
    assert "is cut off: tensor 'a'" in refusal(packed, signed({"a": entry}, bytes(8)))


def test_a_description_that_is_none_is_told(packed: Path) -> None:
    for net in ("", "NaN", "[" * 9999):
        assert "its description is not JSON" in refusal(packed, signed({}, net=net))
    assert "its description is not an object" in refusal(packed, signed({}, net="[]"))
    assert "the checksum of its header is wrong" in refusal(packed, signed({}, header_sha256="x"))
    assert "it has no checksums of its tensors" in refusal(packed, signed({}, net="{}"))


FUZZ = settings(max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


@FUZZ
@given(data=st.binary(max_size=300), length=st.none() | st.integers(0, 400))
def test_random_bytes_are_refused(packed: Path, data: bytes, length: int | None) -> None:
    assert refusal(packed, data if length is None else struct.pack("<Q", length) + data)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("whole") / "net"
    write_packed(path, DESCRIPTION, TENSORS)
    return path.read_bytes()


def test_bit_flips_are_refused(packed: Path, whole: bytes) -> None:
    for at in range(0, len(whole), 2):
        changed = bytearray(whole)
        changed[at] ^= 1 << (at % 7)
        assert refusal(packed, bytes(changed))


def test_truncations_are_refused(packed: Path, whole: bytes) -> None:
    for length in (*range(0, len(whole), 5), len(whole) - 1):
        assert refusal(packed, whole[:length])


@FUZZ
@given(st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), min_size=1, max_size=8))
def test_overwritten_bytes_are_refused_or_the_same(packed: Path, whole: bytes, changes: list[tuple[int, int]]) -> None:
    changed = bytearray(whole)
    for at, byte in changes:
        changed[at % len(whole)] = byte
    if bytes(changed) != whole:
        assert refusal(packed, bytes(changed))
