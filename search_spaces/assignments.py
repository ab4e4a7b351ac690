"""A bit assignment: for every layer, by its module name, how many bits its weights and its inputs get.

The file format is versioned and keyed by module names, so it can be read without this package and applied to
any fresh copy of the same network.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from pydantic import Field

from search_spaces.errors import InputError, check_type, nearest
from search_spaces.fields import BIT_WIDTHS
from search_spaces.groups import kept_units
from search_spaces.layers import FLOAT_BITS, LayerGraph
from search_spaces.metrics import check_metrics
from search_spaces.plain_json import parse_json
from search_spaces.provenance import Provenance, read_provenance
from search_spaces.records import Amount, Count, Index, Record, check_schema
from search_spaces.schemes import WeightScheme, read_scheme
from search_spaces.signature import Signature

SCHEMA = "dnas.assignment/1"


@dataclass(frozen=True)
class LayerBits:
    """The choice for one layer: bits of its weights, bits of its input activations, and the filters it keeps.

    ``scheme`` says how the weights are represented where they are no integers of one grid; ``weight_bits`` are then
    those of each value that it stores.
    """

    weight_bits: int
    activation_bits: int
    out_channels: int | None = None
    kept_channels: tuple[int, ...] | None = None
    scheme: WeightScheme | None = None

    def __post_init__(self) -> None:
        for name, bits in (("weight_bits", self.weight_bits), ("activation_bits", self.activation_bits)):
            if bits not in BIT_WIDTHS or isinstance(bits, (bool, float)):
                raise InputError(
                    f"{name} = {bits!r} is not a bit-width; choose one of {', '.join(map(str, BIT_WIDTHS))}"
                )
            object.__setattr__(self, name, int(bits))  # numpy's integers have no JSON
        if (self.weight_bits == 0) != (self.activation_bits == 0):
            raise InputError(
                f"weight_bits = {self.weight_bits} with activation_bits = {self.activation_bits}: "
                "a skipped layer has 0 bits for both"
            )
        if self.scheme is not None and not self.weight_bits:
            raise InputError(f"a skipped layer has no {self.scheme.words}; give it weight_bits above 0")

    @property
    def is_float(self) -> bool:
        """Whether the layer stays as it is: neither its weights nor its inputs are quantized."""
        return self.weight_bits == self.activation_bits == FLOAT_BITS and self.scheme is None


@dataclass(frozen=True)
class ModelReference:
    """Which network an assignment belongs to: its source, the checkpoint's checksum, the shape of one input.

    ``signature`` says what it is called with, where that is something else than one tensor of floats.
    """

    source: str
    input_shape: tuple[int, ...]
    checkpoint_sha256: str | None = None
    signature: Signature | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "input_shape", tuple(self.input_shape))

    @property
    def example(self) -> tuple[int, ...] | Signature:
        """What the network is called with: its signature, or the shape of its one input."""
        return self.signature or self.input_shape

    def called_as(self, graph: LayerGraph) -> ModelReference:
        """The reference with what ``graph`` says the network is called with, where it tells nothing of it itself."""
        return self if self.signature else replace(self, signature=graph.signature)

    def to_json(self) -> dict[str, Any]:
        """Its object in the file of an assignment."""
        told = {
            "source": self.source,
            "checkpoint_sha256": self.checkpoint_sha256,
            "input_shape": list(self.input_shape),
        }
        return {**told, "signature": self.signature.to_json()} if self.signature else told


@dataclass(frozen=True)
class BitAssignment:
    """Bits per layer, what they cost, how they measured and where they came from.

    ``layer_costs`` is what each layer takes of every cost, by layer and cost; empty where it was not priced.

    >>> assignment = BitAssignment("mine", ModelReference("zoo:resnet20", (3, 32, 32)), {"conv1": LayerBits(4, 8)})
    >>> BitAssignment.from_json(assignment.to_json()) == assignment
    True
    """

    id: str
    model: ModelReference
    layers: Mapping[str, LayerBits]
    cost: Mapping[str, float] = field(default_factory=dict)
    metrics: Mapping[str, Any] = field(default_factory=dict)
    provenance: Provenance = field(default_factory=Provenance)
    layer_costs: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_type(self.model, ModelReference, "the model of an assignment", "give ModelReference(source, input_shape)")
        object.__setattr__(self, "layers", bits_by_layer(self.layers))
        given: Any = self.provenance
        if not isinstance(given, Provenance):  # as the file has it
            object.__setattr__(self, "provenance", read_provenance(given))

    @property
    def pairs(self) -> dict[str, tuple[int, int]]:
        """Layer name → (weight bits, activation bits)."""
        return {name: (bits.weight_bits, bits.activation_bits) for name, bits in self.layers.items()}

    @property
    def digest(self) -> str:
        """The SHA-256 of what a net is made of: shape of an input, bits, kept filters and weight scheme of each layer.

        What is measured later (costs, metrics, figures of a scheme) changes nothing.
        """
        layers = {
            name: [bits.weight_bits, bits.activation_bits, bits.kept_channels, bits.scheme and bits.scheme.name]
            for name, bits in self.layers.items()
        }
        text = json.dumps([self.model.input_shape, layers], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def with_metrics(self, **metrics: Any) -> BitAssignment:
        """Return a copy with these metrics added."""
        return replace(self, metrics={**self.metrics, **metrics})

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object described in docs/file-formats.md."""
        return {
            "schema": SCHEMA,
            "id": self.id,
            "model": self.model.to_json(),
            "layers": {
                name: {
                    "weight_bits": bits.weight_bits,
                    "activation_bits": bits.activation_bits,
                    "out_channels": bits.out_channels,
                    "kept_channels": None if bits.kept_channels is None else list(bits.kept_channels),
                    **({bits.scheme.name: bits.scheme.to_json()} if bits.scheme else {}),
                }
                for name, bits in self.layers.items()
            },
            "cost": dict(self.cost),
            "metrics": dict(self.metrics),
            "provenance": self.provenance.to_json(),
            **(
                {"layer_costs": {name: dict(own) for name, own in self.layer_costs.items()}} if self.layer_costs else {}
            ),
        }

    @classmethod
    def from_json(cls, data: Any) -> BitAssignment:
        """Read the object that :meth:`to_json` writes; raise :class:`InputError` for anything else."""
        check_schema(data, SCHEMA, "an assignment file")
        try:
            file = _File.read(data)
            model = file.model.reference()
            layers = {name: entry.bits(name) for name, entry in file.layers.items()}
            check_metrics(file.metrics)
        except InputError as error:
            raise InputError(f"the assignment file is damaged ({error}); export it again") from error
        made = read_provenance(file.provenance)
        return cls(file.id, model, layers, file.cost, file.metrics, made, file.layer_costs)

    @classmethod
    def loads(cls, text: str) -> BitAssignment:
        """Read an assignment from the text of its file."""
        check_type(text, (str, bytes), "the text of an assignment", "give what its file holds")
        try:
            data = parse_json(text)
        except json.JSONDecodeError as error:
            raise InputError(f"the assignment file is not JSON (line {error.lineno}: {error.msg})") from error
        except ValueError as error:  # a number or a nesting out of all proportion
            raise InputError(f"the assignment file is damaged ({error}); export it again") from error
        return cls.from_json(data)


def bits_by_layer(layers: Any) -> Mapping[str, LayerBits]:
    """The bits of layers by name; a pair (weight bits, activation bits) is as good as :class:`LayerBits`."""
    hint = "give LayerBits(weight_bits, activation_bits) by the names of the layers"
    check_type(layers, Mapping, "the bits of layers", hint)
    if all(isinstance(bits, LayerBits) for bits in layers.values()):
        return layers
    found = {}
    for name, bits in layers.items():
        if not isinstance(bits, LayerBits):
            check_type(bits, (tuple, list), f"the bits of layer '{name}'", hint)
            if len(bits) != 2:
                raise InputError(f"the bits of layer '{name}' are {bits!r}; {hint}")
            bits = LayerBits(*bits)
        found[name] = bits
    return found


class _Model(Record):
    """The network of an assignment, as its file has it."""

    source: str
    input_shape: tuple[Count, ...]
    checkpoint_sha256: str | None
    signature: dict[str, Any] | None = None

    def reference(self) -> ModelReference:
        """What it stands for."""
        signature = None if self.signature is None else Signature.from_json(self.signature)
        return ModelReference(self.source, self.input_shape, self.checkpoint_sha256, signature)


class _Layer(Record):
    """The entry of one layer; what is beside these keys may be a weight scheme."""

    weight_bits: Index
    activation_bits: Index
    out_channels: Count | None
    kept_channels: tuple[Index, ...] | None

    def bits(self, layer: str) -> LayerBits:
        """The choice that it holds; :class:`InputError` names the ``layer``."""
        try:
            scheme = read_scheme(self.model_extra or {})
            return LayerBits(self.weight_bits, self.activation_bits, self.out_channels, self.kept_channels, scheme)
        except InputError as error:
            raise InputError(f"layer '{layer}': {error}") from error


class _File(Record):
    """The file of an assignment."""

    id: str
    model: _Model
    layers: dict[str, _Layer]
    cost: dict[str, Amount]
    metrics: dict[str, Any]
    provenance: Any
    layer_costs: dict[str, dict[str, Amount]] = Field(default_factory=dict)


def kept_rows_of(layers: Mapping[str, LayerBits]) -> dict[str, tuple[int, ...]]:
    """Layer → the filters it keeps, for every pruned layer."""
    return {name: bits.kept_channels for name, bits in layers.items() if bits.kept_channels is not None}


def check_names(what: str, names: Iterable[str], graph: LayerGraph, more: str = "") -> None:
    """Raise :class:`InputError` unless ``what`` names exactly the layers of ``graph``."""
    known, given = {layer.name for layer in graph.layers}, list(names)
    for name in given:
        if name not in known:
            hint = nearest(str(name), known)
            raise InputError(f"{what} names layer '{name}', which this network does not have{hint}{more}")
    missing = sorted(known - set(given))
    if missing:
        raise InputError(f"{what} says nothing about layer '{missing[0]}' ({len(missing)} missing in all){more}")


def check_fits(assignment: BitAssignment, graph: LayerGraph) -> None:
    """Raise :class:`InputError` unless the assignment names exactly the layers of ``graph``."""
    made_for = f"; it was made for {assignment.model.source}"
    check_names(f"assignment '{assignment.id}'", assignment.layers, graph, made_for)
    if kept_rows_of(assignment.layers):
        if graph.channels.unknown:
            raise InputError(
                f"assignment '{assignment.id}' removes filters, which this network does not allow: "
                f"{graph.channels.unknown}"
            )
        kept_units(graph.channels, kept_rows_of(assignment.layers))
