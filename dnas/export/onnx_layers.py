"""How each layer of an exported graph is stored, and whether the target's runtime runs it in integers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dnas.export.fixed_layers import DenseWeight, FixedLayer, StoredLayer
from dnas.export.onnx_biases import following_step, operators_of
from dnas.export.onnx_graph import GraphView
from dnas.export.onnx_nodes import OnnxBuilder
from dnas.export.onnx_tracing import Tap
from dnas.export.onnx_types import bits_of
from dnas.export.runtimes import integer_nodes, is_installed
from dnas.quantization.schemes import GappedWeight

INTEGERS, FP32 = "integers", "fp32"


def name_operators(model: Any, taps: Sequence[Tap]) -> None:
    """Call every layer's operator as the layer (``LAYER#2``: its second call), which compiled nets keep."""
    for (tap, call), node in _operators(model, taps).items():
        node.name = tap if call == 1 else f"{tap}#{call}"


def stored_layers(
    model: Any, taps: Sequence[Tap], layers: Mapping[str, FixedLayer], builder: OnnxBuilder
) -> dict[str, StoredLayer]:
    """Every quantized layer by name."""
    reasons = reasons_for_fp32(model, taps, layers, builder)
    runtime = builder.target.runtime
    looked = bool(builder.target.integer_operators) and runtime is not None and is_installed(runtime)
    compiled = integer_nodes(runtime, model) if looked and runtime is not None else set()
    found = {}
    for name, layer in layers.items():
        weight, why = builder.weights.get(name), reasons.get(name, "")
        runs = "" if not looked else INTEGERS if name in compiled else FP32
        if runs == FP32 and not why:
            why = f"{runtime} does not"
        found[name] = StoredLayer(
            weights="FLOAT" if weight is None else weight.kind,
            inputs=builder.inputs.get(name, "FLOAT"),
            stored_bytes=0 if weight is None else weight.stored_bytes,
            packed_bytes=_packed_bytes(layer),
            runs=runs,
            why=why if runs == FP32 else "",
            bias_error=builder.bias_errors.get(name, 0.0),
        )
    return found


def reasons_for_fp32(
    model: Any, taps: Sequence[Tap], layers: Mapping[str, FixedLayer], builder: OnnxBuilder
) -> dict[str, str]:
    """Quantized layers that the target's capability file does not promise to run in integers, and why."""
    view, target, found = GraphView(model), builder.target, {}
    for (name, _), node in _operators(model, taps).items():
        if name not in layers:
            continue
        operands = _operands(layers[name], builder)
        if operands:
            found[name] = operands
        elif node.op_type not in target.integer_operators:
            found[name] = f"{target.name} runs no {node.op_type} in integers"
        elif node.op_type in target.quantized_outputs and following_step(view, node.output[0]) is None:
            found[name] = _not_quantized(view, node.output[0])
    return found


def _not_quantized(view: GraphView, name: str) -> str:
    """Why QuantizeLinear does not read what an operator gives: something else does, or its bias is added before."""
    reader = view.only_reader(name)
    added = reader is not None and reader.op_type == "Add" and view.constant(reader.input[1]) is not None
    if reader is not None and added and following_step(view, reader.output[0]) is not None:
        return "its bias is no multiple of its step, not even nearly"
    return "what it gives is not quantized at once; --residual-bits 8 quantizes it"


def _operands(layer: FixedLayer, builder: OnnxBuilder) -> str:
    """Why the weight or the input is not integers of 8 bits; empty where both are."""
    weight, entry = builder.weights.get(layer.name), builder.inputs.get(layer.name)
    if weight is None:
        return "its weights are fp32"
    if isinstance(layer.weight, GappedWeight):
        return f"{layer.weight.words} are not evenly spaced"
    if weight.kind == "FLOAT" or bits_of(weight.kind) > 8:
        return "its weights have more than 8 bits"
    if not weight.even:
        return f"its {_bits(layer)}-bit levels stand between integers of 8 bits"
    if layer.input is None:
        return "its inputs are fp32"
    if not layer.input.rounds:
        return "its inputs have a threshold at zero"
    if entry == "FLOAT":
        return f"{builder.target.name} has no integers for inputs from {layer.input.low} to {layer.input.high}"
    return "" if bits_of(str(entry)) <= 8 else "its inputs have more than 8 bits"


def _operators(model: Any, taps: Sequence[Tap]) -> dict[tuple[str, int], Any]:
    """(layer, number of the call) → its operator."""
    calls: dict[str, int] = {}
    found = {}
    for tap, node in operators_of(GraphView(model), taps):
        calls[tap.layer] = calls.get(tap.layer, 0) + 1
        found[tap.layer, calls[tap.layer]] = node
    return found


def _bits(layer: FixedLayer) -> int:
    return layer.weight.levels.bits if isinstance(layer.weight, DenseWeight) else 0


def _packed_bytes(layer: FixedLayer) -> int:
    """What the weights take at their own width; of sparse ones, whose file has a layout of its own, nothing is said."""
    return -(-layer.weight.codes.size * _bits(layer) // 8) if isinstance(layer.weight, DenseWeight) else 0
