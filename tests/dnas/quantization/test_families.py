"""The contract of a quantizer: ours by name and one of the user's own, which every part of the engine takes alike."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import get_args

import pytest
import torch

from dnas.config.fields import ActivationQuantizer, Named, WeightQuantizer
from dnas.export.save import save_packed
from dnas.export.unpack import load
from dnas.quantization.calibration import calibrate
from dnas.quantization.conversion import QuantizerChoice, quantize_fixed, tensor_quantizer
from dnas.quantization.families import ACTIVATION_QUANTIZERS, WEIGHT_QUANTIZERS
from dnas.quantization.quantizers import Quantizer
from search_spaces.assignments import BitAssignment, LayerBits, ModelReference
from search_spaces.costs.table import CostTable, build_costs
from search_spaces.errors import InputError
from search_spaces.options import SpaceOptions
from search_spaces.registry import Registry
from search_spaces.spaces import build_space
from tests.known import known_graph
from tests.toys import SHAPE, Net, build_supernet, inputs, seeded, trained

OWN = """
from dnas import Grid, Quantizer

def no_zero(bits, signed):
    half = 2.0 ** (bits - 1) if signed else 2.0 ** bits
    return Grid(half, half if signed else 0.0, 2.0**bits - 1, 1 / half, (0.5 - half) / half if signed else 0.5 / half)

mine, number = Quantizer("anything", no_zero), 3
"""
REGISTRIES = {"weights": WEIGHT_QUANTIZERS, "activations": ACTIVATION_QUANTIZERS}
NAMES = [(kind, name) for kind, registry in REGISTRIES.items() for name in [*registry, "own_family:mine"]]


@pytest.fixture(autouse=True)
def _own_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_family.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "own_family", raising=False)


@pytest.mark.parametrize(("kind", "name"), NAMES)
def test_a_quantizer_has_at_most_as_many_levels_as_its_width_allows_and_keeps_them(kind: str, name: str) -> None:
    x = torch.randn(5000, generator=seeded(), dtype=torch.float64)
    quantizer = REGISTRIES[kind].find(name)
    assert quantizer.name == name
    for bits in [width for width in quantizer.widths if width <= 8]:
        for signed in (True,) if kind == "weights" else (True, False):
            module = tensor_quantizer(quantizer, (bits,), signed=signed).double()
            module.fit(x if signed else x.abs())
            values = module(x).detach()
            assert values.mul(1e12).round().unique().numel() <= 2**bits  # exp2 of a vector and of its tail may differ
            assert values.isfinite().all()
            assert tensor_quantizer(quantizer, (32,), signed=signed)(x) is x


def test_the_job_file_offers_the_registered_names() -> None:
    for kind, registry in ((WeightQuantizer, WEIGHT_QUANTIZERS), (ActivationQuantizer, ACTIVATION_QUANTIZERS)):
        [named] = [part for part in get_args(kind) if isinstance(part, Named)]
        assert list(named.names) == list(registry)


def test_a_quantizer_of_ones_own_goes_through_a_fixed_net_a_supernet_and_a_packed_file(tmp_path: Path) -> None:
    model = trained(Net()).eval()
    graph = known_graph(model, SHAPE)
    choice = QuantizerChoice("own_family:mine", "own_family:mine")
    layers = {layer.name: LayerBits(3, 4) for layer in graph.layers}
    network = quantize_fixed(model, graph, layers, choice)
    calibrate(network, [inputs()])
    supernet = build_supernet(
        model, choice=choice, weight_bits=(2, 3), activation_bits=(4, 8), first_layer="search", last_layer="search"
    )
    calibrate(supernet.network, [inputs()])
    cells = [(supernet.space.weight_bits.index(3), supernet.space.activation_bits.index(4))] * len(
        supernet.space.decisions
    )
    with supernet.sampled(supernet.one_hot(cells)):
        assert supernet.eval()(inputs()).shape == network.eval()(inputs()).shape
    table = CostTable(graph, build_space(graph, SpaceOptions()), build_costs())
    assignment = BitAssignment("mine", ModelReference("own", SHAPE), layers, table.price(layers))
    save_packed(tmp_path / "net.safetensors", network, graph, assignment, choice)
    assert torch.equal(load(tmp_path / "net.safetensors", model=model)(inputs()), network(inputs()))


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        ("own_family:number", "is an int; it must be a dnas.Quantizer"),
        ("own_family:no_zero", "is a function; it must be a dnas.Quantizer"),
        ("own_family:mein", "has no 'mein'; did you mean 'mine'"),
        ("nowhere:mine", "cannot import module 'nowhere'"),
        ("lsp", "unknown weight quantizer 'lsp'; known are lsq, .*did you mean 'lsq'"),
        ("", "unknown weight quantizer ''"),
        (":", "':' is not of the form package.module:name"),
    ],
)
def test_what_is_no_quantizer_is_refused(source: str, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        QuantizerChoice(source).of_weights()


def test_a_registry_is_a_mapping_of_ours() -> None:
    registry = Registry("thing", {"a": 1}, lambda source, found: int(found))
    assert (list(registry), len(registry), registry["a"], registry.find("a"), "b" in registry) == (
        ["a"],
        1,
        1,
        1,
        False,
    )
    assert registry.find("own_family:number") == 3
    assert isinstance(WEIGHT_QUANTIZERS.find("own_family:mine"), Quantizer)
