"""What the search may choose, as a job file or a caller writes it: one record, checked by the same rules from both."""

# ruff: noqa: E501 - one key to a line, so that the file reads as the table it is

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from functools import cache
from pathlib import Path, PurePath
from typing import Annotated, Any, Literal, get_type_hints

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, WithJsonSchema

from search_spaces.errors import InputError, kind_of, unreadable
from search_spaces.fields import Bits, FilePath, LayerKind, OnceEach, Pair, SomeBits
from search_spaces.plain_json import parse_json
from search_spaces.refusals import first_problem
from search_spaces.user_files import read_regular

Capability = Mapping[LayerKind, tuple[Pair, ...]]
"""Layer type (``"*"`` for any other) → the pairs of widths that a target supports."""

_FORM = 'it holds {"pairs": [[W, A], ...], "by_type": {TYPE: [[W, A], ...]}}'
_FILE = WithJsonSchema({"type": "string"})


@dataclass(frozen=True)
class SpaceOptions:
    """What the search may choose. Patterns are shell patterns over layer names, or `type:Linear` for a layer type."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    weight_bits: Annotated[tuple[Bits, ...], OnceEach, Field(description="Candidate widths of weights: any of 0 (skip the residual branch), 1-8, 16, 32 (not quantized).")] = (2, 3, 4, 5, 6, 8)  # fmt: skip
    activation_bits: Annotated[tuple[SomeBits, ...], OnceEach, Field(description="Candidate widths of input activations: any of 1-8, 16, 32.")] = (2, 3, 4, 5, 6, 8)  # fmt: skip
    pairing: Annotated[Literal["independent", "tied", "pairs"], Field(description="Weights and activations chosen independently, tied to the same width, or from `pairs`.")] = "independent"  # fmt: skip
    pairs: Annotated[tuple[Pair, ...], OnceEach, Field(description="For `pairing = 'pairs'`: the (weight, activation) pairs on offer.")] = ()  # fmt: skip
    granularity: Annotated[Literal["layer", "block"], Field(description="One choice per layer, or one per residual branch.")] = "layer"  # fmt: skip
    groups: Annotated[tuple[str, ...], Field(description="Patterns over module names such as `layer*.?`: all layers below one matching module share a choice.")] = ()  # fmt: skip
    ties: Annotated[tuple[Literal["residual", "shared_inputs"], ...], Field(description="Layers whose outputs are added, or that read the same tensor, share a choice.")] = ()  # fmt: skip
    first_layer: Annotated[Literal["search"] | SomeBits, Field(description="Bits of the first layer: a width such as 8 or 32, or `search`.")] = 8  # fmt: skip
    last_layer: Annotated[Literal["search"] | SomeBits, Field(description="Bits of the last layer: a width such as 8 or 32, or `search`.")] = 8  # fmt: skip
    include: Annotated[tuple[str, ...], Field(description="Only layers that fit one of these patterns are searched.")] = ("*",)  # fmt: skip
    exclude: Annotated[tuple[str, ...], Field(description="Layers that fit one of these patterns stay in fp32.")] = ()
    fix: Annotated[dict[str, Pair], Field(description="Layers set by hand: pattern = [weight bits, activation bits].")] = field(default_factory=dict)  # fmt: skip
    capability: Annotated[Annotated[FilePath | Capability, _FILE] | None, Field(examples=["capability.json"], description="JSON file of the (weight, activation) pairs that the target supports.")] = None  # fmt: skip

    def __post_init__(self) -> None:
        """Read every field as a job file's JSON is read; lists, arrays and single values are written out first."""
        for option in fields(self):
            given = getattr(self, option.name)
            single = isinstance(option.default, tuple) and (isinstance(given, str) or not _is_many(given))
            object.__setattr__(self, option.name, _read(option.name, [given] if single else given))

    @property
    def supported(self) -> Capability:
        """What the target supports, read from its file where one is named; empty where nothing is said."""
        return read_capability(Path(self.capability)) if isinstance(self.capability, str) else self.capability or {}


def read_capability(path: Path) -> dict[str, tuple[Pair, ...]]:
    """Read which (weight, activation) bit pairs a target supports.

    The file is JSON: ``{"pairs": [[8, 8], [4, 8]], "by_type": {"Linear": [[8, 8]]}}``; ``by_type`` overrides
    ``pairs`` for that layer type. Returned under the keys ``"*"`` and the type names. Raises :class:`InputError` for
    a file that cannot be read, and for the first width, layer type or key that does not exist.
    """
    try:
        text = read_regular(path).decode("utf-8")
        data = parse_json(text)
        file = _CapabilityFile.model_validate_json(text, strict=True)
    except OSError as error:
        raise InputError(f"capability file {path}: {unreadable(error)}") from error
    except ValidationError as error:
        raise InputError(f"capability file {path}: {first_problem(error, data)}; {_FORM}") from error
    except ValueError as error:
        raise InputError(f"capability file {path} is not JSON ({error}); {_FORM}") from error
    return {"*": file.pairs, **file.by_type}


class _CapabilityFile(BaseModel):
    model_config = ConfigDict(extra="forbid")

    pairs: tuple[Pair, ...]
    by_type: dict[LayerKind, tuple[Pair, ...]] = {}


@cache
def _kinds() -> dict[str, TypeAdapter[Any]]:
    return {name: TypeAdapter(hint) for name, hint in get_type_hints(SpaceOptions, include_extras=True).items()}


def _read(key: str, given: Any) -> Any:
    """One field by the job file's rules: no text for a number, no 4.0 or true for a width."""
    try:
        text = json.dumps(given, default=_plain)
        return _kinds()[key].validate_json(text, strict=True)
    except ValidationError as error:
        raise InputError(first_problem(error, json.loads(text), ("space", key))) from error
    except (TypeError, ValueError, RecursionError) as error:
        raise InputError(f"space.{key} cannot be {kind_of(given)} of such values: {error}") from error


def _is_many(given: Any) -> bool:
    return given is None or (isinstance(given, Iterable) and getattr(given, "ndim", 1) > 0)


def _plain(value: Any) -> Any:
    """What JSON has no word for: numbers and arrays of numpy or torch, paths, other mappings, other iterables."""
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, PurePath):
        return str(value)
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, Iterable):
        return list(value)
    raise TypeError(f"{type(value).__name__} is no plain value")
