"""What a standard layer does with its input, as a function of the weight: nothing of the layer is touched meanwhile.

So several threads can run one layer, and a compiler sees plain operations.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

from torch import Tensor, nn
from torch.nn import functional as F

Operation = Callable[[Any, Tensor, Tensor], Tensor]
"""(layer, input, weight) → output."""


def operation_of(kind: type[nn.Module]) -> Operation | None:
    """The operation of layers of this class; None where its forward is code of its own."""
    return _OPERATIONS.get(kind.forward)


def _linear(layer: Any, x: Tensor, weight: Tensor) -> Tensor:
    return F.linear(x, weight, layer.bias)


def _convolution(layer: Any, x: Tensor, weight: Tensor) -> Tensor:
    return cast(Tensor, layer._conv_forward(x, weight, layer.bias))


def _transposed(operation: Callable[..., Tensor]) -> Operation:
    def run(layer: Any, x: Tensor, weight: Tensor) -> Tensor:
        geometry = layer.stride, layer.padding, layer.output_padding, layer.groups, layer.dilation
        return operation(x, weight, layer.bias, *geometry)

    return run


_OPERATIONS: dict[Callable[..., Any], Operation] = {
    nn.Linear.forward: _linear,
    nn.Conv1d.forward: _convolution,
    nn.Conv2d.forward: _convolution,
    nn.Conv3d.forward: _convolution,
    nn.ConvTranspose1d.forward: _transposed(F.conv_transpose1d),
    nn.ConvTranspose2d.forward: _transposed(F.conv_transpose2d),
    nn.ConvTranspose3d.forward: _transposed(F.conv_transpose3d),
}
