"""The contract of weight schemes, for every one of ours and one of a user's own."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from functools import cache
from itertools import cycle
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from dnas.export.aimet import export_aimet
from dnas.export.fixed_layers import fixed_layers
from dnas.export.save import save_packed
from dnas.export.torchao import layer_config
from dnas.quantization.calibration import calibrate, observing
from dnas.quantization.conversion import QuantizerChoice, quantize_fixed
from dnas.quantization.layers import QuantizedLayer
from dnas.quantization.schemes import GappedWeight, SchemeQuantizer, as_stored, module_of
from dnas.switchable.net import SwitchableNet
from results.packed.file import read_packed
from results.packed.weights import weight_values
from search_spaces.assignments import BitAssignment, LayerBits, ModelReference
from search_spaces.channels.slicing import remove_filters
from search_spaces.costs.stored import stored_prices
from search_spaces.costs.table import CostTable, build_costs
from search_spaces.errors import InputError
from search_spaces.layers import LayerGraph
from search_spaces.network.graph import read_graph
from search_spaces.options import SpaceOptions
from search_spaces.schemes import SCHEMES, WeightScheme, find_scheme
from search_spaces.spaces import build_space
from search_spaces.sparse_weights.scheme import SparseWeights
from tests import made_weights
from tests.exported_nets import export_qonnx
from tests.made_weights import KINDS
from tests.own_schemes import Ternary
from tests.packed_nets import Packed, assignment_of, inputs_for, load_packed, model_and_graph, packed_net, same_bits

EXAMPLES: dict[str, WeightScheme] = {"sparse": SparseWeights(0.5), Ternary.name: Ternary()}
every_scheme = pytest.mark.parametrize("scheme", EXAMPLES.values(), ids=EXAMPLES)
LAYERS = {
    "residual": ("first", "head"),
    "shapes": ("body.0", "body.3", "body.8"),
    "line": ("0", "3"),
    "cube": ("0", "6"),
    "shared": ("first", "second"),
    "attention": ("2.linear1", "2.self_attn.in_proj"),
    "norm last": ("layer1.0.conv1",),
}


def layers_with(graph: LayerGraph, names: tuple[str, ...], scheme: WeightScheme) -> dict[str, LayerBits]:
    layers = same_bits(graph, 3, 4)
    return {**layers, **{name: replace(layers[name], scheme=scheme) for name in names}}


def packed_with(path: Path, case: str, scheme: WeightScheme) -> Packed:
    return packed_net(path, case, lambda graph: layers_with(graph, LAYERS[case], scheme))


def weights(network: torch.nn.Module, name: str) -> torch.Tensor:
    layer = network.get_submodule(name)
    assert isinstance(layer, QuantizedLayer)
    return layer.quantized_weight().detach()


def test_every_scheme_of_ours_is_tested_here() -> None:
    assert set(SCHEMES) < set(EXAMPLES)
    for name in SCHEMES:
        assert find_scheme(name).name == name


@every_scheme
def test_an_entry_survives_the_assignment_file(scheme: WeightScheme) -> None:
    there = BitAssignment("mine", ModelReference("toy", (1, 6, 6)), {"stem": LayerBits(3, 4, 3, None, scheme)})
    written = json.loads(json.dumps(there.to_json()))
    assert scheme.name in written["layers"]["stem"]
    assert BitAssignment.from_json(written) == there
    written["layers"]["stem"][scheme.name]["of a later version"] = 1
    assert BitAssignment.from_json(written) == there


def test_a_file_makes_nobody_import_anything() -> None:
    entry = {
        "weight_bits": 3,
        "activation_bits": 4,
        "out_channels": 3,
        "kept_channels": None,
        "antigravity:Up": {"a": 1},
    }
    data = {**BitAssignment("mine", ModelReference("toy", (1,)), {}).to_json(), "layers": {"stem": entry}}
    with pytest.raises(InputError, match="'antigravity:Up' is not known here; import antigravity"):
        BitAssignment.from_json(data)
    assert "antigravity" not in sys.modules
    data["layers"]["stem"]["sparse"] = {"sigma": 0.0}
    with pytest.raises(InputError, match="one weight scheme, not antigravity:Up and sparse"):
        BitAssignment.from_json(data)
    with pytest.raises(InputError, match="'json:loads' is not known here"):  # there, and no scheme
        find_scheme("json:loads")


@every_scheme
@pytest.mark.parametrize("case", LAYERS)
def test_a_packed_file_holds_the_weights_bit_for_bit_in_the_bytes_they_cost(
    scheme: WeightScheme, case: str, tmp_path: Path
) -> None:
    found = packed_with(tmp_path / "net", case, scheme)
    loaded, x = load_packed(found.path, found.model), inputs_for(found.graph)
    with torch.no_grad():
        assert torch.equal(loaded(x), found.network(x))
    for name in LAYERS[case]:
        assert np.array_equal(weight_values(found.file, name), weights(found.network, name).numpy())
    space = build_space(found.graph, SpaceOptions((4,), (4,), first_layer="search", last_layer="search"))
    table = CostTable(found.graph, space, build_costs(False))
    known = as_stored(found.network, found.assignment.layers)
    assert stored_prices(table, known)["size_bytes"] == found.file.tensor_bytes
    [entry] = {tuple(bits.scheme.columns()) for bits in known.values() if bits.scheme}
    assert entry


@cache
def _made(kind: str) -> tuple[nn.Module, LayerGraph]:
    """A network, which quantizing leaves as it is, and what is read of it."""
    model = made_weights.network(kind)
    return model, read_graph(model, made_weights.SHAPE)


@pytest.mark.parametrize(("kind", "scheme"), [*zip(KINDS, cycle(EXAMPLES.values()), strict=False)])
def test_it_represents_what_a_layer_multiplies_with(kind: str, scheme: WeightScheme, tmp_path: Path) -> None:
    (model, graph), name = _made(kind), made_weights.name_of(kind)
    layers = layers_with(graph, (name,), scheme)
    network, x = quantize_fixed(model, graph, layers), made_weights.images()
    calibrate(network, [x])
    network.eval()
    save_packed(tmp_path / "net", network, graph, assignment_of(graph, layers, QuantizerChoice()))
    with torch.no_grad():
        assert np.array_equal(weight_values(read_packed(tmp_path / "net"), name), weights(network, name).numpy())
        assert torch.equal(load_packed(tmp_path / "net", made_weights.network(kind))(x), network(x))


@pytest.mark.parametrize("bits", [(3, 32), (32, 4), (32, 32)], ids=str)
def test_a_scheme_says_itself_which_widths_it_has(bits: tuple[int, int], tmp_path: Path) -> None:
    model, graph = model_and_graph("residual")
    layers = {**same_bits(graph, 4, 4), "first": LayerBits(*bits, 5, scheme=Ternary())}
    found = packed_net(tmp_path / "net", "residual", lambda graph: layers)
    assert len(weights(found.network, "first").unique()) == 3
    with torch.no_grad():
        assert torch.equal(load_packed(found.path, model)(inputs_for(graph)), found.network(inputs_for(graph)))
    assert "ternary weights" in layer_config(graph["first"], layers["first"])[1]
    if bits[0] == 32:
        with pytest.raises(InputError, match="sparse weights have 1 to 8 bits, not 32"):
            quantize_fixed(model, graph, {**layers, "first": LayerBits(*bits, 5, scheme=SparseWeights(0.0))})
    with pytest.raises(InputError, match="a skipped layer has no ternary weights"):
        LayerBits(0, 0, scheme=Ternary())


@every_scheme
def test_weights_are_made_anew_and_train(scheme: WeightScheme) -> None:
    model, graph = model_and_graph("residual")
    network = quantize_fixed(model, graph, layers_with(graph, ("first",), scheme))
    calibrate(network, [inputs_for(graph)])
    layer = network.get_submodule("first")
    assert isinstance(layer, QuantizedLayer)
    assert type(layer.quantize_weight) is module_of(scheme)
    before = weights(network, "first")
    assert not torch.equal(before, layer.weight)
    with observing([layer]):  # the inputs of the float network are calibrated on
        assert torch.equal(weights(network, "first"), layer.weight)
    network(inputs_for(graph)).sum().backward()
    assert layer.weight.grad is not None
    assert layer.weight.grad.any()
    with torch.no_grad():
        layer.weight.mul_(2)
    torch.testing.assert_close(weights(network, "first"), 2 * before)
    network.load_state_dict(quantize_fixed(model, graph, layers_with(graph, ("first",), scheme)).state_dict())
    assert torch.equal(weights(network, "first"), before)


@every_scheme
def test_the_codes_that_exports_read_are_the_weights(scheme: WeightScheme, tmp_path: Path) -> None:
    found = packed_with(tmp_path / "net", "residual", scheme)
    weight = fixed_layers(found.network)["first"].weight
    assert isinstance(weight, GappedWeight)
    values = np.sign(weight.codes) * (weight.start + (abs(weight.codes) - 1) * weight.step)
    np.testing.assert_allclose(values, weights(found.network, "first").numpy(), rtol=1e-6)


@pytest.mark.whole
@every_scheme
def test_what_cannot_hold_them_says_so(scheme: WeightScheme, tmp_path: Path) -> None:
    found = packed_with(tmp_path / "net", "residual", scheme)
    with pytest.raises(InputError, match=f"layer 'first' has {scheme.words}, whose levels"):
        export_aimet(tmp_path / "net.json", found.network, found.assignment)
    with pytest.raises(InputError, match=f"layer 'first' has {scheme.words}, which QONNX"):
        export_qonnx(tmp_path / "net.onnx", found.network, found.graph, found.assignment)
    assert scheme.words in layer_config(found.graph["head"], found.assignment.layers["head"])[1]
    with pytest.raises(InputError, match=f"profile 'mine' has {scheme.words}"):
        SwitchableNet(found.model, found.graph, {"mine": found.assignment}, QuantizerChoice("nested", "pact"))
    kept = {group.name: range(group.units - 1) for group in found.graph.channels.groups}
    with pytest.raises(InputError, match=f"{scheme.words} cannot lose filters"):
        remove_filters(found.network, found.graph.channels, kept)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["net"]


@every_scheme
@pytest.mark.parametrize("net_has_it", [True, False])
def test_a_net_and_an_assignment_of_different_schemes_are_not_packed(
    scheme: WeightScheme, net_has_it: bool, tmp_path: Path
) -> None:
    model, graph = model_and_graph("residual")
    plain, own = same_bits(graph, 3, 4), layers_with(graph, ("first",), scheme)
    made, told = (own, plain) if net_has_it else (plain, own)
    network = quantize_fixed(model, graph, made)
    calibrate(network, [inputs_for(graph)])
    where = "this net" if net_has_it else "the assignment"
    with pytest.raises(InputError, match=f"layer 'first' has {scheme.words} in {where} alone"):
        save_packed(tmp_path / "net", network, graph, assignment_of(graph, told, QuantizerChoice()))
    assert not list(tmp_path.iterdir())


def test_a_packed_weight_that_nobody_reads_is_refused(tmp_path: Path) -> None:
    found = packed_with(tmp_path / "net", "residual", Ternary())
    for storage, told in (("zip", "makes no sense"), ("antigravity:Up", "not known here")):
        file = read_packed(found.path)
        file.description["layers"]["first"]["weight"]["storage"] = storage
        with pytest.raises(InputError, match=told):
            weight_values(file, "first")


class Unexported(SchemeQuantizer):
    """A module of a scheme whose levels no export can tell."""

    represented = stored = pack = None  # type: ignore[assignment]


def test_a_scheme_without_such_codes_is_exported_as_packed_alone() -> None:
    with pytest.raises(InputError, match="layer 'first' has ternary weights, which this format cannot hold"):
        Unexported(2, Ternary()).gapped("first", torch.ones(2, 2))
