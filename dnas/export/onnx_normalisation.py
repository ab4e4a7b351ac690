"""An ONNX graph that takes pixels: a multiplication and an addition before everything else normalise them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor

from dnas.export.fixed_layers import as_tensor
from dnas.export.onnx_packages import need
from results.preprocessing import Preprocessing
from search_spaces.errors import InputError


def image_among(feeds: Mapping[str, np.ndarray], preprocessing: Preprocessing | None) -> str:
    """The name of the input that is the image; :class:`InputError` where none or several can be."""
    if len(feeds) == 1:
        return next(iter(feeds))
    shape = tuple(known(preprocessing).input_shape)
    images = [name for name, values in feeds.items() if values.shape[1:] == shape and values.dtype.kind == "f"]
    if len(images) != 1:
        raise InputError(
            f"of the inputs {', '.join(feeds)} {'none has' if not images else 'several have'} the shape of an image, "
            f"{shape}, so the file cannot tell which to normalise; export it without normalising in the file"
        )
    return images[0]


def take_pixels(model: Any, preprocessing: Preprocessing | None, image: str) -> None:
    """Put the two nodes in front of the graph of ``model``, in place; its ``image`` is then pixels in [0, 1]."""
    onnx, numpy_helper = need("onnx", "onnx", "onnx.numpy_helper")
    normalised = f"{image}.normalised"
    for node in model.graph.node:
        for at, name in enumerate(node.input):
            node.input[at] = normalised if name == image else name
    scale, shift = _scale_and_shift(preprocessing)
    for name, values in ((f"{image}.scale", scale), (f"{image}.shift", shift)):
        model.graph.initializer.append(numpy_helper.from_array(values, name))
    scaled = f"{image}.scaled"
    nodes = [
        onnx.helper.make_node("Mul", [image, f"{image}.scale"], [scaled], name=f"{scaled}_node"),
        onnx.helper.make_node("Add", [scaled, f"{image}.shift"], [normalised], name=f"{normalised}_node"),
    ]
    others = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend([*nodes, *others])


def pixels_of(inputs: Tensor, preprocessing: Preprocessing | None) -> Tensor:
    """The pixels (N, C, H, W) that are normalised to these inputs."""
    scale, shift = map(as_tensor, _scale_and_shift(preprocessing))
    return (inputs - shift) / scale


def known(preprocessing: Preprocessing | None) -> Preprocessing:
    """How to normalise; :class:`InputError` where nobody has told it."""
    if preprocessing is None:
        raise InputError("how to normalise is not known for this net; export it without normalising in the file")
    return preprocessing


def _scale_and_shift(preprocessing: Preprocessing | None) -> tuple[np.ndarray, np.ndarray]:
    """Both (C, 1, 1), or as many axes as an input has."""
    preprocessing = known(preprocessing)
    mean, std = (np.array(values, dtype=np.float64) for values in (preprocessing.mean, preprocessing.std))
    shape = (-1, *[1] * (len(preprocessing.input_shape) - 1))
    return tuple(values.astype(np.float32).reshape(shape) for values in (1 / std, -mean / std))  # type: ignore[return-value]
