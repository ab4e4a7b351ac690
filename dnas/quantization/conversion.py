"""From an unedited network to its quantized twin: layers are swapped by ``isinstance`` on a copy."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from dnas.quantization.layers import BranchedLayer, DroppedBranch, QuantizedLayer, SkippedLayer, TensorQuantizer
from dnas.quantization.logarithmic import LogarithmicQuantizer
from dnas.quantization.quantizers import Quantizer, find_quantizer
from dnas.quantization.sparsity import SparseQuantizer
from search_spaces.assignments import BitAssignment, LayerBits, check_fits, kept_rows_of
from search_spaces.channels.slicing import pruned_graph, remove_filters
from search_spaces.groups import kept_units
from search_spaces.layers import FLOAT_BITS, LayerGraph, LayerSpec
from search_spaces.models.attention import unfold_attention
from search_spaces.network.graph import TRANSPOSED, read_graph

Pair = tuple[int, int]


@dataclass(frozen=True)
class QuantizerChoice:
    """Which quantizers a network gets: those of weights and of activations, and whether weights scale per channel."""

    weights: str = "lsq"
    activations: str = "pact"
    per_channel: bool = False

    @classmethod
    def of(cls, assignment: BitAssignment) -> QuantizerChoice:
        """The quantizers that an assignment was made with."""
        return cls(**assignment.provenance.quantizer.to_json())

    def of_weights(self) -> Quantizer:
        """The weight quantizer; :class:`InputError` for an unknown name."""
        return find_quantizer("weights", self.weights)

    def of_activations(self) -> Quantizer:
        """The activation quantizer; :class:`InputError` for an unknown name."""
        return find_quantizer("activations", self.activations)

    def check_mixture(self, weight_bits: tuple[int, ...], activation_bits: tuple[int, ...]) -> None:
        """Raise :class:`InputError` where a supernet cannot mix these candidate widths (0 weight bits: skipped)."""
        self.of_weights().check_mixture(tuple(bits for bits in weight_bits if bits))
        self.of_activations().check_mixture(activation_bits)


def fresh_copy(model: nn.Module) -> nn.Module:
    """A copy of ``model`` that is safe to quantize; the caller's model keeps its state, mode and attributes.

    In-place activations are turned off (they would overwrite tensors that a quantizer's gradient needs), and fused
    transformer kernels too (in eval mode they read the weights past the layers). ``nn.MultiheadAttention`` is unfolded
    into its two linear layers.
    """
    twin = copy.deepcopy(model)
    unfold_attention(twin)
    for module in twin.modules():
        if getattr(module, "inplace", False) is True:
            module.inplace = False  # type: ignore[assignment]
        if isinstance(module, nn.TransformerEncoderLayer):
            module.activation_relu_or_gelu = 0
        if isinstance(module, nn.TransformerEncoder):
            module.use_nested_tensor = False
    return twin


def tensor_quantizer(
    quantizer: Quantizer, bits: tuple[int, ...], *, signed: bool, channel_axis: int | None = None, rows: int = 1
) -> TensorQuantizer:
    """The module that quantizes a tensor as ``quantizer`` says, with candidate widths ``bits``."""
    module = TensorQuantizer if quantizer.affine else LogarithmicQuantizer
    return module(quantizer, bits, signed=signed, channel_axis=channel_axis, rows=rows)


def quantized_layer(
    layer: nn.Module,
    spec: LayerSpec,
    weight_bits: tuple[int, ...],
    activation_bits: tuple[int, ...],
    choice: QuantizerChoice,
) -> QuantizedLayer:
    """Wrap one layer with candidate widths for its weight and its input."""
    axis = 1 if isinstance(layer, TRANSPOSED) else 0
    per_channel = choice.per_channel
    rows = spec.weight_shape[axis] if per_channel else 1
    weight = tensor_quantizer(
        choice.of_weights(), weight_bits, signed=True, channel_axis=axis if per_channel else None, rows=rows
    )
    if weight.quantizer.clip_gradient == "full":
        # LSQ, section 2.2: the gradient of a step shared by n weights is scaled by 1 / sqrt(n)
        weight.clip_gradient_scale = (rows / spec.weight_elements) ** 0.5
    source = choice.of_activations()
    inputs = tensor_quantizer(source, activation_bits, signed=True)
    if source.clip_gradient == "full":
        inputs.clip_gradient_scale = spec.input_elements**-0.5
    return QuantizedLayer(layer, inputs, weight)


def quantize_fixed(
    model: nn.Module, graph: LayerGraph, layers: Mapping[str, LayerBits], choice: QuantizerChoice | None = None
) -> nn.Module:
    """Return a copy of ``model`` in which every layer runs at its bits; ranges are not yet calibrated.

    Filters that the layers do not keep are removed. Without a ``choice``, the quantizers are those of a search.
    """
    choice = choice or QuantizerChoice()
    twin = fresh_copy(model)
    kept = kept_units(graph.channels, kept_rows_of(layers))
    if kept:
        twin, graph = remove_filters(twin, graph.channels, kept), pruned_graph(graph, kept)
    for name, bits in layers.items():
        original = twin.get_submodule(name)
        if bits.weight_bits == 0:
            replace_module(twin, name, SkippedLayer(original))
        elif (bits.weight_bits, bits.activation_bits) != (FLOAT_BITS, FLOAT_BITS):
            pair = (bits.weight_bits,), (bits.activation_bits,)
            wrapped = quantized_layer(original, graph[name], *pair, choice)
            if bits.sparse is not None:
                wrapped.quantize_weight = SparseQuantizer(bits.weight_bits, bits.sparse).to(wrapped.weight.device)
            replace_module(twin, name, wrapped)
    _share_quantizers(twin, graph, layers)
    for branch in graph.branches:
        if all(layers[name].weight_bits == 0 for name in branch.layers):
            twin.get_submodule(branch.terminal).register_forward_hook(DroppedBranch())
    return twin


def _share_quantizers(twin: nn.Module, graph: LayerGraph, layers: Mapping[str, LayerBits]) -> None:
    """Give layers that share a weight one quantizer too, where their bits are the same: it is stored once."""
    for name, bits in layers.items():
        owner = graph[name].shares_weight_with
        if owner is None or layers[owner].weight_bits != bits.weight_bits or layers[owner].sparse or bits.sparse:
            continue
        layer, other = twin.get_submodule(name), twin.get_submodule(owner)
        if isinstance(layer, QuantizedLayer) and isinstance(other, QuantizedLayer):
            layer.quantize_weight = other.quantize_weight


def replace_module(twin: nn.Module, name: str, new: nn.Module) -> None:
    """Put ``new`` in the place of the module called ``name``, under every name that it is registered by."""
    old = twin.get_submodule(name)
    for parent in list(twin.modules()):
        for key, child in parent._modules.items():
            if child is old:
                parent._modules[key] = new


def swap_composite(
    twin: nn.Module,
    spec: LayerSpec,
    weight_bits: tuple[int, ...],
    activation_bits: tuple[int, ...],
    choice: QuantizerChoice,
) -> QuantizedLayer:
    """Replace a layer of ``twin`` by one convolution over mixtures of all candidates."""
    wrapped = quantized_layer(twin.get_submodule(spec.name), spec, weight_bits, activation_bits, choice)
    replace_module(twin, spec.name, wrapped)
    return wrapped


def swap_branches(twin: nn.Module, spec: LayerSpec, pairs: list[Pair], choice: QuantizerChoice) -> BranchedLayer:
    """Replace a layer of ``twin`` and the BatchNorm behind it by one copy of both per candidate pair."""
    layer: Any = twin.get_submodule(spec.name)
    norm = twin.get_submodule(spec.norm) if spec.norm else nn.Identity()
    branches = [quantized_layer(copy.deepcopy(layer), spec, (w,), (a,), choice) for w, a in pairs]
    wrapped = BranchedLayer(branches, [copy.deepcopy(norm) for _ in pairs])
    replace_module(twin, spec.name, wrapped)
    if spec.norm:
        replace_module(twin, spec.norm, nn.Identity())
    return wrapped


def apply(model: nn.Module, assignment: BitAssignment, choice: QuantizerChoice | None = None) -> nn.Module:
    """Return a quantized copy of a fresh ``model`` at the bits of ``assignment``; the model is left untouched.

    Ranges are those of uncalibrated quantizers: call :func:`dnas.calibrate` on the result with training batches, or
    load weights trained at these bits. The quantizers are those that the assignment was made with, unless ``choice``
    names others. Raises :class:`InputError` when the assignment is for another network.
    """
    graph = read_graph(model, assignment.model.input_shape)
    check_fits(assignment, graph)
    return quantize_fixed(model, graph, assignment.layers, choice or QuantizerChoice.of(assignment))
