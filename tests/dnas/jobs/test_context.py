"""What a checkpoint tells of its epoch, or that it does not."""

from __future__ import annotations

from typing import Any

import pytest

from dnas.jobs.context import recorded_epoch
from search_spaces.errors import InputError

EPOCH = {"event": "epoch", "stage": "search", "run": "search-1", "epoch": 2}


def test_a_checkpoint_tells_its_epoch() -> None:
    assert recorded_epoch("search-1", {"record": EPOCH, "epoch": 2}).place == ("search", "search-1", 0, 2)


@pytest.mark.parametrize(
    "record", [None, 3, "epoch", [], [1], {}, {"event": "note", "text": "slow"}, {**EPOCH, "epoch": "two"}]
)
def test_a_checkpoint_that_does_not_is_named(record: Any) -> None:
    with pytest.raises(
        InputError, match=r"^the checkpoint 'search-1' does not say which epoch .* delete it and resume"
    ):
        recorded_epoch("search-1", {"record": record})
    with pytest.raises(InputError, match="does not say which epoch it was saved after"):
        recorded_epoch("search-1", {})
