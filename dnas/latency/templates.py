"""Many nets of one network as ONNX, from a single trace: nets of other widths and filters have the same operations.

PyTorch takes seconds to write a network and none to write its weights. What a net computes is not looked at again, for
only its time is wanted; a net that the runtime does not take so is exported as ``dnas export`` does.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
from torch import nn

from dnas.export.detectors import before_boxes
from dnas.export.fixed_layers import fixed_layers
from dnas.export.graph_export import export_graph
from dnas.export.onnx import OnnxFormat, OnnxNet, arrange
from dnas.export.onnx_biases import round_biases
from dnas.export.onnx_packages import need
from dnas.export.onnx_residuals import quantize_tensors, unquantized
from dnas.export.onnx_tracing import mark_of, trace
from dnas.export.parts import deployed_copy
from dnas.export.stored import StoredNet
from dnas.export.targets import Target

Loaded = TypeVar("Loaded")
_RANGE = np.array([-1.0, 4.0], np.float32)
"""Of the sums that are quantized, whatever they are."""


class Template:
    """The traced graph of ``base``, whose quantizers are marks that stand for any width."""

    def __init__(self, base: StoredNet, target: Target, residual_bits: int | None) -> None:
        self.target, self.residual_bits = target, residual_bits
        names, example = [spec.name for spec in base.graph.layers], base.graph.example
        network = _graph_part(base)
        self.model = trace(network, names, example, self.target.opset, batch=1)
        self.weights = {tensor.name for tensor in self.model.graph.initializer} & set(network.state_dict())
        _free_reshapes(self.model)

    def loaded(self, net: StoredNet, load: Callable[[Any], Callable[[], Loaded]]) -> Callable[[], Loaded]:
        """``load`` of the model of a net that has run once; of one exported by itself where that fails."""
        try:
            run = load(self._model(net))
            run()
        except Exception:  # of whatever class the runtime has for it
            run = load(exported(net, self.target, self.residual_bits))
            run()
        return run

    def _model(self, net: StoredNet) -> Any:
        network = _graph_part(net)
        layers, tensors = fixed_layers(network), network.state_dict()
        format = _format(net, self.target, self.residual_bits)
        model = copy.deepcopy(self.model)
        _give_shape(model, net.graph.input_shape)
        _regroup(model, network, self.weights)
        numpy_helper = need("onnx", "onnx.numpy_helper")[0]
        for tensor in model.graph.initializer:
            if tensor.name in self.weights:
                tensor.CopyFrom(numpy_helper.from_array(tensors[tensor.name].numpy(), tensor.name))
        written = format.write(model, network, layers)
        if written.residuals:
            _quantize_sums(written)
        if self.target.integer_operators:
            arrange(model, self.target)
        return model


def exported(net: StoredNet, target: Target, residual_bits: int | None) -> Any:
    """The model that ``dnas export`` writes of a net; sums are quantized where any layer is."""
    (onnx,) = need("onnx", "onnx")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "net.onnx"
        export_graph(path, _format(net, target, residual_bits), net)
        return onnx.load(path)


def _format(net: StoredNet, target: Target, residual_bits: int | None) -> OnnxFormat:
    quantized = any(not bits.is_float for bits in net.assignment.layers.values())
    return OnnxFormat(target, residual_bits if quantized else None)


def _graph_part(net: StoredNet) -> nn.Module:
    return before_boxes(deployed_copy(net.network), net.graph.input_shape)


def _quantize_sums(written: OnnxNet) -> None:
    names = unquantized(written.model, written.taps, written.builder)
    quantize_tensors(written.model, dict.fromkeys(names, _RANGE), written.builder.target.input_types)
    round_biases(written.model, written.taps, written.layers, written.builder)


def _give_shape(model: Any, input_shape: tuple[int, ...]) -> None:
    """Declare the shape of the inputs; those of the results follow from it."""
    for value in model.graph.input:
        for side, size in zip(value.type.tensor_type.shape.dim[1:], input_shape, strict=True):
            side.dim_value = size
    for value in model.graph.output:
        value.type.tensor_type.ClearField("shape")


def _regroup(model: Any, network: nn.Module, weights: Iterable[str]) -> None:
    """Give each convolution the groups of its layer, which are fewer where a depthwise one lost filters."""
    read = {name: name.rpartition(".")[0] for name in weights}
    read |= {node.output[0]: mark_of(node)[0] for node in model.graph.node if mark_of(node)[0]}
    for node in model.graph.node:
        for attribute in node.attribute:
            if attribute.name == "group" and node.input[1] in read:
                attribute.i = cast(Any, network.get_submodule(read[node.input[1]])).groups


def _free_reshapes(model: Any) -> None:
    """Let the largest side of a reshaped tensor follow from the others: it may be a number of channels."""
    numpy_helper = need("onnx", "onnx.numpy_helper")[0]
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        held = constants.get(node.input[1]) if node.op_type == "Reshape" else None
        if held is not None:
            sides = numpy_helper.to_array(held).copy()
            if (sides > 0).all():
                sides[sides.argmax()] = -1
                held.CopyFrom(numpy_helper.from_array(sides, held.name))
