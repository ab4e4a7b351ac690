"""What modules keep beside their parameters: buffers that a network is saved with, and what they take."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase

FOLDED = ("weight", "bias")
"""The parameters of a BatchNorm that are in its scale and shift; a class of one's own may hold more."""


def stored_buffers(module: nn.Module) -> dict[str, Tensor]:
    """The module's own persistent buffers by key, without what BatchNorm folds and what counts training steps."""
    left_out = set(module._non_persistent_buffers_set)
    if isinstance(module, _NormBase):
        left_out.add("num_batches_tracked")
    if isinstance(module, _BatchNorm):
        left_out.update(("running_mean", "running_var"))
    return {key: buffer for key, buffer in module._buffers.items() if buffer is not None and key not in left_out}


def buffer_bytes(buffer: Tensor) -> int:
    """What a buffer takes: half precision is stored in fp32, everything else in its own type."""
    element = buffer.element_size()
    return buffer.numel() * (max(4, element) if buffer.is_floating_point() else element)


def each_buffer(
    network: nn.Module,
    of: Callable[[nn.Module], Mapping[str, Tensor]] = stored_buffers,
    without: tuple[type[nn.Module], ...] = (),
) -> Iterator[tuple[str, Tensor]]:
    """The buffers that ``of`` gives for every module but those of some types, by name; one of several names once."""
    seen: set[int] = set()
    for name, module in network.named_modules():
        for key, buffer in () if isinstance(module, without) else of(module).items():
            if id(buffer) not in seen:
                seen.add(id(buffer))
                yield f"{name}.{key}" if name else key, buffer
