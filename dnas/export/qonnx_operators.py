"""What FPGA tools read, in the place of what PyTorch writes; values stay as they are.

hls4ml and qonnx's own step to channels last have no Slice and no ReduceMean. A strided slice from the first pixel on
(the option-A shortcut) is a MaxPool of single pixels; a mean over all of space is GlobalAveragePool. And hls4ml 1.3
cannot move a scale for each filter past a convolution of inputs that have one scale (its ScaleDownConv multiplies
matrices of which one is a number), so such scales stand behind the layer, and its weights are integers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from dnas.export.fixed_layers import DenseWeight, FixedLayer
from dnas.export.onnx_folding import operators_with
from dnas.export.onnx_graph import GraphView, attribute, replace_nodes
from dnas.export.onnx_packages import need
from dnas.export.onnx_tracing import Fold


def with_known_operators(model: Any) -> None:
    """Replace nodes of ``model``, in place, whose tensors all have told shapes; what has no other form stays."""
    shapes = {
        value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in (*model.graph.value_info, *model.graph.input, *model.graph.output)
    }
    view, nodes = GraphView(model), []
    for node in model.graph.node:
        shape = shapes.get(node.input[0]) if node.input else None
        rule = _RULES.get(node.op_type) if node.domain == "" else None
        made = rule(node, shape, view) if rule and shape and all(shape) and len(shape) > 2 else None
        nodes += made or [node]
    replace_nodes(model, _merged(nodes))


def _subsampled(node: Any, shape: Sequence[int], view: GraphView) -> list[Any] | None:
    """A slice of every so many pixels; None for another one."""
    told = [None if not name else view.constant(name) for name in (*node.input[1:], "", "")[:4]]
    starts, ends, axes, steps = ([] if part is None else part.reshape(-1).tolist() for part in told)
    axes, steps = axes or list(range(len(starts))), steps or [1] * len(starts)
    strides = [1] * len(shape)
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        if start != 0 or end < shape[axis] or step < 1:
            return None
        strides[axis] = step
    if not starts or strides[:2] != [1, 1]:
        return None
    kernel = [1] * (len(shape) - 2)
    return [_node("MaxPool", node, kernel_shape=kernel, strides=strides[2:], pads=[0] * 2 * len(kernel))]


def _averaged(node: Any, shape: Sequence[int], view: GraphView) -> list[Any] | None:
    """A mean over all axes of space, kept or not."""
    axes = view.constant(node.input[1]) if len(node.input) > 1 else np.array(attribute(node, "axes", []))
    if axes is None or sorted(axis % len(shape) for axis in axes.reshape(-1).tolist()) != list(range(2, len(shape))):
        return None
    if attribute(node, "keepdims", 1):
        return [_node("GlobalAveragePool", node)]
    pooled = _node("GlobalAveragePool", node, f"{node.output[0]}.pooled")
    return [pooled, need("onnx", "onnx")[0].helper.make_node("Flatten", [pooled.output[0]], list(node.output), axis=1)]


def _merged(nodes: Sequence[Any]) -> list[Any]:
    """One MaxPool of single pixels for two of which one alone reads the other: PyTorch writes a slice for each axis."""
    makers = {node.output[0]: node for node in nodes if _is_subsampling(node)}
    dropped = set()
    for node in makers.values():
        before = makers.get(node.input[0])
        if before is None or sum(list(other.input).count(node.input[0]) for other in nodes) > 1:
            continue
        strides = [a * b for a, b in zip(attribute(before, "strides"), attribute(node, "strides"), strict=True)]
        next(found for found in node.attribute if found.name == "strides").ints[:] = strides
        node.input[0] = before.input[0]
        dropped.add(before.output[0])
    return [node for node in nodes if node.output[0] not in dropped]


def _is_subsampling(node: Any) -> bool:
    return node.op_type == "MaxPool" and set(attribute(node, "kernel_shape")) == {1}


def _node(operator: str, like: Any, target: str = "", **attributes: Any) -> Any:
    """A node of one input in the place of ``like``."""
    (onnx,) = need("onnx", "onnx")
    out = target or like.output[0]
    return onnx.helper.make_node(operator, [like.input[0]], [out], name=like.name or f"{out}_node", **attributes)


_RULES = {"Slice": _subsampled, "ReduceMean": _averaged}


def move_scales_behind(model: Any, layers: dict[str, FixedLayer], folds: dict[str, Fold]) -> None:
    """Let the weights of ``layers`` that have a scale for each filter be integers, and multiply what the layers give.

    In the traced ``model``, ``layers`` and ``folds``, in place. A layer whose filters are not the first axis of its
    weight keeps its scales, and so does one whose weight something else reads.
    """
    for name, layer in list(layers.items()):
        view, weight = GraphView(model), layer.weight
        operators = operators_with(view, name) if isinstance(weight, DenseWeight) and weight.axis == 0 else []
        if not isinstance(weight, DenseWeight) or not operators:
            continue
        if any(operator.op_type not in ("Conv", "Gemm", "MatMul") for operator in operators):
            continue
        steps = weight.levels.level_step
        levels = dataclasses.replace(weight.levels, level_step=np.ones(1))
        layers[name] = dataclasses.replace(layer, weight=DenseWeight(weight.codes, levels, None))
        folds[name] = dataclasses.replace(folds[name], scale=1 / steps, axis=0)
        behind = {}
        for operator in operators:
            nodes = _scaled_nodes(model, view, operator, steps)
            behind[operator.output[0]] = nodes
        replace_nodes(model, [found for node in model.graph.node for found in (node, *behind.get(node.output[0], ()))])


def _scaled_nodes(model: Any, view: GraphView, operator: Any, steps: np.ndarray) -> list[Any]:
    """What makes the output of ``operator`` (N, F, ...), which is changed, one of ``steps`` (F,) and of its own bias.

    A BatchNormalization, as qonnx has no Mul of channels last; behind MatMul, whose channels are the last, Mul and Add.
    """
    onnx, numpy_helper = need("onnx", "onnx", "onnx.numpy_helper")
    target, count = operator.output[0], len(steps)
    bias = view.constant(operator.input[2]) if len(operator.input) > 2 else None

    def held(kind: str, values: Any) -> str:
        array = np.broadcast_to(np.asarray(values, np.float32), (count,)).copy()
        model.graph.initializer.append(numpy_helper.from_array(array, f"{target}.{kind}"))
        return f"{target}.{kind}"

    operator.output[0] = source = f"{target}.unscaled"
    del operator.input[2:]
    scale = held("scale", steps)
    if operator.op_type == "MatMul":
        return [onnx.helper.make_node("Mul", [source, scale], [target], name=f"{target}_scaled")]
    if operator.op_type == "Gemm":  # qonnx's step to MatMul wants a bias
        operator.input.append(held("zeros", 0))
    told = [source, scale, held("shift", 0 if bias is None else bias.reshape(-1)), held("mean", 0), held("variance", 1)]
    return [onnx.helper.make_node("BatchNormalization", told, [target], name=f"{target}_scaled", epsilon=0.0)]
