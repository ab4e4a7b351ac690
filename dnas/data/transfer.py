"""Tensors on their way from the host to a device, for which the host does not wait."""

from __future__ import annotations

import torch
from torch import Tensor

_WAITED_FOR = ("cpu", "mps", "xpu")  # there is no pinned memory for the last two


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on ``device``; where that is one of CUDA the host goes on at once.

    It is copied to pinned memory first. A copy from ordinary memory may be read when the device comes to it, long after
    the host has given that memory to something else: on a busy H100 indices arrived as garbage. PyTorch keeps pinned
    memory until a copy from it is done.
    """
    if device.type == "cuda" and not tensor.is_cuda:
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=device.type not in _WAITED_FOR)
