"""A packed net takes what the cost table says, to the byte, and computes what the exported net did."""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner

from dnas.commands.cli import app
from dnas.config.file import load_job
from dnas.export.save import save_packed
from dnas.jobs.job import load_network
from dnas.jobs.stored_nets import stored_net
from dnas.quantization.calibration import calibrate
from dnas.quantization.conversion import QuantizerChoice, quantize_fixed
from dnas.quantization.layers import QuantizedLayer
from results.packed.file import DEFAULT_PROFILE, read_packed, write_packed
from results.packed.weights import weight_values
from results.run.folder import Run
from search_spaces.assignments import LayerBits
from search_spaces.channels.slicing import pruned_graph, remove_filters
from search_spaces.costs.kinds import size_bytes
from search_spaces.errors import InputError
from search_spaces.groups import kept_rows
from search_spaces.layers import LayerGraph
from search_spaces.network.graph import read_graph
from search_spaces.sparse_weights.scheme import SparseWeights
from tests.packed_nets import (
    CASES,
    Packed,
    assignment_of,
    inputs_for,
    load_packed,
    model_and_graph,
    packed_net,
    same_bits,
)
from tests.search_spaces.channel_toys import CASES as TIED
from tests.toys import Net, SharedWeight, seeded

FAMILIES = [(family, width) for family in ("lsq", "nested", "dorefa") for width in (*range(1, 9), 16)] + [("binary", 1)]


def weights(network: nn.Module) -> dict[str, Tensor]:
    layers = ((name, module) for name, module in network.named_modules() if isinstance(module, QuantizedLayer))
    return {name: layer.quantized_weight().detach() for name, layer in layers}


def assert_same_net(found: Packed) -> nn.Module:
    """The size is the table's; the weights and the logits are bit for bit those of the net."""
    assert found.file.tensor_bytes == found.assignment.cost["size_bytes"]
    assert found.path.stat().st_size == found.file.header_bytes + found.file.tensor_bytes
    state = copy.deepcopy(found.model.state_dict())
    loaded = load_packed(found.path, found.model)
    assert not loaded.training
    assert all(torch.equal(value, found.model.state_dict()[key]) for key, value in state.items())
    own = weights(loaded)
    for name, weight in weights(found.network).items():
        assert torch.equal(own[name], weight), name
    with torch.inference_mode():
        expected, logits = (net(inputs_for(found.graph)) for net in (found.network, loaded))
    assert torch.equal(logits, expected)
    return loaded


@pytest.mark.parametrize(("family", "bits"), FAMILIES)
def test_every_width_of_every_family(tmp_path: Path, family: str, bits: int) -> None:
    choice = QuantizerChoice(family, "nested", per_channel=(len(family) + bits) % 2 == 0)  # each width has both
    found = packed_net(tmp_path / "a", "shapes", (bits, bits), choice, calibrated=False)
    assert found.file.tensor_bytes == found.assignment.cost["size_bytes"]
    for name, weight in weights(found.network).items():
        assert np.array_equal(weight_values(found.file, name), weight.numpy())


@pytest.mark.parametrize("bits", [*range(1, 9), 16])
def test_every_width_of_inputs(tmp_path: Path, bits: int) -> None:
    inputs = {1: "binary", 2: "lsq", 3: "nested", 4: "dorefa"}.get(bits, "pact")
    assert_same_net(packed_net(tmp_path / "a", "residual", (bits, bits), QuantizerChoice("lsq", inputs)))


@pytest.mark.parametrize("bits", [(32, 4), (3, 32), (32, 32)])
@pytest.mark.parametrize("name", ["residual", "line"])
def test_fp32_weights_and_inputs(tmp_path: Path, name: str, bits: tuple[int, int]) -> None:
    assert_same_net(packed_net(tmp_path / "a", name, bits, QuantizerChoice(per_channel=True)))


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("per_channel", [False, True])
def test_every_kind_of_layer(tmp_path: Path, name: str, per_channel: bool) -> None:
    assert_same_net(packed_net(tmp_path / "a", name, (3, 4), QuantizerChoice("nested", "nested", per_channel)))


def test_a_shared_weight_is_stored_once(tmp_path: Path) -> None:
    found = packed_net(tmp_path / "a", "shared", (3, 4))
    assert found.file.description["layers"]["second"]["weight"] == {"storage": "shared", "layer": "first"}
    loaded: Any = load_packed(found.path, found.model)
    assert loaded.second.weight is loaded.first.weight


def test_layers_with_one_weight_train_one_quantizer_and_lose_filters_together(tmp_path: Path) -> None:
    """Each with a clip of its own, they would need codes of their own."""

    def step(network: Any) -> nn.Module:
        assert network.first.quantize_weight is network.second.quantize_weight
        network(inputs_for(model_and_graph("shared")[1])).square().sum().backward()
        with torch.no_grad():
            for parameter in network.parameters():
                parameter -= 0.01 * parameter.grad
        return network

    assert_same_net(packed_net(tmp_path / "a", "shared", (3, 4), change=step))
    case = TIED["shared_parameter"]
    model = case.build().eval()
    graph, choice = read_graph(model, case.shape), QuantizerChoice("dorefa", "pact", True)
    whole = quantize_fixed(model, graph, same_bits(graph, 3, 4), choice)
    group = next(group for group in graph.channels.groups if "first" in group.rows)
    kept = {group.name: tuple(range(1, group.units))}
    smaller: Any = remove_filters(whole, graph.channels, kept)
    rows = kept_rows(graph.channels, kept)
    layers = {
        name: dataclasses.replace(bits, kept_channels=rows.get(name), out_channels=len(rows.get(name, [0] * 3)))
        for name, bits in same_bits(graph, 3, 4).items()
    }
    assignment = assignment_of(graph, layers, choice)
    assert smaller.first.quantize_weight is smaller.second.quantize_weight
    file = save_packed(tmp_path / "a", smaller.eval(), graph, assignment, choice)
    assert_same_net(Packed(model, graph, assignment, smaller, tmp_path / "a", file))


def test_a_shared_weight_that_is_quantized_otherwise_is_refused(tmp_path: Path) -> None:
    def bits(graph: LayerGraph) -> dict[str, LayerBits]:
        return {**same_bits(graph, 3, 4), "second": LayerBits(4, 4)}

    with pytest.raises(InputError, match="layer 'second' shares its weight with 'first' but quantizes it otherwise"):
        packed_net(tmp_path / "a", "shared", bits)


def test_a_skipped_branch_is_not_stored(tmp_path: Path) -> None:
    def bits(graph: LayerGraph) -> dict[str, LayerBits]:
        return {**same_bits(graph, 4, 4), "first": LayerBits(0, 0), "second": LayerBits(0, 0)}

    found = packed_net(tmp_path / "a", "residual", bits)
    assert_same_net(found)
    assert list(found.file.description["layers"]) == ["stem", "head"]
    assert not any(name.startswith("first") for name in found.file.tensors)


def test_norms_of_a_skipped_branch_that_no_layer_accounts_for_stay_counted_and_stored(tmp_path: Path) -> None:
    def bits(graph: LayerGraph) -> dict[str, LayerBits]:
        return {**same_bits(graph, 4, 4), **dict.fromkeys(graph.branches[0].layers, LayerBits(0, 0))}

    found = packed_net(tmp_path / "a", "norm last", bits)
    assert_same_net(found)
    norms = found.file.description["profiles"][DEFAULT_PROFILE]["norms"]
    assert list(norms) == ["bn1", *(f"layer{stage}.0.bn{number}" for stage in (1, 2, 3) for number in (1, 2))]


def test_half_a_skipped_branch_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="layer 'second' is skipped but its branch is not"):
        packed_net(tmp_path / "a", "residual", lambda graph: {**same_bits(graph, 4, 4), "second": LayerBits(0, 0)})


@pytest.mark.parametrize("family", ["lsq", "dorefa", "binary"])
@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("held", [False, True])
def test_a_pruned_net(tmp_path: Path, family: str, per_channel: bool, held: bool) -> None:
    """Made of its assignment, or cut out of a quantized net, whose clips are then held."""
    bits, choice = 1 if family == "binary" else 3, QuantizerChoice(family, "pact", per_channel)
    model, graph = model_and_graph("residual")
    kept = {graph.channels.groups[0].name: (0, 2, 4)}
    rows = kept_rows(graph.channels, kept)
    whole = same_bits(graph, bits, 4)
    layers = {
        name: dataclasses.replace(entry, out_channels=len(rows[name]), kept_channels=rows[name])
        if name in rows
        else entry
        for name, entry in whole.items()
    }
    network = quantize_fixed(model, graph, whole if held else layers, choice)
    calibrate(network, [inputs_for(graph, 8, 5)])
    if held:
        network = remove_filters(network, graph.channels, kept)
    assignment = assignment_of(graph, layers, choice)
    packed = save_packed(tmp_path / "a", network.eval(), graph, assignment, choice)
    assert packed.description["layers"]["stem"]["shape"] == [3, 1, 3, 3]
    assert_same_net(Packed(model, graph, assignment, network, tmp_path / "a", read_packed(tmp_path / "a")))
    assert packed.tensor_bytes < size_of(graph, whole, per_channel)
    assert packed.tensor_bytes == size_of(pruned_graph(graph, kept), layers, per_channel)


def size_of(graph: LayerGraph, layers: dict[str, LayerBits], per_channel: bool) -> float:
    cost = size_bytes(per_channel)
    return graph.other_bytes + sum(cost.of_layer(graph[n], b.weight_bits, b.activation_bits) for n, b in layers.items())


@pytest.mark.parametrize("order", ["sparsify-first", "quantize-first"])
@pytest.mark.parametrize(("bits", "sigma"), [(2, 0.0), (4, 1.0), (8, -10.0), (3, 2.5)])
def test_sparse_weights_are_stored_in_their_smallest_format(
    tmp_path: Path, order: str, bits: int, sigma: float
) -> None:
    def sparse(graph: LayerGraph) -> dict[str, LayerBits]:
        layers = same_bits(graph, bits, 4)
        entry = dataclasses.replace(layers["first"], scheme=SparseWeights(sigma, order))
        return {**layers, "first": entry, "head": dataclasses.replace(entry, out_channels=3)}

    found = packed_net(tmp_path / "a", "residual", sparse)
    weight = found.file.description["layers"]["first"]["weight"]
    written = found.file.description["profiles"][DEFAULT_PROFILE]["assignment"]
    stored = -(-written["layers"]["first"]["sparse"]["stored_bits"] // 8)
    assert found.file.tensors[weight["tensor"]].nbytes == stored
    assert written["cost"]["size_bytes"] == found.file.tensor_bytes
    assert_same_net(dataclasses.replace(found, assignment=dataclasses.replace(found.assignment, cost=written["cost"])))


def test_the_folded_batchnorm_is_exact_in_float64(tmp_path: Path) -> None:
    found = packed_net(tmp_path / "a", "residual", (32, 32))
    loaded = load_packed(found.path, found.model)
    norm, folded = found.network.get_submodule("stem_norm").double(), loaded.get_submodule("stem_norm").double()
    x = torch.randn(2, 5, 3, 3, generator=seeded(), dtype=torch.float64)
    torch.testing.assert_close(folded(x), norm(x), rtol=1e-6, atol=1e-6)  # scale and shift are fp32


def test_the_same_net_gives_the_same_bytes(tmp_path: Path) -> None:
    first, second = (packed_net(tmp_path / name, "residual", (4, 4)) for name in "ab")
    assert first.path.read_bytes() == second.path.read_bytes()


@pytest.mark.parametrize(
    ("other", "sentence"),
    [
        (
            Net(channels=4),
            "layer 'stem' is a Conv2d of shape (5, 1, 3, 3) in the file and a Conv2d of shape (4, 1, 3, 3)",
        ),
        (SharedWeight(), "assignment 'mine' names layer 'stem', which this network does not have"),
        (nn.Sequential(nn.Conv2d(3, 4, 3)), "the network does not run on an input of shape (1, 6, 6)"),
    ],
    ids=["other shape", "other layers", "other input"],
)
def test_another_network_is_refused(tmp_path: Path, other: nn.Module, sentence: str) -> None:
    found = packed_net(tmp_path / "a", "residual", (4, 4))
    with pytest.raises(InputError) as caught:
        load_packed(found.path, other)
    assert sentence in str(caught.value)


def test_what_only_training_reads_is_not_stored(tmp_path: Path) -> None:
    found = packed_net(tmp_path / "a", "auxiliary", (3, 4))
    assert not any("auxiliary" in name for name in found.file.tensors)
    assert found.graph["first"].norm is None
    assert sum("first_norm" in name for name in found.file.tensors) == 2
    assert not any("second_norm" in name for name in found.file.tensors)


def test_files_that_store_more_than_what_is_deployed_still_load(tmp_path: Path) -> None:
    """As they were written once: with the heads of training, and a BatchNorm of two layers with each of them."""
    model, graph = model_and_graph("auxiliary")
    layers, choice = same_bits(graph, 3, 4), QuantizerChoice()
    network = quantize_fixed(model, graph, layers, choice)
    calibrate(network, [inputs_for(graph, 8, 5)])
    norms = {"first": "first_norm", "second": "first_norm"}
    specs = [
        dataclasses.replace(spec, norm=norms[spec.name], norm_channels=5) if spec.name in norms else spec
        for spec in graph.layers
    ]
    unused = sum(spec.elements for spec in graph.parameters if not spec.deployed)
    earlier = dataclasses.replace(graph, layers=tuple(specs), unused=frozenset(), other_bytes=4 * unused)
    assignment = assignment_of(earlier, layers, choice)
    save_packed(tmp_path / "a", network.eval(), earlier, assignment, choice)
    x = inputs_for(graph)
    with torch.no_grad():
        assert torch.equal(load_packed(tmp_path / "a", model)(x), network(x))


def with_parameter(net: Net) -> Net:
    net.relu = nn.PReLU()  # type: ignore[assignment]
    return net


def without_bias(net: Net) -> Net:
    net.head.bias = None
    return net


def without_norm(net: Net) -> Net:
    net.first_norm = nn.Identity()  # type: ignore[assignment]
    return net


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (with_parameter, "the parameters are those of another network (only this network has 'relu.weight')"),
        (without_bias, "layer 'head' has a bias in the file or in this network, but not in both"),
        (without_norm, "the BatchNorms are those of another network (only the file has 'first_norm')"),
    ],
)
def test_a_network_with_other_parts_is_refused(tmp_path: Path, change: Callable[[Net], Net], sentence: str) -> None:
    found = packed_net(tmp_path / "a", "residual", (4, 4))
    with pytest.raises(InputError) as caught:
        load_packed(found.path, change(Net(channels=5)))
    assert sentence in str(caught.value)


def test_what_the_format_cannot_hold_is_refused(tmp_path: Path) -> None:
    def batch_statistics(network: nn.Module) -> nn.Module:
        norm = network.get_submodule("stem_norm")
        norm.running_mean = norm.running_var = None  # type: ignore[assignment]
        return network

    with pytest.raises(InputError, match="'stem_norm' normalises by the statistics of each batch"):
        packed_net(tmp_path / "a", "residual", (4, 4), change=batch_statistics)

    def with_more(network: nn.Module) -> nn.Module:
        network.register_parameter("more", nn.Parameter(torch.ones(3)))
        return network

    with pytest.raises(InputError, match="it holds something that the table does not count"):
        packed_net(tmp_path / "a", "residual", (4, 4), change=with_more)
    assert not (tmp_path / "a").exists()


CHANGES: list[Callable[[dict[str, Any]], Any]] = [
    lambda told: told.clear(),
    lambda told: told.update(layers=7),
    lambda told: told.update(profiles={}),
    lambda told: told.update(quantizer={"weights": "none"}),
    lambda told: told.update(quantizer={"colour": 1}),
    lambda told: told["profiles"]["default"]["assignment"].clear(),
    lambda told: told["profiles"]["default"]["layers"].pop("stem"),
    lambda told: told["profiles"]["default"]["layers"]["stem"]["input"].update(grid={}),
    lambda told: told["profiles"]["default"]["layers"]["stem"]["input"].update(bits=7),
    lambda told: told["profiles"]["default"]["layers"]["stem"]["weight"].update(bits=9),
    lambda told: told["profiles"]["default"]["layers"]["stem"]["weight"].update(clip="stem.planes"),
    lambda told: told["profiles"]["default"]["layers"]["stem"]["norm"].update(scale="head.bias"),
    lambda told: told["layers"]["stem"]["weight"].update(tensor="gone"),
    lambda told: told["layers"]["stem"]["weight"].update(tensor="first.planes"),
    lambda told: told["layers"]["stem"]["weight"].update(storage="shared", layer="stem"),
    lambda told: told["layers"]["stem"]["weight"].update(storage="csr", nonzeros=10**12, dense_bits=4),
    lambda told: told["layers"]["stem"]["weight"].update(storage="relative-4", bits=10**9, nonzeros=1, dense_bits=4),
    lambda told: told["layers"]["stem"].update(shape=[10**9] * 9),
    lambda told: told["layers"]["head"].update(bias="stem.norm.scale"),
]


@pytest.mark.parametrize("number", range(len(CHANGES)))
def test_a_description_of_nothing_is_refused_although_its_checksums_are_right(tmp_path: Path, number: int) -> None:
    found = packed_net(tmp_path / "a", "residual", (4, 4))
    told = json.loads(json.dumps(found.file.description))
    CHANGES[number](told)
    write_packed(found.path, told, found.file.tensors)
    with pytest.raises(InputError) as caught:
        load_packed(found.path, found.model)
    assert str(caught.value).startswith(str(found.path))


def test_export_of_a_run(smaller_run: Run, tmp_path: Path) -> None:
    out = tmp_path / "net.safetensors"
    name = next(iter(smaller_run.assignments()))
    words = ["export", str(smaller_run.folder), name, "--format", "packed", "--out", str(out)]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    size = int(smaller_run.assignment(name).cost["size_bytes"])
    packed = read_packed(out)
    assert packed.tensor_bytes == size
    assert f"{size:,} bytes of tensors, size_bytes; {packed.header_bytes:,} of header" in result.output
    told = json.loads(CliRunner().invoke(app, [*words, "--json"]).stdout)
    assert (told["tensor_bytes"], told["header_bytes"]) == (size, packed.header_bytes)
    job = load_job(str(smaller_run.folder / "job.toml"))
    model = load_network(job).module
    graph = read_graph(model, smaller_run.assignment(name).model.input_shape)
    loaded = load_packed(out, model)
    choice = QuantizerChoice(job.quantizer.weights, job.quantizer.activations, job.quantizer.per_channel)
    network = stored_net(smaller_run, model, graph, smaller_run.assignment(name), choice, 0)
    with torch.inference_mode():
        x = torch.rand(4, *graph.input_shape, generator=seeded())
        torch.testing.assert_close(loaded(x), network(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["shapes", "cube", "shared"])
@pytest.mark.parametrize("per_channel", [False, True])
def test_the_reader_of_the_specification_gives_the_same_weights(
    tmp_path: Path, name: str, per_channel: bool, specified_reader: dict[str, Any]
) -> None:
    found = packed_net(tmp_path / "a", name, (3, 4), QuantizerChoice(per_channel=per_channel))
    values, _, _ = specified_reader["read_packed"](found.path)
    assert set(values) == set(found.file.description["layers"])
    for layer, value in values.items():
        assert np.array_equal(value, weight_values(found.file, layer))
