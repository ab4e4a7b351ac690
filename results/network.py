"""The network of a run as a file keeps it: its layers and which reads what which gave, so that showing it runs none."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, Self

from pydantic import Field

from search_spaces.layers import LayerGraph
from search_spaces.records import Record

INPUT = ""
"""What the input of the network is called among its layers."""


class NetworkLayer(Record):
    """One layer: its kind, the shapes of its weight and of one sample that goes in and comes out, without the batch."""

    name: str
    kind: str
    weight_shape: tuple[int, ...]
    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    macs: int = Field(ge=0)


class Network(Record):
    """Layers in the order of the forward pass; ``flows`` lead from a layer to one that reads what it gave.

    A flow from "" is one from the network's input; a name that begins with a dot, such as ".add1", is an operation in
    which several meet. ``unknown`` says why flows could not be read, and is empty where
    they could. ``unsupported`` maps what is no layer to the reason.
    """

    format: Literal["dnas.network/1"] = "dnas.network/1"
    source: str
    input_shape: tuple[int, ...]
    layers: tuple[NetworkLayer, ...]
    flows: tuple[tuple[str, str], ...] = ()
    unknown: str = ""
    unsupported: Mapping[str, str] = Field(default_factory=dict)

    @classmethod
    def of(cls, source: str, graph: LayerGraph) -> Self:
        """What is kept of the graph of a network from ``source``."""
        layers = tuple(
            NetworkLayer(
                name=layer.name,
                kind=layer.kind,
                weight_shape=layer.weight_shape,
                input_shape=layer.input_shape,
                output_shape=layer.output_shape,
                macs=layer.macs,
            )
            for layer in graph.layers
        )
        return cls(
            source=source,
            input_shape=graph.input_shape,
            layers=layers,
            flows=graph.flows,
            unknown=graph.couplings_unknown,
            unsupported=graph.unsupported,
        )

    def to_json(self) -> dict[str, object]:
        """All keys, as plain values."""
        return self.model_dump(mode="json")
