"""Detectors as graphs: boxes and scores of every place are those that PyTorch chooses from, in the file too."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from dnas import QuantizerChoice, calibrate, quantize_fixed, read_graph
from dnas.data.shapes import shapes
from dnas.export.detectors import before_boxes
from dnas.export.graph_export import export_graph
from dnas.export.onnx import OnnxFormat
from dnas.export.stored import StoredNet
from search_spaces import BitAssignment, LayerBits, ModelReference
from search_spaces.errors import InputError
from tests.dnas.training.test_task_detection import of_family
from tests.toys import Net


def pixels(count: int, size: int = 64) -> torch.Tensor:
    return shapes(count, size).images / 255


@pytest.mark.parametrize("family", ["ssd", "retinanet", "fcos"])
@pytest.mark.parametrize("size", [64, 48])
def test_every_chosen_box_is_among_them_with_its_score(family: str, size: int) -> None:
    detector, x = of_family(family).eval(), pixels(2, size)
    detector.score_thresh = 0.0
    part = before_boxes(detector, (3, size, size)).eval()
    with torch.no_grad():
        boxes, scores = part(x)
        chosen = detector(list(x))
    assert boxes.shape[:2] == scores.shape[:2]
    found = 0
    for index, each in enumerate(chosen):
        for box, score, label in zip(each["boxes"][:40], each["scores"], each["labels"], strict=False):
            row = (boxes[index] - box).abs().amax(1)
            column = int(label) - (family == "ssd")
            near = row < 1e-3
            assert near.any()
            assert float((scores[index, near, column] - score).abs().min()) < 1e-5
            found += 1
    assert found > 20


def test_what_chooses_boxes_in_the_middle_is_refused_and_another_network_stays() -> None:
    with pytest.raises(InputError, match="FasterRCNN chooses boxes between its two stages"):
        before_boxes(of_family("faster_rcnn"), (3, 64, 64))
    network: nn.Module = Net()
    assert before_boxes(network, (1, 6, 6)) is network


@pytest.mark.whole
@pytest.mark.parametrize(
    "family", ["ssd", *(pytest.param(name, marks=pytest.mark.slow) for name in ("retinanet", "fcos"))]
)
def test_the_file_gives_what_the_quantized_detector_gives(family: str, tmp_path: Path) -> None:
    detector, x = of_family(family).eval(), pixels(3)
    graph = read_graph(detector, (3, 64, 64))
    bits = {layer.name: LayerBits(4, 8) for layer in graph.layers}
    network = quantize_fixed(detector, graph, bits, QuantizerChoice()).eval()
    calibrate(network, [x])
    assignment = BitAssignment("four", ModelReference("mine:detector", (3, 64, 64)), bits)
    path = tmp_path / "detector.onnx"
    export_graph(path, OnnxFormat(), StoredNet(network, graph, assignment))
    assert [output.name for output in onnx.load(path).graph.output] == ["boxes", "scores"]
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    part = before_boxes(network, (3, 64, 64))
    for count in (1, 3):
        found = session.run(["boxes", "scores"], {"input": x[:count].numpy()})
        with torch.no_grad():
            expected = [each.numpy() for each in part(x[:count])]
        for given, wanted in zip(found, expected, strict=True):
            assert given.shape == wanted.shape
            # A rounding error before a threshold moves a code by one step: most values are the same, all are near.
            assert np.median(np.abs(given - wanted)) < 1e-3 * np.abs(wanted).max()
            assert np.abs(given - wanted).max() < 0.1 * np.abs(wanted).max()
