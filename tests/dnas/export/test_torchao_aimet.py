"""The JSON formats: what they say of every layer, and what they refuse."""

from __future__ import annotations

import copy
import dataclasses
import importlib
import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from dnas.commands.cli import app
from dnas.export.aimet import export_aimet
from dnas.export.torchao import export_torchao, layer_config
from dnas.quantization.conversion import QuantizerChoice
from dnas.quantization.layers import QuantizedLayer
from results.run.folder import Run
from search_spaces.assignments import BitAssignment, LayerBits
from search_spaces.errors import InputError
from search_spaces.sparse_weights.scheme import SparseWeights
from tests.aimet_specification import check_encodings
from tests.exported_nets import fixed_net, small_net
from tests.packed_nets import assignment_of, inputs_for, model_and_graph, same_bits

KINDS = {None: None, "IntxWeightOnlyConfig": False, "Int8DynamicActivationIntxWeightConfig": True}
"""Whether a config quantizes inputs."""


def quantized_by_torchao(path: Path, network: nn.Module) -> nn.Module:
    """``network`` as torchao itself quantizes it by the file."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torchao's own, on its way in
        config = importlib.import_module("torchao.core.config").config_from_dict(json.loads(path.read_text()))
        importlib.import_module("torchao.quantization").quantize_(network, config, filter_fn=None)
    return network


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("inputs", [8, 32, 4])
def test_torchao_itself_quantizes_by_the_file(tmp_path: Path, bits: int, inputs: int) -> None:
    """Each layer that the file names has as many levels per row as its bits allow; the others stay as they are."""
    model, graph = model_and_graph("residual")
    layers = {
        **same_bits(graph, bits, inputs),
        "first": LayerBits(32, 32, 5),
        "head": LayerBits(max(bits, 2), inputs, 3),
    }
    assignment = assignment_of(graph, layers, QuantizerChoice())
    file = export_torchao(tmp_path / "a.json", model, graph, assignment)
    told = json.loads(file.path.read_text())
    configs = told["_data"]["fqn_to_config"]
    assert BitAssignment.from_json(told["dnas.assignment"]) == assignment
    assert told["dnas.left_out"] == dict(file.left_out)
    network = quantized_by_torchao(file.path, copy.deepcopy(model))
    for name, config in configs.items():
        layer, original = network.get_submodule(name), model.get_submodule(name)
        if config is None:
            assert torch.equal(layer.weight, original.weight)  # type: ignore[arg-type]
            assert (name in file.left_out) == (name != "first")
            continue
        quantized: Any = layer.weight
        rows = quantized.dequantize().flatten(1)
        assert 1 < max(len(row.unique()) for row in rows) <= 2 ** layers[name].weight_bits
        complete = inputs == 32 or (inputs == 8 and isinstance(original, nn.Linear))
        assert (name in file.left_out) == (not complete)
        assert KINDS[config["_type"]] == (inputs == 8 and name == "head")
    assert configs["stem"] is None  # one input channel per filter
    assert (configs["second"] is None) == (bits == 1)
    assert network(inputs_for(graph)).isfinite().all()


@pytest.mark.parametrize("inputs", [8, 32])
def test_torchao_runs_what_it_quantized_around_attention(tmp_path: Path, inputs: int) -> None:
    """The module reads the weights of its projections itself, which fails on torchao's."""
    network, graph, assignment = fixed_net("attention", (4, inputs))
    file = export_torchao(tmp_path / "a.json", network, graph, assignment)
    assert sorted(file.left_out) == ["2.self_attn.in_proj", "2.self_attn.out_proj"]
    assert all("nn.MultiheadAttention reads the weights" in why for why in file.left_out.values())
    model = model_and_graph("attention")[0]
    found = quantized_by_torchao(file.path, copy.deepcopy(model))(inputs_for(graph))
    expected = model(inputs_for(graph))
    assert 0 < (found - expected).abs().max() < 0.5 * expected.abs().max()


def test_what_torchao_cannot_express_is_listed() -> None:
    def said(name: str, layer: str, bits: LayerBits) -> tuple[bool, str]:
        config, why = layer_config(model_and_graph(name)[1][layer], bits)
        return config is not None, why

    assert said("residual", "head", LayerBits(4, 4)) == (
        True,
        "4-bit weights and 4-bit inputs: torchao has inputs of 8 bits alone",
    )
    assert said("residual", "second", LayerBits(4, 8)) == (
        True,
        "4-bit weights and 8-bit inputs: torchao has no inputs of few bits for Conv2d",
    )
    sparse = LayerBits(4, 32, scheme=SparseWeights(0.5, "sparsify-first"))
    for name, layer, bits, sentence in (
        ("residual", "head", LayerBits(16, 8), "torchao has weights of 2 to 8 bits"),
        ("residual", "head", LayerBits(32, 8), "32-bit weights and 8-bit inputs"),
        ("residual", "head", LayerBits(1, 8), "torchao has weights of 2 to 8 bits"),
        ("residual", "stem", LayerBits(4, 32), "one input channel per filter"),
        ("line", "0", LayerBits(4, 32), "torchao quantizes Linear and Conv2d, and this is a Conv1d"),
        ("residual", "second", sparse, "no sparse weights"),
    ):
        found = said(name, layer, bits)
        assert not found[0]
        assert sentence in found[1]
    assert said("residual", "head", LayerBits(0, 0)) == said("residual", "head", LayerBits(32, 32)) == (False, "")


def test_torchao_is_refused_where_it_can_say_nothing(tmp_path: Path) -> None:
    model, graph = model_and_graph("residual")
    assignment = assignment_of(graph, same_bits(graph, 1, 4), QuantizerChoice())
    with pytest.raises(InputError, match="torchao can quantize no layer of this net, such as 'stem'"):
        export_torchao(tmp_path / "a.json", model, graph, assignment)
    assert list(tmp_path.iterdir()) == []


def values_of(encoding: dict[str, Any], codes: np.ndarray) -> np.ndarray:
    """What the encoding says of codes (R, ...) from 0 to 2^bw - 1."""
    shape = (-1, *[1] * (codes.ndim - 1))
    scale, offset = (np.array(encoding[key], dtype=np.float64).reshape(shape) for key in ("scale", "offset"))
    shift = np.array(encoding.get("zero_point_shift", [0.0])).reshape(shape)
    return scale * (codes + offset + shift)


@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("bits", [1, 2, 3, 8, 16])
@pytest.mark.parametrize("family", ["lsq", "nested", "dorefa"])
def test_aimet_weights_lie_on_the_levels_of_their_encoding(
    tmp_path: Path, family: str, bits: int, per_channel: bool
) -> None:
    network, _, assignment = fixed_net("residual", (bits, 8), QuantizerChoice(family, "lsq", per_channel))
    file = export_aimet(tmp_path / "a.json", network, assignment)
    told = json.loads(file.path.read_text())
    assert (file.file_bytes, told["version"]) == (file.path.stat().st_size, "1.0.0")
    assert BitAssignment.from_json(told["dnas.assignment"]) == assignment
    counts = {f"{name}.weight": len(network.get_submodule(name).weight) for name in assignment.layers}  # type: ignore[arg-type]
    check_encodings(told, counts, least_bits=min(bits, 4))
    assert bool(file.notes) == (bits < 4)
    encodings = {encoding["name"]: encoding for encoding in told["param_encodings"]}
    assert list(encodings) == ["stem.weight", "first.weight", "second.weight", "head.weight"]
    for name, encoding in encodings.items():
        layer: Any = network.get_submodule(name.removesuffix(".weight"))
        weight = layer.quantized_weight().detach().double().numpy()
        assert (encoding["bw"], encoding["is_sym"], encoding["dtype"]) == (bits, True, "INT")
        assert encoding["enc_type"] == ("PER_CHANNEL" if per_channel else "PER_TENSOR")
        assert len(encoding["scale"]) == len(encoding["offset"]) == (len(weight) if per_channel else 1)
        scale = values_of(encoding, np.ones([1] * weight.ndim)) - values_of(encoding, np.zeros([1] * weight.ndim))
        codes = np.round((weight - values_of(encoding, np.zeros_like(weight))) / scale)
        assert ((codes >= 0) & (codes < 2**bits)).all()
        np.testing.assert_allclose(values_of(encoding, codes), weight, rtol=0, atol=1e-5 * np.abs(weight).max())


def test_aimet_inputs(tmp_path: Path) -> None:
    network, _, assignment = small_net()
    file = export_aimet(tmp_path / "a.json", network, assignment)
    told = json.loads(file.path.read_text())
    assert list(file.notes) == [
        "fewer bits than the 4 that AIMET's specification begins with, which AIMET itself takes: "
        "first.weight, second.weight, first.input and 1 more"
    ]
    encodings = {encoding["name"]: encoding for encoding in told["activation_encodings"]}
    assert [(name, encoding["bw"]) for name, encoding in encodings.items()] == [
        ("stem.input", 8),
        ("first.input", 3),
        ("second.input", 2),
        ("head.input", 4),
    ]
    assert (encodings["stem.input"]["is_sym"], encodings["stem.input"]["offset"]) == (True, [-128])
    assert (encodings["first.input"]["is_sym"], encodings["first.input"]["offset"]) == (False, [0])
    layer: Any = network.get_submodule("first")
    assert isinstance(layer, QuantizedLayer)
    top = float(layer.quantize_input(torch.tensor([1e6])).detach())
    np.testing.assert_allclose(encodings["first.input"]["scale"][0] * 7, top, rtol=1e-6)


@pytest.mark.parametrize("name", ["attention", "residual"])
def test_aimet_weights_go_by_the_names_of_the_network_as_it_was(name: str, tmp_path: Path) -> None:
    network, _, assignment = fixed_net(name, (4, 8))
    told = json.loads(export_aimet(tmp_path / "a.json", network, assignment).path.read_text())
    names = {encoding["name"] for encoding in told["param_encodings"]}
    assert len(names) == len(assignment.layers)
    assert names <= {parameter for parameter, _ in model_and_graph(name)[0].named_parameters()}


def test_aimet_leaves_fp32_out_and_refuses_sparse_weights(tmp_path: Path) -> None:
    def bits(graph: Any) -> dict[str, LayerBits]:
        found = {spec.name: LayerBits(4, 4, spec.out_channels) for spec in graph.layers}
        return {**found, "stem": LayerBits(32, 4, 5), "second": LayerBits(4, 32, 5), "head": LayerBits(32, 32, 3)}

    network, graph, assignment = fixed_net("residual", bits)
    told = json.loads(export_aimet(tmp_path / "a.json", network, assignment).path.read_text())
    check_encodings(told, {})
    names = {part: [encoding["name"] for encoding in told[f"{part}_encodings"]] for part in ("param", "activation")}
    assert names == {"param": ["first.weight", "second.weight"], "activation": ["stem.input", "first.input"]}
    assert told["excluded_layers"] == ["head"]

    def sparse(graph: Any) -> dict[str, LayerBits]:
        entry = LayerBits(4, 4, 5, scheme=SparseWeights(0.5, "sparsify-first"))
        return {**bits(graph), "first": entry}

    network, graph, assignment = fixed_net("residual", sparse)
    with pytest.raises(InputError, match="layer 'first' has sparse weights, whose levels are not evenly spaced"):
        export_aimet(tmp_path / "b.json", network, assignment)
    assert not (tmp_path / "b.json").exists()
    assert graph.layers


def test_exports_of_a_run(smaller_run: Run, tmp_path: Path) -> None:
    name = next(iter(smaller_run.assignments()))
    for format in ("aimet", "torchao"):
        out = tmp_path / f"{format}.json"
        words = ["export", str(smaller_run.folder), name, "--format", format, "--out", str(out)]
        result = CliRunner().invoke(app, words)
        assert result.exit_code == 0, result.output
        size = smaller_run.assignment(name).cost["size_bytes"]
        assert f"written: {out} ({out.stat().st_size:,} bytes; size_bytes is {size:,.0f})" in result.stdout
        left_out = json.loads(out.read_text()).get("dnas.left_out", {})
        assert ("not in the file" in result.stdout) == (format == "torchao") == bool(left_out)
        assert all(f"{layer}: " in result.stdout for layer in left_out)
        told = json.loads(CliRunner().invoke(app, [*words, "--json"]).stdout)
        assert told["left_out"] == left_out


def test_an_unpriced_assignment_has_no_ideal_size(tmp_path: Path) -> None:
    network, _, assignment = small_net()
    file = export_aimet(tmp_path / "a.json", network, dataclasses.replace(assignment, cost={}))
    assert file.ideal_bytes is None
