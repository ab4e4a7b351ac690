"""Weights that are computed or read elsewhere, extra state, keywords: run right, told with a reason, or refused."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dnas.config.job import FinetuneSection
from dnas.data.image_sets import MemoryImages
from dnas.export.save import save_packed
from dnas.export.unpack import load
from dnas.quantization.calibration import calibrate, layer_inputs
from dnas.quantization.conversion import QuantizerChoice, quantize_fixed
from dnas.quantization.layers import QuantizedLayer
from dnas.search.sensitivity import sensitivities
from dnas.switchable.net import SwitchableNet
from dnas.training.trainer import Trainer
from search_spaces.assignments import BitAssignment, LayerBits, ModelReference
from search_spaces.costs.table import CostTable, build_costs
from search_spaces.errors import InputError
from search_spaces.layers import LayerGraph
from search_spaces.models.copies import copy_network
from search_spaces.network.graph import read_graph
from search_spaces.options import SpaceOptions
from search_spaces.spaces import build_space
from tests.made_weights import Tangent
from tests.toys import seeded

WIDTH = 6


def images(count: int = 8) -> Tensor:
    return torch.randn(count, WIDTH, generator=seeded())


def linear() -> nn.Linear:
    return nn.Linear(WIDTH, WIDTH)


class Tied(nn.Module):
    """An autoencoder whose decoder reads the encoder's weight, in one of several ways."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.e, self.other, self.decode = linear(), linear(), TIED[how]
        self.held = (self.e.weight,)
        if how == "a buffer":
            self.register_buffer("view", self.e.weight.detach())

    def forward(self, x: Tensor) -> Tensor:
        return self.decode(self, self.other(self.e(x).relu()))


TIED: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "a view": lambda m, z: F.linear(z, m.e.weight.t()),
    "a product": lambda m, z: z @ m.e.weight,
    "a function": lambda m, z: F.linear(z, m.e.weight.tanh()),
    "detached": lambda m, z: z @ m.e.weight.detach(),
    "data": lambda m, z: z @ m.e.weight.data.mT,
    "a buffer": lambda m, z: z @ m.view,
    "a tuple": lambda m, z: z @ m.held[0],
    "a sum": lambda m, z: z * m.e.weight.sum(),
    "bilinear": lambda m, z: torch.einsum("ni,ij,nj->n", z, m.e.weight, z),
}


def quantized(model: nn.Module, bits: int = 2) -> tuple[nn.Module, LayerGraph, BitAssignment]:
    graph = read_graph(model, (WIDTH,))
    layers = {name: LayerBits(bits, 32) for name in graph.by_name}
    network = quantize_fixed(model, graph, layers)
    calibrate(network, [images()])
    return network.eval(), graph, BitAssignment("mine", ModelReference("toy", (WIDTH,)), layers)


@pytest.mark.parametrize("how", TIED)
def test_a_weight_that_is_read_outside_its_layer_is_left_in_fp32(how: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Tied(how).eval()
    graph = read_graph(model, (WIDTH,))
    assert set(graph.by_name) == {"other"}
    assert graph.unsupported["e"]
    network, graph, assignment = quantized(model)
    packed = save_packed(tmp_path / "net", network, graph, assignment)
    assert packed.tensor_bytes >= graph.other_bytes >= 4 * WIDTH * WIDTH
    torch.testing.assert_close(load(tmp_path / "net", Tied(how))(images()), network(images()))


@pytest.mark.parametrize("layer", [nn.Linear(4, 2), nn.Conv2d(3, 4, 1), nn.ConvTranspose1d(2, 2, 2), Tangent(4, 4, 1)])
def test_a_network_that_is_itself_a_layer_is_refused(layer: nn.Module) -> None:
    with pytest.raises(InputError, match=rf"itself one layer \({type(layer).__name__}\)"):
        read_graph(layer, (4,))
    with pytest.raises(InputError, match="itself one layer"):
        read_graph(nn.MultiheadAttention(4, 2), (3, 4))


def test_hooks_on_an_attention_module_are_called() -> None:
    class Attending(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
            self.attention.register_forward_hook(lambda module, given, output: (output[0] * 3, output[1]))
            self.blocks = [self.attention]

        def forward(self, x: Tensor) -> Tensor:
            return sum(block(x, x, x)[0] for block in self.blocks if isinstance(block, nn.MultiheadAttention))

    model = Attending().eval()
    x = torch.randn(2, 3, 4, generator=seeded())
    graph = read_graph(model, (3, 4))
    assert set(graph.by_name) == {"attention.in_proj", "attention.out_proj"}
    network = quantize_fixed(model, graph, {name: LayerBits(4, 4) for name in graph.by_name}).eval()
    for module in network.modules():
        if isinstance(module, QuantizedLayer):
            module.quantize_input.pass_through()
            module.quantize_weight.pass_through()
    torch.testing.assert_close(network(x), model(x))


class WithState(nn.Module):
    """Extra state that is a dict with a tensor, and follows the training."""

    def __init__(self, extra: Any = None) -> None:
        super().__init__()
        self.layer, self.calls, self.extra = linear(), 0, extra

    def forward(self, x: Tensor) -> Tensor:
        self.calls += self.training
        return self.layer(x)

    def get_extra_state(self) -> Any:
        return {"calls": self.calls, "mean": torch.ones(2), "names": ["a"], "extra": self.extra}

    def set_extra_state(self, state: Any) -> None:
        assert torch.equal(state["mean"], torch.ones(2))
        self.calls = state["calls"]


class StatefulLayer(nn.Linear):
    """A layer with extra state of its own."""

    def get_extra_state(self) -> Any:
        return {"version": 3}

    def set_extra_state(self, state: Any) -> None:
        self.version = state["version"]


def test_extra_state_goes_through_checkpoints(tmp_path: Path) -> None:
    model = nn.Sequential(WithState(), StatefulLayer(WIDTH, 3), nn.Flatten())
    before = model.state_dict()
    data = MemoryImages(images()[:, None, None], torch.arange(8) % 3, (0.0,), (1.0,))
    trainers = [Trainer(quantized(model)[0], FinetuneSection(epochs=1), images=data, batch_size=4) for _ in range(2)]
    for _ in trainers[0].epochs():
        pass
    tensors, values = trainers[0].state()
    safetensors.torch.save_file(tensors, tmp_path / "state")
    trainers[1].restore(safetensors.torch.load_file(tmp_path / "state"), values)
    assert trainers[1].network[0].calls == trainers[0].network[0].calls == 2
    assert trainers[1].network[1].version == 3
    again = model.state_dict()  # the caller's own state is as it was
    assert again["0._extra_state"]["calls"] == before["0._extra_state"]["calls"] == 0


def test_extra_state_that_a_checkpoint_cannot_hold_is_refused_by_name() -> None:
    model = nn.Sequential(WithState(extra=threading.Lock))
    with pytest.raises(InputError, match="module '0' keeps extra state that a checkpoint cannot hold"):
        quantized(model)


class Unsaved(nn.Sequential):
    """A network whose own state cannot be had, or not be kept."""

    def __init__(self, state: Any) -> None:
        super().__init__(linear())
        self.state = state

    def get_extra_state(self) -> Any:
        return self.state()


def raising() -> Any:
    raise KeyError("state")


@pytest.mark.parametrize("state", [raising, object, threading.Lock])
def test_extra_state_of_the_network_itself_is_named_by_its_class(state: Any) -> None:
    with pytest.raises(InputError, match=r"^module 'Unsaved' keeps extra state that a checkpoint cannot hold"):
        quantized(Unsaved(state))


def test_what_cannot_be_copied_is_named() -> None:
    model = nn.Sequential(linear(), nn.ReLU())
    model[1].lock = threading.Lock()
    with pytest.raises(InputError, match=r"'lock' of module '1' \(cannot pickle"):
        read_graph(model, (WIDTH,))


def test_copies_hold_what_the_last_forward_pass_left() -> None:
    model = nn.Sequential(linear())
    model.register_forward_hook(lambda module, given, output: setattr(module, "seen", {"last": [output]}))
    x = images()
    model(x)
    twin = copy_network(model)
    assert torch.equal(twin.seen["last"][0], model.seen["last"][0])
    assert twin.seen["last"][0] is not model.seen["last"][0]


def test_a_layer_that_is_read_in_its_own_hook_is_refused_by_name() -> None:
    model = nn.Sequential(linear(), nn.ReLU(), linear())
    model[2].register_forward_hook(lambda module, given, output: output * module.weight.mean())
    with pytest.raises(InputError, match=r"layer '2' cannot be quantized: .* space.exclude = \[\"2\"\]"):
        quantized(model)


def test_a_forward_in_a_closure_over_the_original_runs_with_quantized_weights() -> None:
    """A copy of a function that copies took as it is would run the original's float weight."""
    model = nn.Sequential(linear(), nn.ReLU(), linear())
    own = model[2].forward
    model[2].forward = lambda x: own(x) * 2
    network, graph, _ = quantized(model)
    assert set(graph.by_name) == {"0", "2"}
    read: dict[str, Tensor] = {}
    network[2].register_forward_hook(lambda module, given, output: read.update(x=given[0], y=output))
    network(images())
    layer: Any = network[2]
    assert len(layer.quantized_weight().unique()) <= 4
    torch.testing.assert_close(read["y"], 2 * F.linear(read["x"], layer.quantized_weight(), layer.bias))


def test_a_network_that_asks_for_the_exact_class_is_refused_by_name() -> None:
    class Asking(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = linear(), linear()

        def forward(self, x: Tensor) -> Tensor:
            x = self.first(x)
            return self.second(x) * (2 if type(self.second) is nn.Linear else 1)

    with pytest.raises(InputError, match="layer 'second' cannot be quantized"):
        quantized(Asking())


def test_layers_called_by_keyword_are_calibrated_and_ranked() -> None:
    class ByKeyword(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = linear(), linear()

        def forward(self, x: Tensor) -> Tensor:
            return self.second(input=self.first(input=x).relu())

    model = ByKeyword()
    inputs = layer_inputs(model, ["first", "second"], [images()])
    assert inputs["second"].least >= 0 > inputs["first"].least
    graph = read_graph(model, (WIDTH,))
    space = build_space(graph, SpaceOptions(weight_bits=(2, 8), activation_bits=(2, 8), first_layer="search"))
    table = sensitivities(model, space, QuantizerChoice(), [(images(), torch.arange(8) % WIDTH)])
    assert (table[:, :, 0] > table[:, :, 1]).all()
    layers = {name: LayerBits(4, 4) for name in graph.by_name}
    price = CostTable(graph, space, build_costs())
    assignment = BitAssignment("a", ModelReference("toy", (WIDTH,)), layers, {name: 1.0 for name in price.costs})
    net = SwitchableNet(model, graph, {"a": assignment}, QuantizerChoice("nested", "pact"))
    net.calibrate(model, [images()])
    assert net(images()).isfinite().all()
