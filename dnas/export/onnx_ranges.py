"""What stands between a layer and its quantizers, moved to where runtimes take it for part of it.

The codes stay equal.

* Clip and Relu in front of QuantizeLinear become limits of its integers: rounding keeps order, so
  round(min(x, high) / step) is min(round(x / step), round(high / step)).
* The stride of a convolution of one pixel is one of its integers.
* A Pad that repeats values of its input comes before the quantizer.
"""

from __future__ import annotations

from typing import Any, cast

import networkx as nx
import numpy as np

from dnas.export.onnx_graph import GraphView, attribute, replace_nodes
from dnas.export.onnx_packages import need


def ranges_as_integers(model: Any) -> None:
    """Move what cuts a tensor in fp32 behind every QuantizeLinear that alone reads it, in place."""
    while (found := _cut_behind_which_all_quantize(GraphView(model))) is not None:
        _move(model, *found)


def pads_before_quantizers(model: Any) -> None:
    """Move every Pad that repeats values from behind a quantizer in front of it, in place."""
    view = GraphView(model)
    for pad in [node for node in model.graph.node if node.op_type == "Pad"]:
        last = view.producers.get(pad.input[0])
        if last is None or attribute(pad, "mode", b"constant") == b"constant" or view.only_reader(pad.input[0]) is None:
            continue
        first = _first_of_quantizer(view, last)
        if last.op_type == "DequantizeLinear" and first is not None:
            source, used, padded = first.input[0], last.output[0], pad.output[0]
            pad.input[0], pad.output[0] = source, f"{used}.padded"
            first.input[0] = pad.output[0]
            for node in view.readers.get(padded, []):
                node.input[0] = used if node.input[0] == padded else node.input[0]
    _in_order(model)


def strides_on_integers(model: Any) -> None:
    """Give the stride of quantized convolutions of one pixel to a MaxPool of one pixel on their integers, in place."""
    (onnx,) = need("onnx", "onnx")
    view, added = GraphView(model), []
    for node in list(model.graph.node):
        strides, last = attribute(node, "strides", ()), view.producers.get(node.input[0]) if node.input else None
        if node.op_type != "Conv" or max(strides, default=1) == 1 or not _of_one_pixel(node):
            continue
        if last is None or last.op_type != "DequantizeLinear" or view.only_reader(node.input[0]) is None:
            continue
        ones, thinned = [1] * len(strides), f"{last.output[0]}.thinned"
        sizes = {"kernel_shape": ones, "strides": list(strides)}
        added.append(onnx.helper.make_node("MaxPool", [last.input[0]], [thinned], name=f"{thinned}_node", **sizes))
        last.input[0] = thinned
        next(found for found in node.attribute if found.name == "strides").ints[:] = ones
    model.graph.node.extend(added)
    _in_order(model)


def _of_one_pixel(node: Any) -> bool:
    """Whether a convolution has a kernel of one pixel and no padding."""
    shape = attribute(node, "kernel_shape", ())
    return bool(shape) and max(shape) == 1 and not any(attribute(node, "pads", ()))


def _first_of_quantizer(view: GraphView, last: Any) -> Any | None:
    """The node with which a quantizer begins whose last node is given, where nothing reads what is in between."""
    node = last
    while node is not None and node.op_type in ("DequantizeLinear", "Clip", "QuantizeLinear"):
        before = view.producers.get(node.input[0])
        in_front = before is not None and before.op_type == "Clip" and view.only_reader(before.output[0]) is not None
        if node.op_type == "QuantizeLinear":
            return before if in_front else node
        node = before
    return None


def _in_order(model: Any) -> None:
    """Put nodes behind those whose tensors they read, and else in the order that they have."""
    nodes = list(model.graph.node)
    makers = {name: at for at, node in enumerate(nodes) for name in node.output}
    order: nx.DiGraph = nx.DiGraph()
    order.add_nodes_from(range(len(nodes)))
    order.add_edges_from((makers[name], at) for at, node in enumerate(nodes) for name in node.input if name in makers)
    replace_nodes(model, [nodes[at] for at in nx.lexicographical_topological_sort(order)])


def _cut_behind_which_all_quantize(view: GraphView) -> tuple[Any, float, float] | None:
    """A Clip or Relu that only QuantizeLinear reads, and what it cuts to."""
    for node in view.graph.node:
        readers = view.readers.get(node.output[0], [])
        if node.op_type not in ("Relu", "Clip") or not readers or node.output[0] in view.results:
            continue
        limits = _limits(view, node)
        if limits is not None and all(_by_one_step(view, reader) for reader in readers):
            return (node, *limits)
    return None


def _by_one_step(view: GraphView, node: Any) -> bool:
    scale = view.constant(node.input[1]) if node.op_type == "QuantizeLinear" else None
    return scale is not None and scale.size == 1


def _limits(view: GraphView, node: Any) -> tuple[float, float] | None:
    """What a node cuts its input to; None where that is not known."""
    if node.op_type == "Relu":
        return 0.0, np.inf
    ends = [view.constant(name) if name else None for name in (*node.input[1:], "", "")[:2]]
    if any(name and end is None for name, end in zip(node.input[1:], ends, strict=False)):
        return None
    if any(end is not None and end.dtype != np.float32 for end in ends):  # it cuts integers
        return None
    low, high = (default if end is None else float(end) for end, default in zip(ends, (-np.inf, np.inf), strict=True))
    return low, high


def _move(model: Any, cut: Any, low: float, high: float) -> None:
    view, nodes = GraphView(model), []
    moved = {node.output[0] for node in view.readers[cut.output[0]]}
    for node in model.graph.node:
        if node.output[0] == cut.output[0]:
            continue
        nodes.append(node)
        if node.output[0] in moved:
            node.input[0] = cut.input[0]
            nodes += _limited(model, view, node, low, high)
    replace_nodes(model, nodes)


def _limited(model: Any, view: GraphView, node: Any, low: float, high: float) -> list[Any]:
    """Limits of the integers of QuantizeLinear: a Clip behind it, none where the type is as narrow."""
    onnx, numpy_helper = need("onnx", "onnx", "onnx.numpy_helper")
    scale, zero = view.constant(node.input[1]), cast(np.ndarray, view.constant(node.input[2]))
    kind = np.iinfo(zero.dtype)
    with np.errstate(over="ignore"):
        ends = [np.round(np.float32(end) / np.float32(scale)) + float(zero) for end in (low, high)]
    least, most = (int(np.clip(end, kind.min, kind.max)) for end in ends)
    if (least, most) == (kind.min, kind.max):
        return []
    name = node.output[0]
    parts = {f"{name}.low": zero.dtype.type(least), f"{name}.high": zero.dtype.type(most)}
    model.graph.initializer.extend(numpy_helper.from_array(np.asarray(value), key) for key, value in parts.items())
    node.output[0] = f"{name}.whole"
    return [onnx.helper.make_node("Clip", [node.output[0], *parts], [name], name=f"{name}_limits")]
