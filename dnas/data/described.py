"""What a value is, in a few words, for sentences about values that users hand over."""

from __future__ import annotations

from typing import Any

from torch import Tensor


def described(value: Any) -> str:
    """Say what a value is, in a few words.

    >>> described(Tensor([[1, 2, 3]])), described({"out": 1}), described([1, 2]), described("x")
    ('a float32 tensor of shape (1, 3)', "a dict of 'out'", 'a list of 2 values', 'a str')
    """
    if isinstance(value, Tensor):
        return f"a {str(value.dtype).removeprefix('torch.')} tensor of shape {tuple(value.shape)}"
    if isinstance(value, dict):
        return f"a {type(value).__name__} of {', '.join(repr(key) for key in value)}"
    if isinstance(value, tuple | list):
        return f"a {type(value).__name__} of {len(value)} values"
    return f"a {type(value).__name__}"
