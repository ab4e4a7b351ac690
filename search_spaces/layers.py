"""What is known about one layer of a network, and about the network as a whole: plain immutable records."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from search_spaces.groups import ChannelGroups
from search_spaces.signature import Signature

FLOAT_BITS = 32


@dataclass(frozen=True)
class LayerSpec:
    """One weighted layer of a network, with the shapes of one sample (no batch dimension).

    ``macs`` counts multiply-accumulates of one sample over all ``calls`` of the layer in one forward pass.
    ``norm`` names the BatchNorm that reads this layer's output and is folded into it on export;
    ``norm_channels`` is its width (0 without one). ``shares_weight_with`` names the earlier layer that owns
    the same parameter. ``weight_from`` says where the weight that it multiplies with comes from: its ``"parameter"``;
    ``"computed"`` of others by PyTorch's means (a parametrization, weight or spectral norm, a mask) before its code
    runs; or ``"made"`` by its own code, as weight standardisation does.
    """

    name: str
    kind: str
    weight_shape: tuple[int, ...]
    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    macs: int
    out_channels: int
    groups: int = 1
    bias_elements: int = 0
    calls: int = 1
    norm: str | None = None
    norm_channels: int = 0
    shares_weight_with: str | None = None
    weight_from: Literal["parameter", "computed", "made"] = "parameter"

    @property
    def weight_elements(self) -> int:
        """Number of weights."""
        return math.prod(self.weight_shape)

    @property
    def input_elements(self) -> int:
        """Number of input activations of one sample and one call."""
        return math.prod(self.input_shape)


@dataclass(frozen=True)
class ParameterSpec:
    """One parameter of a network, under its first name (of attention modules: as unfolded into layers).

    ``owner`` is the layer that accounts for it (its weight, its bias, or those of the BatchNorm folded into it), a
    name in :attr:`LayerGraph.unsupported`, or its own name. ``reason`` says why it is no part of a layer, and is empty
    where it is. One that is not ``deployed`` is never read in eval mode, such as those of an auxiliary head.
    """

    name: str
    elements: int
    owner: str
    reason: str = ""
    deployed: bool = True


@dataclass(frozen=True)
class ResidualBranch:
    """A branch that ends in an addition and can be dropped: the module that gives its output, and its layers."""

    terminal: str
    layers: tuple[str, ...]


@dataclass(frozen=True)
class LayerGraph:
    """Everything the search needs to know of an unedited network; made by :func:`search_spaces.read_graph`.

    ``parameters`` are all parameters of the network, each once. ``unsupported`` maps every layer that cannot be
    quantized, and every other parameter with two axes or more that no layer holds, to the reason.
    ``unused`` names the parameters, buffers and BatchNorms that are not deployed: nothing reads them in eval mode, or
    only what computes the weight of a layer.
    ``other_bytes`` is what everything deployed outside ``layers`` (and outside their folded BatchNorms) takes:
    parameters in fp32, and buffers.
    ``uncounted_macs`` are multiply-accumulates of operations outside ``layers``, such as attention products.
    ``channels`` are the filters that can be removed.
    ``flows`` are pairs of which the second reads what the first gave: layers, "" (the input of the network), or an
    operation in which several meet, whose name begins with a dot.
    ``couplings_unknown`` says why residual branches and flows could not be read; empty where they could.
    ``signature`` says what the network is called with, where that is something else than one tensor of floats.
    """

    layers: tuple[LayerSpec, ...]
    input_shape: tuple[int, ...]
    other_bytes: int
    unsupported: Mapping[str, str] = field(default_factory=dict)
    shared_inputs: tuple[tuple[str, ...], ...] = ()
    residual_ties: tuple[tuple[str, ...], ...] = ()
    branches: tuple[ResidualBranch, ...] = ()
    channels: ChannelGroups = field(default_factory=ChannelGroups)
    uncounted_macs: int = 0
    flows: tuple[tuple[str, str], ...] = ()
    couplings_unknown: str = ""
    parameters: tuple[ParameterSpec, ...] = ()
    unused: frozenset[str] = frozenset()
    signature: Signature | None = None

    def __getitem__(self, name: str) -> LayerSpec:
        return self.by_name[name]

    @property
    def example(self) -> tuple[int, ...] | Signature:
        """What the network is called with: its signature, or the shape of its one input."""
        return self.signature or self.input_shape

    @property
    def by_name(self) -> dict[str, LayerSpec]:
        """The layers keyed by their module names."""
        return {layer.name: layer for layer in self.layers}

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one sample over the listed layers."""
        return sum(layer.macs for layer in self.layers)
