"""Weight schemes: how a layer's weights are represented where they are no plain integers of one grid.

A scheme is two classes: this one, which needs no torch (the layer's entry in an assignment, what it takes, how its
packed codes become values), and the torch module that it names, which makes the weights. General code knows only the
two base classes. A scheme of ours is imported when its name is first met.
"""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any, ClassVar, Self

import numpy as np

from search_spaces.errors import InputError, check_type
from search_spaces.registry import Lazy


class WeightScheme(ABC):
    """How the weights of one layer are represented; a subclass is a frozen dataclass, whose fields are its entry.

    ``stored_bits`` is a field of every subclass: what the codes take, None before that is known.
    """

    name: ClassVar[str]
    """The key of the entry in an assignment file; ``package.module:Class`` for a scheme that is not registered."""
    words: ClassVar[str]
    """What such weights are called in a sentence."""
    module: ClassVar[str]
    """The torch module as ``package.module:Class``: a :class:`dnas.quantization.schemes.SchemeQuantizer`."""
    scale_bytes: ClassVar[int]
    """What is stored of a layer beside its codes, to make values of them."""
    stored_bits: int | None

    def __init_subclass__(cls) -> None:
        if "name" not in vars(cls):
            cls.name = f"{cls.__module__}:{cls.__qualname__}"

    def to_json(self) -> dict[str, Any]:
        """The entry of a layer in an assignment file."""
        return asdict(self)  # type: ignore[call-overload]

    @classmethod
    def from_json(cls, entry: Mapping[str, Any]) -> Self:
        """Read what :meth:`to_json` writes; keys of later versions are passed over."""
        known = fields(cls)  # type: ignore[arg-type]
        return cls(**{field.name: entry[field.name] for field in known if field.name in entry})

    def bits_without_index(self, weight_bits: int) -> int:
        """What the values alone take, without anything that says where they are."""
        return self.stored_bits or 0

    def columns(self) -> dict[str, str]:
        """What a table of layers shows of it: heading → text, the headings of a scheme always the same."""
        return {}

    @classmethod
    def reads(cls, storage: str) -> bool:
        """Whether a packed file's weights of this ``storage`` are of this scheme."""
        return storage == cls.name

    @staticmethod
    @abstractmethod
    def is_sound(stored: Mapping[str, Any], shape: tuple[int, ...]) -> bool:
        """Whether decoding what a packed file says of a weight needs no more memory than the weight."""

    @staticmethod
    @abstractmethod
    def decode(
        stored: Mapping[str, Any], told: Mapping[str, Any], shape: tuple[int, ...], tensors: Mapping[str, np.ndarray]
    ) -> np.ndarray:
        """The weight (float32, of this shape), bit for bit that of the net; the inverse of the module's ``pack``."""


SCHEMES: Mapping[str, type[WeightScheme]] = Lazy({"sparse": "search_spaces.sparse_weights.scheme:SparseWeights"})
"""Ours by name; those of other modules are found too, once their module is imported."""


def find_scheme(name: str) -> type[WeightScheme]:
    """The scheme of this name; :class:`InputError` for one that is not here.

    A module that nobody has imported yet is not imported: the name may come from a file of somebody else.
    """
    if name in SCHEMES:
        return SCHEMES[name]
    module, _, kind = name.partition(":")
    found = getattr(sys.modules.get(module), kind, None)
    if isinstance(found, type) and issubclass(found, WeightScheme):
        return found
    raise InputError(f"the weight scheme '{name}' is not known here; import {module}, where it is from, first")


def read_scheme(entry: Mapping[str, Any]) -> WeightScheme | None:
    """The scheme of a layer's entry in an assignment file; None for plain quantized weights."""
    found = [key for key, value in entry.items() if value and (key in SCHEMES or ":" in key)]
    if len(found) > 1:
        raise InputError(f"a layer has one weight scheme, not {' and '.join(found)}")
    if not found:
        return None
    kind, values = find_scheme(found[0]), entry[found[0]]
    check_type(values, Mapping, f"the weight scheme '{found[0]}' of a layer", "give an object")
    try:
        return kind.from_json(values)
    except TypeError as error:  # a field that is missing
        raise InputError(f"the weight scheme '{found[0]}' of a layer is damaged: {error}") from error


def scheme_of(storage: str) -> type[WeightScheme] | None:
    """The scheme that reads this storage of a packed file; None where nobody does."""
    if ":" in storage:
        return find_scheme(storage)
    return next((scheme for scheme in SCHEMES.values() if scheme.reads(storage)), None)
