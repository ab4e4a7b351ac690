"""The JSON formats: what they say of every layer, and what they refuse."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from dnas.commands.cli import app
from dnas.export.aimet import export_aimet
from dnas.export.torchao import export_torchao, layer_config
from dnas.quantization.conversion import QuantizerChoice
from dnas.quantization.layers import QuantizedLayer
from results.run.folder import Run
from search_spaces.assignments import BitAssignment, LayerBits
from search_spaces.errors import InputError
from search_spaces.sparse_codes import SparseWeights
from tests.exported_nets import fixed_net, small_net
from tests.packed_nets import assignment_of, model_and_graph, same_bits


def refused(name: str, layer: str, bits: LayerBits) -> str:
    """The sentence that torchao's format ends with."""
    with pytest.raises(InputError) as caught:
        layer_config(model_and_graph(name)[1][layer], bits)
    return str(caught.value)


@pytest.mark.parametrize("bits", range(1, 9))
def test_torchao_weights_of_every_width(tmp_path: Path, bits: int) -> None:
    graph = model_and_graph("residual")[1]
    layers = {
        **same_bits(graph, bits, 32),
        "stem": LayerBits(32, 32, 5),
        "first": LayerBits(0, 0),
        "head": LayerBits(bits, 8, 3),
    }
    assignment = assignment_of(graph, layers, QuantizerChoice())
    file = export_torchao(tmp_path / "a.json", graph, assignment)
    told = json.loads(file.path.read_text())
    assert (file.file_bytes, file.ideal_bytes) == (file.path.stat().st_size, assignment.cost["size_bytes"])
    assert (told["_type"], told["_version"], next(iter(told["_data"]))) == ("FqnToConfig", 1, "fqn_to_config")
    configs = told["_data"]["fqn_to_config"]
    assert list(configs) == ["stem", "first", "second", "head"]
    assert configs["stem"] is configs["first"] is None
    assert configs["second"]["_type"] == "IntxWeightOnlyConfig"
    assert configs["head"]["_type"] == "Int8DynamicActivationIntxWeightConfig"
    for name in ("second", "head"):
        assert configs[name]["_data"]["weight_dtype"] == {"_type": "torch.dtype", "_data": f"int{bits}"}
        assert hasattr(torch, f"int{bits}")
    assert BitAssignment.from_json(told["dnas.assignment"]) == assignment


def test_torchao_refuses_what_it_cannot_express(tmp_path: Path) -> None:
    sentence = refused("residual", "head", LayerBits(4, 4))
    assert sentence == (
        "layer 'head' (Linear) has 4-bit inputs, which torchao cannot express; the nearest width that it can is 8"
    )
    assert refused("residual", "head", LayerBits(4, 16)).endswith("the nearest width that it can is 8")
    convolution = refused("residual", "second", LayerBits(4, 8))
    assert convolution.startswith("layer 'second' (Conv2d) has 8-bit inputs")
    assert convolution.endswith("the nearest width that it can is 32")
    assert "has 16-bit weights" in refused("residual", "head", LayerBits(16, 8))
    assert refused("residual", "head", LayerBits(16, 8)).endswith("the nearest width that it can is 8")
    assert "one input channel per filter" in refused("residual", "stem", LayerBits(4, 32))
    assert "is a Conv1d of 4-bit weights; torchao quantizes Linear and Conv2d" in refused("line", "0", LayerBits(4, 32))
    sparse = LayerBits(4, 32, sparse=SparseWeights(0.5, "sparsify-first"))
    assert "has sparse weights" in refused("residual", "second", sparse)
    graph = model_and_graph("residual")[1]
    assignment = assignment_of(graph, same_bits(graph, 4, 4), QuantizerChoice())
    with pytest.raises(InputError, match="layer 'stem'"):
        export_torchao(tmp_path / "a.json", graph, assignment)
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
    told = json.loads(export_aimet(tmp_path / "a.json", network, assignment).path.read_text())
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


def test_aimet_leaves_fp32_to_float_and_refuses_sparse_weights(tmp_path: Path) -> None:
    def bits(graph: Any) -> dict[str, LayerBits]:
        found = {spec.name: LayerBits(4, 4, spec.out_channels) for spec in graph.layers}
        return {**found, "stem": LayerBits(32, 4, 5), "second": LayerBits(4, 32, 5), "head": LayerBits(32, 32, 3)}

    network, graph, assignment = fixed_net("residual", bits)
    told = json.loads(export_aimet(tmp_path / "a.json", network, assignment).path.read_text())
    entries = [entry for part in ("param", "activation") for entry in told[f"{part}_encodings"]]
    floats = [entry["name"] for entry in entries if entry["dtype"] == "FLOAT"]
    assert floats == ["stem.weight", "second.input"]
    assert told["excluded_layers"] == ["head"]

    def sparse(graph: Any) -> dict[str, LayerBits]:
        entry = LayerBits(4, 4, 5, sparse=SparseWeights(0.5, "sparsify-first"))
        return {**bits(graph), "first": entry}

    network, graph, assignment = fixed_net("residual", sparse)
    with pytest.raises(InputError, match="layer 'first' has sparse weights, whose levels are not evenly spaced"):
        export_aimet(tmp_path / "b.json", network, assignment)
    assert not (tmp_path / "b.json").exists()
    assert graph.layers


def test_exports_of_a_run(smaller_run: Run, tmp_path: Path) -> None:
    name = next(iter(smaller_run.assignments()))
    for format, code in (("aimet", 0), ("torchao", 2)):
        out = tmp_path / f"{format}.json"
        words = ["export", str(smaller_run.folder), name, "--format", format, "--out", str(out)]
        result = CliRunner().invoke(app, words)
        assert result.exit_code == code, result.output
        assert out.exists() == (code == 0)
        if code:
            assert "torchao cannot express; the nearest width" in result.stderr or "torchao fails" in result.stderr
        else:
            size = smaller_run.assignment(name).cost["size_bytes"]
            assert f"written: {out} ({out.stat().st_size:,} bytes; size_bytes is {size:,.0f})" in result.stdout


def test_an_unpriced_assignment_has_no_ideal_size(tmp_path: Path) -> None:
    network, _, assignment = small_net()
    file = export_aimet(tmp_path / "a.json", network, dataclasses.replace(assignment, cost={}))
    assert file.ideal_bytes is None
