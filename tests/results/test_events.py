"""The events of a journal: lines as they were, old names still read, whatever is wrong told by file and line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from results.events import VERSION, Epoch, Event, Note, Started, Trial, Withdrawn, read_epoch, read_event
from results.run.journal import Journal
from search_spaces.errors import InputError

EPOCH = {"event": "epoch", "time": 1.5, "stage": "search", "run": "search-1", "epoch": 1, "bits": {"a": [4, 8]}}
TRIAL = {
    "event": "trial",
    "time": 2.0,
    "run": "prune-a",
    "kind": "bayesian",
    "trial": {
        "proposal": {"number": 0, "budget": 0, "limits": {"size_bytes": 5.0}, "counts": {"g": 3}, "x": [0.5]},
        "cost": {"size_bytes": 4.0},
        "loss": None,
        "top1": None,
        "failed": "a NaN",
    },
}


def plain(event: Event) -> Any:
    return json.loads(json.dumps(event.to_json()))


@pytest.mark.parametrize(
    "record",
    [
        {"event": "started", "time": 0.5},
        {"event": "resumed", "version": VERSION},
        {"event": "failed", "message": "the disk is full"},
        {"event": "stage", "stage": "search", "state": "done"},
        {**EPOCH, "expected": {"size_bytes": 4.0}, "temperature": None, "a_key_of_a_later_version": [1, {"b": 2}]},
        {"event": "measured", "assignment": "a", "kind": "search", "seed": 1, "val_top1": 0.5},
        {"event": "prune", "assignment": None, "bits": 4, "section": {"trials": 3}},
        {"event": "profiles", "net": "switchable-1", "profiles": ["a", "b"]},
        TRIAL,
    ],
)
def test_a_record_is_read_and_written_as_it_was(record: dict[str, Any]) -> None:
    assert plain(read_event(record)) == record
    assert next(iter(read_event(record).to_json())) == "event"


def test_an_event_tells_what_it_was_given_and_is_frozen() -> None:
    assert Note(text="slow").to_json() == {"event": "note", "text": "slow"}
    assert plain(read_event(Epoch(stage="search", run="s", epoch=2, bits={"a": (1, 2)}).to_json()))["bits"] == {
        "a": [1, 2]
    }
    with pytest.raises(ValidationError, match="frozen"):
        Note(text="slow").text = "fast"  # type: ignore[misc]


def test_a_journal_of_the_first_version_is_read() -> None:
    old = read_event({"event": "withdrawn", "wish": 2, "message": "no"})
    assert isinstance(old, Withdrawn)
    assert (old.request, old.to_json()) == (2, {"event": "withdrawn", "request": 2, "message": "no"})
    assert read_event({"event": "started"}) == Started(version=1)


@pytest.mark.parametrize(
    ("record", "sentence"),
    [
        ({"event": "epok"}, r"'epok' is not an event that this version .* wrote it; did you mean 'epoch'\?"),
        ({"event": ""}, "'' is not an event that this version of dnas knows"),
        ({"event": "note"}, "event 'note': it has no 'text'"),
        ({**EPOCH, "epoch": "one"}, "event 'epoch': epoch = \"one\": expected a whole number"),
        ({**EPOCH, "bits": {"a": 4}}, "event 'epoch': bits.a = 4: expected a list"),
        ({**EPOCH, "loss": "low"}, "event 'epoch': loss = \"low\": expected a number"),
        ({**TRIAL, "trial": 3}, "event 'trial': trial = 3: expected a table"),
        ({"event": "withdrawn", "wish": "first"}, "event 'withdrawn': request = \"first\": expected a whole number"),
        ({"event": "resumed", "version": VERSION + 1}, r"a newer version of dnas wrote the run \(journal version"),
    ],
)
def test_what_is_wrong_is_one_sentence_with_its_line(record: dict[str, Any], sentence: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"^{sentence}"):
        read_event(record)
    path = tmp_path / "journal.jsonl"
    lines = ({"event": "started"}, record, EPOCH)
    path.write_text("".join(json.dumps({"time": 1.0, **line}) + "\n" for line in lines))
    with pytest.raises(InputError, match=rf"journal\.jsonl at line 2: {sentence}") as caught:
        Journal(path).events()
    assert "\n" not in str(caught.value)


def test_events_of_a_journal(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.jsonl", clock=iter((1.0, 2.0)).__next__)
    for event in (Started(version=VERSION), read_event(TRIAL)):
        journal.append(event.to_json())
    started, trial = journal.events()
    assert isinstance(started, Started)
    assert (started.version, started.time) == (VERSION, 1.0)
    assert isinstance(trial, Trial)
    assert trial.trial.proposal.counts == {"g": 3}


def test_a_checkpoint_holds_an_epoch() -> None:
    assert read_epoch(EPOCH).place == ("search", "search-1", 0, 1)
    with pytest.raises(InputError, match="'note' is not the event of an epoch"):
        read_epoch({"event": "note", "text": "slow"})
