"""What a network is called with while it is read: zeros of a shape, or the caller's own example."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import register_pytree_node, tree_leaves, tree_map

from search_spaces.errors import InputError

_NUMBERS = (int, float, np.integer, np.floating)


@dataclass(frozen=True)
class Call:
    """The arguments of one call of a network, for one sample."""

    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)

    @property
    def tensors(self) -> list[Tensor]:
        """All tensors among the arguments, in order."""
        return [value for value in tree_leaves((self.args, dict(self.kwargs))) if isinstance(value, Tensor)]

    @property
    def input_shape(self) -> tuple[int, ...]:
        """The shape of the first tensor without its batch dimension."""
        return tuple(self.tensors[0].shape[1:])

    def run(self, model: nn.Module) -> Any:
        """Call ``model``."""
        return model(*self.args, **self.kwargs)

    def on(self, device: torch.device) -> Call:
        """The same call with copies of its tensors on ``device``; those on the meta device have no values."""
        return self._map(lambda tensor: tensor.detach().to(device, copy=True))

    def _map(self, change: Any) -> Call:
        args, kwargs = tree_map(
            lambda value: change(value) if isinstance(value, Tensor) else value, (self.args, dict(self.kwargs))
        )
        return Call(args, kwargs)

    def first_sample(self) -> Call:
        """The first sample of a batch; the call as it is where its tensors differ in their first dimension."""
        batches = {tensor.shape[0] if tensor.dim() else None for tensor in self.tensors}
        if len(batches) > 1 or None in batches or 0 in batches:
            return self
        return self._map(lambda tensor: tensor[:1])


Example = Sequence[int] | Tensor | Sequence[Any] | Mapping[str, Any] | Call
"""The shape of one input (no batch dimension), or what the network is called with: one tensor, a sequence of
positional arguments, a mapping of keyword arguments, or a call; tensors with their batch dimension first."""


def run_on(model: Callable[..., Any], inputs: Any) -> Any:
    """What ``model`` gives for a batch of inputs: one tensor, several by name (a mapping), or a :class:`Call`."""
    if isinstance(inputs, Call):
        return model(*inputs.args, **inputs.kwargs)
    return model(**inputs) if isinstance(inputs, Mapping) else model(inputs)


def rows_of(inputs: Any) -> int:
    """How many samples a batch of inputs has: the length of its first tensor."""
    return next(len(leaf) for leaf in tree_leaves(inputs) if isinstance(leaf, Tensor))


def read_example(example: Example, model: nn.Module) -> Call:
    """The call that ``example`` stands for; :class:`InputError` for anything else.

    A shape becomes zeros of the type of the network's parameters, on their device.
    """
    if isinstance(example, (tuple, list)) and example and all(isinstance(side, _NUMBERS) for side in example):
        call = Call((_zeros(example, model),))
    elif isinstance(example, Call):
        call = example
    elif isinstance(example, (tuple, list)):
        call = Call(tuple(example))
    elif isinstance(example, Tensor):
        call = Call((example,))
    elif isinstance(example, Mapping):
        call = Call((), dict(example))
    else:
        raise InputError(
            f"{type(example).__name__} is no example of a network's input; give the shape of one input such as "
            "(3, 224, 224), a tensor, a tuple of positional arguments or a dict of keyword arguments"
        )
    if not call.tensors or not call.tensors[0].dim():
        raise InputError(
            "the example holds no tensor with a batch dimension; give the tensors that the network is called with"
        )
    return call.first_sample()


def _zeros(shape: Sequence[Any], model: nn.Module) -> Tensor:
    if not all(isinstance(side, (int, np.integer)) and type(side) is not bool and side > 0 for side in shape):
        raise InputError(
            f"{tuple(shape)} is no shape of an input; give whole numbers above 0 without the batch dimension, such as "
            "(3, 224, 224)"
        )
    parameter = next(model.parameters(), torch.empty(0))
    sides = (1, *(int(side) for side in shape))
    try:
        return torch.zeros(sides, device=parameter.device, dtype=parameter.dtype)
    except (RuntimeError, TypeError) as error:  # sides that overflow, or an allocator of some device
        raise InputError(f"an input of shape {sides[1:]} does not fit into memory; give a smaller one") from error


register_pytree_node(
    Call,
    lambda call: ([call.args, dict(call.kwargs)], None),
    lambda parts, _: Call(*parts),  # so that it can be moved
)
