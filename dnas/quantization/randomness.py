"""The global generators of random numbers, of the host and of a device."""

from __future__ import annotations

from contextlib import AbstractContextManager

import torch

ACCELERATORS = ("cuda", "xpu", "mps")  # each has a global generator of its own


def randomness_kept(place: torch.device) -> AbstractContextManager:
    """Inside, the global generators of the host and of this device may be seeded; they are put back afterwards."""
    own = place.type in ACCELERATORS
    return torch.random.fork_rng(devices=[place] if own else [], device_type=place.type if own else "cuda")
