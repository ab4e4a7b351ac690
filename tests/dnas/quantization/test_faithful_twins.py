"""A quantized twin is the user's network: whatever it relies on is kept, or refused by name."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dnas.quantization.branches import SkippedLayer
from dnas.quantization.calibration import calibrate
from dnas.quantization.conversion import QuantizerChoice, quantize_fixed
from dnas.quantization.layers import QuantizedLayer
from dnas.search.supernet import Supernet
from search_spaces.assignments import LayerBits
from search_spaces.costs.table import CostTable
from search_spaces.errors import InputError
from search_spaces.layers import LayerGraph, ResidualBranch
from search_spaces.models.copies import copy_network
from search_spaces.network.graph import read_graph
from search_spaces.options import SpaceOptions
from search_spaces.spaces import build_space
from tests.toys import seeded

SHAPE = (3, 8, 8)
"""Of one image; convolutions of the networks below keep it."""


def conv(channels: int = 3, **options: Any) -> nn.Conv2d:
    return nn.Conv2d(3, channels, 3, padding=1, **options)


class InPlaceRead(nn.Module):
    """An in-place activation overwrites x, which is read afterwards."""

    def __init__(self, activation: nn.Module) -> None:
        super().__init__()
        self.f, self.last = nn.Sequential(activation, conv()), conv()

    def forward(self, x: Tensor) -> Tensor:
        x = self.last(x)
        return self.f(x) + x


class FunctionalInPlace(InPlaceRead):
    def forward(self, x: Tensor) -> Tensor:
        x = self.last(x)
        return self.f(F.relu_(x)) + x * 2


class Remembering(nn.Module):
    """One module writes what another reads."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = conv(), conv()
        self.register_buffer("level", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        self.level.copy_(x.detach().mean())
        self.first.last_mean = x.mean()
        return self.second(x) * self.level + self.first.last_mean


class Tempered(nn.Conv2d):
    """A convolution that is told how to run from outside, and notes what it did."""

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        self.noted = y.mean()
        return y * self.temperature


class ToldFromOutside(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = Tempered(3, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        self.layer.temperature = 0.3
        return self.layer(x) + self.layer.noted


class InPlainList(nn.Module):
    """Layers that are called from a plain list, which holds the objects themselves."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = conv(), conv()
        self.order = [self.first, self.second]

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.order:
            x = layer(x).relu()
        return x


class Checking(nn.Module):
    """Looks at what its layers are."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.ModuleList([conv(), nn.ReLU(), conv()])

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.body:
            x = layer(x) * 2 if isinstance(layer, nn.Conv2d) else layer(x)
        return x


class ByKeyword(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.up = conv(), nn.ConvTranspose2d(3, 3, 3, stride=2, padding=1)
        self.last = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        down = F.avg_pool2d(self.first(input=x), 2)
        return self.last(input=self.up(output_size=x.shape[-2:], input=down)) + self.up(down, x.shape[-2:])


class Masked(nn.Conv2d):
    def forward(self, x: Tensor, mask: Tensor, *, scale: float = 1.0) -> Tensor:
        return super().forward(x) * mask * scale


class SeveralArguments(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = Masked(3, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        mask = (x > 0).to(x.dtype)
        return self.layer(mask=mask, x=x) + self.layer(x, mask, scale=0.5)


def hooked(register: Callable[[nn.Module], Any]) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        model = nn.Sequential(conv(), nn.ReLU(), conv())
        register(model[0])
        register(model[2])
        return model

    return make


class HookedByMethod(nn.Module):
    """The hook is a method of the network and keeps what it saw."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = conv(), conv()
        self.first.register_forward_hook(self.keep)

    def keep(self, module: nn.Module, inputs: Any, output: Tensor) -> None:
        self.seen = output * module.stride[0] * module.padding[0]

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x)) + self.seen


class NormReadTwice(nn.Module):
    """A BatchNorm behind a convolution whose output somebody else reads too, or that is called twice."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.first, self.norm, self.second, self.how = conv(), nn.BatchNorm2d(3), conv(), how

    def forward(self, x: Tensor) -> Any:
        y = self.first(x)
        z = self.norm(y)
        return {
            "output read": lambda: self.second(z.relu() + y),
            "output viewed": lambda: self.second(z.relu() + y.flatten(1).mean(1)[:, None, None, None]),
            "output returned": lambda: [self.second(z), y],
            "norm again": lambda: self.second(self.norm(z.relu())),
            "norm of two": lambda: self.norm(self.second(z.relu())),
            "layer again": lambda: self.second(self.first(z.relu())),
            "functional": lambda: (
                self.second(z)
                + F.batch_norm(x, self.norm.running_mean, self.norm.running_var, self.norm.weight, self.norm.bias)
            ),
        }[self.how]()


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "in-place ReLU": lambda: InPlaceRead(nn.ReLU(inplace=True)),
    "in-place Hardswish": lambda: InPlaceRead(nn.Hardswish(inplace=True)),
    "in-place SiLU": lambda: InPlaceRead(nn.SiLU(inplace=True)),
    "functional in place": lambda: FunctionalInPlace(nn.Identity()),
    "remembering": Remembering,
    "told from outside": ToldFromOutside,
    "plain list": InPlainList,
    "checks types": Checking,
    "by keyword": ByKeyword,
    "several arguments": SeveralArguments,
    "forward hook": hooked(lambda m: m.register_forward_hook(lambda a, i, o: 2 * o)),
    "forward hook with kwargs": hooked(
        lambda m: m.register_forward_hook(lambda a, i, k, o: 2 * o + len(k), with_kwargs=True)
    ),
    "pre-hook": hooked(lambda m: m.register_forward_pre_hook(lambda a, i: (i[0] + 1,))),
    "pre-hook with kwargs": hooked(
        lambda m: m.register_forward_pre_hook(lambda a, i, k: ((), {"input": i[0] * 3}), with_kwargs=True)
    ),
    "always called": hooked(lambda m: m.register_forward_hook(lambda a, i, o: o.abs(), always_call=True)),
    "hook by method": HookedByMethod,
    **{
        f"norm, {how}": (lambda how=how: NormReadTwice(how))
        for how in (
            "output read", "output viewed", "output returned", "norm again", "norm of two", "layer again", "functional",
        )
    },
}  # fmt: skip
HOOKED_BY_LAMBDAS = ("forward hook", "pre-hook", "always called")  # which no pickle can hold
every_network = pytest.mark.parametrize("name", NETWORKS)


def made(name: str) -> nn.Module:
    torch.manual_seed(0)
    model = NETWORKS[name]()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
            nn.init.uniform_(module.weight, 0.5, 2.0)
    return model.eval()


def images() -> Tensor:
    return torch.randn(4, *SHAPE, generator=seeded())


def assert_same(actual: Any, expected: Any) -> None:
    for pair in zip(actual, expected, strict=True) if isinstance(expected, list) else [(actual, expected)]:
        torch.testing.assert_close(*pair, rtol=0, atol=0)


@cache
def graph_of(name: str) -> LayerGraph:
    return read_graph(made(name), SHAPE)


def fixed(model: nn.Module, weight_bits: int, activation_bits: int, graph: LayerGraph | None = None) -> nn.Module:
    graph = graph or read_graph(model, SHAPE)
    assert graph.layers
    layers = {layer.name: LayerBits(weight_bits, activation_bits) for layer in graph.layers}
    return quantize_fixed(model, graph, layers, QuantizerChoice()).eval()


def passing(network: nn.Module) -> nn.Module:
    """Every quantizer lets its tensor pass: what is left is the float network in the clothes of the twin."""
    for module in network.modules():
        if isinstance(module, QuantizedLayer):
            module.quantize_input.pass_through()
            module.quantize_weight.pass_through()
    return network


@every_network
def test_the_twin_at_32_bits_is_the_network(name: str) -> None:
    model = made(name)
    assert_same(passing(fixed(model, 4, 4))(images()), copy.deepcopy(model)(images()))


@every_network
@pytest.mark.parametrize("engine", ["composite", "branches"])
def test_a_supernet_of_32_bits_is_the_network(name: str, engine: Any) -> None:
    model, graph = made(name), graph_of(name)
    options = SpaceOptions(weight_bits=(4, 32), activation_bits=(4, 32), first_layer="search", last_layer="search")
    space = build_space(graph, options)
    if engine == "branches" and name in ("told from outside", "norm, functional"):  # a copy is not told, nor read
        with pytest.raises(InputError, match=r"layer .(layer|first). cannot be branched"):
            Supernet(model, graph, space, CostTable(graph, space, []), engine=engine)
        return
    supernet = Supernet(model, graph, space, CostTable(graph, space, []), engine=engine).eval()
    with supernet.sampled(supernet.one_hot([(1, 1)] * len(space.decisions))):
        assert_same(supernet(images()), copy.deepcopy(model)(images()))


@pytest.mark.parametrize("name", [name for name in NETWORKS if not name.startswith(HOOKED_BY_LAMBDAS)])
def test_a_twin_trains_copies_and_pickles(name: str) -> None:
    network = fixed(made(name), 3, 4, graph_of(name))
    calibrate(network, [images()])
    kept = {key: value.clone() for key, value in network.state_dict().items()}
    outputs = network(images())
    sum(o.square().mean() for o in (outputs if isinstance(outputs, list) else [outputs])).backward()
    gradients = {n: p.grad for n, p in network.named_parameters() if n.endswith(".weight") and "norm" not in n}
    assert all(gradient is not None and gradient.abs().sum() > 0 for gradient in gradients.values())
    for again in (copy_network(network), pickle.loads(pickle.dumps(fixed(made(name), 3, 4, graph_of(name))))):
        again.load_state_dict(kept)
        assert_same(again(images()), outputs)


def test_layers_in_a_plain_list_are_quantized_where_they_are_called() -> None:
    network = fixed(made("plain list"), 2, 32)
    assert network.order[0] is network.first
    calibrate(network, [images()])
    assert len(network.order[0].quantized_weight().unique()) <= 4


def test_full_backward_hooks_move_along() -> None:
    model = made("plain list")
    seen: list[str] = []
    model.first.register_full_backward_hook(lambda module, given, got: seen.append("after"))
    model.first.register_full_backward_pre_hook(lambda module, got: seen.append("before"))
    network = fixed(model, 4, 4)
    calibrate(network, [images()])
    network(images().requires_grad_()).sum().backward()
    assert seen == ["before", "after"]


def test_a_skipped_layer_keeps_its_place_and_no_weight() -> None:
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.branch = conv(), conv()
            self.order = [self.branch]

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            return x + self.order[0](x)

    model = Residual().eval()
    graph = read_graph(model, SHAPE)
    graph = replace(graph, branches=(ResidualBranch("branch", ("branch",)),))  # torch.fx does not see it in a list
    layers = {"stem": LayerBits(32, 32), "branch": LayerBits(0, 0)}
    network = quantize_fixed(model, graph, layers, QuantizerChoice()).eval()
    assert isinstance(network.order[0], SkippedLayer)
    assert not [key for key in network.state_dict() if key.startswith("branch")]
    assert_same(network(images()), model.stem(images()))
    assert "branch" in repr(network)


class Reading(nn.Module):
    """Reads the weight of a layer that may be skipped, past calling it."""

    def __init__(self, read: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.stem, self.first, self.second, self.read = conv(8), nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 1), read

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return x + self.second(F.relu(self.first(self.read(self, x))))


READS: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "type": lambda net, x: x.to(net.first.weight.dtype),
    "device": lambda net, x: x.to(net.second.bias.device),
    "shape": lambda net, x: x[:, : net.first.weight.shape[1]],
    "penalty in training": lambda net, x: x + 1e-3 * net.first.weight.square().sum() if net.training else x,
}


@pytest.mark.parametrize("read", READS)
def test_code_that_reads_the_weight_of_a_skipped_layer_reads_zeros_that_take_no_memory(read: str) -> None:
    model = Reading(READS[read]).eval()
    layers = {"stem": LayerBits(32, 32), "first": LayerBits(0, 0), "second": LayerBits(0, 0)}
    network = quantize_fixed(model, read_graph(model, SHAPE), layers, QuantizerChoice())
    for _ in network.eval(), network.train():
        assert_same(network(images()), model.stem(images()))
    skipped: Any = network.double().first
    assert (skipped.weight.shape, skipped.weight.dtype) == (model.first.weight.shape, torch.float64)
    assert skipped.weight.untyped_storage().nbytes() == 8
    assert skipped.bias.eq(0).all()


@pytest.mark.parametrize("read", READS)
def test_branches_are_refused_where_code_reads_the_weight_that_they_do_not_have(read: str) -> None:
    """In training mode, too: a job would stumble there after its float training."""
    model = Reading(READS[read]).eval()
    graph = read_graph(model, SHAPE)
    space = build_space(graph, SpaceOptions(weight_bits=(4, 8), activation_bits=(4, 8)))
    with pytest.raises(InputError, match=r'layer .(first|second). cannot be branched: .* use engine = "composite"'):
        Supernet(model, graph, space, CostTable(graph, space, []), engine="branches")
    Supernet(model, graph, space, CostTable(graph, space, []))
