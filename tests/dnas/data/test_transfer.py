"""What the host sends to a device without waiting is sent by one function, which keeps it until it has arrived."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import dnas
from dnas.data.augmentation import Augmentation
from dnas.data.transfer import sent
from tests.dnas.data.test_transforms import MANY, SETS
from tests.elsewhere import Waits, elsewhere


def test_what_is_sent_arrives_and_nobody_waits() -> None:
    x = torch.arange(6.0).view(2, 3)
    assert sent(x, torch.device("cpu")) is x
    with elsewhere() as place, Waits() as waits:
        there = sent(x, place)
        assert there.device == place
    assert waits.count == 0
    assert torch.equal(there.values, x)  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", ["memory", "floats in memory", "dataset"])
@pytest.mark.parametrize("augmentation", [MANY, replace(MANY, transforms=())], ids=["transforms", "none"])
def test_the_host_waits_for_no_batch(name: str, augmentation: Augmentation, tmp_path: Path) -> None:
    """What transforms draw needs the CPU, and images of few bytes lie on the device already."""
    options: dict[str, Any] = {"seed": 3, "augmentation": augmentation}
    here = [x for x, _ in SETS[name](tmp_path).batches(5, **options)]
    with elsewhere() as place:
        batches = SETS[name](tmp_path).batches(5, **options, device=place)
        there = [next(batches)[0]]  # the first brings them there
        with Waits() as waits:
            there += [x for x, _ in batches]
        assert all(torch.equal(own.cpu(), other) for own, other in zip(there, here, strict=True))
    assert waits.count == 0


def test_no_other_code_copies_from_memory_that_it_may_give_away() -> None:
    """A GPU may read ordinary memory long after ``to(..., non_blocking=True)``; no test on a CPU would notice."""
    folder = Path(dnas.__file__).parent
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*.py") if "non_blocking" in path.read_text()}
    assert files == {"data/transfer.py", "training/passes.py"}  # the second copies on the device
