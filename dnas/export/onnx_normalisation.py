"""An ONNX graph that takes pixels: a multiplication and an addition before everything else normalise them."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from dnas.export.fixed_layers import as_tensor
from dnas.export.onnx_packages import need
from dnas.export.onnx_tracing import INPUT
from results.preprocessing import Preprocessing
from search_spaces.errors import InputError

_NORMALISED = f"{INPUT}.normalised"


def take_pixels(model: Any, preprocessing: Preprocessing | None) -> None:
    """Put the two nodes in front of the graph of ``model``, in place; its input is then pixels in [0, 1]."""
    onnx, numpy_helper = need("onnx", "onnx", "onnx.numpy_helper")
    for node in model.graph.node:
        for at, name in enumerate(node.input):
            node.input[at] = _NORMALISED if name == INPUT else name
    scale, shift = _scale_and_shift(preprocessing)
    for name, values in ((f"{INPUT}.scale", scale), (f"{INPUT}.shift", shift)):
        model.graph.initializer.append(numpy_helper.from_array(values, name))
    scaled = f"{INPUT}.scaled"
    nodes = [
        onnx.helper.make_node("Mul", [INPUT, f"{INPUT}.scale"], [scaled], name=f"{scaled}_node"),
        onnx.helper.make_node("Add", [scaled, f"{INPUT}.shift"], [_NORMALISED], name=f"{_NORMALISED}_node"),
    ]
    others = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend([*nodes, *others])


def normalised(pixels: Tensor, preprocessing: Preprocessing | None) -> Tensor:
    """What the network itself is to be given for these pixels (N, C, H, W)."""
    scale, shift = map(as_tensor, _scale_and_shift(preprocessing))
    return pixels * scale + shift


def pixels_of(inputs: Tensor, preprocessing: Preprocessing | None) -> Tensor:
    """The pixels (N, C, H, W) that :func:`normalised` makes these inputs of."""
    scale, shift = map(as_tensor, _scale_and_shift(preprocessing))
    return (inputs - shift) / scale


def _scale_and_shift(preprocessing: Preprocessing | None) -> tuple[np.ndarray, np.ndarray]:
    """Both (C, 1, 1), or as many axes as an input has."""
    if preprocessing is None:
        raise InputError("how to normalise is not known for this net; export it without normalising in the file")
    mean, std = (np.array(values, dtype=np.float64) for values in (preprocessing.mean, preprocessing.std))
    shape = (-1, *[1] * (len(preprocessing.input_shape) - 1))
    return tuple(values.astype(np.float32).reshape(shape) for values in (1 / std, -mean / std))  # type: ignore[return-value]
