"""A quantized net without some of its filters is the masked one, is rebuilt from its file, and weighs what it costs."""

from __future__ import annotations

import copy
import functools
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from itertools import cycle
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dnas import apply
from dnas.quantization.branches import SkippedLayer
from dnas.quantization.calibration import calibrate
from dnas.quantization.conversion import QuantizerChoice, quantize_fixed
from dnas.quantization.layers import QuantizedLayer
from search_spaces.assignments import BitAssignment, LayerBits, ModelReference
from search_spaces.channels.slicing import remove_filters
from search_spaces.costs.table import CostTable, build_costs
from search_spaces.errors import InputError
from search_spaces.groups import kept_rows
from search_spaces.layers import LayerGraph
from search_spaces.models.zoo import tiny_resnet
from search_spaces.options import SpaceOptions
from search_spaces.spaces import build_space
from tests.known import known_graph
from tests.search_spaces.channel_toys import CASES, some_kept
from tests.search_spaces.channel_toys import trained as with_statistics
from tests.toys import SHAPE, Net, seeded, trained

Kept = Mapping[str, tuple[int, ...]]
FAMILIES = [(name, bits) for name in ("lsq", "nested", "dorefa", "logarithmic") for bits in (1, 2, 4)] + [("binary", 1)]


def grouped() -> nn.Module:
    """A depthwise and a grouped convolution, and a classifier behind a flatten."""
    return nn.Sequential(
        nn.Conv2d(1, 8, 3),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 12, 1, groups=2),
        nn.BatchNorm2d(12),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(48, 5),
    )


class Scaled(nn.Module):
    """A layer scale, a stored vector and a GroupNorm behind filters that are added."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.second = nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3, padding=1)
        self.gamma, self.shares = nn.Parameter(torch.rand(8, 1, 1)), nn.GroupNorm(4, 8)
        self.register_buffer("shift", torch.rand(1, 8, 1, 1))
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.first(x)).relu()
        x = self.shares(x + self.gamma * self.second(x)) - self.shift
        return self.head(x.mean((2, 3)))


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "residual": lambda: Net(channels=6),
    "grouped": grouped,
    "scaled": Scaled,
    "norm last": lambda: tiny_resnet(num_classes=3, width=4, norm_last=True),
}


@functools.cache
def network_and_graph(name: str) -> tuple[nn.Module, LayerGraph]:
    torch.manual_seed(0)
    case = CASES.get(name.removeprefix("toy "))
    network = with_statistics(case.build()) if case and name not in NETWORKS else trained(NETWORKS[name]())
    return network.float().eval(), known_graph(network.float(), case.shape if case and name not in NETWORKS else SHAPE)


def bits_of(graph: LayerGraph, weight_bits: int, skipped: bool = False) -> dict[str, LayerBits]:
    """The same bits for all weights, 2 to 4 for the inputs; perhaps a dropped branch."""
    layers = {
        layer.name: LayerBits(weight_bits, (2, 3, 4)[number % 3], layer.out_channels)
        for number, layer in enumerate(graph.layers)
    }
    gone = {name for branch in graph.branches for name in branch.layers} if skipped else set()
    return {name: LayerBits(0, 0, bits.out_channels) if name in gone else bits for name, bits in layers.items()}


def quantized(
    name: str, weight_bits: int, choice: QuantizerChoice, skipped: bool = False
) -> tuple[nn.Module, LayerGraph, dict[str, LayerBits]]:
    """The quantized net, calibrated, in float64 and eval mode."""
    network, graph = network_and_graph(name)
    layers = bits_of(graph, weight_bits, skipped)
    net = quantize_fixed(network, graph, layers, choice)
    calibrate(net, [torch.randn(16, *graph.input_shape, generator=seeded(5))])
    return net.double().eval(), graph, layers


def masked(network: nn.Module, graph: LayerGraph, kept: Kept) -> nn.Module:
    """A copy in which every layer reads zeros, behind its input's quantizer, where a channel is gone."""
    copied = copy.deepcopy(network)
    for group in graph.channels.groups:
        for name, units in group.columns.items():
            stays = torch.tensor([unit < 0 or unit in kept.get(group.name, units) for unit in units])
            layer = copied.get_submodule(name)

            def hook(module: nn.Module, inputs: Any, output: Tensor, stays: Tensor = stays, to: Any = layer) -> Tensor:
                spatial = 0 if getattr(to, "weight", output).dim() == 2 else output.dim() - 2
                return output * stays.reshape(-1, *[1] * spatial)

            if isinstance(layer, QuantizedLayer):
                layer.quantize_input.register_forward_hook(hook)
            else:
                assert isinstance(layer, SkippedLayer)  # it reads nothing
    return copied


def logits(network: nn.Module, shape: tuple[int, ...], seed: int = 7) -> Tensor:
    dtype = next(network.parameters()).dtype
    with torch.inference_mode():
        return network(torch.randn(4, *shape, generator=seeded(seed)).to(dtype))


def assert_pruned_is_masked(network: nn.Module, graph: LayerGraph, kept: Kept, felt: bool = True) -> nn.Module:
    smaller = remove_filters(network, graph.channels, kept)
    expected = logits(masked(network, graph, kept), graph.input_shape)
    scale = float(expected.abs().max())
    assert scale > 1e-3
    assert float((logits(smaller, graph.input_shape) - expected).abs().max()) < 1e-12 * max(1.0, scale)
    if felt:
        assert float((logits(network, graph.input_shape) - expected).abs().max()) > 1e-6
    return smaller


@pytest.mark.parametrize(("name", "per_channel"), [("residual", True), ("grouped", False)])
@pytest.mark.parametrize(("family", "bits"), FAMILIES)
def test_the_pruned_net_is_the_masked_one(family: str, bits: int, per_channel: bool, name: str) -> None:
    network, graph, _ = quantized(name, bits, QuantizerChoice(family, "pact", per_channel))
    assert_pruned_is_masked(network, graph, some_kept(graph.channels, 0.5, seed=1))


@pytest.mark.parametrize("family", ["lsq", "logarithmic"])
def test_so_it_is_where_batchnorm_comes_last(family: str) -> None:
    network, graph, _ = quantized("norm last", 2, QuantizerChoice(family, "pact", True))
    kept = some_kept(graph.channels, 0.5)
    smaller = assert_pruned_is_masked(network, graph, kept)
    gone = graph.other_bytes - sum(8 * m.num_features for m in smaller.modules() if isinstance(m, nn.BatchNorm2d))
    assert gone > 0  # the BatchNorms, which no layer accounts for, lose entries too


@pytest.mark.parametrize("activations", ["lsq", "nested", "dorefa"])
def test_so_it_is_for_every_quantizer_of_activations(activations: str) -> None:
    for name in NETWORKS:  # some of these quantizers have no zero: the mask must come behind them
        network, graph, _ = quantized(name, 2, QuantizerChoice("lsq", activations))
        assert_pruned_is_masked(network, graph, some_kept(graph.channels, 0.5))


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("activations", ["tanh", "logarithmic"])
def test_so_it_is_for_dynamic_ranges_of_activations_once_they_are_held(activations: str, name: str) -> None:
    network, graph, _ = quantized(name, 2, QuantizerChoice("lsq", activations))
    hooks = [
        module.register_forward_pre_hook(lambda module, given: module.quantize_input.hold(given[0]))
        for module in network.modules()
        if isinstance(module, QuantizedLayer)
    ]
    logits(network, graph.input_shape)
    for hook in hooks:
        hook.remove()
    assert_pruned_is_masked(network, graph, some_kept(graph.channels, 0.5))


@pytest.mark.parametrize("name", NETWORKS)
def test_a_dynamic_maximum_is_that_of_the_channels_left(name: str) -> None:
    """The mask stands before the quantizer, which then has the same maximum, and behind it, for it has no zero."""
    network, graph, _ = quantized(name, 2, QuantizerChoice("lsq", "tanh"))
    kept = some_kept(graph.channels, 0.5)
    both = masked(network, graph, kept)
    for group in graph.channels.groups:
        for layer, units in group.columns.items():
            stays = torch.tensor([unit < 0 or unit in kept.get(group.name, units) for unit in units])

            def hook(module: nn.Module, given: tuple[Tensor], stays: Tensor = stays) -> Tensor:
                return given[0] * stays.reshape(-1, *[1] * (given[0].dim() - 2))

            both.get_submodule(layer).register_forward_pre_hook(hook)
    smaller = remove_filters(network, graph.channels, kept)
    expected = logits(both, graph.input_shape)
    assert float(expected.abs().max()) > 1e-3
    torch.testing.assert_close(logits(smaller, graph.input_shape), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("name", "choice"),
    [
        (f"toy {name}", choice)
        for name, choice in zip(
            CASES,
            cycle([QuantizerChoice("dorefa", "pact", False), QuantizerChoice("lsq", "nested", True)]),
            strict=False,
        )
    ],
)
def test_so_it_is_however_channels_are_tied(name: str, choice: QuantizerChoice) -> None:
    network, graph, _ = quantized(name, 3, choice)
    assert_pruned_is_masked(network, graph, some_kept(graph.channels), felt=False)


@pytest.mark.parametrize("family", ["lsq", "nested", "dorefa", "binary", "logarithmic"])
@pytest.mark.parametrize("per_channel", [False, True])
def test_layers_that_are_skipped_lose_filters_too(family: str, per_channel: bool) -> None:
    network, graph, layers = quantized("residual", 1, QuantizerChoice(family, "pact", per_channel), skipped=True)
    assert [name for name, bits in layers.items() if bits.weight_bits == 0] == ["first", "second"]
    smaller = assert_pruned_is_masked(network, graph, {"stem": (0, 3, 5), "first": (1,)})
    assert isinstance(smaller.get_submodule("second"), SkippedLayer)


@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("family", ["dorefa", "binary"])
def test_what_is_removed_no_longer_sets_a_scale_but_once_did(family: str, per_channel: bool) -> None:
    model, graph = network_and_graph("residual")
    model = copy.deepcopy(model)
    with torch.no_grad():
        model.get_submodule("first").weight[2] *= 20  # the largest weights of the layer, and they go
    layers = bits_of(graph, 1 if family == "binary" else 3)
    net = quantize_fixed(model, graph, layers, QuantizerChoice(family, "pact", per_channel))
    calibrate(net, [torch.randn(16, *SHAPE, generator=seeded(5))])
    net = net.double().eval()
    smaller = assert_pruned_is_masked(net, graph, {"first": (0, 1, 3, 4, 5)}, felt=False)
    if not per_channel:  # that scale is held: without it the filters that stay would be others
        smaller.get_submodule("first").quantize_weight.clip.zero_()
        change = logits(smaller, SHAPE) - logits(masked(net, graph, {"first": (0, 1, 3, 4, 5)}), SHAPE)
        assert float(change.abs().max()) > 1e-3


def snapshot(model: nn.Module) -> dict[str, Any]:
    tensors = {name: value.clone() for name, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    return {"tensors": tensors, "modes": modes, "text": repr(model), "ids": [id(p) for p in model.parameters()]}


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    tensors = one["tensors"].keys() == other["tensors"].keys()
    tensors = tensors and all(torch.equal(value, other["tensors"][name]) for name, value in one["tensors"].items())
    return tensors and all(one[key] == other[key] for key in ("modes", "text", "ids"))


def assignment(
    graph: LayerGraph, layers: Mapping[str, LayerBits], kept: Kept, choice: QuantizerChoice
) -> BitAssignment:
    rows = kept_rows(graph.channels, kept)
    cut = {
        name: replace(bits, kept_channels=rows[name], out_channels=len(rows[name])) if name in rows else bits
        for name, bits in layers.items()
    }
    model = ModelReference("tests:toy", graph.input_shape)
    return BitAssignment("toy-pruned-1", model, cut, {}, {}, {"quantizer": asdict(choice)})


@pytest.mark.parametrize(
    ("name", "skipped", "per_channel"),
    [("residual", False, False), ("residual", True, True), ("grouped", False, True), ("grouped", True, False)],
)
@pytest.mark.parametrize(("family", "bits"), [*FAMILIES[1::3], ("nested", 4), ("dorefa", 1), ("binary", 1)])
def test_a_pruned_net_is_rebuilt_from_its_assignment_and_its_weights(
    family: str, bits: int, per_channel: bool, skipped: bool, name: str
) -> None:
    choice = QuantizerChoice(family, "pact", per_channel)
    network, graph, layers = quantized(name, bits, choice, skipped)
    kept = some_kept(graph.channels, 0.5)
    smaller = remove_filters(network, graph.channels, kept)
    written = json.dumps(assignment(graph, layers, kept, choice).to_json())

    torch.manual_seed(99)
    model = NETWORKS[name]().train()  # other weights, as in another process
    before = snapshot(model)
    rebuilt = apply(model, BitAssignment.loads(written))
    rebuilt.double().load_state_dict(smaller.state_dict())
    assert torch.equal(logits(rebuilt.eval(), SHAPE), logits(smaller, SHAPE))
    assert same(before, snapshot(model))
    with torch.no_grad():
        for tensor in rebuilt.parameters():
            tensor.zero_()
    assert same(before, snapshot(model))  # no memory in common


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"first": (0, 1, 9)}, "cannot be removed in this network"),
        ({"first": (2, 1, 0)}, "cannot be removed in this network"),
        ({"first": ()}, "would lose all its 6 units"),
        ({"stem": (0, 1)}, "do not fit those of 'stem', which go together"),
        ({"head": (0, 1)}, r"layer 'head' cannot be removed in this network \(.*output"),
    ],
)
def test_filters_that_another_network_kept_are_refused(change: dict[str, tuple[int, ...]], sentence: str) -> None:
    model, graph = network_and_graph("residual")
    layers = bits_of(graph, 2)
    for name, rows in change.items():
        layers[name] = replace(layers[name], kept_channels=rows)
    with pytest.raises(InputError, match=sentence):
        apply(model, BitAssignment("other", ModelReference("x", SHAPE), layers))


def test_an_assignment_of_a_wider_or_another_network_is_refused() -> None:
    _, graph = network_and_graph("residual")
    pruned = assignment(graph, bits_of(graph, 2), {"first": (0, 5), "stem": (1, 4)}, QuantizerChoice())
    with pytest.raises(InputError, match="made for another network, or was edited"):
        apply(Net(channels=5), pruned)
    with pytest.raises(InputError, match="which this network does not have"):
        apply(nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(32, 3)), pruned)


def bytes_by_hand(network: nn.Module) -> int:
    """Pack by the shapes that are left: a plane of bits for each bit of a code, fp32 for everything else."""
    total = 0
    for module in network.modules():
        if isinstance(module, QuantizedLayer):
            shape, (bits,) = tuple(module.weight.shape), module.quantize_weight.bits
            total += sum(np.packbits(np.ones(shape, np.uint8)).nbytes for _ in range(bits))
            scales = shape[0] if module.quantize_weight.channel_axis is not None else 1
            total += np.zeros(scales, np.float32).nbytes + np.zeros(1, np.float32).nbytes  # and the input's scale
            total += 0 if module.bias is None else np.zeros(shape[0], np.float32).nbytes
        elif isinstance(module, nn.BatchNorm2d):
            total += np.zeros((2, len(module.running_mean)), np.float32).nbytes  # folded
        elif isinstance(module, (nn.GroupNorm, Scaled)):
            total += sum(4 * own.numel() for own in (*module._parameters.values(), *module._buffers.values()))
    return total


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("bits", [1, 3])
def test_the_priced_size_is_that_of_the_bytes_left(name: str, per_channel: bool, bits: int) -> None:
    choice = QuantizerChoice("nested", "pact", per_channel)
    network, graph, layers = quantized(name, bits, choice)
    table = CostTable(graph, build_space(graph, SpaceOptions()), build_costs(per_channel))
    assert table.price(layers)["size_bytes"] == bytes_by_hand(network)
    for share in (0.2, 0.5, 0.8):
        kept = some_kept(graph.channels, share)
        pruned = assignment(graph, layers, kept, choice)
        size = table.price(pruned.layers)["size_bytes"]
        assert size == bytes_by_hand(remove_filters(network, graph.channels, kept))
        assert size < table.price(layers)["size_bytes"]
