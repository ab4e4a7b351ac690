"""A program of torch.export computes what the net does, with the operators that PT2E backends look for."""

from __future__ import annotations

import collections
import json
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from dnas import calibrate, quantize_fixed, read_graph
from dnas.data.shapes import shapes
from dnas.export import pt2e
from dnas.export.detectors import before_boxes
from dnas.export.pt2e import export_pt2e
from dnas.export.pt2e_outputs import quantize_outputs
from dnas.export.stored import StoredNet
from dnas.quantization.conversion import QuantizerChoice
from dnas.switchable.net import SwitchableNet
from search_spaces.assignments import BitAssignment, LayerBits, ModelReference
from search_spaces.errors import InputError, JobError
from search_spaces.network.examples import call_of
from search_spaces.sparse_weights.scheme import SparseWeights
from tests.dnas.training.test_task_detection import of_family
from tests.exported_nets import INPUTS, WEIGHTS, fixed_net
from tests.packed_nets import assignment_of, inputs_for, model_and_graph

# PyTorch 2.9 warns of how it reads its own file.
pytestmark = [pytest.mark.whole, pytest.mark.filterwarnings("ignore:The given buffer is not writable")]
Q = torch.ops.quantized_decomposed


def program_of(tmp_path: Path, net: StoredNet) -> torch.export.ExportedProgram:
    file = export_pt2e(tmp_path / "net.pt2", net)
    assert file.file_bytes == file.path.stat().st_size
    with zipfile.ZipFile(file.path) as parts:
        assert not any(__file__.partition("tests")[0].encode() in parts.read(name) for name in parts.namelist())
    return torch.export.load(file.path)


def operators(program: torch.export.ExportedProgram) -> collections.Counter[Any]:
    return collections.Counter(node.target for node in program.graph.nodes if node.op == "call_function")


def assert_same(program: torch.export.ExportedProgram, net: StoredNet) -> None:
    for count in (1, 7):
        x = inputs_for(net.graph, count)
        with torch.no_grad():
            found, expected = program.module()(x), net.network(x)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-4 * float(expected.abs().max()))


@pytest.mark.parametrize(
    ("families", "bits"),
    [
        (("lsq", "pact"), (8, 8)),
        (("nested", "lsq"), (4, 6)),
        (("dorefa", "pact"), (2, 2)),
    ],
)
def test_the_net_and_its_operators(tmp_path: Path, families: tuple[str, str], bits: tuple[int, int]) -> None:
    net = StoredNet(*fixed_net("residual", bits, QuantizerChoice(*families, per_channel=True)))
    program = program_of(tmp_path, net)
    assert_same(program, net)
    found = operators(program)
    assert found[Q.quantize_per_tensor.default] == found[Q.dequantize_per_tensor.default] == len(net.graph.layers)
    assert found[Q.dequantize_per_channel.default] == len(net.graph.layers)
    assert bits == (8, 8) or not found[torch.ops.aten.batch_norm.default]
    scales = {node: node.args[1:3] for node in program.graph.nodes if node.target is Q.dequantize_per_tensor.default}
    assert all(node.args[0].args[1:3] == own for node, own in scales.items())
    integers = [tensor for tensor in program.state_dict.values() if tensor.dtype == torch.int8]
    assert sum(tensor.numel() for tensor in integers) == sum(spec.weight_elements for spec in net.graph.layers)
    floats = sum(tensor.numel() for tensor in program.state_dict.values() if tensor.is_floating_point())
    assert floats < 200, "the fp32 weights are gone"


@pytest.mark.parametrize(
    "name",
    [
        "shapes",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("line", "shared", "own forward", "attention")),
    ],
)
def test_other_kinds_of_nets(tmp_path: Path, name: str) -> None:
    net = StoredNet(*fixed_net(name, (5, 7), QuantizerChoice("lsq", "pact")))
    assert_same(program_of(tmp_path, net), net)


@pytest.mark.parametrize("part", ["weights", "inputs"])
def test_every_family_and_width(tmp_path: Path, part: str) -> None:
    for family, bits in [pair for pair in (WEIGHTS if part == "weights" else INPUTS) if pair[1] in (1, 3, 8, 16)]:
        choice = QuantizerChoice(family, "pact") if part == "weights" else QuantizerChoice("lsq", family)
        pair = (bits, 8) if part == "weights" else (4, bits)
        network, graph, _ = fixed_net("residual", pair, choice)
        x = inputs_for(graph, 4)
        twin = pt2e._twin(network, call_of(x))  # raises where a quantizer differs
        with torch.no_grad():
            assert (twin(x) - network(x)).abs().median() <= 1e-4 * network(x).abs().max()


@pytest.mark.parametrize("bits", [8, 7, 4, 2])
def test_codes_are_signed_bytes_that_end_where_the_type_or_a_limit_does(tmp_path: Path, bits: int) -> None:
    """XNNPACK takes unsigned bytes for signed ones, and does not look at the ends of a quantizer."""
    program = program_of(tmp_path, StoredNet(*fixed_net("residual", (8, bits))))
    found = [node for node in program.graph.nodes if node.target is Q.quantize_per_tensor.default]
    unsigned = 0
    for node in found:
        source, step, zero, low, high, dtype = node.args
        assert dtype == torch.int8
        unsigned += low == zero
        if (low, high) != (-128, 127):
            assert source.target is torch.ops.aten.hardtanh.default
            assert source.args[1:] == pytest.approx(((low - zero) * step, (high - zero) * step))
    assert 0 < unsigned < len(found)


def test_what_layers_and_sums_give_is_quantized_if_asked(tmp_path: Path) -> None:
    net = StoredNet(*fixed_net("residual", (8, 4), QuantizerChoice("lsq", "pact", per_channel=True)))
    net = replace(net, images=inputs_for(net.graph, 16))
    file = export_pt2e(tmp_path / "net.pt2", net, residuals=True)
    program = torch.export.load(file.path)
    nodes = [node for node in program.graph.nodes if node.op == "call_function"]
    aten = torch.ops.aten
    limits = {aten.relu.default, aten.hardtanh.default}
    for node in nodes:
        if node.target in {aten.conv2d.default, aten.add.Tensor}:
            (reader,) = node.users
            (quantizer,) = reader.users if reader.target in limits else [reader]
            assert quantizer.target is Q.quantize_per_tensor.default
        if node.target is aten.add.Tensor:
            assert {side.target for side in node.args[:2]} == {Q.dequantize_per_tensor.default}
        if node.target is Q.dequantize_per_tensor.default:
            assert len(node.users) == 1
        if node.target is aten.hardtanh.default:
            assert node.args[0].op == "placeholder" or node.args[0].target is not aten.relu.default
    (result,) = next(node for node in program.graph.nodes if node.op == "output").args[0]
    assert result.target is aten.linear.default
    (note,) = file.notes
    assert note.startswith("3 sums and outputs in 8 bits move results by up to ")
    with torch.no_grad():
        found, wanted = program.module()(net.images), net.network(net.images)
    assert float((found - wanted).abs().median()) < 0.05 * float(wanted.abs().max())
    assert not torch.equal(found, wanted)


@pytest.mark.parametrize("inplace", [False, True])
def test_a_sum_that_is_written_over_is_quantized_once(inplace: bool) -> None:
    class Sum(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            a, b = x * 2, x.relu()
            total = a.add_(b) if inplace else a + b
            total = total.relu_() if inplace else total.relu()
            return (a if inplace else total) * total

    x = torch.randn(4, 3)
    module: Any = torch.export.export(Sum(), (x,)).module()
    wanted = module(x)
    assert quantize_outputs(module, call_of(x)) == 1
    torch.testing.assert_close(module(x), wanted, rtol=0, atol=0.03 * float(wanted.max()))


def test_a_profile_holds_its_own_values_only(tmp_path: Path) -> None:
    """A profile of a switchable net is a view of shared parameters; its program has one set of integers."""
    choice = QuantizerChoice("nested", "nested")
    model, graph = model_and_graph("residual")
    layers = {bits: {spec.name: LayerBits(bits, 8, spec.out_channels) for spec in graph.layers} for bits in (2, 6)}
    profiles = {f"w{bits}": assignment_of(graph, found, choice) for bits, found in layers.items()}
    switchable = SwitchableNet(model, graph, profiles, choice)
    switchable.calibrate(model, [inputs_for(graph, 8, 5)])
    net = StoredNet(switchable.eval().alone("w2"), graph, profiles["w2"], choice)
    program = program_of(tmp_path, net)
    assert_same(program, net)
    values = sum(tensor.numel() for tensor in program.state_dict.values())
    assert values < 1.5 * sum(spec.weight_elements for spec in graph.layers)


def test_what_it_cannot_hold_is_refused_and_leaves_no_file(tmp_path: Path) -> None:
    def bits(graph: Any) -> dict[str, LayerBits]:
        found = {spec.name: LayerBits(4, 4, spec.out_channels) for spec in graph.layers}
        return {**found, "first": LayerBits(4, 4, 5, scheme=SparseWeights(0.5, "sparsify-first"))}

    with pytest.raises(InputError, match="layer 'first' has sparse weights"):
        export_pt2e(tmp_path / "net.pt2", StoredNet(*fixed_net("residual", bits)))

    class Branching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = fixed_net("residual", (4, 4))[0]

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.inner(x) if float(x.sum()) > 0 else self.inner(-x)

    _, graph, assignment = fixed_net("residual", (4, 4))
    with pytest.raises(InputError, match="PyTorch cannot export this network as a program"):
        export_pt2e(tmp_path / "net.pt2", StoredNet(Branching(), graph, assignment))
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_scale_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    net = StoredNet(*fixed_net("residual", (4, 4)))
    real = pt2e.fixed_layers

    def wrong(network: nn.Module) -> Any:
        found = real(network)
        weight = found["second"].weight
        weight.levels.level_step[...] *= 1.05  # type: ignore[union-attr]
        return found

    monkeypatch.setattr(pt2e, "fixed_layers", wrong)
    with pytest.raises(JobError, match="the weight of layer 'second' differs"):
        export_pt2e(tmp_path / "net.pt2", net)
    assert list(tmp_path.iterdir()) == []


def test_the_file_tells_the_assignment(tmp_path: Path) -> None:
    net = StoredNet(*fixed_net("residual", (4, 4)))
    export_pt2e(tmp_path / "net.pt2", net)
    extra = {"dnas.assignment": ""}
    torch.export.load(tmp_path / "net.pt2", extra_files=extra)
    assert json.loads(extra["dnas.assignment"]) == json.loads(json.dumps(net.assignment.to_json()))


def test_a_detector_gives_a_box_and_scores_at_every_place(tmp_path: Path) -> None:
    detector, x = of_family("ssd").eval(), shapes(4, 64).images / 255
    graph = read_graph(detector, (3, 64, 64))
    bits = {layer.name: LayerBits(4, 8) for layer in graph.layers}
    network = quantize_fixed(detector, graph, bits, QuantizerChoice()).eval()
    calibrate(network, [x])
    net = StoredNet(network, graph, BitAssignment("four", ModelReference("mine:detector", (3, 64, 64)), bits))
    program = program_of(tmp_path, net)
    with torch.no_grad():
        for found, wanted in zip(program.module()(x), before_boxes(network, (3, 64, 64))(x), strict=True):
            assert found.shape == wanted.shape
            assert float((found - wanted).abs().median()) < 1e-3 * float(wanted.abs().max())
    with pytest.raises(InputError, match="between its two stages"):
        export_pt2e(tmp_path / "two", StoredNet(of_family("faster_rcnn").eval(), graph, net.assignment))
