"""Conversion: the caller's model is left untouched, and the usual traps in foreign networks do no harm."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dnas.export.save import save_packed
from dnas.export.unpack import load
from dnas.quantization.branches import SkippedLayer
from dnas.quantization.calibration import calibrate, recalibrate_batchnorm
from dnas.quantization.conversion import QuantizerChoice, apply, quantize_fixed
from dnas.quantization.layers import QuantizedLayer
from dnas.search.sensitivity import sensitivities
from dnas.search.supernet import Supernet
from search_spaces.assignments import BitAssignment, LayerBits, ModelReference
from search_spaces.costs.table import CostTable, build_costs
from search_spaces.errors import InputError
from search_spaces.network.graph import read_graph
from search_spaces.options import SpaceOptions
from search_spaces.spaces import build_space
from tests.known import known_graph
from tests.toys import SHAPE, CalledTwice, Net, SharedWeight, build_supernet, images, inputs, plan, seeded, trained


def fixed(model: nn.Module, weight_bits: int = 4, activation_bits: int = 4, shape: Any = SHAPE) -> nn.Module:
    graph = known_graph(model, shape)
    layers = {layer.name: LayerBits(weight_bits, activation_bits) for layer in graph.layers}
    return quantize_fixed(model, graph, layers, QuantizerChoice())


def one_step(network: nn.Module, x: Tensor) -> None:
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    network(x).square().sum().backward()
    optimizer.step()


def snapshot(model: nn.Module) -> dict[str, Any]:
    """Everything about a model that a conversion could disturb."""
    return {
        "state": {name: value.clone() for name, value in model.state_dict().items()},
        "tensors": [id(tensor) for tensor in (*model.parameters(), *model.buffers())],
        "gradients": [parameter.grad for parameter in model.parameters()],
        "trains": [parameter.requires_grad for parameter in model.parameters()],
        "modes": [module.training for module in model.modules()],
        "attributes": [sorted(vars(module)) for module in model.modules()],
        "plain": [
            {key: value for key, value in vars(module).items() if isinstance(value, bool | int | float | str | tuple)}
            for module in model.modules()
        ],
        "hooks": [
            len(module._forward_hooks) + len(module._forward_pre_hooks) + len(module._backward_hooks)
            for module in model.modules()
        ],
    }


def assert_untouched(model: nn.Module, before: dict[str, Any]) -> None:
    after = snapshot(model)
    assert all(torch.equal(before["state"][name], value) for name, value in after["state"].items())
    assert {**before, "state": None} == {**after, "state": None}


@pytest.mark.parametrize("engine", ["composite", "branches"])
def test_nothing_that_is_done_with_a_model_touches_it(engine: Any) -> None:
    model = trained(Net()).train()
    model.first_norm.eval()
    model.stem.weight.requires_grad_(False)
    before = snapshot(model)

    graph = known_graph(model, SHAPE)
    space = build_space(graph, SpaceOptions(weight_bits=(0, 2, 4), granularity="block", include=("first", "second")))
    supernet = Supernet(model, graph, space, CostTable(graph, space, []), engine=engine)
    calibrate(supernet.network, [inputs()])
    with supernet.sampled(supernet.theta.probabilities()):
        one_step(supernet, inputs())
    network = fixed(model)
    calibrate(network, [inputs()])
    one_step(network, inputs())
    recalibrate_batchnorm(network, [inputs()])
    sensitivities(model, space, QuantizerChoice(), list(images().batches(8)))
    assert_untouched(model, before)


def test_in_place_activations_change_no_gradient() -> None:
    class Plain(Net):
        def __init__(self) -> None:
            super().__init__()
            self.relu = nn.ReLU(inplace=False)

    gradients = []
    for kind in (Net, Plain):
        network = fixed(trained(kind()))
        calibrate(network, [inputs()])
        network(inputs()).square().sum().backward()
        gradients.append([parameter.grad for parameter in network.parameters()])
    assert all(torch.equal(*pair) for pair in zip(*gradients, strict=True))


def test_a_layer_called_twice_is_quantized_in_both_calls() -> None:
    model = trained(CalledTwice())
    network = fixed(model, 2, 2)
    calibrate(network, [inputs()])
    seen: list[int] = []
    network.conv.quantize_input.register_forward_hook(lambda module, given, output: seen.append(len(output.unique())))
    network(inputs()).sum().backward()
    assert len(seen) == 2
    assert max(seen) <= 4
    assert network.conv.weight.grad.abs().sum() > 0


def test_a_shared_weight_stays_shared() -> None:
    network = fixed(SharedWeight())
    assert network.first.weight is network.second.weight
    supernet = build_supernet(SharedWeight(), first_layer="search")
    assert supernet.network.first.weight is supernet.network.second.weight
    weights = [parameter for parameter in supernet.weights if parameter.dim() == 2 and parameter.shape != (1, 1)]
    assert [tuple(weight.shape) for weight in weights] == [(36, 36), (2, 36)]
    one_step(network, inputs())
    assert network.first.weight is network.second.weight


def test_a_module_registered_under_two_names_is_quantized_wherever_it_is_called() -> None:
    class Alias(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(36, 36)
            self.again = self.first
            self.head = nn.Linear(36, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.again(self.first(x.flatten(1)).relu()))

    network = fixed(Alias())
    assert isinstance(network.again, QuantizedLayer)
    assert network.again is network.first
    composite = build_supernet(Alias(), first_layer="search").network
    assert composite.again is composite.first


@pytest.mark.parametrize("bits", [(32, 32), (8, 32), (32, 8), (4, 4)])
def test_a_fixed_net_runs_each_layer_at_its_bits(bits: tuple[int, int]) -> None:
    network = fixed(trained(Net()), *bits)
    for name in ("stem", "first", "second", "head"):
        layer = network.get_submodule(name)
        if bits == (32, 32):
            assert not isinstance(layer, QuantizedLayer)
        else:
            assert (layer.quantize_weight.bits, layer.quantize_input.bits) == ((bits[0],), (bits[1],))


def test_a_fixed_net_at_32_bits_is_the_model_bit_for_bit() -> None:
    model = trained(Net()).eval()
    assert torch.equal(fixed(model, 32, 32)(inputs()), model(inputs()))


def test_a_skipped_branch_adds_nothing_and_holds_nothing() -> None:
    model = trained(Net()).eval()
    graph = known_graph(model, SHAPE)
    bits = {"stem": LayerBits(32, 32), "head": LayerBits(32, 32), "first": LayerBits(0, 0), "second": LayerBits(0, 0)}
    network = quantize_fixed(model, graph, bits, QuantizerChoice())
    assert isinstance(network.first, SkippedLayer)
    x = inputs()
    by_hand = model.head(model.stem_norm(model.stem(x)).relu().mean((2, 3)))
    torch.testing.assert_close(network(x), by_hand)
    network.train()(x).sum().backward()
    assert not any(name.startswith(("first.", "second.")) for name in network.state_dict())


def test_copies_of_a_fixed_net_are_whole_and_independent() -> None:
    network = fixed(trained(Net()))
    calibrate(network, [inputs()])
    one_step(network, inputs())
    twin = copy.deepcopy(network)
    expected = network.eval()(inputs())
    assert torch.equal(twin.eval()(inputs()), expected)
    one_step(twin, inputs())
    assert torch.equal(network(inputs()), expected)


def test_the_state_of_a_calibrated_net_loads_into_a_fresh_one() -> None:
    model = trained(Net())
    network, fresh = fixed(model), fixed(Net())
    calibrate(network, [inputs()])
    one_step(network, inputs())
    fresh.load_state_dict(network.state_dict())
    assert torch.equal(fresh.eval()(inputs()), network.eval()(inputs()))


def test_apply_gives_the_net_of_an_assignment_and_refuses_another_networks() -> None:
    model = trained(Net())
    layers = {name: LayerBits(2, 8) for name in ("stem", "first", "second", "head")}
    assignment = BitAssignment("mine", ModelReference("toy", SHAPE), layers)
    assert apply(model, assignment).head.quantize_weight.bits == (2,)
    with pytest.raises(InputError, match="names layer 'stem'"):
        apply(SharedWeight(), assignment)


def test_float64_models_are_quantized_in_float64() -> None:
    model = trained(Net()).double()
    graph, space, table = plan(Net(), weight_bits=(2, 4), activation_bits=(2, 4))
    supernet = Supernet(model, graph, space, table).double()
    x = torch.randn(4, *SHAPE, generator=seeded(), dtype=torch.float64)
    calibrate(supernet.network, [x])
    with supernet.sampled(supernet.one_hot([(0, 1), (1, 0)])):
        assert supernet(x).dtype == torch.float64


@pytest.mark.filterwarnings(
    "ignore:.*torch.jit.*deprecated", "ignore:The .grad attribute of a Tensor that is not a leaf"
)
def test_a_scripted_part_stays_as_it_is(tmp_path: Path) -> None:
    def network() -> nn.Module:
        return nn.Sequential(torch.jit.script(nn.Sequential(nn.Linear(4, 5), nn.ReLU())), nn.Linear(5, 2)).eval()

    model, x = network(), torch.randn(3, 4, generator=seeded())
    graph = read_graph(model, (4,))
    assert [layer.name for layer in graph.layers] == ["1"]
    layers = {"1": LayerBits(4, 8)}
    twin = quantize_fixed(model, graph, layers)
    calibrate(twin, [x])
    expected = nn.functional.linear(twin[1].quantize_input(model[0](x)), twin[1].quantized_weight(), model[1].bias)
    assert torch.equal(twin.eval()(x), expected)
    ends = {"first_layer": "search", "last_layer": "search"}
    space = build_space(graph, SpaceOptions(weight_bits=(4,), activation_bits=(8,), **ends))
    cost = CostTable(graph, space, build_costs()).price(layers)
    reference = ModelReference("mine", graph.input_shape)
    save_packed(tmp_path / "a", twin, graph, BitAssignment("a", reference, layers, cost))
    assert torch.equal(load(tmp_path / "a", network())(x), expected)


def test_another_network_or_a_quantized_one_is_refused() -> None:
    model = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 2))
    graph = read_graph(model, (4,))
    layers = {name: LayerBits(4, 8) for name in graph.by_name}
    with pytest.raises(InputError, match=r"the network has no layer '2'; give the graph that read_graph told"):
        quantize_fixed(nn.Sequential(nn.Linear(4, 5)), graph, layers)
    with pytest.raises(InputError, match="layer '0' is quantized already; give the float network"):
        quantize_fixed(quantize_fixed(model, graph, layers), graph, layers)
