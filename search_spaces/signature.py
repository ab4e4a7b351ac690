"""What a network is called with, as plain data: any structure of tensors and values, so that a file can tell it.

A network that takes one tensor of floats needs no more than its shape. Any other one is told by its signature, of which
inputs for it can be drawn (:func:`search_spaces.network.examples.drawn`).
"""

from __future__ import annotations

import math
from collections import OrderedDict, namedtuple
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Annotated, Any

from pydantic import Field

from search_spaces.errors import InputError
from search_spaces.records import Index, Record

_REAL = ("float16", "bfloat16", "float32", "float64")
DTYPES = (*_REAL, "complex64", "complex128", "bool", "uint8", "int8", "int16", "int32", "int64")
_MOST_ELEMENTS = 2**26
LARGEST_WHOLE = 2**31
"""Whole numbers beyond it are drawn as if they were it."""
_PLAIN = (bool, int, float, str, type(None))


@dataclass(frozen=True)
class TensorSpec:
    """One input: the shape of a sample, and of whole numbers the least and the greatest."""

    shape: tuple[int, ...]
    dtype: str = "float32"
    least: int = 0
    most: int = 0

    @property
    def elements(self) -> int:
        """How many numbers one sample has."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class Signature:
    """The arguments of one call: tuples (named ones too), lists and dicts of :class:`TensorSpec` and plain values.

    ``batched`` says that the first axis of every tensor, which its shape leaves out, counts samples. Where they do not
    agree in one, shapes are whole.
    """

    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    batched: bool = True

    @property
    def tensors(self) -> list[TensorSpec]:
        """All tensors, in order."""
        return [leaf for leaf in _leaves((self.args, self.kwargs)) if isinstance(leaf, TensorSpec)]

    def map(self, change: Callable[[Any], Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Positional and named arguments with every leaf changed."""
        return tuple(_changed(value, change) for value in self.args), _changed(dict(self.kwargs), change)

    def to_json(self) -> dict[str, Any]:
        """The object that :meth:`from_json` reads; :class:`InputError` for a value that no file can hold."""
        args, kwargs = [_told(value) for value in self.args], {key: _told(value) for key, value in self.kwargs.items()}
        return {"args": args, "kwargs": kwargs, "batched": self.batched}

    @classmethod
    def from_json(cls, data: Any) -> Signature:
        """Read what :meth:`to_json` wrote; :class:`InputError` for anything else, and for inputs out of proportion."""
        file = _File.read(data)
        args = tuple(_read(value) for value in file.args)
        found = cls(args, {key: _read(value) for key, value in file.kwargs.items()}, file.batched)
        if sum(tensor.elements for tensor in found.tensors) > _MOST_ELEMENTS:
            raise InputError(f"inputs of more than {_MOST_ELEMENTS:,} numbers are larger than a file may ask for")
        return found


Whole = Annotated[int, Field(strict=True, ge=-LARGEST_WHOLE, le=LARGEST_WHOLE)]


class _File(Record):
    """A signature, as a file has it."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    batched: bool


class _Tensor(Record):
    """A tensor, as a file has it."""

    shape: tuple[Index, ...]
    dtype: str
    least: Whole = 0
    most: Whole = 0


def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, tuple | list):
        for each in value:
            yield from _leaves(each)
    elif isinstance(value, Mapping):
        yield from _leaves(list(value.values()))
    else:
        yield value


def _changed(value: Any, change: Callable[[Any], Any]) -> Any:
    if isinstance(value, tuple | list):
        parts = [_changed(each, change) for each in value]
        return type(value)(*parts) if _is_named(value) else type(value)(parts)  # a named tuple takes them apart
    if isinstance(value, dict):
        changed = {key: _changed(each, change) for key, each in value.items()}
        return OrderedDict(changed) if isinstance(value, OrderedDict) else changed
    return change(value)


def _is_named(value: Any) -> bool:
    return isinstance(value, tuple) and hasattr(value, "_fields")


@lru_cache(maxsize=256)
def _named_tuple(name: str, fields: tuple[str, ...]) -> Any:
    """The class of named tuples of a file: always the same one, as structures of tensors are compared by their class.

    Raises :class:`InputError` for names that are none in Python.
    """
    try:
        return namedtuple(name, fields)
    except ValueError as error:
        raise InputError(f"'{name:.60}' is no named tuple that a network is called with: {error!s:.120}") from error


def _told(value: Any) -> dict[str, Any]:
    if isinstance(value, TensorSpec) and value.dtype in DTYPES:
        limits = {"least": value.least, "most": value.most} if (value.least, value.most) != (0, 0) else {}
        return {"tensor": {"shape": list(value.shape), "dtype": value.dtype, **limits}}
    if type(value) in (tuple, list):
        return {type(value).__name__: [_told(each) for each in value]}
    if _is_named(value):
        return {"namedtuple": {type(value).__name__: _fields_told(value._asdict())}}
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return {"OrderedDict" if isinstance(value, OrderedDict) else "dict": _fields_told(value)}
    if type(value) in _PLAIN and not (isinstance(value, float) and not math.isfinite(value)):
        return {"value": value}
    what = f"tensor of {value.dtype}" if isinstance(value, TensorSpec) else type(value).__name__
    raise InputError(
        f"the network is called with a {what}, which no file can hold; let it take tensors, numbers, "
        "text, and tuples, lists or dicts of such"
    )


def _fields_told(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: _told(each) for key, each in values.items()}


def _read(told: Any) -> Any:
    kind, content = next(iter(told.items())) if isinstance(told, dict) and len(told) == 1 else ("", None)
    if kind == "tensor":
        return _tensor(content)
    if kind in ("tuple", "list") and isinstance(content, list):
        found = [_read(each) for each in content]
        return tuple(found) if kind == "tuple" else found
    if kind in ("dict", "OrderedDict") and isinstance(content, dict):
        read = {key: _read(each) for key, each in content.items()}
        return OrderedDict(read) if kind == "OrderedDict" else read
    if kind == "namedtuple" and isinstance(content, dict) and len(content) == 1:
        name, fields = next(iter(content.items()))
        if isinstance(fields, dict):
            return _named_tuple(name, tuple(fields))(*(_read(each) for each in fields.values()))
    if kind == "value" and isinstance(content, _PLAIN):
        return content
    raise InputError(
        f"{told!r:.60} is none of the tensors, values, tuples, lists and dicts that a network is called with"
    )


def _tensor(content: Any) -> TensorSpec:
    found = _Tensor.read(content)
    if found.dtype not in DTYPES:
        raise InputError(f"an input of type {found.dtype!r:.60} is none of {', '.join(DTYPES)}")
    if found.least > found.most:
        raise InputError(f"the least number of an input, {found.least}, is above the greatest, {found.most}")
    return TensorSpec(found.shape, found.dtype, found.least, found.most)
