"""What a pass does on the host, which a recording of it would not repeat.

See :mod:`dnas.training.passes`.
"""

from __future__ import annotations

import random
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dnas.training.device import Device


def randomness() -> dict[str, Any]:
    """The states of what draws random numbers on the host, by name."""
    numpy: Any = np.random.get_state(legacy=True)
    return {
        "Python's random numbers": hash(random.getstate()),
        "NumPy's random numbers": (np.asarray(numpy[1]).tobytes(), *numpy[2:]),
        "random numbers of the CPU": hash(torch.get_rng_state().numpy().tobytes()),
    }


def host_state(network: nn.Module, with_mode: bool) -> dict[str, Any]:
    """What a pass may change on the host of what the modules hold, by name."""
    state: dict[str, Any] = {}
    for name, module in network.named_modules():
        own = {key: value for key, value in vars(module).items() if key not in _OF_EVERY_MODULE}
        state |= {f"'{name}.{key}'": _fingerprint(value) for key, value in own.items()}
        tensors = {**module._parameters, **module._buffers}
        state |= {f"'{name}.{key}'": id(value) for key, value in tensors.items()}
        if with_mode:
            state[f"'{name}.training'"] = module.training
    return state


_OF_EVERY_MODULE = frozenset(vars(nn.Module()))


def _fingerprint(value: Any) -> Any:
    """What tells whether the host changed something that a module holds."""
    if isinstance(value, Tensor):
        return id(value), value._version if value.device.type == "cpu" else 0
    if isinstance(value, torch.Generator):
        return hash(value.get_state().numpy().tobytes()) if value.device.type == "cpu" else 0
    if isinstance(value, np.random.Generator):
        return str(value.bit_generator.state)
    if isinstance(value, random.Random):
        return hash(value.getstate())
    if isinstance(value, dict):
        return tuple((str(key), _fingerprint(each)) for key, each in value.items())
    if isinstance(value, list | tuple | set | frozenset):
        return tuple(map(_fingerprint, value))
    return value if value is None or isinstance(value, bool | int | float | str) else id(value)


@contextmanager
def noting_waits(device: Device, waits: list[str]) -> Iterator[None]:
    """Note where the host waits for the device inside."""
    if device.place.type != "cuda":
        yield
        return
    mode = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode(mode)
    for warning in caught:
        if "synchroniz" not in str(warning.message).lower():
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
        elif "debug mode" not in str(warning.message):
            waits.append(str(warning.message))
