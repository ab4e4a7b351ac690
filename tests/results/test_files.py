import errno
import json
import os
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from results.files import (
    encode_json,
    find_non_finite,
    indented_json,
    parse_json,
    read_bytes,
    read_json,
    read_sealed_json,
    read_text,
    write_bytes,
    write_json,
    write_text,
)
from search_spaces.errors import InputError, JobError
from search_spaces.plain_json import LARGEST_FIGURE, LARGEST_WHOLE


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_replaced_whole(tmp_path):
    path = tmp_path / "a.txt"
    write_text(path, "old")
    write_text(path, "nëw")
    assert path.read_text(encoding="utf-8") == "nëw"
    assert names(tmp_path) == ["a.txt"]


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_failed_write_keeps_the_old_file_and_leaves_nothing_else(tmp_path, monkeypatch, call):
    path = tmp_path / "front.json"
    write_bytes(path, b"old")

    def full_disk(*_arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(*{"fsync": (os, "fsync"), "replace": (Path, "replace")}[call], full_disk)
    with pytest.raises(JobError, match=r"cannot write .*front\.json: the disk is full"):
        write_bytes(path, b"new")
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["front.json"]


def test_an_interrupted_write_leaves_nothing(tmp_path, monkeypatch):
    def interrupted(_descriptor):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_bytes(tmp_path / "a", b"new")
    assert names(tmp_path) == []


def test_a_missing_folder_is_told_by_path(tmp_path):
    with pytest.raises(JobError, match=r"cannot write .*nowhere/a\.txt: No such file"):
        write_text(tmp_path / "nowhere" / "a.txt", "")


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_number_that_is_not_finite_is_refused_by_name(tmp_path, bad):
    with pytest.raises(JobError, match=r"a\.json: points\.1\.x = (nan|inf|-inf) is not a finite number"):
        write_json(tmp_path / "a.json", {"points": [{"x": 1.0}, {"x": bad}]})
    assert names(tmp_path) == []
    assert find_non_finite([0, (1.0, {"b": "nan"})]) == ""
    assert find_non_finite([10**400, float("inf")]) == "1 = inf"


@pytest.mark.parametrize("bad", [1e101, -2e300, 10**19, -(10**400), 1.5e308])
def test_a_number_that_would_not_be_read_back_is_refused_by_name(tmp_path, bad):
    with pytest.raises(JobError, match=r"a\.json: points\.1\.x = .* is larger than any figure that is read back"):
        write_json(tmp_path / "a.json", {"points": [{"x": 1.0}, {"x": bad}]})
    assert names(tmp_path) == []


@given(st.floats(allow_nan=False, allow_infinity=False) | st.integers() | st.text())
@example("1e300 and 12345678901234567890")
def test_whatever_is_written_is_read_back(value):
    try:
        text = encode_json([value], "x")
    except JobError:
        with pytest.raises(ValueError, match="is not a number that can be used"):
            parse_json(json.dumps([value]))
    else:
        assert parse_json(text) == [value]


def test_what_is_not_json_is_a_programming_error():
    with pytest.raises(TypeError):
        encode_json({"x": object()}, "x")
    circular: list = []
    circular.append(circular)
    with pytest.raises((ValueError, RecursionError)):
        encode_json(circular, "x")


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"NaN", b'{"a": Infinity}', b"[" * 100_000])
def test_a_damaged_json_file_is_told_by_path(tmp_path, content):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(InputError, match=r"a\.json is damaged"):
        read_json(tmp_path / "a.json")


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(InputError, match=r"cannot read .*a\.json: No such file"):
        read_json(tmp_path / "a.json")


def test_what_no_file_of_a_run_is_as_large_as_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "front.json"
    with path.open("wb") as file:
        file.truncate(2**34)  # it takes no room on the disk
    for read in (read_bytes, read_text, read_json, read_sealed_json):
        with pytest.raises(InputError, match=r"front.json: no file of a run holds 17,179,869,184 bytes"):
            read(path)


@pytest.mark.parametrize("part", ["[],", "{},", "0,", '"a":[],'])
def test_json_of_too_many_values_is_refused_before_it_is_parsed(part: str) -> None:
    text = part * 6_000_000
    tracemalloc.start()
    with pytest.raises(ValueError, match="too many values"):
        parse_json("[" + text + "0]")
    assert tracemalloc.get_traced_memory()[1] < 4 * len(text)
    tracemalloc.stop()


NUMBERS = st.integers(-LARGEST_WHOLE, LARGEST_WHOLE) | st.floats(-LARGEST_FIGURE, LARGEST_FIGURE)
SCALARS = st.none() | st.booleans() | NUMBERS | st.text()
KEYS = st.text() | st.integers() | st.booleans() | st.none() | st.floats(allow_nan=False, allow_infinity=False)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner) | st.lists(inner).map(tuple) | st.dictionaries(KEYS, inner), max_leaves=12
)


@given(VALUES)
def test_indented_json_is_that_of_the_standard_library(data):
    assert indented_json(data, "a") == json.dumps(data, indent=2, ensure_ascii=False) + "\n"
