"""Where nets are timed: by which runtime, on which device, with how many threads; known without loading any of them."""

from __future__ import annotations

import os
from dataclasses import dataclass

from search_spaces.errors import InputError, nearest

RUNTIMES = ("onnxruntime", "openvino", "torch", "packed")
DEVICES = ("cpu", "cuda")


@dataclass(frozen=True)
class Place:
    """On which device, with how many threads."""

    device: str = "cpu"
    threads: int = 1


def check_place(runtime: str, place: Place) -> None:
    """Refuse a runtime or a device that there is none of, and threads that this machine has no cores for."""
    if runtime not in RUNTIMES:
        raise InputError(
            f"unknown runtime '{runtime}'; choose one of {', '.join(RUNTIMES)}{nearest(runtime, RUNTIMES)}"
        )
    if place.device not in DEVICES:
        raise InputError(f"unknown device '{place.device}'; choose cpu or cuda{nearest(place.device, DEVICES)}")
    if not 1 <= place.threads <= (os.cpu_count() or 1):
        raise InputError(f"--threads {place.threads}: this machine has {os.cpu_count()} cores; give 1 to so many")
