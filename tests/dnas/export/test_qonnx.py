"""A QONNX file computes what the net does, in QONNX's own executor, with the exact width of every tensor."""

from __future__ import annotations

import dataclasses
import importlib
import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from qonnx.core.execute_custom_node import execute_custom_node
from qonnx.util.inference_cost import inference_cost

from dnas.export import graph_export
from dnas.export.fixed_layers import fixed_layers
from dnas.export.onnx import read_assignment
from dnas.export.qonnx import QonnxBuilder, run_qonnx
from dnas.quantization.conversion import QuantizerChoice
from search_spaces.assignments import LayerBits
from search_spaces.errors import InputError, JobError
from search_spaces.sparse_weights.scheme import SparseWeights
from tests.exported_nets import (
    INPUTS,
    WEIGHTS,
    described,
    export_qonnx,
    fixed_net,
    quantized_layer,
    samples,
    small_net,
    traced_once,
)
from tests.packed_nets import inputs_for

DOMAIN = "qonnx.custom_op.general"


def run_nodes(nodes: list[Any], initializers: list[Any], source: str, x: np.ndarray) -> np.ndarray:
    """What QONNX's executor makes of ``x`` under the name ``source``; no standard node may need a session."""
    context = {tensor.name: numpy_helper.to_array(tensor) for tensor in initializers} | {source: x}
    for node in nodes:
        if node.domain == DOMAIN:
            graph = helper.make_graph([node], "piece", [], [])
            context[node.output[0]] = np.zeros(0, dtype=np.float32)
            execute_custom_node(node, context, graph, onnx_opset_version=1)
        else:
            operation = {"Mul": np.multiply, "Add": np.add}[node.op_type]
            context[node.output[0]] = operation(*(context[name] for name in node.input))
    return context["out"]


def widths(nodes: list[Any], initializers: list[Any]) -> list[int]:
    """The width of every quantizer among the nodes."""
    known = {tensor.name: numpy_helper.to_array(tensor) for tensor in initializers}
    found = [node for node in nodes if node.domain == DOMAIN]
    return [int(known[node.input[3]].item()) for node in found]


@pytest.mark.parametrize(("family", "bits"), WEIGHTS)
def test_weights_of_every_family_and_width(family: str, bits: int) -> None:
    for per_channel, transposed in ((False, False), (True, False), (True, True)):
        layer = quantized_layer((family, bits), per_channel=per_channel, transposed=transposed)
        builder = QonnxBuilder()
        nodes = builder.weight(described(layer), "out")
        constants = list(builder.initializers.values())
        found = run_nodes(nodes, constants, "nothing", np.zeros(0))
        expected = layer.quantized_weight().detach().numpy()
        np.testing.assert_allclose(found, expected, rtol=0, atol=2e-6 * np.abs(expected).max())
        odd = family in ("nested", "dorefa") and bits > 1
        assert widths(nodes, constants) == [bits + odd]
        assert [node.op_type for node in nodes] == ["Quant"]


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize(("family", "bits"), INPUTS)
def test_inputs_of_every_family_width_and_sign(family: str, bits: int, signed: bool) -> None:
    layer = quantized_layer(inputs=(family, bits), signed=signed)
    fixed, builder = described(layer), QonnxBuilder()
    nodes = builder.input(fixed, "input", "out")
    constants = list(builder.initializers.values())
    x = samples(signed).numpy()
    found = run_nodes(nodes, constants, "input", x)
    expected = layer.quantize_input(torch.from_numpy(x)).detach().numpy()
    assert fixed.input is not None
    steps = np.abs(found - expected) / fixed.input.level_step
    assert (steps < 0.02).mean() >= (0.98 if bits == 16 else 1.0)
    assert steps.max() < 1.02
    assert (steps[-4:] < 0.02).all(), "zero, and what is far outside"
    assert widths(nodes, constants) == [bits]
    zero_points = {numpy_helper.to_array(tensor).item() for tensor in constants if tensor.name == "quant.zero"}
    assert zero_points <= {0.0}


@pytest.mark.whole
def test_a_net_of_several_widths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graph_export, "trace", traced_once)
    network, graph, assignment = small_net()
    file = export_qonnx(tmp_path / "net.onnx", network, graph, assignment)
    assert (file.format, file.file_bytes) == ("qonnx", file.path.stat().st_size)
    assert file.ideal_bytes == assignment.cost["size_bytes"]
    assert read_assignment(file.path) == assignment
    model = onnx.load(file.path)
    assert {found.domain: found.version for found in model.opset_import} == {"": 18, DOMAIN: 1}
    quantizers = [node for node in model.graph.node if node.op_type == "Quant"]
    assert sorted(widths(quantizers, list(model.graph.initializer))) == [2, 2, 3, 3, 4, 4, 8, 8]
    assert [dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim] == [1, *graph.input_shape]
    x = inputs_for(graph, 3)
    with torch.no_grad():
        expected = network(x)
    found = run_qonnx(model, {"input": x.numpy()}, [])["output"]
    torch.testing.assert_close(torch.from_numpy(found), expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))
    assert model.graph.input[0].type.tensor_type.elem_type == TensorProto.FLOAT


@pytest.mark.slow
@pytest.mark.parametrize("name", ["shapes", "line", "cube", "shared", "own parameter", "attention"])
def test_every_kind_of_net(tmp_path: Path, name: str) -> None:
    network, graph, assignment = fixed_net(name, (3, 4), QuantizerChoice("nested", "nested", per_channel=True))
    file = export_qonnx(tmp_path / "a", network, graph, assignment)
    assert file.file_bytes > 0


SOMETIMES: dict[Any, Any] = {((1, 3), "pact"): (), ((8, 2), "lsq"): pytest.mark.whole}


@pytest.mark.parametrize(
    ("bits", "inputs"),
    [
        pytest.param(bits, inputs, marks=SOMETIMES.get((bits, inputs), pytest.mark.slow))
        for bits in ((4, 4), (1, 3), (2, 8), (8, 2))
        for inputs in ("pact", "lsq")
    ],
)
def test_the_cost_that_qonnx_counts_is_ours(tmp_path: Path, bits: tuple[int, int], inputs: str) -> None:
    network, graph, assignment = fixed_net("residual", bits, QuantizerChoice("lsq", inputs, per_channel=True))
    file = export_qonnx(tmp_path / "net.onnx", network, graph, assignment)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        counted = inference_cost(str(file.path), discount_sparsity=False)["total_cost"]
    assert counted["total_bops"] == sum(spec.macs * bits[0] * bits[1] for spec in graph.layers)
    assert counted["total_mem_w_bits"] == sum(spec.weight_elements * bits[0] for spec in graph.layers)


def test_a_wrong_weight_names_its_layer_and_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network, graph, assignment = small_net()
    found = fixed_layers(network)
    weight = found["second"].weight
    wrong = dataclasses.replace(weight, codes=weight.codes[::-1])  # type: ignore[type-var,union-attr]
    found["second"] = dataclasses.replace(found["second"], weight=wrong)
    monkeypatch.setattr(graph_export, "trace", traced_once)
    monkeypatch.setattr(graph_export, "fixed_layers", lambda network: found)
    with pytest.raises(JobError, match="the weight of layer 'second' differs"):
        export_qonnx(tmp_path / "net.onnx", network, graph, assignment)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.whole
def test_sparse_weights_are_refused(tmp_path: Path) -> None:
    def bits(graph: Any) -> dict[str, LayerBits]:
        found = {spec.name: LayerBits(4, 4, spec.out_channels) for spec in graph.layers}
        return {**found, "first": dataclasses.replace(found["first"], scheme=SparseWeights(0.5, "sparsify-first"))}

    network, graph, assignment = fixed_net("residual", bits)
    with pytest.raises(InputError, match="layer 'first' has sparse weights, which QONNX has no node for"):
        export_qonnx(tmp_path / "a", network, graph, assignment)
    assert list(tmp_path.iterdir()) == []


def test_a_missing_package_tells_the_install_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.import_module

    def without(name: str, *args: Any) -> Any:
        if name.split(".")[0] == "qonnx":
            raise ImportError(name)
        return real(name, *args)

    monkeypatch.setattr(importlib, "import_module", without)
    network, graph, assignment = small_net()
    with pytest.raises(InputError, match=r"the format 'qonnx' needs the package qonnx: pip install 'dnas\[onnx\]'"):
        export_qonnx(tmp_path / "a", network, graph, assignment)


def test_the_assignment_in_the_file_is_plain_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graph_export, "trace", traced_once)
    network, graph, assignment = small_net()
    model = onnx.load(export_qonnx(tmp_path / "a", network, graph, assignment, inputs_for(graph, 1)).path)
    [entry] = [entry for entry in model.metadata_props if entry.key == "dnas.assignment"]
    assert json.loads(entry.value) == json.loads(json.dumps(assignment.to_json()))
