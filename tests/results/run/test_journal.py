import errno
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from results.run.journal import Journal
from search_spaces.errors import InputError, JobError

RECORDS = [
    {"event": "started"},
    {"event": "epoch", "loss": 0.1, "bits": {"conv1": [4, 8]}, "note": "zwölf ☃\n"},
    {"event": "finished"},
]


def filled(path, records=RECORDS):
    journal = Journal(path, clock=iter(range(100)).__next__)
    for record in records:
        journal.append(record)
    return journal


def test_records_come_back_in_order_with_their_times(tmp_path):
    journal = filled(tmp_path / "journal.jsonl")
    assert journal.records() == [{**record, "time": index} for index, record in enumerate(RECORDS)]
    assert Journal(tmp_path / "nothing").records() == []


def test_the_time_is_now_unless_a_clock_is_given(tmp_path):
    journal = Journal(tmp_path / "journal.jsonl")
    journal.append({"event": "started", "time": -1})
    assert journal.records()[0]["time"] > 1.7e9


def test_torn_at_every_byte_it_reads_the_complete_records_and_goes_on(tmp_path):
    path = tmp_path / "journal.jsonl"
    filled(path)
    whole, expected = path.read_bytes(), Journal(path).records()
    for length in range(len(whole) + 1):
        path.write_bytes(whole[:length])
        complete = whole[:length].count(b"\n")
        assert Journal(path).records() == expected[:complete]
        assert path.read_bytes() == whole[:length], "reading changes nothing"
        journal = Journal(path, clock=lambda: 7.0)
        journal.append({"event": "resumed"})
        assert journal.records() == [*expected[:complete], {"event": "resumed", "time": 7.0}]


@pytest.mark.parametrize("tail", [b"\0\0\0\0", b"{", b"\xff\xfe", b"{}\n", b"garbage\n", b"\n", b"[" * 50_000])
def test_any_broken_last_line_is_cut_off(tmp_path, tail):
    path = tmp_path / "journal.jsonl"
    filled(path)
    path.write_bytes(path.read_bytes() + tail)
    journal = Journal(path)
    assert len(journal.records()) == 3
    journal.append({"event": "resumed"})
    assert [record["event"] for record in Journal(path).records()] == ["started", "epoch", "finished", "resumed"]


@given(number=st.integers(0, 1), junk=st.sampled_from([b"", b"{", b"3", b"null", b"\xff", b'{"event": NaN}']))
def test_a_corrupt_line_before_the_last_is_told_by_number(tmp_path_factory, number, junk):
    path = tmp_path_factory.mktemp("journal") / "journal.jsonl"
    filled(path)
    lines = path.read_bytes().split(b"\n")
    lines[number] = junk
    path.write_bytes(b"\n".join(lines))
    with pytest.raises(InputError, match=rf"journal\.jsonl is corrupt at line {number + 1}:"):
        Journal(path).records()
    before = path.read_bytes()
    with pytest.raises(InputError, match="corrupt"):
        Journal(path).append({"event": "resumed"})
    assert path.read_bytes() == before


def read(journal: Journal) -> object:
    """What a journal gives, or how it refuses."""
    try:
        return journal.records(), journal.events()
    except InputError as error:
        return str(error)


@given(st.data())
def test_one_that_was_read_before_reads_like_a_new_one_whatever_became_of_the_file(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("journal") / "journal.jsonl"
    whole = filled(path, [{"event": "note", "text": text} for text in "abc"]).path.read_bytes()
    journal = Journal(path)
    for _ in range(4):
        start = data.draw(st.sampled_from([0, whole.index(b"\n") + 1, len(whole)]) | st.integers(0, len(whole)))
        junk = data.draw(st.sampled_from([b"", b"x", b"\n", b"{}\n", b'{"event": "note", "time": 1, "text": "t"}\n']))
        path.write_bytes(whole[:start] + junk + data.draw(st.sampled_from([b"", whole[start:], whole])))
        assert read(journal) == read(Journal(path))
        if isinstance(read(journal), tuple):
            journal.append({"event": "note", "text": "more"})
            assert read(journal) == read(Journal(path))


def test_a_nan_is_refused_before_anything_is_written(tmp_path):
    journal = filled(tmp_path / "journal.jsonl")
    before = journal.path.read_bytes()
    with pytest.raises(JobError, match=r"journal event 'epoch': expected\.bitops = nan is not a finite number"):
        journal.append({"event": "epoch", "expected": {"bitops": float("nan")}})
    with pytest.raises(TypeError):
        journal.append({"event": "epoch", "bits": object()})
    with pytest.raises(ValueError, match="needs an 'event'"):
        journal.append({"loss": 1.0})
    assert journal.path.read_bytes() == before


def test_a_full_disk_takes_the_line_back(tmp_path, monkeypatch):
    journal = filled(tmp_path / "journal.jsonl")
    before = journal.path.read_bytes()

    def full_disk(_descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full_disk)
        with pytest.raises(JobError, match="the disk is full"):
            journal.append({"event": "note", "text": "lost"})
    assert journal.path.read_bytes() == before
    journal.append({"event": "note", "text": "kept"})
    assert len(journal.records()) == 4


def test_a_journal_opened_for_reading_does_not_write(tmp_path):
    filled(tmp_path / "journal.jsonl")
    with pytest.raises(RuntimeError, match="opened for reading"):
        Journal(tmp_path / "journal.jsonl", read_only=True).append({"event": "note"})
