"""Run operations on tensors without values, each of them once for the same shapes.

What an operation gives on the meta device follows from shapes, strides and types alone. PyTorch works it out in Python,
in milliseconds for a normalisation; a network of repeated blocks that is run several times asks for the same again.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._ops import OpOverload


class _Shape(NamedTuple):
    """All that is known of a tensor without values."""

    size: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype

    def empty(self) -> Tensor:
        return torch.empty_strided(self.size, self.stride, dtype=self.dtype, device="meta")


class _Plain(NamedTuple):
    """A value that is no tensor; its type tells 1 from True and from 1.0."""

    kind: type
    value: Hashable


class _Unknown(Exception):
    """What is not described by shapes alone."""


def run_on_meta(function: OpOverload, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """What ``function(*args, **kwargs)`` gives; worked out anew only where that does not follow from shapes."""
    if function._schema.is_mutable or any(result.alias_info for result in function._schema.returns):
        return function(*args, **kwargs)
    try:
        described = _results(function, _described(tuple(args)), _described(dict(kwargs)), torch.get_default_dtype())
    except (_Unknown, TypeError):  # a value that cannot be hashed is a TypeError
        return function(*args, **kwargs)
    return _made(described)


@lru_cache(maxsize=8192)
def _results(function: OpOverload, args: Any, kwargs: Any, default: torch.dtype) -> Any:
    args, kwargs = _made(args), _made(kwargs)
    if not any(isinstance(value, Tensor) for value in (*args, *kwargs.values())) and not _holds_tensors(args):
        raise _Unknown
    return _described(function(*args, **kwargs))


def _holds_tensors(args: Sequence[Any]) -> bool:
    return any(isinstance(part, Tensor) for value in args if isinstance(value, (tuple, list)) for part in value)


def _described(value: Any) -> Any:
    if isinstance(value, Tensor):
        if type(value) not in (Tensor, nn.Parameter) or not value.is_meta or value.layout is not torch.strided:
            raise _Unknown
        return _Shape(tuple(value.shape), value.stride(), value.dtype)
    if isinstance(value, (tuple, list)):
        return _Plain(list if isinstance(value, list) else tuple, tuple(_described(part) for part in value))
    if isinstance(value, dict):
        return _Plain(dict, tuple((key, _described(part)) for key, part in value.items()))
    return _Plain(type(value), value)


def _made(described: Any) -> Any:
    if isinstance(described, _Shape):
        return described.empty()
    kind, value = described
    if kind is dict:
        return {key: _made(part) for key, part in value}
    return kind(_made(part) for part in value) if kind in (tuple, list) else value
