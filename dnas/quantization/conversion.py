"""From an unedited network to its quantized twin: its layers are found by ``isinstance`` and changed on a copy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

from torch import nn

from dnas.quantization.branches import BranchedLayer, DroppedBranch, branch_layer, skip_layer
from dnas.quantization.families import find_quantizer
from dnas.quantization.layers import QuantizedLayer, TensorQuantizer, quantize_layer, shapes_of
from dnas.quantization.proof import check_twin
from dnas.quantization.quantizers import Quantizer
from dnas.quantization.schemes import module_of
from search_spaces.assignments import BitAssignment, LayerBits, bits_by_layer, check_fits, check_names, kept_rows_of
from search_spaces.channels.slicing import pruned_graph, remove_filters
from search_spaces.errors import check_type
from search_spaces.fields import Pair
from search_spaces.groups import kept_units
from search_spaces.layers import FLOAT_BITS, LayerGraph, LayerSpec
from search_spaces.models.copies import fresh_copy
from search_spaces.network.examples import Example
from search_spaces.network.graph import TRANSPOSED, read_graph


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


def tensor_quantizer(
    quantizer: Quantizer, bits: tuple[int, ...], *, signed: bool, channel_axis: int | None = None, rows: int = 1
) -> TensorQuantizer:
    """The module that quantizes a tensor as ``quantizer`` says, with candidate widths ``bits``."""
    module = quantizer.module or TensorQuantizer
    return cast(TensorQuantizer, module(quantizer, bits, signed=signed, channel_axis=channel_axis, rows=rows))


def layer_quantizers(
    layer: nn.Module,
    spec: LayerSpec,
    weight_bits: tuple[int, ...],
    activation_bits: tuple[int, ...],
    choice: QuantizerChoice,
) -> tuple[TensorQuantizer, TensorQuantizer]:
    """The quantizers of one layer's input and of its weight, with these candidate widths."""
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
    device = next(layer.parameters()).device  # the network may be on another one than the CPU by now
    return inputs.to(device), weight.to(device)


def quantized_layer(
    layer: nn.Module,
    spec: LayerSpec,
    weight_bits: tuple[int, ...],
    activation_bits: tuple[int, ...],
    choice: QuantizerChoice,
) -> QuantizedLayer:
    """Quantize one layer, in place, with candidate widths for its weight and its input."""
    quantizers = layer_quantizers(layer, spec, weight_bits, activation_bits, choice)
    return quantize_layer(layer, *quantizers, shapes_of(spec))


def quantize_fixed(
    model: nn.Module, graph: LayerGraph, layers: Mapping[str, LayerBits], choice: QuantizerChoice | None = None
) -> nn.Module:
    """Return a copy of ``model`` in which every layer runs at its bits; ranges are not yet calibrated.

    Filters that the layers do not keep are removed. Without a ``choice``, the quantizers are those of a search.
    Raises :class:`InputError` that names a layer whose twin is not what the network does with it.
    """
    choice = choice or QuantizerChoice()
    check_type(choice, QuantizerChoice, "the choice of quantizers", "give QuantizerChoice(weights='lsq', ...)")
    check_type(graph, LayerGraph, "the layers of a network", "give what read_graph(model, shape) returns")
    layers = bits_by_layer(layers)
    check_names("the assignment", layers, graph)
    check_twin(model, graph, [name for name, bits in layers.items() if bits != LayerBits(FLOAT_BITS, FLOAT_BITS)])
    return fixed_copy(model, graph, layers, choice)


def fixed_copy(
    model: nn.Module, graph: LayerGraph, layers: Mapping[str, LayerBits], choice: QuantizerChoice
) -> nn.Module:
    """:func:`quantize_fixed` of a network whose layers are known to have twins, as those of every job are."""
    check_names("the assignment", layers, graph)
    twin = fresh_copy(model)
    kept = kept_units(graph.channels, kept_rows_of(layers))
    if kept:
        twin, graph = remove_filters(twin, graph.channels, kept), pruned_graph(graph, kept)
    for name, bits in layers.items():
        layer = twin.get_submodule(name)
        if bits.weight_bits == 0:
            skip_layer(layer)
        elif not bits.is_float:
            pair = (bits.weight_bits,), (bits.activation_bits,)
            quantized = quantized_layer(layer, graph[name], *pair, choice)
            if bits.scheme is not None:
                own = module_of(bits.scheme)(bits.weight_bits, bits.scheme)
                quantized.quantize_weight = own.to(next(quantized.parameters()).device)
    _share_quantizers(twin, graph, layers)
    for branch in graph.branches:
        if all(layers[name].weight_bits == 0 for name in branch.layers):
            twin.get_submodule(branch.terminal).register_forward_hook(DroppedBranch())
    return twin


def _share_quantizers(twin: nn.Module, graph: LayerGraph, layers: Mapping[str, LayerBits]) -> None:
    """Give layers that share a weight one quantizer too, where their bits are the same: it is stored once."""
    for name, bits in layers.items():
        owner = graph[name].shares_weight_with
        if owner is None or layers[owner].weight_bits != bits.weight_bits or layers[owner].scheme or bits.scheme:
            continue
        layer, other = twin.get_submodule(name), twin.get_submodule(owner)
        if isinstance(layer, QuantizedLayer) and isinstance(other, QuantizedLayer):
            layer.quantize_weight = other.quantize_weight


def swap_composite(
    twin: nn.Module,
    spec: LayerSpec,
    weight_bits: tuple[int, ...],
    activation_bits: tuple[int, ...],
    choice: QuantizerChoice,
) -> QuantizedLayer:
    """Let a layer of ``twin`` be one convolution over mixtures of all candidates."""
    return quantized_layer(twin.get_submodule(spec.name), spec, weight_bits, activation_bits, choice)


def swap_branches(twin: nn.Module, spec: LayerSpec, pairs: list[Pair], choice: QuantizerChoice) -> BranchedLayer:
    """Let a layer of ``twin``, and the BatchNorm behind it, be one copy of both per candidate pair."""
    layer = twin.get_submodule(spec.name)
    return branch_layer(twin, spec, [layer_quantizers(layer, spec, (w,), (a,), choice) for w, a in pairs])


def apply(
    model: nn.Module,
    assignment: BitAssignment,
    choice: QuantizerChoice | None = None,
    *,
    example: Example | None = None,
) -> nn.Module:
    """Return a quantized copy of a fresh ``model`` at the bits of ``assignment``; the model is left untouched.

    Ranges are those of uncalibrated quantizers: call :func:`dnas.calibrate` on the result with training batches, or
    load weights trained at these bits. The quantizers are those that the assignment was made with, unless ``choice``
    names others. The network is read on what the assignment says it is called with, or on ``example``, as in
    :func:`read_graph`.
    Raises :class:`InputError` when the assignment is for another network.
    """
    check_type(assignment, BitAssignment, "an assignment", "read a file of one by BitAssignment.loads(text)")
    graph = read_graph(model, assignment.model.example if example is None else example)
    check_fits(assignment, graph)
    return quantize_fixed(model, graph, assignment.layers, choice or QuantizerChoice.of(assignment))
