"""Every kind of training keeps its tensors on the job's device, and does not make the host wait for it in any step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from dnas.search.trainer import SupernetTrainer
from dnas.training.device import Device
from dnas.training.optimization import Updates
from tests.dnas.training.test_processes import STAGES, trained_alone, trained_stages
from tests.elsewhere import Waits, elsewhere

pytestmark = pytest.mark.whole  # thirteen stages, twice

STEPS = (Updates, "step"), (SupernetTrainer, "_theta_step")


@pytest.fixture(scope="module")
def here() -> Any:
    """What every stage gives on the CPU."""
    return trained_alone()


@pytest.fixture(scope="module")
def there() -> tuple[Any, dict[str, list[int]]]:
    """What every stage gives elsewhere, and how often the host waited in each of its steps."""
    waits: dict[str, list[int]] = {}
    with pytest.MonkeyPatch.context() as patch, elsewhere() as place:
        for kind, name in STEPS:
            patch.setattr(kind, name, counting(getattr(kind, name), waits))
        return trained_stages(Device(place), entered=lambda stage: waits.setdefault(stage, [])), waits


def counting(step: Callable[..., Any], waits: dict[str, list[int]]) -> Callable[..., Any]:
    """The same step, which notes for the last of the stages how often the host waits in it."""

    def counted(*arguments: Any, **named: Any) -> Any:
        with Waits() as found:
            given = step(*arguments, **named)
        waits[list(waits)[-1]].append(found.count)
        return given

    return counted


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_computes_elsewhere_what_it_computes_on_the_cpu(stage: str, here: Any, there: Any) -> None:
    (losses, tensors), (expected_losses, expected) = there[0][stage], here[stage]
    assert losses == expected_losses
    assert tensors.keys() == expected.keys()
    for name, value in tensors.items():
        assert torch.equal(value.cpu(), expected[name]), name


@pytest.mark.parametrize("stage", [stage for stage in STAGES if stage != "detection"])
def test_the_host_waits_for_the_device_in_no_step(stage: str, there: Any) -> None:
    """But for a detector, which chooses boxes on the host."""
    counts = there[1][stage]
    assert len(counts) >= 6
    assert counts == [0] * len(counts)
