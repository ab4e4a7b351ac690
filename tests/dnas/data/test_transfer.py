"""What the host sends to a device without waiting is sent by one function, which keeps it until it has arrived."""

from __future__ import annotations

from pathlib import Path

import torch

import dnas
from dnas.data.transfer import sent
from tests.elsewhere import Waits, elsewhere


def test_what_is_sent_arrives_and_nobody_waits() -> None:
    x = torch.arange(6.0).view(2, 3)
    assert sent(x, torch.device("cpu")) is x
    with elsewhere() as place, Waits() as waits:
        there = sent(x, place)
        assert there.device == place
    assert waits.count == 0
    assert torch.equal(there.values, x)  # type: ignore[attr-defined]


def test_no_other_code_copies_from_memory_that_it_may_give_away() -> None:
    """A GPU may read ordinary memory long after ``to(..., non_blocking=True)``; no test on a CPU would notice."""
    folder = Path(dnas.__file__).parent
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*.py") if "non_blocking" in path.read_text()}
    assert files == {"data/transfer.py", "training/passes.py"}  # the second copies on the device
