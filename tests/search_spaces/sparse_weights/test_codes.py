"""Sparse storage: every format gives back what it was given, in exactly the bytes that its size function says."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from search_spaces.errors import InputError
from search_spaces.sparse_weights.codes import Storage, decode, encode, smallest, storages


@st.composite
def sparse_codes(draw: st.DrawFn) -> tuple[np.ndarray, int, int]:
    """Codes of any shape and density, their value bits and dense bits; every value that the bits can hold."""
    bits = draw(st.integers(1, 8))
    beside_zero = draw(st.booleans())  # 2^b values beside zero, or zero as one of them
    shape = tuple(draw(st.lists(st.integers(1, 9), min_size=1, max_size=4)))
    density = draw(st.sampled_from([0.0, 0.01, 0.1, 0.5, 0.9, 1.0]))
    generator = np.random.default_rng(draw(st.integers(0, 2**32)))
    half = 2 ** (bits - 1)
    codes = generator.integers(-half, half, size=shape)
    if beside_zero:
        codes = np.where(codes >= 0, codes + 1, codes)
    return codes * (generator.random(shape) < density), bits, bits + beside_zero


@given(sparse_codes())
def test_every_format_gives_back_the_codes_in_as_many_bytes_as_said(given: tuple[np.ndarray, int, int]) -> None:
    codes, value_bits, dense_bits = given
    for storage in storages(codes, value_bits, dense_bits):
        data = encode(codes, storage.format, value_bits, dense_bits)
        assert len(data) == storage.bytes
        back = decode(data, storage.format, codes.shape, np.count_nonzero(codes), value_bits, dense_bits)
        assert np.array_equal(back, codes)


@given(sparse_codes())
def test_the_smallest_is_never_larger_than_dense_and_a_bitmask_only_where_it_pays(
    given: tuple[np.ndarray, int, int],
) -> None:
    codes, bits, dense_bits = given
    best = smallest(codes, bits, dense_bits)
    found = storages(codes, bits, dense_bits)
    assert best in found
    assert all(best.bytes <= storage.bytes for storage in found)
    assert best.bytes <= -(-codes.size * dense_bits // 8)
    if np.count_nonzero(codes) * bits >= codes.size * (dense_bits - 1):  # density >= (b - 1) / b at d = b
        assert best.format != "bitmask"


def test_the_formulas_by_hand() -> None:
    codes = np.zeros((4, 10), dtype=np.int64)
    codes[0, 0], codes[2, 5], codes[3, 9] = 1, -2, 1  # gaps of 0, 24 and 13
    sizes = {storage.format: storage.bits for storage in storages(codes, 2)}
    assert sizes["dense"] == 80
    assert sizes["bitmask"] == 40 + 3 * 2
    assert sizes["csr"] == 4 * 6 + 3 * 4 + 3 * 2  # 40 needs 6 bits, a column below 10 needs 4
    assert sizes["relative-4"] == (3 + 1) * 4 + 3 * 2  # 24 = one filler of 15 zeros, and 9
    assert sizes["relative-2"] == (3 + 8 + 4) * 2 + 3 * 2  # a filler is 3 zeros
    assert sizes["relative-5"] == 3 * 5 + 3 * 2
    assert smallest(codes, 2) == Storage("relative-4", 22)  # no format takes fewer bytes
    assert encode(codes, "relative-4", 2) == bytes([0b0000_1111, 0b1001_1101, 0b01_10_01_00])


def test_no_code_no_bytes() -> None:
    codes = np.zeros((3, 3), dtype=np.int64)
    assert smallest(codes, 4) == Storage("relative-2", 0)
    assert not decode(b"", "relative-2", (3, 3), 0, 4).any()


@pytest.mark.parametrize("format", ["dense", "bitmask", "csr", "relative-3"])
def test_a_code_that_does_not_fit_is_refused(format: str) -> None:
    with pytest.raises(InputError, match="does not fit into 2 bits"):
        encode(np.array([[4]]), format, 2)


@pytest.mark.parametrize("format", ["zip", "relative-1", "relative-17", "relative"])
def test_an_unknown_format_is_refused(format: str) -> None:
    with pytest.raises(InputError, match=f"'{format}' is not a format of sparse codes"):
        encode(np.array([[1]]), format, 2)
