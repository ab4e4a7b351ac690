"""The network's own code tells channels apart by position or number: whatever may go, masking and removing agree."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.search_spaces.channel_toys import (
    SHAPE,
    Case,
    Toy,
    assert_removed_is_masked,
    built,
    conv,
    pooled,
    some_kept,
)


class Holder(nn.Module):
    """Holds a buffer, and reads it in its own way."""

    def __init__(self, code: Callable[[Tensor, Tensor], Tensor], held: Tensor) -> None:
        super().__init__()
        self.code = code
        self.register_buffer("held", held)

    def forward(self, x: Tensor) -> Tensor:
        return self.code(x, self.held)


def _both(first: Tensor, second: Tensor) -> Tensor:
    return torch.cat([first.tanh(), second * 3], 1)


def _written(x: Tensor, change: Callable[[Tensor], Any]) -> Tensor:
    x = x.clone()
    change(x)
    return x


def _parts(x: Tensor) -> list[Tensor]:
    return [part if index % 2 else -part for index, part in enumerate(x.unbind(1))]


Code = Callable[[Any, Tensor], Tensor]
COUNTED: dict[str, tuple[Code, int]] = {  # what happens to eight channels, and how many come out
    "the_issue": (lambda n, h: _both(h[:, :4], h[:, 4:]), 8),
    "half_of_the_width": (lambda n, h: _both(h[:, : h.shape[1] // 2], h[:, h.shape[1] // 2 :]), 8),
    "from_the_end": (lambda n, h: _both(h[:, :-3], h[:, -3:]), 8),
    "every_second": (lambda n, h: _both(h[:, ::2], h[:, 1::2]), 8),
    "first_two_dropped": (lambda n, h: h[:, 2:], 6),
    "one": (lambda n, h: h * h[:, :1].sigmoid(), 8),
    "selected": (lambda n, h: h * h[:, 3].sigmoid().unsqueeze(1), 8),
    "equal_chunks": (lambda n, h: _both(*h.chunk(2, 1)), 8),
    "chunks_of_three": (lambda n, h: torch.cat([p * k for k, p in enumerate(h.chunk(3, 1), 2)], 1), 8),
    "split_by_size": (lambda n, h: _both(*h.split(4, 1)), 8),
    "split_unequally": (lambda n, h: _both(*h.split([3, 5], 1)), 8),
    "tensor_split": (lambda n, h: torch.cat([p * k for k, p in enumerate(h.tensor_split(3, 1), 2)], 1), 8),
    "tensor_split_at": (lambda n, h: _both(*h.tensor_split([2], 1)), 8),
    "hsplit": (lambda n, h: _both(*torch.hsplit(h, 2)), 8),
    "unbind": (lambda n, h: torch.stack(_parts(h), 1), 8),
    "narrow": (lambda n, h: _both(h.narrow(1, 0, 5), h.narrow(1, 5, 3)), 8),
    "index_select": (lambda n, h: h.index_select(1, torch.tensor([0, 2, 3, 7], device=h.device)), 4),
    "index_list": (lambda n, h: h[:, [7, 6, 5, 1]], 4),
    "index_mask": (lambda n, h: h[:, torch.arange(8) < 5], 5),
    "index_from_count": (lambda n, h: h[:, torch.arange(h.shape[1]).flip(0)], 8),
    "gather": (lambda n, h: h.gather(1, torch.zeros(h.shape[0], 3, 6, 6, dtype=torch.long, device=h.device)), 3),
    "take_along": (
        lambda n, h: torch.take_along_dim(h, torch.zeros(1, 8, 1, 1, dtype=torch.long, device=h.device), 1),
        8,
    ),
    "flip": (lambda n, h: h + 2 * h.flip(1), 8),
    "flip_alone": (lambda n, h: h.flip(1), 8),
    "roll": (lambda n, h: h + h.roll(1, 1), 8),
    "mask_by_position": (lambda n, h: h * (torch.arange(8, device=h.device) < 4).view(1, 8, 1, 1), 8),
    "mask_by_count": (lambda n, h: h * (torch.arange(h.shape[1], device=h.device) < 4).view(1, -1, 1, 1), 8),
    "where": (lambda n, h: torch.where(torch.arange(8, device=h.device).view(-1, 1, 1) > 2, h, -h), 8),
    "masked_fill": (lambda n, h: h.masked_fill(torch.arange(8, device=h.device).view(-1, 1, 1) > 5, 0.5), 8),
    "constant_vector": (lambda n, h: h + torch.linspace(0, 1, 8, device=h.device).view(8, 1, 1), 8),
    "ramp_by_count": (lambda n, h: h + torch.linspace(0, 1, h.shape[1], device=h.device).view(-1, 1, 1), 8),
    "held_vector": (lambda n, h: n.hold(h), 8),
    "divided_by_count": (lambda n, h: h / h.shape[1], 8),
    "scaled_by_count": (lambda n, h: h * h.size(1) ** -0.5 + torch.full((1,), float(h.size(1)), device=h.device), 8),
    "written": (lambda n, h: _written(h, lambda x: x[:, :4].mul_(3)), 8),
    "zeroed": (lambda n, h: _written(h, lambda x: x.__setitem__((slice(None), slice(2, 4)), 0.0)), 8),
    "copied_over": (lambda n, h: _written(h, lambda x: x[:, :4].copy_(h[:, 4:])), 8),
    "written_into_zeros": (lambda n, h: _written(torch.zeros_like(h[:, :4]), lambda x: x.add_(h[:, 4:])), 4),
    "into_new_zeros": (lambda n, h: _written(h.new_zeros(h.shape), lambda x: x[:, :4].add_(h[:, 4:])), 8),
    "grouped_view": (lambda n, h: (h.view(-1, 2, 4, 6, 6) * n.pair.view(2, 1, 1, 1)).flatten(1, 2), 8),
    "view_by_count": (lambda n, h: h.view(h.shape[0], 4, -1, 6, 6).transpose(1, 2).flatten(1, 2), 8),
    "interleaved": (lambda n, h: h.unflatten(1, (2, -1)).transpose(1, 2).flatten(1, 2), 8),
    "two_to_one": (lambda n, h: h.unflatten(1, (-1, 2)).amax(2), 4),
    "glu": (lambda n, h: F.glu(h, 1), 4),
    "shuffled": (lambda n, h: F.channel_shuffle(h, 4), 8),
    "pixel_shuffle": (lambda n, h: F.pixel_shuffle(h, 2), 2),
    "pixel_unshuffle": (lambda n, h: F.pixel_unshuffle(h, 2), 32),
    "padded_channels": (lambda n, h: F.pad(h, (0, 0, 0, 0, 2, 1)), 11),
    "cropped_channels": (lambda n, h: F.pad(h, (0, 0, 0, 0, -2, 0)), 6),
    "repeated": (lambda n, h: h.repeat(1, 2, 1, 1), 16),
    "repeat_interleave": (lambda n, h: h.repeat_interleave(2, 1), 16),
    "cumulated": (lambda n, h: h.cumsum(1), 8),
    "sorted": (lambda n, h: h.sort(1).values, 8),
    "largest": (lambda n, h: h.topk(3, 1).values, 3),
    "normalized": (lambda n, h: F.normalize(h, dim=1), 8),
    "centred": (lambda n, h: h - h.mean(1, keepdim=True), 8),
    "local_response": (lambda n, h: F.local_response_norm(h, 3), 8),
    "group_norm": (lambda n, h: F.group_norm(h, 4), 8),
    "outer": (lambda n, h: torch.einsum("nchw,ndhw->ncd", h, h).mean(2)[..., None, None], 8),
    "pooled_channels": (lambda n, h: F.max_pool3d(h.unsqueeze(1), (2, 1, 1)).squeeze(1), 4),
    "tril": (lambda n, h: h.movedim(1, 3).tril().movedim(3, 1), 8),
    "python_numbers": (lambda n, h: h * float(len(h[0])), 8),
    "unrolled": (lambda n, h: torch.cat([h[:, i : i + 1] * (i + 1) for i in range(h.shape[1])], 1), 8),
}


@pytest.mark.parametrize("name", COUNTED)
def test_what_code_counts_is_never_moved(name: str) -> None:
    code, count = COUNTED[name]

    def net() -> nn.Module:
        hold = Holder(lambda x, held: x + held, torch.linspace(-1, 1, 8).view(8, 1, 1))
        head = nn.Linear(count, 3)
        toy = Toy(
            lambda n, x: n.head(pooled(n.b(code(n, n.a(x))))), a=conv(2, 8), b=conv(count, count), head=head, hold=hold
        )
        toy.pair = nn.Parameter(torch.tensor([1.0, 2.0]))
        return toy

    network, graph = built(Case(net, (), SHAPE))
    assert graph.channels.unknown == ""
    for seed in range(6):
        kept = some_kept(graph.channels, share=(0.3, 0.6, 0.9)[seed % 3], seed=seed)
        assert_removed_is_masked(network, graph, kept)
    for group in graph.channels.groups:
        for gone in range(group.units):
            kept = {group.name: tuple(unit for unit in range(group.units) if unit != gone)}
            assert_removed_is_masked(network, graph, kept)


class Own(nn.Conv2d):
    """A layer whose own code does something before or after it multiplies."""

    def __init__(self, code: Code, place: str, inputs: int, filters: int) -> None:
        super().__init__(inputs, filters, 3, padding=1)
        self.code, self.place = code, place

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(self.code(self, x)) if self.place == "before" else self.code(self, super().forward(x))


OWN: dict[str, Code] = {
    **{name: COUNTED[name][0] for name in ("the_issue", "roll", "centred", "divided_by_count", "mask_by_count")},
    "same_for_all": lambda n, h: F.pad(h.relu(), (1, 1, 0, 0))[..., 1:-1] * 2,
    "number_of_filters": lambda n, h: h / n.out_channels,
    "number_of_rows": lambda n, h: h / n.weight.shape[0],
    "mean_of_the_bias": lambda n, h: h * n.bias.abs().mean(),
    "size_of_the_weight": lambda n, h: h / n.weight.norm(),
    "number_of_inputs": lambda n, h: h * n.in_channels**-0.5,
}


@pytest.mark.parametrize("place", ["before", "after"])
@pytest.mark.parametrize("name", OWN)
def test_what_the_code_of_a_layer_counts_is_never_moved(name: str, place: str) -> None:
    """The code of a layer is followed as any other; it was taken for a product with the weight and nothing more."""

    def net() -> nn.Module:
        layers = {"a": Own(OWN[name], place, 2, 8) if place == "after" else conv(2, 8), "b": conv(8, 8)}
        layers |= {"b": Own(OWN[name], place, 8, 8)} if place == "before" else {}
        return Toy(lambda n, x: n.head(pooled(n.b(n.a(x)))), **layers, head=nn.Linear(8, 3))

    network, graph = built(Case(net, (), SHAPE))
    assert graph.channels.unknown == ""
    assert not graph.unsupported
    groups = {group.name: group for group in graph.channels.groups}
    assert ("a" in groups) or name != "same_for_all"
    for seed in range(3):
        assert_removed_is_masked(network, graph, some_kept(graph.channels, (0.3, 0.6, 0.9)[seed], seed))
    for group in groups.values():
        for gone in (0, group.units - 1):
            kept = {group.name: tuple(unit for unit in range(group.units) if unit != gone)}
            assert_removed_is_masked(network, graph, kept)


def test_code_that_changes_the_number_of_channels_before_it_multiplies_keeps_them() -> None:
    class Twice(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(torch.cat([x, x.square()], 1))

    class Pooling(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(pooled(x))

    for head in (Twice(16, 3), Pooling(8, 3)):
        last = pooled if isinstance(head, Twice) else torch.relu
        network = Toy(lambda n, x, last=last: n.head(last(n.a(x))), a=conv(2, 8), head=head)
        _, graph = built(Case(lambda network=network: network, (), SHAPE))
        assert not graph.channels.groups
        assert "multiplies other numbers of channels" in graph.channels.frozen["a"]


@pytest.mark.parametrize("persistent", [False, True])
def test_a_buffer_that_the_network_registers_as_it_runs_is_a_constant(persistent: bool) -> None:
    """Every copy makes it anew, in full length: none of its entries can be cut off beforehand."""

    class Registering(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            if not hasattr(self, "table"):
                self.register_buffer("table", torch.linspace(0, 1, 8).view(8, 1, 1).to(x), persistent=persistent)
            return x + self.table

    network, graph = built(
        Case(lambda: Toy(lambda n, x: n.b(n.t(n.a(x))), a=conv(2, 8), t=Registering(), b=conv(8, 3)), (), SHAPE)
    )
    assert not graph.channels.groups
    assert graph.channels.frozen["a"]
    assert_removed_is_masked(network, graph, {})
