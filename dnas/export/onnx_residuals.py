"""Sums and what layers give, in 8 bits where nothing else quantizes them, so that runtimes add and hand on integers.

ONNX Runtime runs a convolution in integers only where QuantizeLinear reads what it gives, and an addition only where
both sides come from DequantizeLinear. In a residual network that is every other convolution. These ranges are no part
of the trained net: they are the least and the greatest value on given images, and what they change is told.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from dnas.export.onnx_biases import following_step, operators_of
from dnas.export.onnx_graph import GraphView, replace_nodes
from dnas.export.onnx_nodes import OnnxBuilder
from dnas.export.onnx_packages import need
from dnas.export.onnx_tracing import Tap
from search_spaces.errors import InputError

RESIDUAL_BITS = 8
_SMALLEST = 1e-6
_FUSED = ("Relu", "Clip")
"""What a runtime does together with what stands before it."""


def unquantized(model: Any, taps: Sequence[Tap], builder: OnnxBuilder) -> list[str]:
    """The tensors to quantize: outputs of integer layers, and sums of two tensors, that something in fp32 reads.

    Behind a Relu or Clip, where that alone reads them.
    """
    view = GraphView(model)
    given = [_with_bias(view, node) for tap, node in operators_of(view, taps) if builder.in_integers(tap.layer)]
    ends = [_last(view, name) for name in (*given, *_sums(view))]
    return list(dict.fromkeys(name for name in ends if _read_in_fp32(view, name)))


def quantize_tensors(model: Any, found: Mapping[str, np.ndarray], kinds: Sequence[str]) -> None:
    """Put QuantizeLinear and DequantizeLinear behind these tensors, in place; their values give the ranges.

    ``kinds`` are the types that the target loads: UINT8 with a zero point, as both sides of an addition must have one
    type, or else INT8 around zero.
    """
    onnx, numpy_helper = need("onnx", "onnx", "onnx.numpy_helper")
    nodes = []
    for node in model.graph.node:
        nodes.append(node)
        name = node.output[0]
        if name not in found:
            continue
        step, zero = _step_and_zero(name, found[name], "UINT8" in kinds)
        parts = {f"{name}.scale": step, f"{name}.zero": zero}
        model.graph.initializer.extend(numpy_helper.from_array(np.asarray(value), key) for key, value in parts.items())
        _read_instead(model, name, f"{name}.quantized")
        make = onnx.helper.make_node
        nodes.append(make("QuantizeLinear", [name, *parts], [f"{name}.codes"], name=f"{name}.quantize"))
        nodes.append(make("DequantizeLinear", [f"{name}.codes", *parts], [f"{name}.quantized"], name=f"{name}.again"))
    replace_nodes(model, nodes)


def _step_and_zero(name: str, values: np.ndarray, unsigned: bool) -> tuple[np.float32, np.uint8 | np.int8]:
    """The scale and the zero point of 8 bits that hold these values, zero among them."""
    least, most = min(0.0, float(values.min())), max(0.0, float(values.max()))
    if not np.isfinite(least + most):
        raise InputError(f"the tensor '{name}' is not finite on the images, so it has no range of 8 bits")
    if not unsigned:
        return np.float32(max(most, -least, _SMALLEST) / 127), np.int8(0)
    step = max(most - least, _SMALLEST) / 255
    return np.float32(step), np.uint8(round(-least / step))


def _with_bias(view: GraphView, node: Any) -> str:
    """What a layer gives, with the bias that is added behind it."""
    reader = view.only_reader(node.output[0])
    if reader is not None and reader.op_type in ("Add", "Sub") and view.constant(reader.input[1]) is not None:
        return str(reader.output[0])
    return str(node.output[0])


def _sums(view: GraphView) -> Iterator[str]:
    """What additions of two tensors give, neither of them constant."""
    for node in view.graph.node:
        if node.op_type == "Add" and all(view.constant(name) is None for name in node.input):
            yield node.output[0]


def _last(view: GraphView, name: str) -> str:
    reader = view.only_reader(name)
    return _last(view, reader.output[0]) if reader is not None and reader.op_type in _FUSED else name


def _read_in_fp32(view: GraphView, name: str) -> bool:
    """Whether something in fp32 reads a tensor that is no result of the network, or several quantizers do."""
    readers = view.readers.get(name, [])
    heads = name in view.results or any(node.op_type == "Identity" for node in readers)
    return bool(readers) and not heads and following_step(view, name) is None


def _read_instead(model: Any, name: str, other: str) -> None:
    for node in model.graph.node:
        for at, read in enumerate(node.input):
            node.input[at] = other if read == name else read
