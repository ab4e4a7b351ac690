"""An ONNX file computes what the net does: quantizer by quantizer, and layer by layer in whole nets."""

from __future__ import annotations

import copy
import dataclasses
import importlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn
from typer.testing import CliRunner

from dnas.commands.cli import app
from dnas.export import graph_export
from dnas.export.fixed_layers import fixed_layers
from dnas.export.onnx import read_assignment
from dnas.export.onnx_check import check_same, same_steps, tensor_names
from dnas.export.onnx_nodes import OnnxBuilder
from dnas.export.onnx_tracing import replace_marks
from dnas.export.runtimes import run_graph
from dnas.export.targets import find_target
from dnas.quantization.calibration import calibrate
from dnas.quantization.conversion import QuantizerChoice, quantize_fixed
from dnas.quantization.families import find_quantizer
from dnas.quantization.layers import QuantizedLayer, TensorQuantizer
from dnas.squantizer.quantizer import SparseQuantizer
from results.run.folder import Run
from search_spaces.assignments import LayerBits
from search_spaces.errors import InputError, JobError
from search_spaces.layers import LayerGraph
from search_spaces.network.examples import Call, drawn
from search_spaces.network.graph import read_graph
from search_spaces.sparse_weights.scheme import SparseWeights
from tests.exported_nets import (
    INPUTS,
    WEIGHTS,
    described,
    export_onnx,
    fixed_net,
    quantized_layer,
    samples,
    small_net,
    traced_once,
)
from tests.packed_nets import CASES, assignment_of, inputs_for


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """ONNX Runtime warns of constants that its own optimizer made superfluous."""
    onnxruntime.set_default_logger_severity(3)
    yield
    onnxruntime.set_default_logger_severity(2)


@pytest.fixture
def shared_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    """For exports of the small net alone."""
    monkeypatch.setattr(graph_export, "trace", traced_once)


def run_nodes(nodes: list[Any], initializers: list[Any], x: np.ndarray | None = None, opset: int = 25) -> np.ndarray:
    """What these nodes make of ``x``; without x, of constants alone."""
    inputs = [] if x is None else [helper.make_tensor_value_info("input", TensorProto.FLOAT, list(x.shape))]
    result = helper.make_tensor_value_info("out", TensorProto.FLOAT, None)
    graph = helper.make_graph(nodes, "piece", inputs, [result], initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {} if x is None else {"input": x})[0]


def stored_weight(layer: QuantizedLayer) -> tuple[np.ndarray, Any]:
    """The weight that a runtime reads, and the stored integers."""
    builder = OnnxBuilder(find_target("compact"))
    nodes = builder.weight(described(layer), "out")
    [codes] = [tensor for tensor in builder.initializers.values() if tensor.name.endswith("codes")]
    return run_nodes(nodes, list(builder.initializers.values())), codes


@pytest.mark.parametrize(("family", "bits"), WEIGHTS)
def test_weights_of_every_family_and_width(family: str, bits: int) -> None:
    smallest = {1: "INT2", 2: "INT2", 3: "INT4", 4: "INT4", 16: "INT16"}.get(bits, "INT8")
    for per_channel, transposed in ((False, False), (True, False), (True, True)):
        layer = quantized_layer((family, bits), per_channel=per_channel, transposed=transposed)
        found, codes = stored_weight(layer)
        expected = layer.quantized_weight().detach().numpy()
        np.testing.assert_allclose(found, expected, rtol=0, atol=2e-6 * np.abs(expected).max())
        assert TensorProto.DataType.Name(codes.data_type) == smallest
        assert list(codes.dims) == list(expected.shape)
        assert len(codes.raw_data) == -(-expected.size * int(smallest.removeprefix("INT")) // 8)


def quantize_by_hand(x: np.ndarray, quantizer: TensorQuantizer) -> np.ndarray:
    """The formula of the quantizers, in float64."""
    grid = quantizer.quantizer.grid(quantizer.bits[0], quantizer.signed)
    clip, gain = quantizer.clip.detach().double().numpy(), quantizer.gain.double().numpy()[0]
    u = np.clip(x.astype(np.float64) / clip.reshape(()), -1.0 if quantizer.signed else 0.0, 1.0)
    codes = np.minimum(np.floor(u * grid.scale + grid.offset), grid.top)
    return clip.reshape(()) * gain * (codes * grid.step + grid.start)


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize(
    ("family", "bits", "float_weight"),
    [(*pair, False) for pair in INPUTS] + [(*pair, True) for pair in INPUTS if pair[1] in (1, 3, 8)],
)
def test_inputs_of_every_family_width_and_sign(family: str, bits: int, signed: bool, float_weight: bool) -> None:
    layer = quantized_layer(inputs=(family, bits), signed=signed)
    fixed = described(layer)
    fixed = dataclasses.replace(fixed, weight=None) if float_weight else fixed
    builder = OnnxBuilder(find_target("compact"))
    nodes = builder.input(fixed, "input", "out")
    x = samples(signed).numpy()
    found = run_nodes(nodes, list(builder.initializers.values()), x, opset=21)
    assert fixed.input is not None
    steps = np.abs(found - quantize_by_hand(x, layer.quantize_input)) / fixed.input.level_step
    # Float32 cannot tell the side of a threshold to better than the width of a code: 16 bits are hit here and there.
    assert (steps < 0.02).mean() >= (0.98 if bits == 16 else 1.0)
    assert steps.max() < 1.02
    assert (steps[-4:] < 0.02).all(), "zero, and what is far outside"
    integers = {tensor.data_type for tensor in builder.initializers.values()} - {TensorProto.FLOAT}
    assert len(integers) == int(fixed.input.rounds and not float_weight)


def test_zero_is_a_tie_of_grids_without_zero_and_goes_up() -> None:
    for family in ("nested", "dorefa", "binary"):
        layer = quantized_layer(inputs=(family, 1 if family == "binary" else 4))
        builder = OnnxBuilder(find_target("compact"))
        nodes = builder.input(described(layer), "input", "out")
        zeros = np.array([0.0, -0.0], dtype=np.float32)
        found = run_nodes(nodes, list(builder.initializers.values()), zeros, opset=21)
        assert (found > 0).all()
        assert np.allclose(found, layer.quantize_input(torch.from_numpy(zeros)).detach().numpy(), rtol=1e-6)


@pytest.mark.parametrize("order", ["sparsify-first", "quantize-first"])
@pytest.mark.parametrize(("bits", "sigma"), [(2, 0.0), (4, 1.0), (8, -10.0), (3, 2.5)])
def test_sparse_weights(order: str, bits: int, sigma: float) -> None:
    layer = quantized_layer()
    layer.quantize_weight = SparseQuantizer(bits, SparseWeights(sigma, order))  # type: ignore[arg-type]
    found, _ = stored_weight(layer)
    expected = layer.quantized_weight().detach().numpy()
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-6 * np.abs(expected).max())
    assert ((found == 0) == (expected == 0)).all()


def logits(path: Path, x: Tensor) -> Tensor:
    """What a session as anybody would open it computes."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {"input": x.numpy()})[0])


def assert_same_logits(path: Path, network: nn.Module, graph: LayerGraph) -> None:
    for count in (1, 5):
        x = inputs_for(graph, count)
        with torch.no_grad():
            expected = network(x)
        torch.testing.assert_close(logits(path, x), expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


@pytest.mark.usefixtures("shared_trace")
def test_a_net_of_several_widths(tmp_path: Path) -> None:
    network, graph, assignment = small_net()
    file = export_onnx(tmp_path / "net.onnx", network, graph, assignment)
    assert (file.path, file.format) == (tmp_path / "net.onnx", "onnx")
    assert file.file_bytes == file.path.stat().st_size
    assert file.ideal_bytes == assignment.cost["size_bytes"]
    assert_same_logits(file.path, network, graph)
    assert read_assignment(file.path) == assignment
    model = onnx.load(file.path)
    kinds = {tensor.name: TensorProto.DataType.Name(tensor.data_type) for tensor in model.graph.initializer}
    stored = {name.removesuffix(".weight.codes"): kind for name, kind in kinds.items() if name.endswith("codes")}
    assert stored == {"stem": "INT8", "first": "INT2", "second": "INT4", "head": "INT4"}
    assert not any(name.endswith(".weight") and kinds[name] == "FLOAT" for name in kinds if "norm" not in name)
    assert str(Path(__file__).parents[3]).encode() not in file.path.read_bytes()


@pytest.mark.whole
def test_grouped_depthwise_transposed_and_linear_layers(tmp_path: Path) -> None:
    pairs = [(5, 6), (1, 1), (2, 7), (32, 4), (7, 32), (6, 16)]

    def bits(graph: LayerGraph) -> dict[str, LayerBits]:
        chosen = zip(graph.layers, pairs, strict=True)
        return {spec.name: LayerBits(*pair, spec.out_channels) for spec, pair in chosen}

    network, graph, assignment = fixed_net("shapes", bits, QuantizerChoice("nested", "lsq", per_channel=True))
    file = export_onnx(tmp_path / "net.onnx", network, graph, assignment, inputs_for(graph, 2, 9))
    assert_same_logits(file.path, network, graph)


@pytest.mark.whole
@pytest.mark.parametrize(("name", "bits"), [("shared", (2, 2)), ("line", (32, 4))], ids=["biases", "fp32 weights"])
def test_runtimes_do_not_round_more(tmp_path: Path, name: str, bits: tuple[int, int]) -> None:
    """Between DequantizeLinear and QuantizeLinear ONNX Runtime rounds biases and fp32 weights by default."""
    network, graph, assignment = fixed_net(name, bits, QuantizerChoice("lsq", "pact"))
    assert_same_logits(export_onnx(tmp_path / "a", network, graph, assignment).path, network, graph)


@pytest.mark.whole
def test_a_skipped_branch_sparse_weights_and_fp32(tmp_path: Path) -> None:
    def bits(graph: LayerGraph) -> dict[str, LayerBits]:
        found = {"first": LayerBits(0, 0), "second": LayerBits(0, 0), "head": LayerBits(32, 32, 3)}
        return {"stem": LayerBits(3, 4, 5, scheme=SparseWeights(0.5, "sparsify-first")), **found}

    network, graph, assignment = fixed_net("residual", bits, QuantizerChoice("lsq", "dorefa"))
    file = export_onnx(tmp_path / "net.onnx", network, graph, assignment)
    assert_same_logits(file.path, network, graph)
    names = {tensor.name for tensor in onnx.load(file.path).graph.initializer}
    assert not any(name.startswith(("first.", "second.")) for name in names)
    assert "head.weight" in names


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize(
    ("weights", "inputs", "bits"), [("nested", "nested", (3, 4)), ("lsq", "pact", (2, 2)), ("dorefa", "dorefa", (1, 1))]
)
def test_every_kind_of_net(tmp_path: Path, name: str, weights: str, inputs: str, bits: tuple[int, int]) -> None:
    network, graph, assignment = fixed_net(name, bits, QuantizerChoice(weights, inputs, per_channel=True))
    assert_same_logits(export_onnx(tmp_path / "a", network, graph, assignment).path, network, graph)


@pytest.mark.parametrize("layer", ["first", "head"])
@pytest.mark.usefixtures("shared_trace")
def test_a_wrong_weight_names_its_layer_and_leaves_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layer: str
) -> None:
    network, graph, assignment = small_net()
    found = fixed_layers(network)
    weight = found[layer].weight
    codes = weight.codes.copy()  # type: ignore[union-attr]
    codes.flat[3] += 1 if codes.flat[3] < 0 else -1
    found[layer] = dataclasses.replace(found[layer], weight=dataclasses.replace(weight, codes=codes))  # type: ignore[type-var]
    monkeypatch.setattr(graph_export, "fixed_layers", lambda network: found)
    with pytest.raises(JobError, match=rf"the weight of layer '{layer}' differs \(1 of \d+ values, by up to 1 steps\)"):
        export_onnx(tmp_path / "net.onnx", network, graph, assignment)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("shared_trace")
def test_the_same_net_gives_the_same_bytes_and_a_broken_disk_nothing(tmp_path: Path) -> None:
    network, graph, assignment = small_net()
    first, second = (export_onnx(tmp_path / name, network, graph, assignment).path for name in "ab")
    assert first.read_bytes() == second.read_bytes()
    with pytest.raises(JobError, match="cannot write"):
        export_onnx(tmp_path / "nowhere" / "a", network, graph, assignment)


def checked() -> tuple[nn.Module, dict[str, Any], list[Any], dict[str, np.ndarray], Call]:
    """The small net, its layers, its taps, and the graph's tensors."""
    network, graph, _ = small_net()
    layers = fixed_layers(network)
    model = traced_once(network, (), (), 25, batch=None)
    taps = replace_marks(model, layers, OnnxBuilder(find_target("compact")))
    model.ir_version = 10
    call = drawn(graph.example, 3, network)
    feeds = {"input": call.tensors[0].numpy()}
    return network, layers, taps, run_graph(model, feeds, tensor_names(taps)), call


def compare(found: dict[str, np.ndarray], parts: tuple[Any, ...]) -> None:
    network, layers, taps, _, x = parts
    check_same(network, layers, taps, found, x, {"output": found["output"]})


def test_the_check_finds_every_kind_of_difference() -> None:
    parts = checked()
    taps, found = {tap.layer: tap for tap in parts[2]}, parts[3]
    compare(found, parts)
    step = float(parts[1]["second"].input.level_step[0])
    changes = {
        taps["second"].weight: (0.1, "the weight of layer 'second' differs"),
        taps["second"].input: (0.1, "what layer 'second' gets differs"),
        taps["second"].output: (0.1, "the output of layer 'second' differs"),
        taps["second"].used: (step, "the quantized input of layer 'second' differs"),
        "output": (0.1, "the exported net's output differs"),
    }
    for name, (change, sentence) in changes.items():
        other = {**found, name: found[name].copy()}
        other[name].flat[:7] += change
        with pytest.raises(JobError, match=sentence):
            compare(other, parts)
    bad = {**found, taps["head"].output: np.full_like(found[taps["head"].output], np.nan)}
    with pytest.raises(JobError, match="the output of layer 'head' differs"):
        compare(bad, parts)


def test_one_step_is_forgiven_at_a_threshold_only() -> None:
    parts = checked()
    tap, found = next(tap for tap in parts[2] if tap.layer == "second"), copy.deepcopy(parts[3])
    levels = parts[1]["second"].input
    width = float(levels.threshold_step[0])
    found[tap.input].flat[0] = width * 1.5  # between levels 1 and 2
    layer = parts[0].get_submodule("second")
    given = torch.from_numpy(found[tap.input])
    exact = layer.quantize_input(given).detach().numpy()  # type: ignore[operator]

    def quantized(at: int, steps: float) -> None:
        used = exact.copy()
        used.flat[at] += steps * levels.level_step[0]
        same_steps(used, exact, levels, "it", given.double().numpy())

    quantized(0, -1.0 if exact.flat[0] > 1.2 * levels.level_step[0] else 1.0)
    with pytest.raises(JobError, match="it differs"):
        quantized(0, 2.0)
    with pytest.raises(JobError, match="it differs"):
        quantized(1, 1.0)


@pytest.mark.parametrize("package", ["onnx", "onnxruntime", "onnxscript"])
def test_a_missing_package_tells_the_install_command(
    package: str, smaller_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = importlib.import_module

    def without(name: str, *args: Any) -> Any:
        if name.split(".")[0] == package:
            raise ImportError(name)
        return real(name, *args)

    monkeypatch.setattr(importlib, "import_module", without)
    name = next(iter(smaller_run.assignments()))
    out = tmp_path / "net.onnx"
    words = ["export", str(smaller_run.folder), name, "--format", "onnx", "--out", str(out)]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 2
    assert result.stderr.strip() == f"error: the format 'onnx' needs the package {package}: pip install 'dnas[onnx]'"
    assert not out.exists()


@pytest.mark.whole
def test_export_of_a_run(smaller_run: Run, tmp_path: Path) -> None:
    out = tmp_path / "net.onnx"
    name = next(iter(smaller_run.assignments()))
    words = ["export", str(smaller_run.folder), name, "--format", "onnx", "--out", str(out), "--json"]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert told["file_bytes"] == out.stat().st_size
    assert told["size_bytes"] == smaller_run.assignment(name).cost["size_bytes"]
    assert read_assignment(out) == smaller_run.assignment(name)


def test_what_onnx_cannot_hold_is_refused() -> None:
    several = quantized_layer()
    several.quantize_weight = TensorQuantizer(find_quantizer("weights", "lsq"), (2, 4), signed=True)
    with pytest.raises(InputError, match="the weight of layer '0' has 2 candidate widths; only a fixed net"):
        described(several)
    changing = quantized_layer()
    changing.quantize_input = TensorQuantizer(find_quantizer("activations", "tanh"), (4,), signed=True)
    with pytest.raises(InputError, match="the input of layer '0' is quantized by 'tanh', whose range is that of each"):
        described(changing)


@pytest.mark.parametrize("part", ["weights", "activations"])
def test_levels_that_are_no_integers_are_refused(tmp_path: Path, part: str) -> None:
    network, graph, assignment = fixed_net("residual", (4, 4), QuantizerChoice(**{part: "logarithmic"}))
    what = "weight" if part == "weights" else "input"
    with pytest.raises(InputError, match=f"the {what} of layer 'stem' is quantized by 'logarithmic', whose levels are"):
        export_onnx(tmp_path / "a", network, graph, assignment)
    assert list(tmp_path.iterdir()) == []


def test_a_network_that_pytorch_cannot_trace_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("step 1 of 3 failed\nand much more") from ValueError("data-dependent branch\nat a line")

    monkeypatch.setattr(torch.onnx, "export", fail)
    network, graph, assignment = small_net()
    with pytest.raises(InputError, match=r"PyTorch cannot write this network as ONNX: data-dependent branch$"):
        export_onnx(tmp_path / "a", network, graph, assignment)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_branch_on_data_is_refused(tmp_path: Path) -> None:
    class Branching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = small_net()[0]

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x) if float(x.sum()) > 0 else self.inner(-x)

    _, graph, assignment = small_net()
    with pytest.raises(InputError, match="PyTorch cannot write this network as ONNX: "):
        export_onnx(tmp_path / "a", Branching(), dataclasses.replace(graph, layers=()), assignment)


def test_equal_constants_are_stored_once() -> None:
    builder = OnnxBuilder(find_target("compact"))
    assert builder.constant("a", 0.5) == builder.constant("b", 0.5) == "a"
    assert builder.constant("c", [0.5]) == "c"
    assert numpy_helper.to_array(builder.initializers["a"]) == np.float32(0.5)


class UpTwice(nn.Module):
    """One transposed layer that is called on one tensor for two sizes of output."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Conv2d(1, 3, 3, stride=2, padding=1)
        self.up = nn.ConvTranspose2d(3, 2, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.down(x).relu()
        return self.up(y, output_size=(5, 5)).mean((2, 3)) + self.up(y, output_size=(6, 6)).amax((2, 3))


@pytest.mark.whole
def test_calls_of_one_layer_on_one_tensor_stay_apart(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = UpTwice().eval()
    graph, x = read_graph(model, (1, 6, 6)), torch.randn(4, 1, 6, 6)
    layers = {name: LayerBits(4, 5) for name in graph.by_name}
    network = quantize_fixed(model, graph, layers)
    calibrate(network, [x])
    export_onnx(tmp_path / "net.onnx", network.eval(), graph, assignment_of(graph, layers, QuantizerChoice()))
    found = onnxruntime.InferenceSession(tmp_path / "net.onnx", providers=["CPUExecutionProvider"])
    np.testing.assert_allclose(found.run(None, {"input": x.numpy()})[0], network(x).detach().numpy(), atol=1e-5)
