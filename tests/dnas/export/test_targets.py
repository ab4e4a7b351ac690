"""The contract of targets: what a capability file promises, the runtime does, and the values stay those of the net."""

from __future__ import annotations

import copy
import functools
import importlib.util
import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner

from dnas.commands.cli import app
from dnas.export import graph_export, onnx_tracing
from dnas.export.fixed_layers import ExportedFile, fixed_layers
from dnas.export.graph_export import export_graph
from dnas.export.onnx import OnnxFormat
from dnas.export.parts import deployed_copy
from dnas.export.runtimes import integer_nodes, run_graph, run_in_openvino
from dnas.export.stored import StoredNet
from dnas.export.targets import Target, find_target, target_names
from dnas.quantization.calibration import calibrate
from dnas.quantization.conversion import QuantizerChoice, quantize_fixed
from results.run.folder import Run
from search_spaces.assignments import LayerBits
from search_spaces.errors import InputError
from search_spaces.models.zoo import tiny_resnet
from tests.exported_nets import fixed_net
from tests.known import known_graph
from tests.packed_nets import assignment_of, inputs_for
from tests.toys import seeded

RUN = ("onnxruntime", "openvino")
NOT_SLOW = {("generic", "nested"), ("onnxruntime", "lsq"), ("openvino", "nested"), ("tensorrt", "lsq")}
"""Target and family of weights that every run of the tests exports; the others are slow."""
SHAPE = (1, 8, 8)
MIXED = ((8, 8), (4, 8), (2, 4), (3, 2), (8, 3), (5, 5), (1, 7), (7, 6))


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    onnxruntime.set_default_logger_severity(3)
    yield
    onnxruntime.set_default_logger_severity(2)


@functools.cache
def tiny_model() -> nn.Module:
    """With BatchNorms that turn channels around, and one channel that is its bias."""
    torch.manual_seed(0)
    model = tiny_resnet(num_classes=5)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight, 1, 0.5)
            nn.init.normal_(module.bias, 0, 0.3)
            module.weight.data[0], module.weight.data[1] = 0.0, -0.7
            module.running_mean.normal_(0, 0.2)  # type: ignore[union-attr]
            module.running_var.uniform_(0.5, 2)  # type: ignore[union-attr]
    return model.eval()


def tiny(
    bits: tuple[tuple[int, int], ...], weights: str = "lsq", inputs: str = "pact", per_channel: bool = True
) -> StoredNet:
    """The zoo's tiny ResNet with these widths, one layer after the other."""
    model, choice = tiny_model(), QuantizerChoice(weights, inputs, per_channel=per_channel)
    graph = known_graph(model, SHAPE)
    pairs = [bits[at % len(bits)] for at in range(len(graph.layers))]
    layers = {s.name: LayerBits(*pair, s.out_channels) for s, pair in zip(graph.layers, pairs, strict=True)}
    network = quantize_fixed(model, graph, layers, choice)
    calibrate(network, [images(16)])
    return StoredNet(network.eval(), graph, assignment_of(graph, layers, choice), images=images(6))


def images(count: int) -> Tensor:
    return torch.randn(count, *SHAPE, generator=seeded(2))


_TRACE = onnx_tracing.trace


@functools.cache
def _traced(opset: int) -> Any:
    net = tiny(((8, 8),))
    names = [spec.name for spec in net.graph.layers]
    return _TRACE(deployed_copy(net.network), names, SHAPE, opset, batch=None)


@pytest.fixture
def traced_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A trace holds no widths, so one serves all exports of the tiny ResNet."""
    monkeypatch.setattr(graph_export, "trace", lambda *args, batch: copy.deepcopy(_traced(args[3])))


def exported(
    path: Path, net: StoredNet, target: Target | str, residual_bits: int | None = None
) -> tuple[ExportedFile, Any]:
    target = find_target(target) if isinstance(target, str) else target
    file = export_graph(path, OnnxFormat(target, residual_bits), net)
    return file, onnx.load(path)


def assert_close(found: np.ndarray, expected: Tensor, tolerance: float) -> None:
    torch.testing.assert_close(torch.from_numpy(found), expected, rtol=0, atol=tolerance * float(expected.abs().max()))


def is_exact(runtime: str) -> bool:
    """Whether what a runtime makes of integers is the net's: OpenVINO's kernels for AVX2 alone are up to 10 % off."""
    flags = Path("/proc/cpuinfo").read_text() if sys.platform == "linux" else ""
    return runtime == "openvino" and not ("avx2" in flags and "avx512" not in flags)


def in_runtime(runtime: str | None, model: Any, x: Tensor) -> np.ndarray:
    """With every optimization."""
    return (
        run_in_openvino(model, x.numpy())
        if runtime == "openvino"
        else run_graph(model, {"input": x.numpy()}, [], optimized=True)["output"]
    )


def assert_tensorrt_reads(model: Any) -> None:
    """What NVIDIA's documentation asks of explicit quantization ("Working with Quantized Types")."""
    known = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    quantized = {node.output[0]: node for node in model.graph.node if node.op_type == "QuantizeLinear"}
    readers = {name: node for node in model.graph.node for name in node.input}
    restored = [node for node in model.graph.node if node.op_type == "DequantizeLinear"]
    assert restored
    for node in (*quantized.values(), *restored):
        scale, *zero_points = (known[name] for name in node.input[1:])
        assert zero_points or node.op_type == "DequantizeLinear", "without one, QuantizeLinear gives UINT8"
        assert all((zero.dtype, zero.any()) == (np.int8, False) for zero in zero_points)
        assert scale.dtype == np.float32
        assert (scale > 0).all()
        weight = known.get(node.input[0])
        assert scale.size == 1 or weight is not None, "one scale for each filter is for weights alone"
        if weight is not None:
            assert weight.dtype == np.int8
            axis = next((found.i for found in node.attribute if found.name == "axis"), 1)
            assert scale.size in (1, weight.shape[axis])
            reader = readers[node.output[0]]
            assert reader.op_type in ("Conv", "Gemm", "MatMul", "Transpose"), "read where it is dequantized"
            assert reader.op_type != "Conv" or axis == 0
        elif node.op_type == "DequantizeLinear":
            pair = quantized[node.input[0]]
            assert known[pair.input[1]] == scale, "one scale for a pair"


@pytest.mark.whole
@pytest.mark.usefixtures("traced_once")
@pytest.mark.parametrize(
    ("name", "families"),
    [
        pytest.param(name, families, marks=[] if (name, families[0]) in NOT_SLOW else pytest.mark.slow)
        for name in ("generic", "compact", *RUN, "tensorrt")
        for families in (("lsq", "pact"), ("nested", "lsq"))
    ],
)
def test_a_mixed_net_for_every_target(tmp_path: Path, name: str, families: tuple[str, str]) -> None:
    net = tiny(MIXED, *families)
    x = images(4)
    with torch.no_grad():
        expected = net.network(x)
    target = find_target(name)
    file, model = exported(tmp_path / "net.onnx", net, target)
    assert_close(run_graph(model, {"input": x.numpy()}, [])["output"], expected, 1e-4)
    integers = integer_nodes(target.runtime, model) if name in RUN else set()
    promised = {layer for layer, told in file.layers.items() if told.runs == "integers"}
    integers &= set(file.layers)
    assert promised == integers
    assert not [told for told in file.layers.values() if told.why.endswith("does not")], "a supported layer stays fp32"
    if name == "openvino":
        between = {layer for layer, told in file.layers.items() if "stand between integers" in told.why}
        assert integers | between == set(file.layers)
        assert bool(between) == (families[0] == "nested")
    if name in RUN:  # of OpenVINO, whose biases are fp32, to float32's rounding
        assert_close(in_runtime(target.runtime, model, x), expected, 1e-4 if name == "openvino" else 0.02)
    kinds = {onnx.TensorProto.DataType.Name(tensor.data_type) for tensor in model.graph.initializer}
    assert ("INT2" in kinds) == (name == "compact"), "2-bit types only where asked"
    assert kinds.isdisjoint({"INT4"} if name in (*RUN, "tensorrt") else ())
    assert kinds.isdisjoint({"UINT8", "UINT16"} if name == "tensorrt" else ())
    if name == "tensorrt":
        assert_tensorrt_reads(model)
    norms = [node for node in model.graph.node if node.op_type == "BatchNormalization"]
    assert bool(norms) == (name == "tensorrt"), "scales are positive there"


@pytest.mark.whole
@pytest.mark.usefixtures("traced_once")
@pytest.mark.parametrize("bits", [(4, 4), *(pytest.param(bits, marks=pytest.mark.slow) for bits in ((8, 8), (2, 2)))])
def test_sums_in_8_bits_let_onnxruntime_run_every_layer_in_integers(tmp_path: Path, bits: tuple[int, int]) -> None:
    net = tiny((bits,))
    plain, _ = exported(tmp_path / "plain.onnx", net, "onnxruntime")
    assert {told.runs for told in plain.layers.values()} == {"integers", "fp32"}
    assert "--residual-bits 8" in plain.layers["layer1.0.conv2"].why
    file, model = exported(tmp_path / "net.onnx", net, "onnxruntime", residual_bits=8)
    coarse = {name for name, told in file.layers.items() if told.runs == "fp32"}
    assert coarse == ({"conv1"} if bits == (2, 2) else set())
    assert all("its bias is no multiple of its step" in file.layers[name].why for name in coarse)
    [note] = file.notes
    assert note.startswith("7 sums and outputs in 8 bits move results by up to ")
    assert note.endswith("of 6 images")
    assert all(told.bias_error <= 1 / 8 for told in file.layers.values())
    x = images(4)
    with torch.no_grad():
        assert_close(in_runtime("onnxruntime", model, x), net.network(x), {8: 0.05, 4: 0.2, 2: 0.5}[bits[0]])


@pytest.mark.usefixtures("traced_once")
@pytest.mark.whole
@pytest.mark.parametrize("change", [{"ranges": "floats"}, {"linear": "Gemm"}])
def test_a_capability_file_that_promises_too_much_is_found_out(tmp_path: Path, change: Mapping[str, Any]) -> None:
    """What the passes do is needed: without any one of them a layer that is promised stays in fp32."""
    target = find_target("onnxruntime").model_copy(update=dict(change))
    target = target.model_copy(update={"integer_operators": ("Conv", "MatMul", "Gemm")})
    file, _ = exported(tmp_path / "net.onnx", tiny(((4, 4),)), target)
    assert any(told.why == "onnxruntime does not" for told in file.layers.values())


@pytest.mark.whole
@pytest.mark.usefixtures("traced_once")
def test_biases_behind_their_layers_keep_convolutions_in_fp32(tmp_path: Path) -> None:
    target = find_target("onnxruntime").model_copy(update={"biases": "floats"})
    file, _ = exported(tmp_path / "net.onnx", tiny(((8, 8),)), target, residual_bits=8)
    assert {name for name, told in file.layers.items() if told.runs == "integers"} == {"linear"}


@pytest.mark.usefixtures("traced_once")
@pytest.mark.parametrize(
    "bits", [pytest.param(bits, marks=pytest.mark.whole if bits > 6 else pytest.mark.slow) for bits in range(1, 9)]
)
def test_nested_weights_are_odd_integers_up_to_7_bits(tmp_path: Path, bits: int) -> None:
    net = tiny(((bits, 8),), "nested", "pact")
    file, model = exported(tmp_path / "net.onnx", net, "openvino")
    even = [tensor for tensor in model.graph.initializer if tensor.name.endswith("half_step")]
    assert bool(even) == (bits == 8)
    assert {told.runs for told in file.layers.values()} == ({"integers"} if bits < 8 else {"fp32"})
    if bits == 8:
        assert "8-bit levels stand between integers of 8 bits" in file.layers["conv1"].why


@pytest.mark.whole
@pytest.mark.parametrize("runtime", RUN)
@pytest.mark.parametrize(
    "name", ["line", *(pytest.param(name, marks=pytest.mark.slow) for name in ("shapes", "attention"))]
)
def test_other_kinds_of_layers(tmp_path: Path, runtime: str, name: str) -> None:
    """One- and three-dimensional, grouped, depthwise, transposed, other paddings, an opaque float layer beside them."""
    network, graph, assignment = fixed_net(name, (4, 6), QuantizerChoice("lsq", "pact", per_channel=True))
    net = StoredNet(network, graph, assignment, images=inputs_for(graph, 5))
    file, model = exported(tmp_path / "net.onnx", net, runtime, residual_bits=8 if runtime == "onnxruntime" else None)
    transposed = {spec.name for spec in graph.layers if "Transpose" in spec.kind}
    in_fp32 = {layer for layer, told in file.layers.items() if told.runs == "fp32"}
    assert in_fp32 <= transposed, file.layers
    x = inputs_for(graph, 3)
    with torch.no_grad():
        assert_close(in_runtime(runtime, model, x), network(x), 0.02 if is_exact(runtime) else 0.2)
        if runtime == "openvino":  # whatever its kernels do on this processor, the file is the net
            assert_close(in_runtime("onnxruntime", model, x), network(x), 0.02)


class Downsampled(nn.Module):
    """A block whose shortcut is a convolution of one pixel with a stride: two layers read one tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.first = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 16, 3, stride=2, padding=1)
        self.second, self.shortcut = nn.Conv2d(16, 16, 3, padding=1), nn.Conv2d(8, 16, 1, stride=2)
        self.head = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        y = self.second(torch.relu(self.first(x))) + self.shortcut(x)
        return self.head(torch.relu(y).mean((2, 3)))


@pytest.mark.whole
@pytest.mark.parametrize("runtime", RUN)
@pytest.mark.parametrize("bits", [(8, 4), *(pytest.param(bits, marks=pytest.mark.slow) for bits in ((8, 8), (3, 8)))])
def test_two_layers_that_read_one_tensor(tmp_path: Path, runtime: str, bits: tuple[int, int]) -> None:
    """OpenVINO moves strides in front of DequantizeLinear, and forgets a Clip where two quantizers read one tensor."""
    torch.manual_seed(1)
    model, shape = Downsampled().eval(), (3, 12, 12)
    graph, choice = known_graph(model, shape), QuantizerChoice("lsq", "pact", per_channel=True)
    entries = {"first": bits[0], "shortcut": bits[1]}
    layers = {s.name: LayerBits(8, entries.get(s.name, 8), s.out_channels) for s in graph.layers}
    x = torch.randn(6, *shape, generator=seeded(3))
    network = quantize_fixed(model, graph, layers, choice)
    calibrate(network, [x])
    net = StoredNet(network.eval(), graph, assignment_of(graph, layers, choice), images=x)
    file, graph_file = exported(tmp_path / "a.onnx", net, runtime, 8 if runtime == "onnxruntime" else None)
    assert {told.runs for told in file.layers.values()} == {"integers"}
    with torch.no_grad():
        assert_close(in_runtime(runtime, graph_file, x), network(x), 1e-4 if is_exact(runtime) else 0.1)
        if runtime == "openvino":  # whatever its kernels do on this processor, the file is the net
            plain = run_graph(graph_file, {"input": x.numpy()}, [], optimized=False)["output"]
            assert_close(plain, network(x), 1e-4)


@pytest.mark.whole
def test_what_openvino_does_not_read_is_told_in_a_sentence(tmp_path: Path) -> None:
    net = StoredNet(*fixed_net("cube", (4, 4)))
    with pytest.raises(InputError, match="OpenVINO cannot run this network: ") as caught:
        exported(tmp_path / "a.onnx", net, "openvino")
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("traced_once")
@pytest.mark.parametrize(
    "target",
    [
        pytest.param(name, marks=pytest.mark.whole if name == "onnxruntime" else pytest.mark.slow)
        for name in sorted(target_names())
    ],
)
def test_a_gain_is_in_the_weight_and_pairs_have_one_scale(tmp_path: Path, target: str) -> None:
    net = tiny(((4, 4),), "lsq", "lsq")
    entries = {name: layer.input for name, layer in fixed_layers(net.network).items()}
    gains = {name: float(x.level_step[0] / x.threshold_step[0]) for name, x in entries.items() if x is not None}
    assert any(abs(gain - 1) > 1e-3 for gain in gains.values())
    _, model = exported(tmp_path / "net.onnx", net, target)
    scales = {node.input[0]: node.input[1] for node in model.graph.node if node.op_type == "DequantizeLinear"}
    pairs = [node for node in model.graph.node if node.op_type == "QuantizeLinear"]
    assert len(pairs) == len(gains)
    limited = {node.input[0]: node.output[0] for node in model.graph.node if node.op_type == "Clip"}
    for node in pairs:
        assert scales[limited.get(node.output[0], node.output[0])] == node.input[1]


def test_unknown_targets_and_capability_files(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"unknown target 'openvin'; choose one of .*; did you mean 'openvino'"):
        find_target("openvin")
    path = tmp_path / "mine.toml"
    with pytest.raises(InputError, match=r"mine\.toml"):
        find_target(str(path))
    text = (Path(graph_export.__file__).parent / "targets" / "openvino.toml").read_text()
    path.write_text(text.replace('name = "openvino"', 'name = "mine"'))
    assert find_target(str(path)) == find_target("openvino").model_copy(update={"name": "mine"})
    for old, new, words in (
        ("half_steps", "half_step", "unknown key 'half_step'; did you mean 'half_steps'"),
        ("INT8", "INT7", "weight_types"),
        ("opset = 21", "opset = 18", "opset"),
        ("opset = 21", "", "opset"),
        ("name", "na me", "mine.toml"),
    ):
        path.write_text(text.replace(old, new))
        with pytest.raises(InputError, match=words):
            find_target(str(path))


@pytest.mark.whole
def test_the_command_tells_layer_by_layer(smaller_run: Run, tmp_path: Path) -> None:
    name, out = next(iter(smaller_run.assignments())), tmp_path / "net.onnx"
    words = ["export", str(smaller_run.folder), name, "--format", "onnx", "--out", str(out), "--target", "onnxruntime"]
    result = CliRunner().invoke(app, [*words, "--residual-bits", "8", "--json"])
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)["layers"]
    assert set(told) <= set(smaller_run.assignment(name).layers)
    assert {layer["runs"] for layer in told.values()} <= {"integers", "fp32"}
    for wrong, sentence in (
        (["--target", "openvin"], "unknown target 'openvin'"),
        (["--residual-bits", "4"], "--residual-bits is 8 or left out, and not 4"),
        (["--format", "qonnx"], "the format 'qonnx' is the same for every runtime"),
        (["--format", "json", "--out", f"{out}.json"], "the format 'json' is the same for every runtime"),
    ):
        out.unlink(missing_ok=True)
        result = CliRunner().invoke(app, [*words, *wrong])
        assert result.exit_code == 2
        assert sentence in result.stderr
        assert not out.exists()


def test_every_target_has_a_source() -> None:
    assert {"generic", "compact", "onnxruntime", "openvino", "tensorrt"} == set(target_names())
    assert all(len(find_target(name).source) > 40 for name in target_names())


@pytest.mark.whole
def test_a_runtime_that_is_not_there_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    net = StoredNet(*fixed_net("residual", (8, 8), QuantizerChoice("lsq", "pact")))
    assert export_graph(tmp_path / "a", OnnxFormat(find_target("openvino")), net).notes == []
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    [note] = export_graph(tmp_path / "a", OnnxFormat(find_target("openvino")), net).notes
    assert note == "what runs in integers was not looked at: openvino is not there; pip install 'dnas[openvino]'"
    assert not export_graph(tmp_path / "a", OnnxFormat(find_target("tensorrt")), net).notes
