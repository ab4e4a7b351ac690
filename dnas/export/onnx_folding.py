"""What lies around a layer, folded into its weight's scale and its bias, where that is exact.

* The gain of a quantized input: its levels are ``gain`` times its thresholds. A layer is linear, so the weight takes
  the gain, and QuantizeLinear and DequantizeLinear have one scale.
* BatchNorm in eval mode behind a layer: y = s (W x + b) + t is (s W) x + (s b + t), with one scale of the weight per
  output channel.

Both are done on the traced graph, where it is seen who reads what; a weight that two operators read takes the gain
alone.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import nn

from dnas.export.fixed_layers import DenseWeight, FixedLayer, Levels
from dnas.export.onnx_graph import GraphView, replace_nodes
from dnas.export.onnx_packages import need
from dnas.export.onnx_tracing import Fold, mark_of
from dnas.export.parts import folded_norm

_BIASED = ("Conv", "ConvTranspose", "Gemm")
_INVISIBLE = 1e-6
"""A channel whose weights move it by less than this part of its bias is its bias."""
_ANYTHING = 1e30


def fold(
    model: Any, layers: Mapping[str, FixedLayer], network: nn.Module, *, norms: bool, negative_scales: bool = True
) -> tuple[dict[str, FixedLayer], dict[str, Fold]]:
    """Fold in the traced ``model``, in place: the layers as they are to be written, and what each took over.

    ``norms`` says whether BatchNorm is folded too, ``negative_scales`` whether where that turns weights around.
    """
    written, folds = dict(layers), {}
    for name, layer in layers.items():
        view = GraphView(model)
        operators = operators_with(view, name)
        if not operators or not isinstance(layer.weight, DenseWeight):
            continue
        written[name], folds[name] = _with_gain(layer)
        norm = _norm_behind(view, operators[0]) if norms and len(operators) == 1 else None
        if norm is not None:
            found = _with_norm(written[name], folds[name], operators[0], norm, network, view)
            if found is not None and (negative_scales or bool((found[1].weight_factor() >= 0).all())):
                written[name], folds[name], bias = found
                _remove_norm(model, operators[0], norm[0], bias)
    return written, folds


def operators_with(view: GraphView, name: str) -> list[Any]:
    """The operators that multiply with the weight of a layer; none where one of them is not the layer's own.

    A Transpose may stand in between.
    """
    found = []
    for mark in [node for node in view.graph.node if mark_of(node) == (name, "weight")]:
        for reader in view.readers.get(mark.output[0], []):
            turned = view.only_reader(reader.output[0]) if reader.op_type == "Transpose" else reader
            source = None if turned is None else view.producers.get(turned.input[0])
            while source is not None and source.op_type == "Pad":
                source = view.producers.get(source.input[0])
            if turned is None or turned.op_type not in (*_BIASED, "MatMul") or mark_of(source) != (name, "input"):
                return []
            found.append(turned)
    return found


def _with_gain(layer: FixedLayer) -> tuple[FixedLayer, Fold]:
    levels, weight = layer.input, layer.weight
    assert isinstance(weight, DenseWeight)
    if levels is None or not levels.rounds:
        return layer, Fold()
    gain = float(levels.level_step[0] / levels.threshold_step[0])
    even = dataclasses.replace(levels, level_step=levels.threshold_step)
    return FixedLayer(layer.name, weight.times(gain), even), Fold(gain=gain)


def _norm_behind(view: GraphView, operator: Any) -> tuple[Any, str] | None:
    """The BatchNorm node that alone reads what a layer gives, and its module's name."""
    mark = view.only_reader(operator.output[0])
    if mark is None or mark_of(mark)[1] != "output":
        return None
    node = view.only_reader(mark.output[0])
    if node is None or node.op_type != "BatchNormalization":
        return None
    name, part = mark_of(view.only_reader(node.output[0]))
    return (node, name) if part == "norm" else None


def _with_norm(
    layer: FixedLayer, fold: Fold, operator: Any, norm: tuple[Any, str], network: nn.Module, view: GraphView
) -> tuple[FixedLayer, Fold, np.ndarray] | None:
    """The layer with the BatchNorm's scale in its weight, and its new bias; None where its filters lie elsewhere."""
    weight = layer.weight
    assert isinstance(weight, DenseWeight)
    axis = 1 if operator.op_type == "ConvTranspose" else 0
    scale, shift = (part.double().numpy() for part in folded_norm(norm[1], network.get_submodule(norm[1])))
    if operator.op_type not in _BIASED or weight.axis not in (None, axis) or weight.codes.shape[axis] != len(scale):
        return None
    bias = view.constant(operator.input[2]) if len(operator.input) > 2 else np.zeros(len(scale))
    if bias is None:
        return None
    told = shift + scale * bias
    constant = _reach(weight, layer.input, axis) * np.abs(scale) <= _INVISIBLE * np.abs(told)
    factor = np.where(constant, 0.0, scale)
    return (
        dataclasses.replace(layer, weight=weight.times(factor, axis)),
        dataclasses.replace(fold, norm=norm[1], scale=factor, axis=axis),
        told,
    )


def _reach(weight: DenseWeight, levels: Levels | None, axis: int) -> np.ndarray:
    """The most that each filter can give; of an input in fp32 that is not known, so it is as good as anything."""
    largest = _ANYTHING if levels is None else max(abs(levels.low), levels.high) * float(levels.level_step[0])
    values = np.abs(weight.codes + weight.levels.centre) * weight.along_axis(weight.levels.level_step)
    return np.moveaxis(values, axis, 0).reshape(values.shape[axis], -1).sum(1) * largest


def _remove_norm(model: Any, operator: Any, norm: Any, bias: np.ndarray) -> None:
    (numpy_helper,) = need("onnx", "onnx.numpy_helper")
    stored = numpy_helper.from_array(bias.astype(np.float32), f"{operator.output[0]}.folded_bias")
    model.graph.initializer.append(stored)
    kept = [*operator.input[:2], stored.name]
    del operator.input[:]
    operator.input.extend(kept)
    source, target = norm.input[0], norm.output[0]
    for node in model.graph.node:
        for at, name in enumerate(node.input):
            node.input[at] = source if name == target else name
    replace_nodes(model, [node for node in model.graph.node if node.output[0] != target])
