"""What a value is, in a few words, for sentences about values that users hand over."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from search_spaces.errors import kind_of, with_article


def described(value: Any) -> str:
    """Say what a value is, in a few words.

    >>> described(Tensor([[1, 2, 3]])), described({"out": 1}), described([1, 2]), described(3)
    ('a float32 tensor of shape (1, 3)', "a dict of 'out'", 'a list of 2 values', 'an int')
    """
    if isinstance(value, Tensor):
        return f"{with_article(str(value.dtype).removeprefix('torch.'))} tensor of shape {tuple(value.shape)}"
    kind = kind_of(value)
    if isinstance(value, dict):
        return f"{kind} of {', '.join(repr(key) for key in value)}"
    if isinstance(value, tuple | list):
        return f"{kind} of {len(value)} values"
    return kind
