"""Extra state of modules (``get_extra_state``) as tensors: a checkpoint holds nothing else."""

from __future__ import annotations

import io
from types import MethodType
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from search_spaces.errors import InputError


def keep_extra_state_in_tensors(network: nn.Module) -> None:
    """Let every module of ``network`` give its extra state as a tensor of bytes, and take it so, in place.

    Raises :class:`InputError` that names a module whose state holds more than tensors, plain values, dicts and lists.
    """
    for name, module in network.named_modules():
        plain = type(module).get_extra_state is nn.Module.get_extra_state
        if plain or "get_extra_state" in vars(module):
            continue
        try:
            state = module.get_extra_state()
            if isinstance(state, Tensor):
                continue
            _value(_bytes(state))
        except Exception as error:  # objects may fail to be written in any way
            raise InputError(
                f"module '{name or type(module).__name__}' keeps extra state that a checkpoint cannot hold; return "
                "tensors, numbers, strings, dicts and lists of them from get_extra_state"
            ) from error
        changed = cast(Any, module)
        changed.get_extra_state = MethodType(get_extra_state, module)
        changed.set_extra_state = MethodType(set_extra_state, module)


def get_extra_state(module: nn.Module) -> Tensor:
    """The extra state of ``module`` as bytes, uint8 (N,)."""
    return _bytes(type(module).get_extra_state(module))


def set_extra_state(module: nn.Module, state: Any) -> None:
    """Give ``module`` the extra state that :func:`get_extra_state` made bytes of."""
    type(module).set_extra_state(module, _value(state))


def _bytes(value: Any) -> Tensor:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return torch.from_numpy(np.frombuffer(buffer.getvalue(), dtype=np.uint8).copy())


def _value(state: Tensor) -> Any:
    return torch.load(io.BytesIO(state.cpu().numpy().tobytes()), weights_only=True)
