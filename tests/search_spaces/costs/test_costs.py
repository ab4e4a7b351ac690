"""Costs: published figures, bytes that are really packed, and one table for the exact and the expected."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torchvision
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from dnas.quantization.branches import SkippedLayer
from dnas.quantization.conversion import QuantizerChoice, quantize_fixed
from dnas.quantization.layers import QuantizedLayer, TensorQuantizer
from dnas.quantization.quantizers import encode
from search_spaces.assignments import BIT_WIDTHS, LayerBits
from search_spaces.costs.kinds import BITOPS, Cost, packed_weight_bytes, size_bytes
from search_spaces.costs.table import CostTable, build_costs, latency_table, user_cost
from search_spaces.errors import InputError
from search_spaces.layers import LayerGraph, LayerSpec
from search_spaces.models.sources import ZOO
from search_spaces.models.zoo import resnet20
from search_spaces.options import SpaceOptions
from search_spaces.spaces import build_space
from tests.known import known_graph
from tests.toys import SHAPE, Net, SharedWeight, plan, trained

WIDTHS = st.sampled_from([bits for bits in BIT_WIDTHS if bits])
EDMIPS_WEIGHTS = [1, 1, 1, 1, 3, 2, 4, 2, 1, 3, 2, 4, 2, 1, 3, 2, 4, 2, 2]
EDMIPS_ACTIVATIONS = [2, 2, 2, 2, 2, 2, 4, 2, 2, 3, 3, 3, 2, 2, 3, 3, 3, 2, 2]


@pytest.fixture(scope="module")
def resnet18() -> LayerGraph:
    return known_graph(torchvision.models.resnet18(), (3, 224, 224))


@pytest.mark.parametrize(
    ("name", "weights"), [("resnet20", 267_264), pytest.param("resnet56", 847_872, marks=pytest.mark.whole)]
)
def test_block_weights_are_the_published_ones(name: str, weights: int) -> None:
    graph = known_graph(ZOO[name](), (3, 32, 32))
    assert sum(layer.weight_elements for layer in graph.layers if layer.name.startswith("layer")) == weights


def test_the_published_resnet20_is_11_6_times_smaller() -> None:
    graph = known_graph(resnet20(), (3, 32, 32))
    bits = (0, 1, 2, 3, 4, 8, 32)
    blocks = build_space(graph, SpaceOptions(bits, (32,), granularity="block", first_layer=32, last_layer=32))
    table = CostTable(graph, blocks, build_costs())
    cells = [(bits.index(width), 0) for width in (4, 4, 3, 3, 3, 4, 4, 3, 1)]
    searched = table.cells_cost(cells)["weight_bits"] - table.constants["weight_bits"]
    assert searched == 737_280
    assert 267_264 * 32 / searched == pytest.approx(11.6, abs=5e-4)


def test_bitops_of_float_resnet18_are_the_published_ones(resnet18: LayerGraph) -> None:
    bitops = sum(BITOPS.of_layer(layer, 32, 32) for layer in resnet18.layers)
    assert bitops / 1e9 == pytest.approx(1857.6, abs=0.05)


def test_bitops_of_edmips_resnet18_are_the_published_ones(resnet18: LayerGraph) -> None:
    inner = [layer for layer in resnet18.layers if layer.name not in ("conv1", "fc")]
    # The paper lists [shortcut] last in each block, as these layers are called.
    assert ["downsample" in layer.name for layer in inner].index(True) == 6
    bitops = sum(
        BITOPS.of_layer(layer, w, a) for layer, w, a in zip(inner, EDMIPS_WEIGHTS, EDMIPS_ACTIVATIONS, strict=True)
    )
    assert bitops / 1e9 == pytest.approx(6.731, abs=5e-4)
    assert math.sqrt(bitops / sum(layer.macs for layer in inner)) == pytest.approx(1.9924, abs=5e-5)


def packed_bytes(network: nn.Module) -> int:
    """Pack a fixed quantized network by hand: bit planes, fp32 scales, biases, folded BatchNorm, fp32 for the rest."""
    total, seen = 0, set()
    for module in network.modules():
        if isinstance(module, QuantizedLayer) and module.weight not in seen:
            seen.add(module.weight)
            total += _packed_weight(module.weight, module.quantize_weight)
        if isinstance(module, QuantizedLayer):
            total += 4 * bool(module.quantize_input.widths)
            total += 0 if module.bias is None else module.bias.detach().numpy().nbytes
        elif isinstance(module, _BatchNorm):
            total += 2 * np.zeros(module.num_features, np.float32).nbytes
        elif isinstance(module, nn.Conv2d | nn.Linear):
            total += sum(p.detach().numpy().nbytes for p in module.parameters())
    return total


def _packed_weight(weight: nn.Parameter, quantizer: TensorQuantizer) -> int:
    if not quantizer.widths:
        return weight.detach().numpy().nbytes
    (bits,) = quantizer.widths
    prepared, clip = quantizer.prepare(weight.detach())
    shape = (-1, *[1] * (weight.dim() - 1))
    grid = quantizer.quantizer.grid(bits, True)
    codes = encode(prepared, clip.reshape(shape), grid, signed=True).numpy()
    assert 0 <= codes.min()
    assert codes.max() < 2**bits
    planes = [np.packbits((codes.reshape(-1) >> plane) & 1) for plane in range(bits)]
    return sum(plane.nbytes for plane in planes) + clip.detach().numpy().nbytes


@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize(
    "pairs",
    [
        [(8, 8), (3, 5), (1, 2), (8, 8)],
        [(32, 32), (0, 0), (0, 0), (32, 8)],
        [(4, 32), (32, 32), (7, 32), (16, 16)],
    ],
)
def test_the_priced_size_is_that_of_the_bytes_packed(pairs: list[tuple[int, int]], per_channel: bool) -> None:
    model = trained(Net(channels=5))
    graph = known_graph(model, SHAPE)
    layers = {layer.name: LayerBits(*pair) for layer, pair in zip(graph.layers, pairs, strict=True)}
    fixed = quantize_fixed(model, graph, layers, QuantizerChoice(per_channel=per_channel))
    table = CostTable(graph, build_space(graph, SpaceOptions()), build_costs(per_channel))
    if any(isinstance(module, SkippedLayer) for module in fixed.modules()):
        fixed.first_norm = fixed.second_norm = nn.Identity()  # the dropped branch is not written
    assert table.price(layers)["size_bytes"] == packed_bytes(fixed)


def test_a_shared_weight_is_packed_and_counted_once() -> None:
    model = SharedWeight()
    graph, _, table = plan(model, first_layer="search")
    layers = {layer.name: LayerBits(3, 4) for layer in graph.layers}
    assert table.price(layers)["size_bytes"] == packed_bytes(quantize_fixed(model, graph, layers, QuantizerChoice()))
    assert table.price(layers)["weight_bits"] == 3 * (36 * 36 + 72)


@given(st.integers(1, 10_000), WIDTHS)
def test_packed_weights_are_bit_planes(elements: int, bits: int) -> None:
    codes = np.zeros(elements, np.uint8)
    planes = bits * np.packbits(codes).nbytes
    assert packed_weight_bytes(elements, bits) == (codes.astype(np.float32).nbytes if bits == 32 else planes)


LAYER = LayerSpec("a", "Conv2d", (8, 4, 3, 3), (4, 6, 6), (8, 6, 6), 36 * 288, 8, bias_elements=8, norm_channels=8)


@pytest.mark.parametrize("cost", [*build_costs(), size_bytes(per_channel=True)], ids=lambda cost: cost.name)
@given(first=st.tuples(WIDTHS, WIDTHS), second=st.tuples(WIDTHS, WIDTHS))
def test_no_cost_falls_when_bits_rise(cost: object, first: tuple[int, int], second: tuple[int, int]) -> None:
    low, high = np.minimum(first, second).tolist(), np.maximum(first, second).tolist()
    if cost.name == "size_bytes" and 32 in high:  # fp32 needs no scale: up to 4 bytes less than it says in 16 bits
        high = [16 if bits == 32 else bits for bits in high]
        low = [16 if bits == 32 else bits for bits in low]
    assert cost.of_layer(LAYER, *low) <= cost.of_layer(LAYER, *high)
    assert cost.of_layer(LAYER, 0, 0) == 0


@given(st.data())
def test_the_table_adds_up_to_the_price_of_the_whole(data: st.DataObject) -> None:
    _, space, table = _TOY
    cells = [
        (
            data.draw(st.integers(0, len(space.weight_bits) - 1)),
            data.draw(st.integers(0, len(space.activation_bits) - 1)),
        )
        for _ in space.decisions
    ]
    exact = table.cells_cost(cells)
    for name, entries in table.entries.items():
        chosen = [entries[index, row, column] for index, (row, column) in enumerate(cells)]
        parts = [table.constants[name], *chosen]
        assert exact[name] == (max(parts) if name == "peak_activation_bytes" else sum(parts))


_TOY = plan(Net(), weight_bits=(0, 1, 4, 32), activation_bits=(2, 8, 32), granularity="block", first_layer="search",
            include=("first", "second"))  # fmt: skip


def test_peak_activation_is_the_largest_input() -> None:
    _, space, table = plan(Net(channels=3), first_layer="search")
    uniform = table.price(space.uniform(4, 4))["peak_activation_bytes"]
    assert uniform == 3 * 36 * 4 / 8
    assert table.price(space.uniform(4, 1))["peak_activation_bytes"] == 14  # 13.5 bytes


@pytest.mark.parametrize("suffix", [".json", ".csv"])
def test_a_latency_table_is_added_up(tmp_path: Path, suffix: str) -> None:
    rows = [
        {"layer": name, "weight_bits": w, "activation_bits": a, "latency_ms": w * a / 64 + len(name)}
        for name in ("stem", "first", "second", "head")
        for w, a in ((2, 8), (8, 8))
    ]
    path = tmp_path / f"latency{suffix}"
    header = ",".join(rows[0])
    lines = "\n".join(",".join(map(str, row.values())) for row in rows)
    path.write_text(json.dumps(rows) if suffix == ".json" else f"{header}\n{lines}\n")
    graph = known_graph(Net(), SHAPE)
    space = build_space(graph, SpaceOptions((2, 8), (8,)))
    table = CostTable(graph, space, [latency_table(path)])
    assert table.cells_cost([(0, 0), (1, 0)]) == {"latency_ms": 19 + 1 + 0.25 + 1 + 1}
    with pytest.raises(InputError, match=r"no row for layer 'stem' at 4 weight bits and 4 activation bits"):
        table.uniform(4)


@pytest.mark.parametrize("text", ["", "layer,weight_bits\nstem,8\n", "{", '[{"layer": 1}]'])
def test_a_damaged_latency_table_is_an_input_error(tmp_path: Path, text: str) -> None:
    path = tmp_path / ("latency.json" if text[:1] in "[{" else "latency.csv")
    path.write_text(text)
    graph = known_graph(Net(), SHAPE)
    with pytest.raises(InputError, match="latency table"):
        CostTable(graph, build_space(graph, SpaceOptions()), [latency_table(path)])


@pytest.mark.parametrize("source", ["math:nothing", "nowhere.at:all", "math:pi", "math", "math:"])
def test_an_own_cost_that_is_no_function_is_refused_by_name(source: str) -> None:
    with pytest.raises(InputError, match=f"cost 'mine'.*{source.partition(':')[0]}"):
        user_cost("mine", source)


def by_macs(layer: LayerSpec, weight_bits: int, activation_bits: int) -> float:
    return layer.macs / weight_bits


@pytest.mark.parametrize("value", [math.nan, math.inf, -1.0, 1e100, 1e300])
def test_an_own_cost_without_sense_is_told_with_layer_and_bits(value: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.toys.mine", lambda layer, w, a: value, raising=False)
    graph = known_graph(Net(), SHAPE)
    with pytest.raises(InputError, match=r"cost 'mine' of layer 'first' at \(2, 2\) is"):
        CostTable(graph, build_space(graph, SpaceOptions()), [user_cost("mine", "tests.toys:mine")])


def raises(graph: LayerGraph) -> float:
    raise KeyError("place")


@pytest.mark.parametrize(
    ("rest", "why"),
    [
        (lambda graph: math.nan, "is nan; it must be a number from 0 to"),
        (lambda graph: -1.0, "is -1.0; it must be"),
        (lambda graph: 1e300, r"is 1e\+300; it must be"),
        (lambda graph: None, "failed: TypeError.*; Cost.network is called as"),
        (lambda: 1.0, "failed: TypeError"),
        (raises, "failed: KeyError: 'place'"),
    ],
)
def test_what_an_own_cost_says_of_the_rest_is_checked_too(rest: Any, why: str) -> None:
    graph = known_graph(Net(), SHAPE)
    with pytest.raises(InputError, match=f"^cost 'mine' of the rest of the network {why}"):
        CostTable(graph, build_space(graph, SpaceOptions()), [Cost("mine", "", by_macs, network=rest)])


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"combine": "mean"}, "layers combine by 'sum' or 'max', not 'mean'"),
        ({"combine": None}, "layers combine by 'sum' or 'max', not None"),
        ({"layer": 3.0}, "layer is a float, not a function"),
        ({"network": 0.0}, "network is a float, not a function"),
    ],
)
def test_a_cost_of_fields_that_say_nothing_is_refused(fields: dict[str, Any], why: str) -> None:
    with pytest.raises(InputError, match=f"^cost 'mine': {why}"):
        Cost(**{"name": "mine", "unit": "", "layer": by_macs} | fields)


def test_an_own_cost_is_summed_and_may_not_take_a_built_in_name() -> None:
    (*_, mine) = build_costs(functions={"mine": f"{__name__}:by_macs"})
    graph = known_graph(Net(), SHAPE)
    table = CostTable(graph, build_space(graph, SpaceOptions()), [mine])
    assert table.uniform(4) == {"mine": graph.macs / 4}
    with pytest.raises(InputError, match="name of a built-in cost"):
        build_costs(functions={"macs": "math:sqrt"})


def test_an_unknown_cost_names_the_nearest() -> None:
    with pytest.raises(InputError, match=r"unknown cost 'bitop'; .*did you mean 'bitops'"):
        _TOY[2].require("bitop")
