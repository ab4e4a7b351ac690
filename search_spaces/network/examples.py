"""What a network is called with while it is read or proven: the caller's own example, or one drawn for a signature."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import register_pytree_node, tree_leaves, tree_map

from search_spaces.channels.running import tensors
from search_spaces.errors import InputError
from search_spaces.network.calls import input_name
from search_spaces.signature import LARGEST_WHOLE, Signature, TensorSpec

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
        return self.mapped(lambda tensor: tensor.detach().to(device, copy=True))

    def mapped(self, change: Callable[[Tensor], Any]) -> Call:
        """The same call with every tensor changed."""
        args, kwargs = tree_map(
            lambda value: change(value) if isinstance(value, Tensor) else value, (self.args, dict(self.kwargs))
        )
        return Call(args, kwargs)

    def first_sample(self) -> Call:
        """The first sample of a batch; the call as it is where its tensors differ in their first dimension."""
        batches = {tensor.shape[0] if tensor.dim() else None for tensor in self.tensors}
        if len(batches) > 1 or None in batches or 0 in batches:
            return self
        return self.mapped(lambda tensor: tensor[:1])


Example = Sequence[int] | Tensor | Sequence[Any] | Mapping[str, Any] | Call | Signature
"""The shape of one input (no batch dimension), or what the network is called with: one tensor, a sequence of
positional arguments, a mapping of keyword arguments, a call, or the signature of one; tensors with their batch
dimension first."""


def call_of(inputs: Any) -> Call:
    """The call for a batch of inputs: one tensor, several by name (a mapping) or by position, or a call itself."""
    if isinstance(inputs, Call):
        return inputs
    if isinstance(inputs, Mapping):
        return Call((), dict(inputs))
    return Call(tuple(inputs)) if isinstance(inputs, tuple | list) else Call((inputs,))


def run_on(model: Callable[..., Any], inputs: Any) -> Any:
    """What ``model`` gives for a batch of inputs, as :func:`call_of` has them."""
    call = call_of(inputs)
    return model(*call.args, **call.kwargs)


def rows_of(inputs: Any) -> int:
    """How many samples a batch has: the length of the first of its tensors that has one; 0 without any."""
    return next((len(tensor) for tensor in tensors(inputs) if tensor.dim()), 0)


def read_example(example: Example, model: nn.Module) -> Call:
    """The call that ``example`` stands for; :class:`InputError` for anything else.

    A shape becomes zeros of the type of the network's parameters, on their device; for a signature inputs are drawn.
    """
    if isinstance(example, (tuple, list)) and example and all(isinstance(side, _NUMBERS) for side in example):
        call = Call((_zeros(example, model),))
    elif isinstance(example, Signature):
        call = drawn(example, 1, model)
    elif isinstance(example, (Call, tuple, list, Tensor, Mapping)):
        call = call_of(example)
    else:
        raise InputError(
            f"{type(example).__name__} is no example of a network's input; give the shape of one input such as "
            "(3, 224, 224), a tensor, a tuple of positional arguments or a dict of keyword arguments"
        )
    if not call.tensors or not call.tensors[0].dim():
        unknown = sorted({type(leaf).__name__ for leaf in tree_leaves((call.args, dict(call.kwargs))) if _hides(leaf)})
        if unknown:
            raise InputError(
                f"the network is called with a {unknown[0]}, in which PyTorch finds no tensors; let it take tensors, "
                "or tuples, lists and dicts of them"
            )
        raise InputError(
            "the example holds no tensor with a batch dimension; give the tensors that the network is called with"
        )
    return call


def _hides(leaf: Any) -> bool:
    """Whether tensors may be in it that a structure of PyTorch's own kinds would show."""
    return not isinstance(leaf, Tensor) and (isinstance(leaf, Mapping) or hasattr(leaf, "__dict__"))


def floats_of(model: nn.Module) -> Tensor:
    """The first parameter of floats, which has the type and the device of the network; an empty tensor without one."""
    return next((parameter for parameter in model.parameters() if parameter.is_floating_point()), torch.empty(0))


def _zeros(shape: Sequence[Any], model: nn.Module) -> Tensor:
    if not all(isinstance(side, (int, np.integer)) and type(side) is not bool and side > 0 for side in shape):
        raise InputError(
            f"{tuple(shape)} is no shape of an input; give whole numbers above 0 without the batch dimension, such as "
            "(3, 224, 224)"
        )
    parameter = floats_of(model)
    sides = (1, *(int(side) for side in shape))
    try:
        return torch.zeros(sides, device=parameter.device, dtype=parameter.dtype)
    except (RuntimeError, TypeError):  # sides that overflow, or an allocator of some device
        raise InputError(f"an input of shape {sides[1:]} does not fit into memory; give a smaller one") from None


def signature_of(call: Call, model: nn.Module) -> Signature | None:
    """What ``model`` is called with; None where that is one tensor of floats, which its shape describes."""
    first = input_name(type(model))
    given = {first: call.args[0], **call.kwargs} if call.args else call.kwargs
    only = given.get(first) if [*given] == [first] and len(call.args) < 2 else None
    if isinstance(only, Tensor) and only.is_floating_point():
        return None
    counts = {tensor.shape[0] if tensor.dim() else None for tensor in call.tensors}
    batched = len(counts) == 1 and None not in counts
    args, kwargs = tree_map(lambda leaf: _spec(leaf, batched), (call.args, dict(call.kwargs)))
    return Signature(args, kwargs, batched)


def _spec(leaf: Any, batched: bool) -> Any:
    if not isinstance(leaf, Tensor):
        return leaf
    shape, dtype = tuple(leaf.shape[1:] if batched else leaf.shape), str(leaf.dtype).removeprefix("torch.")
    if leaf.is_floating_point() or leaf.is_complex() or leaf.is_meta or not leaf.numel():
        return TensorSpec(shape, dtype)
    limits = (max(-LARGEST_WHOLE, min(LARGEST_WHOLE, int(limit))) for limit in (leaf.min(), leaf.max()))
    return TensorSpec(shape, dtype, *limits)


def drawn(
    example: Sequence[int] | Signature, rows: int, model: nn.Module, generator: torch.Generator | None = None
) -> Call:
    """Random inputs of ``rows`` samples for ``model``, floats of its type, on its device.

    Whole numbers lie between the least and the greatest that the signature tells. Without a generator they follow from
    seed 0.
    """
    generator = generator or torch.Generator().manual_seed(0)
    like = floats_of(model)
    signature = example if isinstance(example, Signature) else Signature((TensorSpec(tuple(example)),))
    return Call(*signature.map(lambda leaf: _tensor(leaf, rows if signature.batched else None, like, generator)))


def _tensor(leaf: Any, rows: int | None, like: Tensor, generator: torch.Generator) -> Any:
    if not isinstance(leaf, TensorSpec):
        return leaf
    shape = leaf.shape if rows is None else (rows, *leaf.shape)
    dtype = getattr(torch, leaf.dtype)
    if dtype.is_floating_point:
        return torch.randn(shape, generator=generator).to(like)
    if dtype.is_complex:
        return torch.randn(shape, generator=generator, dtype=dtype).to(like.device)
    return torch.randint(leaf.least, leaf.most + 1, shape, generator=generator).to(like.device, dtype)


register_pytree_node(
    Call,
    lambda call: ([call.args, dict(call.kwargs)], None),
    lambda parts, _: Call(*parts),  # so that it can be moved
)
