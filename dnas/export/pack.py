"""A trained quantized net as integer codes and fp32 tensors: what a packed file holds (docs/packed-format.md).

The tensors take exactly what the cost table says. A gain is multiplied into the step and the start of its grid, in
fp32 and in the order of :mod:`dnas.quantization.mixture`, so that decoded values are those of the net bit for bit.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from dnas.export.sparse_storage import as_stored
from dnas.quantization.conversion import QuantizerChoice
from dnas.quantization.layers import SMALLEST_CLIP, QuantizedLayer, TensorQuantizer, has_hooks
from dnas.quantization.quantizers import Grid, encode
from dnas.quantization.sparsity import SparseQuantizer, dense_bits, sparse_codes
from results.packed.file import DEFAULT_PROFILE, PackedFile, to_planes, write_packed
from results.packed.weights import FLOAT, PLANES, SHARED
from search_spaces import sparse_codes as sparse
from search_spaces.assignments import BitAssignment, LayerBits, kept_rows_of
from search_spaces.channels.slicing import pruned_graph
from search_spaces.costs.sparse import layer_costs
from search_spaces.costs.table import WEIGHT_BITS, size_bytes
from search_spaces.errors import InputError
from search_spaces.groups import kept_units
from search_spaces.layers import FLOAT_BITS, LayerGraph, LayerSpec
from search_spaces.network.graph import LAYER_TYPES

_GEOMETRY = ("stride", "padding", "dilation", "output_padding", "groups", "padding_mode")


@dataclass(frozen=True)
class Codes:
    """Integers (of the tensor's shape) with the clip (R,) and the grid, gain included, that make them values."""

    codes: np.ndarray
    clip: np.ndarray
    grid: Grid


def save_packed(
    path: Path,
    network: nn.Module,
    graph: LayerGraph,
    assignment: BitAssignment,
    choice: QuantizerChoice,
    model: Mapping[str, Any] | None = None,
) -> PackedFile:
    """Write the fixed net ``network``, made of ``assignment`` by :func:`quantize_fixed` and trained, to ``path``.

    ``graph`` is that of the float network, ``model`` its {"source", "arguments"} if it has some. Raises
    :class:`InputError` for a net that the format cannot hold.
    """
    assignment = replace(assignment, layers=as_stored(network.state_dict(), assignment.layers))
    kept = kept_units(graph.channels, kept_rows_of(assignment.layers))
    packer = _Packer(network, pruned_graph(graph, kept) if kept else graph, assignment)
    packer.pack()
    taken = sum(tensor.nbytes for tensor in packer.tensors.values())
    expected = _expected_bytes(packer.graph, assignment, choice.per_channel)
    if taken != expected:
        raise InputError(
            f"this net takes {taken} bytes and the cost table says {expected}: it holds something that the table "
            "does not count, and is not packed"
        )
    if any(bits.sparse for bits in assignment.layers.values()):  # what is recorded is the largest net of all seeds
        assignment = replace(assignment, cost={**assignment.cost, "size_bytes": float(taken)})
    profile = {"assignment": assignment.to_json(), "layers": packer.choices, "norms": packer.norms}
    description = {
        "model": dict(model or {}),
        "quantizer": asdict(choice),
        "layers": packer.layers,
        "parameters": packer.parameters,
        "profiles": {DEFAULT_PROFILE: profile},
    }
    return write_packed(path, description, packer.tensors)


def _expected_bytes(graph: LayerGraph, assignment: BitAssignment, per_channel: bool) -> int:
    """``size_bytes`` of the cost table, sparse layers as they are stored."""
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

    def pack(self) -> None:
        """Go through the layers, then through everything else."""
        check_skipped(self.graph, self.assignment)
        for name, bits in self.assignment.layers.items():
            if bits.weight_bits:
                self._pack_layer(self.graph[name], bits)
        for name, norm in other_norms(self.network, self.graph):
            self.norms[name] = self._norm(name, name, norm)
        for name, parameter in other_parameters(self.network, self.graph):
            self.parameters[name] = self._add(name, parameter)

    def _pack_layer(self, spec: LayerSpec, bits: LayerBits) -> None:
        layer: Any = self.network.get_submodule(spec.name)
        check_storable(spec.name, layer)
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
        if bits.sparse is not None:
            return self._sparse_weight(spec.name, layer, bits)
        if bits.weight_bits == FLOAT_BITS:
            return {"storage": FLOAT, "tensor": self._add(f"{spec.name}.weight", layer.weight)}, None
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
            ours, theirs = (_used_weight(module) for module in (layer, self.network.get_submodule(owner)))
            same = torch.equal(ours, theirs)
        if not same:
            raise InputError(
                f"layer '{spec.name}' shares its weight with '{owner}' but quantizes it otherwise; it is stored once, "
                "so give both the same bits and train again"
            )
        return {"storage": SHARED, "layer": owner}, self.choices[owner]["weight"]

    def _sparse_weight(self, name: str, layer: Any, bits: LayerBits) -> tuple[dict[str, Any], dict[str, Any]]:
        """The codes in their smallest format, and the two numbers that make them values."""
        quantizer, known = layer.quantize_weight, cast(sparse.SparseWeights, bits.sparse)
        if not isinstance(quantizer, SparseQuantizer) or not quantizer.active:
            raise InputError(f"the weights of layer '{name}' are not sparse yet; train the net to its end first")
        found = sparse_codes(layer.weight, quantizer.sigma, bits.weight_bits, known.order)
        dense = dense_bits(bits.weight_bits, known.order)
        codes = found.codes.cpu().numpy().astype(np.int64)
        data = sparse.encode(codes, cast(str, known.storage), bits.weight_bits, dense)
        stored = {
            "storage": known.storage,
            "bits": bits.weight_bits,
            "dense_bits": dense,
            "nonzeros": known.nonzeros,
            "tensor": self._add(f"{name}.sparse", np.frombuffer(data, dtype=np.uint8)),
        }
        levels = self._add(f"{name}.levels", torch.stack([found.start, found.step]))
        return stored, {"bits": bits.weight_bits, "levels": levels}

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


def smallest_clip(clip: Tensor) -> Tensor:
    """A clip as it is used."""
    return clip.detach().clamp_min(SMALLEST_CLIP)


def array_of(tensor: Tensor) -> np.ndarray:
    """A tensor as fp32, on the CPU."""
    return tensor.detach().float().cpu().contiguous().numpy()


def _used_weight(layer: nn.Module) -> Tensor:
    """The weight as the layer uses it."""
    with torch.no_grad():
        return layer.quantized_weight() if isinstance(layer, QuantizedLayer) else cast(Tensor, layer.weight)


def grid_with_gain(quantizer: TensorQuantizer) -> Grid:
    """The grid of a quantizer of one width, its gain multiplied into step and start in the quantizer's own dtype."""
    scale, offset, top, step, start = quantizer.grids[:, 0]
    gain = quantizer.gain.detach()[0]
    return Grid(*(float(number) for number in (scale, offset, top, gain * step, gain * start)))


def weight_codes(layer: QuantizedLayer) -> Codes:
    """The codes (int64, the weight's shape) of a layer with a dense quantized weight of one width."""
    quantizer = cast(TensorQuantizer, layer.quantize_weight)
    with torch.no_grad():
        clip = quantizer.prepare(layer.weight)[1]
    return Codes(codes_of(quantizer, layer.weight), array_of(clip).reshape(-1), grid_with_gain(quantizer))


def codes_of(quantizer: TensorQuantizer, weight: Tensor) -> np.ndarray:
    """The codes (int64, the weight's shape) that a quantizer of one width gives."""
    grid = grid_with_gain(quantizer)
    with torch.no_grad():
        prepared, clip = quantizer.prepare(weight)
        rows = prepared.reshape(clip.shape[0], -1)
        codes = quantizer.as_rows(encode(rows, clip, grid, quantizer.signed).reshape(prepared.shape))
    return codes.cpu().numpy().astype(np.int64)


def geometry(layer: Any) -> dict[str, Any]:
    """How the layer runs over its input; ``standard`` says whether it does nothing else."""
    own_class = layer.original_class if isinstance(layer, QuantizedLayer) else type(layer)
    kind = next(kind for kind in LAYER_TYPES if isinstance(layer, kind))
    found = {name: getattr(layer, name) for name in _GEOMETRY if hasattr(layer, name)}
    listed = {name: list(value) if isinstance(value, tuple) else value for name, value in found.items()}
    return {**listed, "standard": own_class.forward is kind.forward and not has_hooks(layer)}


def folded_norm(name: str, norm: nn.Module) -> tuple[Tensor, Tensor]:
    """Scale and shift (C,) of a BatchNorm in eval mode, computed in float64."""
    if not isinstance(norm, _BatchNorm) or norm.running_mean is None or norm.running_var is None:
        raise InputError(
            f"'{name}' normalises by the statistics of each batch; it cannot be folded, so it is not packed"
        )
    ones = torch.ones_like(norm.running_mean)
    weight, bias = (ones if norm.weight is None else norm.weight), (0 * ones if norm.bias is None else norm.bias)
    scale = weight.detach().double() / (norm.running_var.double() + norm.eps).sqrt()
    return scale, bias.detach().double() - norm.running_mean.double() * scale


def other_norms(network: nn.Module, graph: LayerGraph) -> Iterator[tuple[str, nn.Module]]:
    """Every deployed BatchNorm that no layer accounts for, by name."""
    owned = {spec.norm for spec in graph.layers} | graph.unused
    for name, module in network.named_modules():
        if isinstance(module, _BatchNorm) and name not in owned:
            yield name, module


def other_parameters(network: nn.Module, graph: LayerGraph) -> Iterator[tuple[str, nn.Parameter]]:
    """Every deployed parameter outside layers, quantizers and BatchNorms, by name; one with several names once."""
    layers = set(graph.by_name)
    seen: set[int] = set()
    check_counted(network)
    for name, module in network.named_modules():
        if isinstance(module, (TensorQuantizer, SparseQuantizer, _BatchNorm)):
            continue
        for key, parameter in module._parameters.items():
            if parameter is None or id(parameter) in seen:
                continue
            seen.add(id(parameter))
            full = f"{name}.{key}" if name else key
            if full not in graph.unused and (name not in layers or key not in ("weight", "bias")):
                yield full, parameter


def check_counted(network: nn.Module) -> None:
    """Refuse statistics that the size does not count."""
    for name, module in network.named_modules():
        if isinstance(module, _InstanceNorm) and module.track_running_stats:
            raise InputError(f"'{name}' keeps statistics that are not counted in the size, so it is not packed")


def check_storable(name: str, layer: nn.Module) -> None:
    """Refuse levels that are no affine grid, and inputs whose range is that of each batch."""
    if not isinstance(layer, QuantizedLayer):
        return
    for what, quantizer in (("weights", layer.quantize_weight), ("inputs", layer.quantize_input)):
        if not isinstance(quantizer, TensorQuantizer) or not quantizer.widths:
            continue
        source = quantizer.quantizer
        dynamic = what == "inputs" and source.clip == "data"
        if dynamic or not source.affine:
            why = "their range is that of each batch" if dynamic else "their levels are no affine grid"
            raise InputError(
                f"the {what} of layer '{name}' are quantized by '{source.name}', which a packed file cannot hold "
                f"({why}); the nearest that it can is 'dorefa'"
            )


def check_skipped(graph: LayerGraph, assignment: BitAssignment) -> None:
    """Refuse a skipped layer whose output is still read: nothing of its BatchNorm would be stored."""
    skipped = {name for name, bits in assignment.layers.items() if not bits.weight_bits}
    gone = {name for branch in graph.branches if skipped.issuperset(branch.layers) for name in branch.layers}
    for name in sorted(skipped - gone):
        raise InputError(f"layer '{name}' is skipped but its branch is not; the net is not packed")
