"""hls4ml's own parser takes the zoo's nets as QONNX, and qonnx's steps on the way leave what they compute."""

from __future__ import annotations

import importlib
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from dnas.export.qonnx import run_qonnx
from dnas.quantization.calibration import calibrate
from dnas.quantization.conversion import QuantizerChoice, quantize_fixed
from search_spaces.assignments import LayerBits
from search_spaces.models.zoo import resnet20, tiny_resnet
from search_spaces.network.graph import read_graph
from tests.exported_nets import export_qonnx
from tests.packed_nets import assignment_of, statistics
from tests.toys import seeded

NETS = {"tiny_resnet": (lambda: tiny_resnet(num_classes=5), (1, 8, 8)), "resnet20": (resnet20, (3, 32, 32))}


def prepared(path: Path) -> Any:
    """The file as hls4ml wants it: cleaned, channels last, Gemm as MatMul and Add (hls4ml's documentation)."""
    wrapper, cleanup, last, matmul = (
        importlib.import_module(f"qonnx.{name}")
        for name in (
            "core.modelwrapper",
            "util.cleanup",
            "transformation.channels_last",
            "transformation.gemm_to_matmul",
        )
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # GemmToMatMul's, of any opset but 9
        model = cleanup.cleanup_model(wrapper.ModelWrapper(str(path)))
        model = model.transform(last.ConvertToChannelsLastAndClean()).transform(matmul.GemmToMatMul())
        return cleanup.cleanup_model(model)


def converted(model: Any, folder: Path) -> Any:
    """hls4ml's net, without a compiler."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # hls4ml's own
        hls4ml = importlib.import_module("hls4ml")
        told = {"granularity": "name", "backend": "Vitis", "default_precision": "fixed<32,16>"}
        config = hls4ml.utils.config_from_onnx_model(model, **told)
        return hls4ml.converters.convert_from_onnx_model(
            model, output_dir=str(folder), io_type="io_parallel", backend="Vitis", hls_config=config
        )


@pytest.mark.slow
@pytest.mark.parametrize(("name", "weights"), [("tiny_resnet", "lsq"), ("tiny_resnet", "nested"), ("resnet20", "lsq")])
def test_hls4ml_converts(tmp_path: Path, name: str, weights: str) -> None:
    pytest.importorskip("hls4ml", reason="30 MB for these slow tests alone: pip install 'hls4ml>=1.3'")
    torch.manual_seed(0)
    build, shape = NETS[name]
    model: nn.Module = statistics(build())
    graph, choice = read_graph(model, shape), QuantizerChoice(weights, "pact", per_channel=True)
    widths = [(2 + at % 5, 3 + at % 4) for at in range(len(graph.layers))]
    entries = {s.name: LayerBits(*bits, s.out_channels) for s, bits in zip(graph.layers, widths, strict=True)}
    network = quantize_fixed(model, graph, entries, choice)
    x = torch.randn(4, *shape, generator=seeded(1))
    calibrate(network, [x])
    file = export_qonnx(tmp_path / "net.onnx", network.eval(), graph, assignment_of(graph, entries, choice), x)
    ready = prepared(file.path)
    with torch.no_grad():
        expected = network(x[:2]).numpy()
    found = run_qonnx(ready.model, {ready.graph.input[0].name: x[:2].numpy()}, [])[ready.graph.output[0].name]
    off, largest = np.abs(found - expected), np.abs(expected).max()
    assert np.median(off) <= 1e-3 * largest  # a value at a threshold may move some behind it
    assert off.max() <= 0.05 * largest
    operators = {node.op_type for node in ready.graph.node}
    assert operators.isdisjoint({"Slice", "ReduceMean", "Gemm"})
    made = converted(ready, tmp_path / "project")
    computing = [layer for layer in made.get_layers() if layer.class_name in ("Conv2D", "PointwiseConv2D", "Dense")]
    odd = weights == "nested"
    assert [layer.weights["weight"].type.precision.width for layer in computing] == [w + odd for w, _ in widths]
