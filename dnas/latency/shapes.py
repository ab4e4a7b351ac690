"""The distinct shapes of a network's layers, and small networks that hold one layer each."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from search_spaces.costs.latency import LANES, channels_of
from search_spaces.layers import LayerGraph, LayerSpec

LAYER = "layer"
"""The name of the layer in its small network."""
_SHARES = (1.0, 0.25)
_GEOMETRY = ("kernel_size", "stride", "padding", "dilation", "output_padding", "padding_mode")


@dataclass(frozen=True)
class LayerShape:
    """What a layer's time depends on, besides its widths: its kind, channels, groups, geometry and input.

    ``input_shape`` is that of one sample, channels included.
    """

    kind: str
    inputs: int
    filters: int
    groups: int
    geometry: tuple[tuple[str, Any], ...]
    input_shape: tuple[int, ...]
    bias: bool

    @property
    def is_depthwise(self) -> bool:
        """Whether each filter reads one channel."""
        return self.groups > 1 and self.groups == self.inputs

    def sizes(self, pruned_inputs: bool, pruned_filters: bool) -> list[tuple[int, int]]:
        """Numbers of (inputs, filters) to measure, the whole layer first: multiples of what runtimes compute at once.

        A depthwise layer's inputs and filters go together.
        """
        step = LANES if self.is_depthwise else math.lcm(LANES, self.groups)
        inputs = _fewer(self.inputs, step, pruned_inputs)
        filters = _fewer(self.filters, step, pruned_filters)
        if self.is_depthwise:
            each = self.filters // self.inputs
            return [(count, count * each) for count in (inputs if pruned_inputs and pruned_filters else inputs[:1])]
        return [(i, f) for i in inputs for f in filters]

    def module(self, inputs: int, filters: int) -> nn.Module:
        """The layer with so many channels, and random weights."""
        kinds: Any = nn
        if self.kind == "Linear":
            return nn.Linear(inputs, filters, self.bias)
        groups = inputs if self.is_depthwise else self.groups
        return getattr(kinds, self.kind)(inputs, filters, groups=groups, bias=self.bias, **dict(self.geometry))


def shape_of(spec: LayerSpec, layer: Any) -> LayerShape:
    """The shape of a layer, of which ``layer`` is the module."""
    inputs, filters = channels_of(spec)
    geometry = tuple((key, _plain(getattr(layer, key))) for key in _GEOMETRY if hasattr(layer, key))
    if "Transpose" not in spec.kind:
        geometry = tuple((key, value) for key, value in geometry if key != "output_padding")
    groups = spec.groups if spec.kind != "Linear" else 1
    return LayerShape(spec.kind, inputs, filters, groups, geometry, spec.input_shape, bool(spec.bias_elements))


def shapes_by_layer(network: nn.Module, graph: LayerGraph) -> dict[str, LayerShape]:
    """Layer → its shape; ``network`` has the layers of ``graph`` as modules."""
    return {spec.name: shape_of(spec, network.get_submodule(spec.name)) for spec in graph.layers}


def pruned_sides(graph: LayerGraph, names: Iterable[str]) -> tuple[bool, bool]:
    """Whether any of these layers can lose inputs, and filters."""
    wanted, groups = set(names), graph.channels.groups
    return any(wanted & set(group.columns) for group in groups), any(wanted & set(group.rows) for group in groups)


class Alone(nn.Module):
    """A layer between two cheap ones, as in a network: it reads what a layer gave, and a ReLU and a mean follow it.

    Maps (N, C, ...) to (N, F). Without the layer it is what remains to be subtracted.
    """

    def __init__(self, layer: nn.Module | None, shape: LayerShape, inputs: int) -> None:
        super().__init__()
        spatial = 0 if shape.kind == "Linear" else int(shape.kind[-2])
        self.entry: nn.Module = nn.Identity()
        if spatial and inputs > 4:  # what reads an image needs no other layer before it
            kinds: Any = nn
            self.entry = getattr(kinds, f"Conv{spatial}d")(inputs, inputs, 1, groups=inputs)
        self.add_module(LAYER, layer if layer is not None else nn.Identity())
        self.relu = nn.ReLU()
        self.axes = tuple(range(2, 2 + spatial))

    def forward(self, x: Tensor) -> Tensor:
        """The mean of the layer's outputs over their places."""
        y = self.relu(self.get_submodule(LAYER)(self.relu(self.entry(x))))
        return y.mean(self.axes) if self.axes else y


def small_input(shape: LayerShape, inputs: int) -> tuple[int, ...]:
    """The shape of one sample for so many input channels."""
    if shape.kind == "Linear":
        return (*shape.input_shape[:-1], inputs)
    spatial = int(shape.kind[-2])
    return (inputs, *shape.input_shape[-spatial:])


def _fewer(count: int, step: int, prunes: bool) -> list[int]:
    """Shares of ``count`` in whole steps, the whole of it first."""
    if not prunes:
        return [count]
    return sorted({min(count, step * math.ceil(count * share / step)) for share in _SHARES}, reverse=True)


def _plain(value: Any) -> Any:
    return tuple(value) if isinstance(value, Sequence) and not isinstance(value, str) else value
