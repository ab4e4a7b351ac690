"""Fixed nets to export, single quantizers of every family, and one small trace that many tests share."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dnas.export import onnx_tracing
from dnas.export.fixed_layers import ExportedFile, FixedLayer, fixed_layers
from dnas.export.graph_export import export_graph
from dnas.export.onnx import OnnxFormat
from dnas.export.qonnx import QonnxFormat
from dnas.export.stored import StoredNet
from dnas.export.targets import find_target
from dnas.quantization.calibration import calibrate
from dnas.quantization.conversion import QuantizerChoice, quantize_fixed
from dnas.quantization.families import find_quantizer
from dnas.quantization.layers import QuantizedLayer, TensorQuantizer, quantize_layer
from results.preprocessing import Preprocessing
from search_spaces.assignments import BitAssignment, LayerBits
from search_spaces.layers import LayerGraph
from tests.packed_nets import assignment_of, inputs_for, model_and_graph
from tests.toys import seeded

WEIGHTS = [(family, width) for family in ("lsq", "nested", "dorefa") for width in (*range(1, 9), 16)] + [("binary", 1)]
INPUTS = [(family, width) for family in ("pact", "lsq", "nested", "dorefa") for width in (*range(1, 9), 16)]
INPUTS += [("binary", 1)]


def quantized_layer(
    weights: tuple[str, int] = ("lsq", 4),
    inputs: tuple[str, int] = ("pact", 4),
    *,
    per_channel: bool = False,
    signed: bool = True,
    transposed: bool = False,
) -> QuantizedLayer:
    """One calibrated layer, a convolution of 3 to 5 channels or a transposed one of 5 to 3."""
    torch.manual_seed(0)
    layer: nn.Module = nn.ConvTranspose2d(5, 3, 3) if transposed else nn.Conv2d(3, 5, 3)
    axis, rows = ((1, 3) if transposed else (0, 5)) if per_channel else (None, 1)
    weight = TensorQuantizer(
        find_quantizer("weights", weights[0]), (weights[1],), signed=True, channel_axis=axis, rows=rows
    )
    entry = TensorQuantizer(find_quantizer("activations", inputs[0]), (inputs[1],), signed=signed)
    with torch.no_grad():
        weight.fit(layer.weight)  # type: ignore[arg-type]
        entry.fit(samples(signed)[:-4])
    return quantize_layer(layer, entry, weight).eval()


def export_onnx(
    path: Path,
    network: nn.Module,
    graph: LayerGraph,
    assignment: BitAssignment,
    images: Tensor | None = None,
    *,
    target: str = "compact",
    residual_bits: int | None = None,
    preprocessing: Preprocessing | None = None,
    normalise: bool = False,
) -> ExportedFile:
    """A net as ONNX."""
    net = StoredNet(network, graph, assignment, preprocessing=preprocessing, images=images)
    return export_graph(path, OnnxFormat(find_target(target), residual_bits), net, normalise=normalise)


def export_qonnx(
    path: Path,
    network: nn.Module,
    graph: LayerGraph,
    assignment: BitAssignment,
    images: Tensor | None = None,
    *,
    preprocessing: Preprocessing | None = None,
    normalise: bool = False,
) -> ExportedFile:
    """A net as QONNX."""
    net = StoredNet(network, graph, assignment, preprocessing=preprocessing, images=images)
    return export_graph(path, QonnxFormat(), net, normalise=normalise)


def samples(signed: bool) -> Tensor:
    """Values (2004,) of which the last lie far outside and at zero."""
    x = torch.randn(2000, generator=seeded(3))
    x = x if signed else x.abs()
    return torch.cat([x, torch.tensor([0.0, -0.0, 1000.0, -1000.0 if signed else -5.0])])


def described(layer: QuantizedLayer) -> FixedLayer:
    """What the exporters see of a layer called ``0``."""
    return fixed_layers(nn.Sequential(layer))["0"]


def fixed_net(
    name: str,
    bits: tuple[int, int] | Mapping[str, tuple[int, int]] | Callable[[LayerGraph], dict[str, LayerBits]],
    choice: QuantizerChoice | None = None,
) -> tuple[nn.Module, LayerGraph, BitAssignment]:
    """A calibrated case of :mod:`tests.packed_nets`, its graph and its assignment."""
    (model, graph), choice = model_and_graph(name), choice or QuantizerChoice()
    if callable(bits):
        layers = bits(graph)
    else:
        pairs = bits if isinstance(bits, Mapping) else {spec.name: bits for spec in graph.layers}
        layers = {spec.name: LayerBits(*pairs[spec.name], spec.out_channels) for spec in graph.layers}
    network = quantize_fixed(model, graph, layers, choice)
    calibrate(network, [inputs_for(graph, 8, 5)])
    return network.eval(), graph, assignment_of(graph, layers, choice)


@functools.cache
def small_net() -> tuple[nn.Module, LayerGraph, BitAssignment]:
    """The residual net with every layer quantized otherwise."""
    pairs = {"stem": (8, 8), "first": (2, 3), "second": (3, 2), "head": (4, 4)}
    return fixed_net("residual", pairs, QuantizerChoice("lsq", "pact", per_channel=True))


_TRACE = onnx_tracing.trace


@functools.cache
def _traced(opset: int, batch: int | None) -> Any:
    network, graph, _ = small_net()
    return _TRACE(network, [spec.name for spec in graph.layers], graph.input_shape, opset, batch=batch)


def traced_once(*args: Any, batch: int | None) -> Any:
    """The trace of :func:`small_net`, which takes a second, made once."""
    return copy.deepcopy(_traced(args[3], batch))
