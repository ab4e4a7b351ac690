"""What a layer multiplies with is what is quantized, whatever made it: parametrizations, norms, masks, its own code."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize, prune

from dnas.quantization.calibration import calibrate, calibrate_weights
from dnas.quantization.conversion import QuantizerChoice, quantize_fixed
from dnas.quantization.layers import QuantizedLayer, TensorQuantizer
from dnas.search.sensitivity import sensitivities
from dnas.search.supernet import Supernet
from search_spaces.assignments import LayerBits
from search_spaces.costs.table import CostTable, build_costs
from search_spaces.errors import InputError
from search_spaces.layers import LayerGraph
from search_spaces.network.graph import read_graph
from search_spaces.options import SpaceOptions
from search_spaces.spaces import build_space
from tests.made_weights import KINDS, SHAPE, Doubled, Standardized, by_hooks, conv, graph_of, images, name_of, network
from tests.toys import hand_over, seeded


def quantized(model: nn.Module, graph: LayerGraph | None = None) -> nn.Module:
    graph = graph or read_graph(model, SHAPE)
    net = quantize_fixed(model, graph, {name: LayerBits(3, 32) for name in graph.by_name})
    calibrate(net, [images()])
    return net.eval()


def rounded(weight: Tensor, quantizer: TensorQuantizer) -> Tensor:
    """LSQ at 3 bits (arXiv 1902.08153, eq. 1 and 2), in numpy: integers from -4 to 3 times the step."""
    step = float(quantizer.clip.detach()) / 4
    codes = np.floor(np.clip(weight.detach().numpy() / step, -4, 4) + 0.5).clip(-4, 3)
    return torch.tensor(codes * step * float(quantizer.gain)).float()


def by_hand(layer: Any, x: Tensor, weight: Tensor) -> Tensor:
    """The layer's operation with another weight."""
    if isinstance(layer, nn.Linear):
        return F.linear(x, weight, layer.bias)
    run = F.conv_transpose2d if isinstance(layer, nn.ConvTranspose2d) else F.conv2d
    return run(x, weight, layer.bias, layer.stride, layer.padding) * getattr(layer, "scale", 1.0)


@pytest.mark.parametrize("kind", KINDS)
def test_the_weight_that_is_multiplied_with_is_quantized(kind: str) -> None:
    made, graph = name_of(kind), graph_of(kind)
    assert graph[made].weight_from != "parameter"
    assert not graph.unsupported
    net = quantized(network(kind), graph)
    layer, seen = net.get_submodule(made), {}
    layer.register_forward_hook(lambda module, given, output: seen.update(x=given[0], y=output))
    net(images())
    effective = KINDS[kind][1](layer)
    torch.testing.assert_close(layer.float_weight(), effective)
    expected = by_hand(layer, seen["x"], rounded(effective, layer.quantize_weight))
    torch.testing.assert_close(seen["y"], expected, rtol=1e-5, atol=1e-5)
    fitted = TensorQuantizer(layer.quantize_weight.quantizer, (3,), signed=True)
    fitted.fit(effective)
    torch.testing.assert_close(layer.quantize_weight.clip, fitted.clip)


@pytest.mark.parametrize("kind", KINDS)
def test_the_float_twin_is_the_network_which_stays_as_it_was(kind: str) -> None:
    model = network(kind)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    classes = [type(module) for module in model.modules()]
    expected = model(images())
    net = quantized(model, graph_of(kind))
    for module in net.modules():
        if isinstance(module, QuantizedLayer):
            module.quantize_weight.pass_through()
    assert torch.equal(net(images()), expected)
    assert [type(module) for module in model.modules()] == classes
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert torch.equal(model(images()), expected)


@pytest.mark.parametrize("engine", ["composite", "branches"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_one_hot_supernet_is_the_fixed_net_bit_for_bit(kind: str, engine: Any) -> None:
    model, graph = network(kind), graph_of(kind)
    options = SpaceOptions(weight_bits=(2, 3), activation_bits=(4, 32), first_layer="search", last_layer="search")
    space = build_space(graph, options)
    supernet = Supernet(model, graph, space, CostTable(graph, space, build_costs()), engine=engine).eval()
    calibrate(supernet.network, [images()])
    cells = [(1, 0)] * len(space.decisions)
    fixed = quantize_fixed(model, graph, space.layers_of(cells)).eval()
    for name in graph.by_name:
        source: Any = supernet.network.get_submodule(name)
        source = source.branches[2] if engine == "branches" else source
        target: Any = fixed.get_submodule(name)
        hand_over(source.quantize_weight, target.quantize_weight)
        hand_over(source.quantize_input, target.quantize_input)
    with supernet.sampled(supernet.one_hot(cells)):
        assert torch.equal(supernet(images()), fixed(images()))
    supernet.train()
    with supernet.sampled(supernet.sample(1.0, "gumbel", torch.Generator().manual_seed(0))):
        supernet(images()).square().sum().backward()
    parameters = supernet.network.named_parameters()
    assert not [name for name, p in parameters if "quantize_input" not in name and (p.grad is None or not p.grad.any())]


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_go_straight_through_to_what_the_weight_is_made_of(kind: str) -> None:
    made = name_of(kind)
    net = quantized(network(kind), graph_of(kind))
    layer: Any = net.get_submodule(made)
    with torch.no_grad():
        layer.quantize_weight.clip.copy_(1.01 * layer.float_weight().abs().max())
    x = torch.randn(2, *((6,) if isinstance(layer, nn.Linear) else (4, 6, 6)), generator=seeded())
    effective = KINDS[kind][1](layer) if not isinstance(layer, nn.Linear) else layer.weight
    through = effective + (rounded(effective, layer.quantize_weight) - effective).detach()
    own = [p for name, p in layer.named_parameters() if "quantize_" not in name]
    found = torch.autograd.grad(layer(x).square().sum(), own, retain_graph=True)
    expected = torch.autograd.grad(by_hand(layer, x, through).square().sum(), own)
    for actual, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(actual, wanted, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("kind", ["spectral norm by hooks", "spectral norm"])
def test_the_power_iteration_makes_one_step_for_each_pass_in_training_and_none_else(kind: str) -> None:
    model = network(kind)
    net = quantized(model, graph_of(kind)).train()
    buffers = lambda network: [b.clone() for name, b in network.made.named_buffers() if "quantize_" not in name]  # noqa: E731
    before = buffers(net)
    calibrate_weights(net)
    net.made.quantized_weight()
    assert all(map(torch.equal, buffers(net), before))
    net(images())
    model.train()(images())
    assert all(map(torch.equal, buffers(net), buffers(model)))
    assert not all(map(torch.equal, buffers(net), before))


class Ordinary(nn.Conv2d):
    """A layer whose code is given when it is made."""

    def __init__(self, run: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__(4, 6, 3, padding=1)
        self.run, self.other = run, nn.Parameter(torch.randn(6, 4, 3, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self, x)


def set_by_a_hook() -> nn.Module:
    layer = conv()
    layer.raw = nn.Parameter(layer._parameters.pop("weight").detach())
    layer.register_forward_pre_hook(lambda module, given: setattr(module, "weight", module.raw.abs()))
    layer.weight = layer.raw.detach().abs()
    return layer


def generated() -> nn.Module:
    class Generated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.make = nn.Linear(3, 3)

        def forward(self, weight: Tensor) -> Tensor:
            return self.make(weight)

    return parametrize.register_parametrization(conv(), "weight", Generated())


LEFT: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "depends on its input": (
        lambda: Ordinary(lambda m, x: m._conv_forward(x, m.weight * x.mean(), m.bias)),
        "one that depends on its input",
    ),
    "two weights": (
        lambda: Ordinary(
            lambda m, x: m._conv_forward(x, m.weight.tanh(), None) + m._conv_forward(x, m.weight.sin(), None)
        ),
        "multiplies with several weights",
    ),
    "reads it beside": (
        lambda: Ordinary(lambda m, x: m._conv_forward(x, m.weight.tanh(), m.bias) * m.weight.sum()),
        "reads its weight beside",
    ),
    "of another shape": (
        lambda: Ordinary(
            lambda m, x: m._conv_forward(x, torch.cat([m.weight[:3].tanh()] * 2)[:6, :, 1:2, :], m.bias)[:, :, :6]
        ),
        "multiplies with something else",
    ),
    "a hook of one's own": (set_by_a_hook, "computed by other means"),
}


@pytest.mark.parametrize("how", LEFT)
def test_what_is_not_one_weight_stays_in_fp32_and_is_told(how: str) -> None:
    torch.manual_seed(0)
    last = nn.Sequential(nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(24, 3))
    model = nn.Sequential(nn.Conv2d(3, 4, 1), LEFT[how][0](), last).eval()
    graph = read_graph(model, SHAPE)
    assert LEFT[how][1] in graph.unsupported["1"]
    net = quantize_fixed(model, graph, {name: LayerBits(32, 4) for name in graph.by_name}).eval()
    assert not isinstance(net[1], QuantizedLayer)
    for name in graph.by_name:
        net.get_submodule(name).quantize_input.pass_through()
    torch.testing.assert_close(net(images()), model(images()), rtol=0, atol=0)


def test_a_layer_that_makes_the_weight_of_another_is_no_layer_of_its_own() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), generated(), nn.Flatten(), nn.Linear(216, 3)).eval()
    graph = read_graph(model, SHAPE)
    assert set(graph.by_name) == {"0", "1", "3"}
    assert graph.unsupported["1.parametrizations.weight.0.make"] == "it computes a tensor of layer '1'"
    assert {spec.owner for spec in graph.parameters if spec.name.startswith("1.")} == {"1"}
    assert graph.other_bytes == 0


def test_a_parent_that_reads_the_computed_weight_is_seen() -> None:
    class Regularised(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = prune.l1_unstructured(nn.Linear(6, 6), "weight", 0.5)
            self.second = parametrize.register_parametrization(nn.Linear(6, 6), "weight", Doubled())

        def forward(self, x: Tensor) -> Tensor:
            return self.second(self.first(x)) @ self.second.weight + self.first.weight.sum()

    graph = read_graph(Regularised(), (6,))
    assert "its parent calls it and reads the weight" in graph.unsupported["second"]
    with pytest.raises(InputError, match="layer 'first' cannot be quantized"):
        quantize_fixed(Regularised(), graph, {"first": LayerBits(4, 4)})


def test_filters_of_a_made_weight_are_frozen_and_told() -> None:
    for kind in KINDS:
        graph = graph_of(kind)
        assert name_of(kind) not in {layer for group in graph.channels.groups for layer in group.layers}
        assert "is made of others" in graph.channels.frozen[name_of(kind)] or kind.startswith("an orthogonal")


@pytest.mark.parametrize("kind", ["standardisation", "a product of one's own", "masks"])
def test_quantized_nets_of_made_weights_are_pickled(kind: str) -> None:
    with torch.no_grad():
        net = quantized(network(kind), graph_of(kind))
        again = pickle.loads(pickle.dumps(net))
        assert torch.equal(again(images()), net(images()))


def test_masks_of_weight_norm_are_read_in_their_order() -> None:
    model = nn.Sequential(by_hooks(nn.utils.weight_norm, nn.Conv2d(3, 4, 3)), nn.Flatten(), nn.Linear(64, 3)).eval()
    prune.l1_unstructured(model[0], "weight_g", 0.5)
    graph = read_graph(model, SHAPE)
    assert graph["0"].weight_from == "computed"
    assert {name for name in graph.unused if name.startswith("0.")} == {
        "0.weight_g_mask",
        "0.weight_g_orig",
        "0.weight_v",
    }


def test_weight_standardisation_of_timm() -> None:
    timm = pytest.importorskip("timm")
    for layer in (timm.layers.StdConv2d(4, 6, 3, padding=1), timm.layers.ScaledStdConv2d(4, 6, 3, padding=1)):
        model = nn.Sequential(nn.Conv2d(3, 4, 1), layer, nn.Flatten(), nn.Linear(216, 3)).eval()
        net = quantized(model)
        made: Any = net[1]
        scale = made.gain * made.scale if hasattr(made, "gain") else 1.0
        flat = made.weight.flatten(1)
        spread = (flat.var(1, keepdim=True, unbiased=False) + made.eps).sqrt()
        effective = ((flat - flat.mean(1, keepdim=True)) / spread).reshape(made.weight.shape) * scale
        x = torch.randn(2, 4, 6, 6, generator=seeded())
        expected = F.conv2d(x, rounded(effective, made.quantize_weight), made.bias, padding=1)
        torch.testing.assert_close(made(x), expected, rtol=1e-5, atol=1e-5)


def test_standardised_layers_stay_what_they_are() -> None:
    net = quantized(network("standardisation"), graph_of("standardisation"))
    assert isinstance(net.made, Standardized)
    assert isinstance(net.made, QuantizedLayer)
    assert QuantizerChoice().of_weights().name == net.made.quantize_weight.quantizer.name


@pytest.mark.parametrize("kind", ["spectral norm", "masks", "a parametrization under standardisation"])
def test_sensitivities_are_those_of_what_is_multiplied_with(kind: str) -> None:
    """A network that holds the same weights as plain parameters has the same."""
    model = network(kind)
    plain = network(kind)
    held = nn.Conv2d(4, 6, 3, padding=1)
    with torch.no_grad():
        plain(images())  # hooks compute what they set
        held.weight.copy_(KINDS[kind][1](plain.made))
        assert held.bias is not None
        held.bias.copy_(plain.made.bias)
    scale = float(getattr(plain.made, "scale", torch.ones(1)).detach())
    held.register_forward_hook(lambda module, given, output: output * scale)
    plain.made = held
    options = SpaceOptions(weight_bits=(2, 4), activation_bits=(2, 8), first_layer="search", last_layer="search")
    space = build_space(read_graph(model, SHAPE), options)
    batches = [(images(), torch.arange(8) % 3)]
    found, expected = (sensitivities(net, space, QuantizerChoice(), batches, seed=1) for net in (model, plain))
    np.testing.assert_allclose(found, expected, rtol=1e-3)
