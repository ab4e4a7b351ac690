"""Small networks, one for each way in which channels are tied, and masks that remove channels without slicing."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from search_spaces.channels.slicing import remove_filters
from search_spaces.groups import ChannelGroup, ChannelGroups
from search_spaces.layers import LayerGraph
from search_spaces.models.zoo import SubsampleShortcut
from search_spaces.network import graph as graph_reader
from search_spaces.network.couplings import unknown_couplings
from search_spaces.network.graph import read_graph

SHAPE = (2, 6, 6)
Units = tuple[int, ...]


class Toy(nn.Module):
    """Modules by name, and the code that runs them."""

    def __init__(self, code: Callable[[Any, Tensor], Any], **modules: nn.Module) -> None:
        super().__init__()
        for name, module in modules.items():
            self.add_module(name, module)
        self.code = code

    def forward(self, x: Tensor) -> Any:
        return self.code(self, x)


class AddsParameter(nn.Module):
    """Adds a learned vector, as a layer scale or a position embedding does."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.offset = nn.Parameter(torch.ones(shape))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.offset


class Swish(nn.Module):
    """A user's own activation: no layer inside, and no name that anything could know."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(x)


def conv(inputs: int, filters: int, **options: Any) -> nn.Conv2d:
    return nn.Conv2d(inputs, filters, 3, **{"padding": 1, **options})


def pooled(x: Tensor) -> Tensor:
    return F.adaptive_avg_pool2d(x, 1).flatten(1)


def _chain(*names: str) -> Callable[[Any, Tensor], Tensor]:
    """Run modules one after the other, then pool and classify."""

    def code(net: Any, x: Tensor) -> Tensor:
        for name in names:
            x = getattr(net, name)(x)
        return net.head(pooled(x))

    return code


def _residual(net: Any, x: Tensor) -> Tensor:
    x = net.a(x).relu()
    return net.head(pooled(x + net.norm(net.b(x))))


def _gated(net: Any, x: Tensor) -> Tensor:
    x = net.a(x)
    gate = net.expand(net.squeeze(x.mean((2, 3), keepdim=True)).relu()).sigmoid()
    return net.head(pooled(x * gate))


def _shuffled(net: Any, x: Tensor) -> Tensor:
    x = net.a(x)
    n, channels, height, width = x.shape
    x = x.view(n, 2, channels // 2, height, width).transpose(1, 2).contiguous().view(n, channels, height, width)
    return net.head(pooled(net.b(x)))


def _preactivated(net: Any, x: Tensor) -> Tensor:
    x = net.a(x)
    x = torch.cat([x, net.b(x)], 1)
    return net.head(pooled(net.norm(x).relu()))


def _chunked(net: Any, x: Tensor) -> Tensor:
    values, gates = net.a(x).chunk(2, 1)
    return net.head(pooled(values * gates.sigmoid()))


def _shortcut(net: Any, x: Tensor) -> Tensor:
    x = net.a(x).relu()
    return net.head(pooled(net.b(x) + net.shortcut(x)))


def _called_twice(net: Any, x: Tensor) -> Tensor:
    return net.head(pooled(net.b(net.b(net.a(x)).relu())))


def _conditional(net: Any, x: Tensor) -> Tensor:
    x = net.a(x if len(x) > 0 else -x)
    for _ in range(x.shape[-1] // 6):
        x = x + net.b(x) if x.shape[1] > 0 else x
    return net.head(x.mean(tuple(range(2, x.dim()))))


def _windowed(net: Any, x: Tensor) -> Tensor:
    x = net.a(x).permute(0, 2, 3, 1)
    n, height, width, _ = x.shape
    if height % 3:
        raise ValueError("windows of 3")
    x = x.view(n, height // 3, 3, width // 3, 3, x.shape[-1]).transpose(2, 3).reshape(-1, 9, x.shape[-1])
    x = net.mix(x).view(n, height // 3, width // 3, 3, 3, -1).transpose(2, 3).reshape(n, height, width, -1)
    return net.head(torch.roll(x, (1, 1), (1, 2)).mean((1, 2)))


def _shared() -> nn.Module:
    net = Toy(_chain("a", "first", "second"), a=conv(2, 4), first=conv(4, 4), second=conv(4, 4), head=nn.Linear(4, 3))
    net.get_submodule("second").weight = net.get_submodule("first").weight
    return net


def group(name: str, rows: Mapping[str, Units], columns: Mapping[str, Units], **vectors: Units) -> ChannelGroup:
    return ChannelGroup(name, 1 + max(rows[name.partition("#")[0]]), rows, columns, vectors)


@dataclass(frozen=True, eq=False)
class Case:
    """A network and the groups that it must have."""

    build: Callable[[], nn.Module]
    groups: tuple[ChannelGroup, ...]
    shape: tuple[int, ...] = SHAPE


def upto(count: int) -> Units:
    return tuple(range(count))


_FOUR, _HALVES, _PAIRS = upto(4), (0, 1, 0, 1), (0, 0, 1, 1)

CASES = {
    "residual": Case(
        lambda: Toy(_residual, a=conv(2, 4), b=conv(4, 4, bias=False), norm=nn.BatchNorm2d(4), head=nn.Linear(4, 3)),
        (group("a", {"a": _FOUR, "b": _FOUR}, {"b": _FOUR, "head": _FOUR}, norm=_FOUR),),
    ),
    "concat": Case(
        lambda: Toy(
            lambda net, x: net.head(pooled(net.c(torch.cat([net.a(x), net.b(x)], 1)))),
            **{"a": conv(2, 3), "b": conv(2, 2), "c": conv(5, 3), "head": nn.Linear(3, 3)},
        ),
        (
            group("a", {"a": (0, 1, 2)}, {"c": (0, 1, 2, -1, -1)}),
            group("b", {"b": (0, 1)}, {"c": (-1, -1, -1, 0, 1)}),
            group("c", {"c": (0, 1, 2)}, {"head": (0, 1, 2)}),
        ),
    ),
    "depthwise": Case(
        lambda: Toy(_chain("a", "d", "b"), a=conv(2, 3), d=conv(3, 6, groups=3), b=conv(6, 3), head=nn.Linear(3, 3)),
        (
            group("a", {"a": upto(3), "d": (0, 0, 1, 1, 2, 2)}, {"d": upto(3), "b": (0, 0, 1, 1, 2, 2)}),
            group("b", {"b": upto(3)}, {"head": upto(3)}),
        ),
    ),
    "grouped": Case(
        lambda: Toy(
            _chain("a", "g", "norm"),
            **{"a": conv(2, 4), "g": conv(4, 6, groups=2), "norm": nn.BatchNorm2d(6), "head": nn.Linear(6, 3)},
        ),
        (
            group("a", {"a": _HALVES}, {"g": _HALVES}),
            group("g", {"g": (0, 1, 2, 0, 1, 2)}, {"head": (0, 1, 2, 0, 1, 2)}, norm=(0, 1, 2, 0, 1, 2)),
        ),
    ),
    "gate": Case(
        lambda: Toy(
            _gated,
            a=conv(2, 4),
            squeeze=nn.Conv2d(4, 2, 1),
            expand=nn.Conv2d(2, 4, 1),
            head=nn.Linear(4, 3),
        ),
        (
            group("a", {"a": _FOUR, "expand": _FOUR}, {"squeeze": _FOUR, "head": _FOUR}),
            group("squeeze", {"squeeze": (0, 1)}, {"expand": (0, 1)}),
        ),
    ),
    "flatten": Case(
        lambda: Toy(lambda net, x: net.head(F.max_pool2d(net.a(x), 3).flatten(1)), a=conv(2, 3), head=nn.Linear(12, 3)),
        (group("a", {"a": upto(3)}, {"head": (0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2)}),),
    ),
    "shuffle": Case(
        lambda: Toy(_shuffled, a=conv(2, 4), b=conv(4, 3), head=nn.Linear(3, 3)),
        (group("a", {"a": _HALVES}, {"b": _PAIRS}), group("b", {"b": upto(3)}, {"head": upto(3)})),
    ),
    "shuffle_module": Case(
        lambda: Toy(
            _chain("a", "mix", "b"), a=conv(2, 4), mix=nn.ChannelShuffle(2), b=conv(4, 3), head=nn.Linear(3, 3)
        ),
        (group("a", {"a": _HALVES}, {"b": _PAIRS}), group("b", {"b": upto(3)}, {"head": upto(3)})),
    ),
    "prelu": Case(
        lambda: Toy(
            _chain("a", "each", "b", "one"),
            **{"a": conv(2, 4), "each": nn.PReLU(4), "b": conv(4, 3), "one": nn.PReLU(), "head": nn.Linear(3, 3)},
        ),
        (group("a", {"a": _FOUR}, {"b": _FOUR}, each=_FOUR), group("b", {"b": upto(3)}, {"head": upto(3)})),
    ),
    "instance_norm": Case(
        lambda: Toy(_chain("a", "norm"), a=conv(2, 4), norm=nn.InstanceNorm2d(4, affine=True), head=nn.Linear(4, 3)),
        (group("a", {"a": _FOUR}, {"head": _FOUR}, norm=_FOUR),),
    ),
    "preactivation": Case(
        lambda: Toy(_preactivated, a=conv(2, 3), b=conv(3, 2), norm=nn.BatchNorm2d(5), head=nn.Linear(5, 3)),
        (
            group("a", {"a": upto(3)}, {"b": upto(3), "head": (0, 1, 2, -1, -1)}, norm=(0, 1, 2, -1, -1)),
            group("b", {"b": (0, 1)}, {"head": (-1, -1, -1, 0, 1)}, norm=(-1, -1, -1, 0, 1)),
        ),
    ),
    "transposed": Case(
        lambda: Toy(_chain("a", "t"), a=conv(2, 4), t=nn.ConvTranspose2d(4, 3, 2, stride=2), head=nn.Linear(3, 3)),
        (group("a", {"a": _FOUR}, {"t": _FOUR}), group("t", {"t": upto(3)}, {"head": upto(3)})),
    ),
    "called_twice": Case(
        lambda: Toy(_called_twice, a=conv(2, 4), b=conv(4, 4), head=nn.Linear(4, 3)),
        (group("a", {"a": _FOUR, "b": _FOUR}, {"b": _FOUR, "head": _FOUR}),),
    ),
    "shared_parameter": Case(
        _shared,
        (
            group(
                "a",
                {"a": _FOUR, "first": _FOUR, "second": _FOUR},
                {"first": _FOUR, "second": _FOUR, "head": _FOUR},
            ),
        ),
    ),
    "shortcut": Case(
        lambda: Toy(
            _shortcut,
            a=conv(2, 4),
            b=conv(4, 6, stride=2),
            shortcut=SubsampleShortcut(2, 1, 1),
            head=nn.Linear(6, 3),
        ),
        (
            group(
                "a",
                {"a": _FOUR, "b": (-1, 0, 1, 2, 3, -1)},
                {"b": _FOUR, "head": (-1, 0, 1, 2, 3, -1)},
                shortcut=(-1, 0, 1, 2, 3, -1),
            ),
            group(
                "b",
                {"b": (0, -1, -1, -1, -1, 1)},
                {"head": (0, -1, -1, -1, -1, 1)},
                shortcut=(0, -1, -1, -1, -1, 1),
            ),
        ),
    ),
    "chunk": Case(
        lambda: Toy(_chunked, a=conv(2, 6), head=nn.Linear(3, 3)),
        (group("a", {"a": (0, 1, 2, 0, 1, 2)}, {"head": upto(3)}),),
    ),
    "swapped_halves": Case(  # nothing but the cut itself ties them
        lambda: Toy(
            lambda net, x: net.head(pooled(torch.cat(net.a(x).chunk(2, 1)[::-1], 1))),
            **{"a": conv(2, 6), "head": nn.Linear(6, 3)},
        ),
        (group("a", {"a": (0, 1, 2, 0, 1, 2)}, {"head": (0, 1, 2, 0, 1, 2)}),),
    ),
    "own_activation": Case(
        lambda: Toy(_chain("a", "swish", "b"), a=conv(2, 4), swish=Swish(), b=conv(4, 3), head=nn.Linear(3, 3)),
        (group("a", {"a": _FOUR}, {"b": _FOUR}), group("b", {"b": upto(3)}, {"head": upto(3)})),
    ),
    "own_block": Case(  # modules within a module that holds no layer
        lambda: Toy(
            _chain("a", "block"),
            a=conv(2, 4),
            block=Toy(lambda net, x: net.act(net.norm(x)), norm=nn.BatchNorm2d(4), act=nn.PReLU(4)),
            head=nn.Linear(4, 3),
        ),
        (group("a", {"a": _FOUR}, {"head": _FOUR}, **{"block.norm": _FOUR, "block.act": _FOUR}),),
    ),
    "depthwise_on_concat": Case(
        lambda: Toy(
            lambda net, x: net.head(pooled(net.d(torch.cat([net.a(x), net.b(x)], 1)))),
            **{"a": conv(2, 3), "b": conv(2, 2), "d": conv(5, 5, groups=5), "head": nn.Linear(5, 3)},
        ),
        (
            group("a", *[{"a": upto(3), "d": (0, 1, 2, -1, -1)}, {"d": (0, 1, 2, -1, -1), "head": (0, 1, 2, -1, -1)}]),
            group(
                "b", *[{"b": upto(2), "d": (-1, -1, -1, 0, 1)}, {"d": (-1, -1, -1, 0, 1), "head": (-1, -1, -1, 0, 1)}]
            ),
        ),
    ),
    "norm_of_flat_features": Case(
        lambda: Toy(
            lambda net, x: net.head(net.norm(F.max_pool2d(net.a(x), 3).flatten(1))),
            **{"a": conv(2, 2), "norm": nn.BatchNorm1d(8), "head": nn.Linear(8, 3)},
        ),
        (group("a", {"a": (0, 1)}, {"head": (0,) * 4 + (1,) * 4}, norm=(0,) * 4 + (1,) * 4),),
    ),
    "mean_over_axis": Case(
        lambda: Toy(lambda net, x: net.head(net.a(x).mean(axis=(2, 3))), a=conv(2, 4), head=nn.Linear(4, 3)),
        (group("a", {"a": _FOUR}, {"head": _FOUR}),),
    ),
    "signal": Case(
        lambda: nn.Sequential(
            nn.Conv1d(2, 3, 3), nn.BatchNorm1d(3), nn.ReLU(), nn.AvgPool1d(2), nn.Flatten(), nn.Linear(6, 2)
        ),
        (group("0", {"0": upto(3)}, {"5": (0, 0, 1, 1, 2, 2)}, **{"1": upto(3)}),),
        (2, 6),
    ),
    "group_norm": Case(
        lambda: Toy(_chain("a", "norm"), a=conv(2, 6), norm=nn.GroupNorm(3, 6), head=nn.Linear(6, 3)),
        (group("a", {"a": (0, 0, 1, 1, 2, 2)}, {"head": (0, 0, 1, 1, 2, 2)}, norm=(0, 0, 1, 1, 2, 2)),),
    ),
    "norms_without_parameters": Case(
        lambda: Toy(
            _chain("a", "norm", "b", "other"),
            **{"a": conv(2, 4), "norm": nn.GroupNorm(2, 4, affine=False), "b": conv(4, 3)},
            **{"other": nn.InstanceNorm2d(3), "head": nn.Linear(3, 3)},
        ),
        (
            group("a", {"a": _PAIRS}, {"b": _PAIRS}, norm=_PAIRS),
            group("b", {"b": upto(3)}, {"head": upto(3)}, other=upto(3)),
        ),
    ),
    "layer_scale": Case(
        lambda: Toy(
            lambda net, x: net.head(pooled((y := net.a(x)) + net.scale(net.b(y)))),
            **{"a": conv(2, 4), "b": conv(4, 4), "scale": AddsParameter(4, 1, 1), "head": nn.Linear(4, 3)},
        ),
        (group("a", {"a": _FOUR, "b": _FOUR}, {"b": _FOUR, "head": _FOUR}, **{"scale.offset": _FOUR}),),
    ),
    "pixel_shuffle": Case(
        lambda: Toy(_chain("a", "up", "b"), a=conv(2, 8), up=nn.PixelShuffle(2), b=conv(2, 3), head=nn.Linear(3, 3)),
        (
            group("a", {"a": (0, 0, 0, 0, 1, 1, 1, 1)}, {"b": (0, 1)}),
            group("b", {"b": upto(3)}, {"head": upto(3)}),
        ),
    ),
    "conditions": Case(  # nothing that a symbolic trace could follow
        lambda: Toy(_conditional, a=conv(2, 4), b=conv(4, 4), head=nn.Linear(4, 3)),
        (group("a", {"a": _FOUR, "b": _FOUR}, {"b": _FOUR, "head": _FOUR}),),
    ),
    "mixed_over_positions": Case(  # (N, C, H * W) times (H * W, H * W)
        lambda: Toy(
            lambda net, x: net.head((net.a(x).flatten(2) @ torch.ones(36, 36, device=x.device, dtype=x.dtype)).mean(2)),
            **{"a": conv(2, 4), "head": nn.Linear(4, 3)},
        ),
        (group("a", {"a": _FOUR}, {"head": _FOUR}),),
    ),
    "normalized_over_positions": Case(
        lambda: Toy(
            lambda net, x: net.head(F.layer_norm(F.normalize(net.a(x).flatten(2), dim=2).softmax(2), (36,)).amax(2)),
            **{"a": conv(2, 4), "head": nn.Linear(4, 3)},
        ),
        (group("a", {"a": _FOUR}, {"head": _FOUR}),),
    ),
    "windows": Case(  # (N, H / 3, W / 3, 3, 3, C) and back, with the shape read as it goes
        lambda: Toy(_windowed, a=conv(2, 4), mix=nn.Linear(4, 5), head=nn.Linear(5, 3)),
        (group("a", {"a": _FOUR}, {"mix": _FOUR}), group("mix", {"mix": upto(5)}, {"head": upto(5)})),
    ),
    "padded_by_hand": Case(  # a shortcut of zeros on both sides
        lambda: Toy(
            lambda net, x: net.head(pooled(net.c(net.b(y := net.a(x)) + F.pad(y, (0, 0, 0, 0, 1, 1))))),
            **{"a": conv(2, 4), "b": conv(4, 6), "c": conv(6, 3), "head": nn.Linear(3, 3)},
        ),
        (
            group("a", {"a": _FOUR, "b": (-1, 0, 1, 2, 3, -1)}, {"b": _FOUR, "c": (-1, 0, 1, 2, 3, -1)}),
            group("c", {"c": upto(3)}, {"head": upto(3)}),
        ),
    ),
    "tokens": Case(
        lambda: nn.Sequential(nn.Linear(2, 4), nn.GELU(), nn.Linear(4, 3)),
        (group("0", {"0": _FOUR}, {"2": _FOUR}),),
        (5, 2),
    ),
    "volume": Case(
        lambda: nn.Sequential(
            nn.Conv3d(1, 3, 2), nn.Hardswish(), nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(3, 2)
        ),
        (group("0", {"0": upto(3)}, {"4": upto(3)}),),
        (1, 3, 3, 3),
    ),
}


def trained(network: nn.Module, seed: int = 0) -> nn.Module:
    """In float64 and eval mode, with BatchNorm statistics and slopes that no fresh network has."""
    generator = torch.Generator().manual_seed(seed)

    def fill(x: Tensor, mean: float, spread: float) -> None:
        x.copy_(mean + spread * (2 * torch.rand(x.shape, generator=generator) - 1))

    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, _BatchNorm):
                fill(module.running_mean, 0, 0.2)
                fill(module.running_var, 1, 0.5)
            if isinstance(module, (_BatchNorm, nn.InstanceNorm2d)) and module.affine:
                fill(module.weight, 1, 0.4)
                fill(module.bias, 0, 0.4)
            if isinstance(module, nn.PReLU):
                fill(module.weight, 0.3, 0.2)
        for parameter in network.parameters():
            if not parameter.any():  # such as the head of a vision transformer, which would hide all before it
                fill(parameter, 0, 0.2)
    return network.double().eval()


@functools.cache
def built(case: Case) -> tuple[nn.Module, LayerGraph]:
    """A network of a case, which nobody may change, and its graph."""
    torch.manual_seed(0)
    network = trained(case.build())
    return network, read_graph(network, case.shape)


def layers_read(network: nn.Module, shape: tuple[int, ...]) -> LayerGraph:
    """The graph of a network without what ties its channels, whose proof takes most of the time of reading it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(graph_reader, "read_couplings", lambda *_: unknown_couplings("nobody asked"))
        return read_graph(network, shape)


def some_kept(groups: ChannelGroups, share: float = 0.6, seed: int = 1) -> dict[str, Units]:
    """A random share of the units of every group."""
    generator = torch.Generator().manual_seed(seed)

    def drawn(units: int) -> Units:
        return tuple(sorted(torch.randperm(units, generator=generator)[: max(1, int(units * share))].tolist()))

    return {group.name: drawn(group.units) for group in groups.groups}


def _stay(groups: ChannelGroups, kept: Mapping[str, Units], part: str) -> dict[str, Tensor]:
    """Module → 1 for every channel that stays and 0 for every other, for each module that has some in a group."""
    masks: dict[str, Tensor] = {}
    for one in groups.groups:
        for name, units in getattr(one, part).items():
            gone = torch.tensor([u >= 0 and u not in kept.get(one.name, units) for u in units])
            masks[name] = masks.get(name, torch.ones(len(units), dtype=torch.float64)).masked_fill(gone, 0)
    return masks


def masked_where_read(network: nn.Module, graph: LayerGraph, kept: Mapping[str, Units]) -> nn.Module:
    """A copy in which every layer finds zeros in its input where a channel is gone."""
    copied = copy.deepcopy(network)
    for name, mask in _stay(graph.channels, kept, "columns").items():
        layer = copied.get_submodule(name)

        def hook(module: nn.Module, inputs: Any, mask: Tensor = mask) -> Any:
            trailing = 0 if isinstance(module, nn.Linear) else inputs[0].dim() - 2
            return (inputs[0] * mask.reshape(-1, *[1] * trailing),)

        layer.register_forward_pre_hook(hook)
    return copied


@torch.no_grad()
def masked_where_made(network: nn.Module, graph: LayerGraph, kept: Mapping[str, Units]) -> nn.Module:
    """A copy whose removed filters, and their entries in the BatchNorm behind, are zero; needs f(0) = 0 on the way."""
    copied = copy.deepcopy(network)
    for name, mask in _stay(graph.channels, kept, "rows").items():
        layer, norm = copied.get_submodule(name), graph[name].norm
        layer.weight.mul_(mask.reshape(-1, *[1] * (layer.weight.dim() - 1)))
        for vector in (layer.bias, *(copied.get_submodule(norm).parameters() if norm else ())):
            if vector is not None:
                vector.mul_(mask)
    return copied


def difference(first: nn.Module, second: nn.Module, shape: tuple[int, ...]) -> float:
    """The largest difference of two networks' outputs on noise, in units of the largest output."""
    x = torch.randn(2, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(7))
    with torch.inference_mode():
        a, b = first(x), second(x)
    assert a.shape == b.shape
    assert torch.isfinite(a).all()
    return float((a - b).abs().max() / a.abs().max().clamp(min=1e-6))


def assert_removed_is_masked(network: nn.Module, graph: LayerGraph, kept: Mapping[str, Units]) -> nn.Module:
    """The network without the filters that are not kept, which gives what it gives with zeros in their place."""
    smaller = remove_filters(network, graph.channels, kept)
    assert difference(masked_where_read(network, graph, kept), smaller, graph.input_shape) < 1e-12
    return smaller
