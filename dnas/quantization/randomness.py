"""The global generators of random numbers, of the host and of a device."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

ACCELERATORS = ("cuda", "xpu", "mps")  # each has a global generator of its own


@contextmanager
def seeded(seed: int, place: torch.device) -> Iterator[None]:
    """Inside, the global generators of the host and of this device begin at a seed; they are put back afterwards.

    No other device is touched. ``torch.manual_seed`` seeds them all, and where one was not used yet it keeps the stack
    of every call until then, which takes milliseconds and memory.
    """
    own = place.type in ACCELERATORS
    with torch.random.fork_rng(devices=[place] if own else [], device_type=place.type if own else "cuda"):
        torch.default_generator.manual_seed(seed)
        if own:
            _seed(place, seed)
        yield


def _seed(place: torch.device, seed: int) -> None:
    module = torch.get_device_module(place)
    if place.type == "mps":  # there is one of it
        module.manual_seed(seed)
        return
    with module.device(place):
        module.manual_seed(seed)
