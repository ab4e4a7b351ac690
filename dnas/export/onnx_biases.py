"""Where the bias of a layer with a quantized input goes, and Linear layers as the matrix product that a target knows.

A runtime that finds a layer to run in integers rounds its bias to multiples of the product of both steps, which is far
off at few bits. So biases are added behind their layer; or, for a target that wants integers, they are 32-bit integers
where QuantizeLinear reads what the layer gives and the rounding moves it by a small part of that step.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from dnas.export.fixed_layers import FixedLayer
from dnas.export.onnx_graph import GraphView, attribute, replace_nodes
from dnas.export.onnx_nodes import OnnxBuilder
from dnas.export.onnx_packages import need
from dnas.export.onnx_tracing import Tap

MULTIPLYING = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_PASSING = ("Relu", "Clip", "MaxPool", "Identity")
"""What may stand between a layer and QuantizeLinear where a runtime runs the layer in integers."""
_FINE = 1 / 8
"""By what part of the following step a rounded bias may be off."""
_LARGEST = 2**30


def operators_of(view: GraphView, taps: Sequence[Tap]) -> Iterator[tuple[Tap, Any]]:
    """The operator of every layer call: what multiplies its input, as it is used, with its weight."""
    for tap in taps:
        for node in through_pads(view, tap.used):
            if node.op_type in MULTIPLYING and tap.weight in _weights(view, node):
                yield tap, node


def through_pads(view: GraphView, name: str) -> Iterator[Any]:
    """The nodes whose first input is a tensor, as it is or padded."""
    for node in view.readers.get(name, []):
        if node.op_type == "Pad":
            yield from through_pads(view, node.output[0])
        elif node.input[0] == name:
            yield node


def _weights(view: GraphView, node: Any) -> set[str]:
    """The tensors that an operator multiplies with, one of them turned around into the other."""
    turned = view.producers.get(node.input[1])
    return {node.input[1], *(turned.input[:1] if turned is not None and turned.op_type == "Transpose" else ())}


def place_biases(model: Any, taps: Sequence[Tap], builder: OnnxBuilder) -> None:
    """Add the bias of every layer with a quantized input behind it, in place; a Gemm becomes what the target knows."""
    view, nodes = GraphView(model), []
    owners = {node.output[0] for tap, node in operators_of(view, taps) if tap.used != tap.input}
    for node in model.graph.node:
        bias = view.constant(node.input[2]) if node.output[0] in owners and len(node.input) == 3 else None
        turned = node.output[0] in owners and node.op_type == "Gemm" and builder.target.linear == "MatMul"
        if (bias is None and len(node.input) == 3) or not (turned and _plain(node)):
            nodes.append(node)
        else:
            nodes += _turned(node)
        if bias is not None:
            nodes.append(_added(model, nodes[-1], bias))
    replace_nodes(model, nodes)


def round_biases(model: Any, taps: Sequence[Tap], layers: Mapping[str, FixedLayer], builder: OnnxBuilder) -> None:
    """Make biases integers, in place, where the target wants that and the following step is much coarser."""
    if builder.target.biases != "integers":
        return
    view, gone, nodes = GraphView(model), set(), []
    owners = {node.output[0]: tap for tap, node in operators_of(view, taps)}
    for node in model.graph.node:
        tap = owners.get(node.output[0])
        addition = None if tap is None else view.only_reader(node.output[0])
        found = None if tap is None else _rounded(view, addition, node, layers.get(tap.layer), builder)
        if tap is not None and addition is not None and found is not None:
            codes, step, tap.bias_error = found
            gone.add(addition.output[0])
            builder.bias_errors[tap.layer] = tap.bias_error / (following_step(view, addition.output[0]) or np.inf)
            nodes.append(_dequantized(model, node, addition.output[0], codes, step))
            nodes.append(node)
        elif node.op_type != "Add" or node.output[0] not in gone:
            nodes.append(node)
    replace_nodes(model, nodes)


def _rounded(
    view: GraphView, addition: Any, node: Any, layer: FixedLayer | None, builder: OnnxBuilder
) -> tuple[np.ndarray, np.ndarray, float] | None:
    """A bias as integers, their steps, and by how much it is off; None where it is better added in fp32."""
    bias = view.constant(addition.input[1]) if addition is not None and addition.op_type == "Add" else None
    if bias is None or bias.size != bias.shape[0] or layer is None or layer.input is None:
        return None
    following = following_step(view, addition.output[0])
    if following is None or node.op_type not in builder.target.quantized_outputs or not builder.in_integers(layer.name):
        return None
    product = layer.input.threshold_step.astype(np.float32) * builder.weights[layer.name].step.astype(np.float32)
    step = np.broadcast_to(product, bias.size)
    codes = np.round(bias.reshape(-1) / step.astype(np.float64))
    error = float(np.abs(codes * step - bias.reshape(-1)).max())
    return (codes, step, error) if np.abs(codes).max() < _LARGEST and error <= _FINE * following else None


def following_step(view: GraphView, name: str) -> float | None:
    """The step of QuantizeLinear where nothing else reads a tensor, but for what runtimes see through; else None."""
    readers = view.readers.get(name, [])
    if not readers or name in view.results:
        return None
    if all(node.op_type == "QuantizeLinear" for node in readers):
        scale = view.constant(readers[0].input[1])
        same = len({tuple(node.input) for node in readers}) == 1
        return float(scale) if same and scale is not None and scale.size == 1 else None
    reader = view.only_reader(name)
    return following_step(view, reader.output[0]) if reader is not None and reader.op_type in _PASSING else None


def _added(model: Any, node: Any, bias: np.ndarray) -> Any:
    """The addition of a bias behind its layer."""
    onnx, numpy_helper = need("onnx", "onnx", "onnx.numpy_helper")
    spatial = len(attribute(node, "strides", ()))  # Gemm and MatMul have none
    output, values = node.output[0], bias.reshape(-1, *[1] * spatial).astype(np.float32)
    # ONNX Runtime makes one Gemm of MatMul and Add, and runs that in fp32; a difference it leaves alone.
    operator, values = ("Sub", -values) if node.op_type == "MatMul" else ("Add", values)
    shaped = numpy_helper.from_array(values, f"{output}.added_bias")
    model.graph.initializer.append(shaped)
    del node.input[2:]
    node.output[0] = f"{output}.without_bias"
    return onnx.helper.make_node(operator, [node.output[0], shaped.name], [output], name=f"{output}.add")


def _dequantized(model: Any, node: Any, output: str, codes: np.ndarray, step: np.ndarray) -> Any:
    """The node that makes a bias of 32-bit integers for ``node``, which then gives ``output`` itself."""
    onnx, numpy_helper = need("onnx", "onnx", "onnx.numpy_helper")
    name = f"{output}.bias"
    parts = {f"{name}.codes": codes.astype(np.int32), f"{name}.scale": step}
    model.graph.initializer.extend(numpy_helper.from_array(values, key) for key, values in parts.items())
    node.input.append(name)
    node.output[0] = output
    return onnx.helper.make_node("DequantizeLinear", list(parts), [name], name=f"{name}_node", axis=0)


def _plain(node: Any) -> bool:
    """Whether a Gemm is a product with the transposed weight and nothing else."""
    found = {name: attribute(node, name, default) for name, default in (("alpha", 1.0), ("beta", 1.0), ("transA", 0))}
    return found == {"alpha": 1.0, "beta": 1.0, "transA": 0} and attribute(node, "transB", 0) == 1


def _turned(node: Any) -> list[Any]:
    """The same as the product with the weight, turned around by a Transpose; the bias is left out."""
    (onnx,) = need("onnx", "onnx")
    output, turned = node.output[0], f"{node.output[0]}.weight"
    return [
        onnx.helper.make_node("Transpose", [node.input[1]], [turned], name=f"{turned}_node", perm=[1, 0]),
        onnx.helper.make_node("MatMul", [node.input[0], turned], [output], name=node.name),
    ]
