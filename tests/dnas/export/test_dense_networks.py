"""torchvision's detectors and segmenters, unedited, sparse and switchable, in packed files and as graphs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from dnas import QuantizerChoice, calibrate, load, quantize_fixed, read_graph, save_packed
from dnas.data.shapes import shapes
from dnas.export.calls import tensors_of
from dnas.export.detectors import before_boxes
from dnas.export.graph_export import export_graph
from dnas.export.onnx import OnnxFormat
from dnas.export.stored import StoredNet
from dnas.squantizer.quantizer import activate
from dnas.switchable.net import SwitchableNet
from search_spaces import BitAssignment, LayerBits, LayerGraph, ModelReference
from search_spaces.models.load import load_model
from search_spaces.sparse_weights.scheme import SparseWeights
from tests.dnas.training.test_task_detection import DETECTORS, of_family
from tests.dnas.training.test_task_segmentation import SEGMENTERS, segmenter_of

FAMILIES = ["ssd", "retinanet", "fcos", "faster_rcnn", "lraspp", "deeplabv3", "fcn"]
REAL = [*DETECTORS, *SEGMENTERS]


def some(*fast: str) -> list[Any]:
    """All networks, of which those that are named run with the default suite."""
    return [name if name in fast else pytest.param(name, marks=pytest.mark.slow) for name in (*FAMILIES, *REAL)]


def network_of(name: str) -> tuple[nn.Module, int]:
    """The network in eval mode, and the side of its images."""
    torch.manual_seed(0)
    if name in REAL:
        known = {**DETECTORS, **SEGMENTERS}[name]
        return load_model(f"torchvision:{name}", arguments=known.arguments).module.eval(), known.size
    return (segmenter_of(name) if name in ("lraspp", "deeplabv3", "fcn") else of_family(name)).eval(), 64


def pixels(size: int, count: int = 2) -> Tensor:
    return shapes(count, size).images / 255


def uniform(graph: LayerGraph, size: int, bits: int = 4, sparse: bool = False) -> BitAssignment:
    """All layers at a width, their inputs at 8; every second one sparse perhaps."""
    scheme = SparseWeights(0.0)
    layers = {
        spec.name: LayerBits(bits, 8, scheme=scheme if sparse and at % 2 else None)
        for at, spec in enumerate(graph.layers)
    }
    return BitAssignment(f"w{bits}", ModelReference("mine:dense", (3, size, size)), layers)


def found_by(network: nn.Module, x: Tensor) -> list[Tensor]:
    with torch.no_grad():
        return tensors_of(network(x))


@pytest.mark.whole
@pytest.mark.parametrize("name", some("faster_rcnn", "lraspp"))
def test_sparse_and_low_bit_weights_are_packed_and_give_the_same(name: str, tmp_path: Path) -> None:
    network, size = network_of(name)
    graph, x = read_graph(network, (3, size, size)), pixels(size)
    assignment = uniform(graph, size, sparse=True)
    quantized = quantize_fixed(network, graph, assignment.layers, QuantizerChoice())
    calibrate(quantized, [x])
    activate(quantized)
    save_packed(tmp_path / "net.dnas", quantized.eval(), graph, assignment)
    again = load(tmp_path / "net.dnas", network_of(name)[0])
    found, expected = found_by(again, x), found_by(quantized, x)
    assert len(found) == len(expected) > 0
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.whole
@pytest.mark.parametrize("name", some("fcos", "fcn"))
def test_profiles_of_one_net_are_switched_and_packed(name: str, tmp_path: Path) -> None:
    network, size = network_of(name)
    graph, x = read_graph(network, (3, size, size)), pixels(size)
    net = SwitchableNet(
        network, graph, {f"w{bits}": uniform(graph, size, bits) for bits in (4, 8)}, QuantizerChoice("nested", "pact")
    )
    net.calibrate(network, [x])
    before = found_by(net.eval().use("w4"), x)
    net.use("w8")
    assert all(torch.equal(*pair) for pair in zip(before, found_by(net.use("w4"), x), strict=True))
    file = save_packed(tmp_path / "net.dnas", net)
    assert file.tensor_bytes < 1.1 * sum(spec.weight_elements for spec in graph.layers) + graph.other_bytes + 2**16
    again = load(tmp_path / "net.dnas", network_of(name)[0])
    for profile in ("w4", "w8"):
        for one, other in zip(found_by(again.use(profile), x), found_by(net.use(profile), x), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in (*FAMILIES, *REAL) if not name.startswith("faster")])
def test_a_graph_gives_what_pytorch_gives(name: str, tmp_path: Path) -> None:
    """The float network: nothing is near a threshold, so that all values can be compared."""
    network, size = network_of(name)
    graph, x = read_graph(network, (3, size, size)), pixels(size)
    exact = {spec.name: LayerBits(32, 32) for spec in graph.layers}
    assignment = BitAssignment("float", ModelReference("mine:dense", (3, size, size)), exact)
    export_graph(tmp_path / "net.onnx", OnnxFormat(), StoredNet(network, graph, assignment))
    names = [output.name for output in onnx.load(tmp_path / "net.onnx").graph.output]
    assert names == (["boxes", "scores"] if name in ("ssd", "retinanet", "fcos", *DETECTORS) else names_of(network, x))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(tmp_path / "net.onnx", options, providers=["CPUExecutionProvider"])
    expected: Any = found_by(before_boxes(network, (3, size, size)).eval(), x)
    for one, other in zip(session.run(None, {"input": x.numpy()}), expected, strict=True):
        np.testing.assert_allclose(one, other.numpy(), rtol=0, atol=1e-4 * max(1.0, float(other.abs().max())))


def names_of(network: nn.Module, x: Tensor) -> list[str]:
    with torch.no_grad():
        return list(network(x))
