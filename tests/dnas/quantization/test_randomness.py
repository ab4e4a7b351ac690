"""The global generators inside and after what draws from them."""

import torch

from dnas.quantization.randomness import seeded
from dnas.training.device import Device

HOST = torch.device("cpu")


def test_inside_the_same_is_drawn_each_time_and_outside_nothing_changes() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3), torch.rand(3)
    torch.manual_seed(5)
    found = [torch.rand(3)]
    with seeded(1, HOST):
        first = torch.rand(3)
    found.append(torch.rand(3))
    with seeded(1, HOST):
        second = torch.rand(3)
    assert torch.equal(first, second)
    assert all(map(torch.equal, found, expected))


def test_what_is_drawn_is_what_pytorch_draws_of_this_seed() -> None:
    with seeded(7, HOST):
        drawn = torch.rand(3)
    assert torch.equal(drawn, torch.rand(3, generator=torch.Generator().manual_seed(7)))


def test_a_device_that_was_not_used_yet_is_left_alone() -> None:
    """Each seed of a device that was not used would be kept until it is, with the stack of the call."""
    kept = len(torch.cuda._queued_calls)
    for seed in range(3):
        with seeded(seed, HOST), Device(HOST).own_randomness(seed):
            torch.rand(1)
    assert len(torch.cuda._queued_calls) == kept
