"""Reading channel groups: published counts, couplings by hand, Torch-Pruning's groups, and reasons for the rest."""

from __future__ import annotations

import functools
from collections.abc import Callable
from importlib import import_module
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torchvision.models import densenet

from search_spaces.channels.slicing import pruned_graph, remove_filters
from search_spaces.layers import LayerGraph
from search_spaces.models.zoo import resnet20
from search_spaces.network.graph import read_graph
from tests.search_spaces.channel_toys import (
    CASES,
    SHAPE,
    AddsParameter,
    Case,
    Toy,
    assert_removed_is_masked,
    built,
    conv,
    pooled,
    some_kept,
)
from tests.toys import Unwatchable

NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "resnet18": torchvision.models.resnet18,
    "resnet50": torchvision.models.resnet50,
    "resnext50": torchvision.models.resnext50_32x4d,
    "vgg11_bn": torchvision.models.vgg11_bn,
    "mobilenet_v2": torchvision.models.mobilenet_v2,
    "resnet20": resnet20,
    "densenet": lambda: densenet.DenseNet(4, (2, 2, 2, 2), 8),
    "googlenet": lambda: torchvision.models.googlenet(aux_logits=False, init_weights=False),
    "squeezenet": torchvision.models.squeezenet1_1,
    "mobilenet_v3": torchvision.models.mobilenet_v3_small,
}


@functools.cache
def network_and_graph(name: str) -> tuple[nn.Module, LayerGraph]:
    with torch.device("meta"):
        network = NETWORKS[name]().eval()
    return network, read_graph(network, (3, 64, 64))


@pytest.mark.whole
@pytest.mark.parametrize(
    ("name", "count", "classifier"),
    [
        ("resnet18", 12, "fc"),
        ("vgg11_bn", 10, "classifier.6"),
        ("resnet50", 37, "fc"),
        ("mobilenet_v2", 25, "classifier.1"),
        ("resnext50", 37, "fc"),
        ("resnet20", 12, "linear"),
    ],
)
def test_the_published_number_of_groups(name: str, count: int, classifier: str) -> None:
    channels = network_and_graph(name)[1].channels
    assert len(channels.groups) == count
    assert channels.frozen == {classifier: "it is the network's output"}
    assert channels.unknown == ""


def test_sixty_percent_of_the_channels_are_thirty_seven_percent_of_resnet18() -> None:
    network, graph = network_and_graph("resnet18")
    kept = {group.name: tuple(range(max(1, int(group.units * 0.6)))) for group in graph.channels.groups}
    smaller = remove_filters(network, graph.channels, kept)
    assert [sum(p.numel() for p in net.parameters()) for net in (network, smaller)] == [11_689_512, 4_318_898]
    specs = pruned_graph(graph, kept).layers
    assert sum(spec.weight_elements + spec.bias_elements + 2 * spec.norm_channels for spec in specs) == 4_318_898


@pytest.mark.parametrize("name", CASES)
def test_every_coupling_by_hand(name: str) -> None:
    _, graph = built(CASES[name])
    assert graph.channels.groups == CASES[name].groups
    (output,) = set(graph.by_name) - {layer for one in graph.channels.groups for layer in one.layers}
    assert graph.channels.frozen == {output: "it is the network's output"}


def test_only_vectors_that_no_layer_accounts_for_have_bytes_of_their_own() -> None:
    def entry_bytes(name: str) -> dict[str, int]:
        return dict(built(CASES[name])[1].channels.entry_bytes)

    assert entry_bytes("residual") == {}  # folded into 'b'
    assert entry_bytes("preactivation") == {"norm": 8}
    assert entry_bytes("prelu") == {"each": 4}
    assert entry_bytes("instance_norm") == {"norm": 8}


@pytest.mark.whole
@pytest.mark.parametrize("name", sorted(set(NETWORKS) - {"resnet20"}))  # its shortcut is not known there
def test_the_layers_of_every_group_are_those_of_torch_pruning(name: str) -> None:
    network, graph = network_and_graph(name)
    ours = {frozenset(one.layers) for one in graph.channels.groups}
    theirs = _torch_pruning_groups(network, torch.zeros(1, *graph.input_shape, device="meta"))
    assert ours | {frozenset(graph.channels.frozen)} == theirs
    assert len(ours) == len(graph.channels.groups)


def _torch_pruning_groups(network: nn.Module, example: Tensor) -> set[frozenset[str]]:
    torch_pruning = import_module("torch_pruning")  # a third of a second, and timm with it
    kinds = (nn.Conv2d, nn.Linear)
    names = {module: name for name, module in network.named_modules()}
    found = torch_pruning.DependencyGraph().build_dependency(network, example)
    return {
        frozenset(
            names[dependency.target.module]
            for dependency, _ in one
            if isinstance(dependency.target.module, kinds) and found.is_out_channel_pruning_fn(dependency.handler)
        )
        for one in found.get_all_groups(root_module_types=list(kinds))
    }


class Ordered(nn.Module):
    """Puts its input's channels in a stored order; the tensor that stores it is read before them."""

    def __init__(self, *order: int) -> None:
        super().__init__()
        self.register_buffer("order", torch.tensor(order))

    def forward(self, x: Tensor) -> Tensor:
        order = self.order
        return x[:, order]


def _toy(code: Callable[[Any, Tensor], Tensor], features: int = 5, **modules: nn.Module) -> Case:
    """A layer ``a`` of five filters, the code in question behind it, and a head that reads ``features``."""
    parts = {"a": conv(2, 5), **modules, "head": nn.Linear(features, 3)}
    return Case(lambda: Toy(lambda net, x: net.head(code(net, net.a(x))), **parts), ())


_FIXED = "the network's own code counts on their number"
UNREMOVABLE = {
    "output": (Case(lambda: nn.Sequential(conv(2, 5)), ()), "0", "it is the network's output"),
    "two_outputs": (
        Case(lambda: Toy(lambda net, x: torch.cat([net.a(x), net.b(net.a(x))], 1), a=conv(2, 5), b=conv(5, 4)), ()),
        "a",
        "it is the network's output",
    ),
    "input": (
        Case(lambda: Toy(lambda n, x: n.head(pooled(n.a(x) + x)), a=conv(2, 2), head=nn.Linear(2, 3)), ()),
        "a",
        "it is the network's input",
    ),
    "depthwise_on_input": (
        Case(lambda: Toy(lambda n, x: n.head(pooled(n.a(x))), a=conv(2, 4, groups=2), head=nn.Linear(4, 3)), ()),
        "a",
        "it is the network's input",
    ),
    "layer_norm": (_toy(lambda n, x: n.norm(pooled(x)), norm=nn.LayerNorm(5)), "a", "'layer_norm' reads all"),
    "one_norm_for_all": (_toy(lambda n, x: pooled(n.norm(x)), norm=nn.GroupNorm(1, 5)), "a", "channels hang together"),
    "attention": (
        Case(
            lambda: Toy(
                lambda n, x: n.head((y := n.a(x)) + n.attend(y, y, y, need_weights=False)[0]),
                **{"a": nn.Linear(2, 4), "attend": nn.MultiheadAttention(4, 2, batch_first=True)},
                head=nn.Linear(4, 3),
            ),
            (),
            (6, 2),
        ),
        "a",
        "the attention 'attend' keeps its heads whole",
    ),
    "softmax": (_toy(lambda n, x: pooled(x.softmax(1))), "a", "'softmax' reads all channels together"),
    "matmul": (_toy(lambda n, x: pooled(x @ x)), "a", "'matmul' reads all channels together"),
    "mean": (_toy(lambda n, x: x.mean(1).flatten(1), 36), "a", "'mean' reads all channels together"),
    "one_factor": (
        _toy(lambda n, x: pooled(x * n.b(x)), b=conv(5, 1)),
        "b",
        "it is one factor of several channels",
    ),
    "parameter": (
        _toy(lambda n, x: pooled(n.add(x)), add=AddsParameter(5, 6, 6)),
        "a",
        "it meets the parameter 'add.offset'",
    ),
    "constant": (_toy(lambda n, x: pooled(x + torch.ones(5, 1, 1))), "a", "it meets what 'ones' gives"),
    "grouped_transposed": (
        _toy(lambda n, x: pooled(n.t(x)), 10, t=nn.ConvTranspose2d(5, 10, 2, groups=5)),
        "a",
        "the grouped layer 't' is transposed",
    ),
    "one_unit": (_toy(lambda n, x: pooled(n.b(x)), 1, b=conv(5, 1)), "b", "all its channels hang together"),
    "view": (_toy(lambda n, x: x.view(-1, 180), 180), "a", _FIXED),
    "first_of_three": (
        Case(lambda: Toy(lambda n, x: n.head(pooled(n.a(x)[:, :2])), a=conv(2, 3), head=nn.Linear(2, 3)), ()),
        "a",
        _FIXED,
    ),
    "own_order": (_toy(lambda n, x: pooled(n.order(x)), order=Ordered(4, 2, 3, 0, 1)), "a", "reads all channels"),
    "roll": (_toy(lambda n, x: pooled(n.b(x.roll(1, 1))), 3, b=conv(5, 3)), "a", _FIXED),
}


@pytest.mark.parametrize("name", UNREMOVABLE)
def test_filters_that_must_stay_have_a_reason(name: str) -> None:
    case, layer, reason = UNREMOVABLE[name]
    network, graph = built(case)
    channels = graph.channels
    assert reason in channels.frozen.get(layer, f"removable in {channels.groups}")
    held = {member for one in channels.groups for member in one.layers}
    assert held.isdisjoint(channels.frozen)
    assert held | set(channels.frozen) == set(graph.by_name)
    for seed in range(3):  # what is left can be removed
        kept = some_kept(channels, seed=seed)
        assert_removed_is_masked(network, graph, kept)


def test_a_network_that_cannot_be_followed_has_no_groups_and_says_why() -> None:
    channels = read_graph(Unwatchable(), (1, 6, 6)).channels
    assert channels.groups == ()
    assert channels.unknown == "its calls cannot be followed (it does not like to be watched)"


@pytest.mark.parametrize("read", [lambda x: x.tolist(), lambda x: x.numpy().sum(), lambda x: float(x.sum())])
def test_a_network_that_takes_a_path_by_values_has_no_groups(read: Callable[[Tensor], Any]) -> None:
    def code(net: Any, x: Tensor) -> Tensor:
        x = net.a(x)
        return net.head(pooled(net.b(x)) * len(str(read(x.detach()))))

    channels = read_graph(Toy(code, a=conv(2, 4), b=conv(4, 4), head=nn.Linear(4, 3)), SHAPE).channels
    assert channels.names == ()
    assert "asks for values of tensors" in channels.unknown
