"""A trained quantized net as integer codes and fp32 tensors: what a packed file holds (docs/packed-format.md).

The tensors take exactly what the cost table says. A gain is multiplied into the step and the start of its grid, in
fp32 and in the order of :mod:`dnas.quantization.mixture`, so that decoded values are those of the net bit for bit.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from dnas.export.buffers import described_buffers, fingerprints, unread_buffers
from dnas.export.constants import constants_of
from dnas.export.folding import check_folded
from dnas.export.operations import operations_of
from dnas.export.parts import (
    Codes,
    array_of,
    check_parameter,
    check_skipped,
    check_storable,
    folded_norm,
    geometry,
    grid_with_gain,
    on_cpu,
    other_norms,
    other_parameters,
    smallest_clip,
    used_weight,
    weight_codes,
)
from dnas.quantization.conversion import QuantizerChoice
from dnas.quantization.held_weights import with_plain_layers
from dnas.quantization.layers import QuantizedLayer, TensorQuantizer
from dnas.quantization.schemes import SchemeQuantizer, as_stored
from results.packed.file import DEFAULT_PROFILE, PackedFile, to_planes, write_packed
from results.packed.weights import FLOAT, PLANES, SHARED
from search_spaces.assignments import BitAssignment, LayerBits, check_fits, kept_rows_of
from search_spaces.channels.slicing import pruned_graph
from search_spaces.costs.kinds import WEIGHT_BITS, size_bytes
from search_spaces.costs.stored import layer_costs
from search_spaces.errors import InputError
from search_spaces.groups import kept_units
from search_spaces.layers import FLOAT_BITS, LayerGraph, LayerSpec


def pack_fixed(
    path: Path,
    network: nn.Module,
    graph: LayerGraph,
    assignment: BitAssignment,
    choice: QuantizerChoice,
    more: Mapping[str, Any],
) -> PackedFile:
    """Write the fixed net ``network`` to ``path``, with ``more`` in its description; see :func:`save_packed`."""
    check_fits(assignment, graph)
    network = with_plain_layers(on_cpu(network), graph)
    layers, reference = as_stored(network, assignment.layers), assignment.model.called_as(graph)
    assignment = replace(assignment, layers=layers, model=reference)
    kept = kept_units(graph.channels, kept_rows_of(assignment.layers))
    packer = _Packer(network, pruned_graph(graph, kept) if kept else graph, assignment)
    packer.pack()
    constants = constants_of(network, packer.graph)
    check_folded(network, packer.graph)
    taken = sum(tensor.nbytes for tensor in packer.tensors.values())
    expected = _expected_bytes(packer.graph, assignment, choice.per_channel)
    if taken != expected:
        raise InputError(
            f"this net takes {taken} bytes and the cost table says {expected}: it holds something that the table "
            "does not count, and is not packed"
        )
    if any(bits.scheme for bits in assignment.layers.values()):  # what is recorded is the largest net of all seeds
        assignment = replace(assignment, cost={**assignment.cost, "size_bytes": float(taken)})
    operations = operations_of(network, packer.graph, packer.layers, packer.parameters)
    profile = {"assignment": assignment.to_json(), "layers": packer.choices, "norms": packer.norms}
    profile["operations"] = operations
    description = {
        **more,
        "quantizer": asdict(choice),
        "layers": packer.layers,
        "parameters": packer.parameters,
        "buffers": packer.buffers,
        "unread_buffers": unread_buffers(network, packer.graph),
        "fingerprints": fingerprints(network),
        "constants": constants,
        "profiles": {DEFAULT_PROFILE: profile},
    }
    return write_packed(path, description, packer.tensors)


def _expected_bytes(graph: LayerGraph, assignment: BitAssignment, per_channel: bool) -> int:
    """``size_bytes`` of the cost table, layers as they are stored."""
    costs = {"size_bytes": size_bytes(per_channel), "weight_bits": WEIGHT_BITS}
    layers = (layer_costs(costs, graph[name], bits)["size_bytes"] for name, bits in assignment.layers.items())
    return int(sum(layers)) + graph.other_bytes


@dataclass
class _Packer:
    """Collects the tensors of a net, and what the header says of them."""

    network: nn.Module
    graph: LayerGraph
    assignment: BitAssignment
    tensors: dict[str, np.ndarray] = field(default_factory=dict)
    layers: dict[str, Any] = field(default_factory=dict)
    choices: dict[str, Any] = field(default_factory=dict)
    norms: dict[str, Any] = field(default_factory=dict)
    parameters: dict[str, str] = field(default_factory=dict)
    buffers: dict[str, Any] = field(default_factory=dict)

    def pack(self) -> None:
        """Go through the layers, then through everything else."""
        check_skipped(self.graph, self.assignment)
        for name, bits in self.assignment.layers.items():
            if bits.weight_bits:
                self._pack_layer(self.graph[name], bits)
        for name, norm in other_norms(self.network, self.graph):
            self.norms[name] = self._norm(name, name, norm)
        for name, parameter in other_parameters(self.network, self.graph):
            check_parameter(name, parameter)
            self.parameters[name] = self._add(name, parameter)
        self.buffers = described_buffers(self.network, self.graph, self._add)

    def _pack_layer(self, spec: LayerSpec, bits: LayerBits) -> None:
        layer: Any = self.network.get_submodule(spec.name)
        check_storable(spec.name, layer, bits)
        stored, weight = self._weight(spec, layer, bits)
        norm = None
        if spec.norm is not None:
            folded = self._norm(spec.norm, f"{spec.name}.norm", self.network.get_submodule(spec.norm))
            norm = {"module": spec.norm, **folded}
        self.layers[spec.name] = {
            "kind": spec.kind,
            "shape": list(spec.weight_shape),
            "geometry": geometry(layer),
            "weight": stored,
            "bias": None if layer.bias is None else self._add(f"{spec.name}.bias", layer.bias),
        }
        self.choices[spec.name] = {"weight": weight, "input": self._input(spec.name, layer), "norm": norm}

    def _weight(self, spec: LayerSpec, layer: Any, bits: LayerBits) -> tuple[dict[str, Any], dict[str, Any] | None]:
        """How the weight is stored, and how its codes become values (None: it is stored in fp32)."""
        if spec.shares_weight_with is not None:
            return self._shared_weight(spec, layer)
        if isinstance(layer, QuantizedLayer) and isinstance(layer.quantize_weight, SchemeQuantizer):
            stored, told = layer.quantize_weight.pack(spec.name, layer.float_weight(), bits.scheme, self._add)
            return stored, {"bits": bits.weight_bits, **told}
        if bits.weight_bits == FLOAT_BITS:
            return {"storage": FLOAT, "tensor": self._add(f"{spec.name}.weight", used_weight(layer, spec))}, None
        found, quantizer = weight_codes(layer), layer.quantize_weight
        planes = self._add(f"{spec.name}.planes", to_planes(found.codes, bits.weight_bits))
        axis = None if quantizer.channel_axis is None else int(quantizer.channel_axis)
        stored = {"storage": PLANES, "bits": bits.weight_bits, "axis": axis, "tensor": planes}
        return stored, self._quantized(f"{spec.name}.weight_clip", bits.weight_bits, quantizer, found)

    def _shared_weight(self, spec: LayerSpec, layer: Any) -> tuple[dict[str, Any], dict[str, Any] | None]:
        """Nothing is stored: the codes, the clip and the grid must be those of the owner."""
        owner = cast(str, spec.shares_weight_with)
        same = owner in self.layers
        if same:
            ours, theirs = (used_weight(module, spec) for module in (layer, self.network.get_submodule(owner)))
            same = torch.equal(ours, theirs)
        if not same:
            raise InputError(
                f"layer '{spec.name}' shares its weight with '{owner}' but quantizes it otherwise; it is stored once, "
                "so give both the same bits and train again"
            )
        return {"storage": SHARED, "layer": owner}, self.choices[owner]["weight"]

    def _input(self, name: str, layer: Any) -> dict[str, Any] | None:
        """How the input becomes codes; None where it stays fp32."""
        quantizer = layer.quantize_input if isinstance(layer, QuantizedLayer) else None
        if quantizer is None or not quantizer.widths:
            return None
        clip = smallest_clip(quantizer.clip)
        found = Codes(np.zeros(0), array_of(clip).reshape(-1), grid_with_gain(quantizer))
        return self._quantized(f"{name}.input_clip", quantizer.widths[0], quantizer, found)

    def _quantized(self, name: str, bits: int, quantizer: TensorQuantizer, found: Codes) -> dict[str, Any]:
        clip = self._add(name, found.clip)
        return {"bits": bits, "signed": quantizer.signed, "clip": clip, "grid": asdict(found.grid)}

    def _norm(self, module: str, name: str, norm: nn.Module) -> dict[str, str]:
        scale, shift = folded_norm(module, norm)
        return {"scale": self._add(f"{name}.scale", scale), "shift": self._add(f"{name}.shift", shift)}

    def _add(self, name: str, tensor: Tensor | np.ndarray) -> str:
        """Keep a tensor under this name, or (a parameter may be called alike) under one like it."""
        while name in self.tensors or name == "__metadata__":
            name += "_"
        self.tensors[name] = tensor if isinstance(tensor, np.ndarray) else array_of(tensor)
        return name
