"""Of a layer that is called with several inputs only the first is quantized: one that multiplies another is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dnas.jobs.doctor import examine
from search_spaces.network.graph import read_graph


class Second(nn.Linear):
    def forward(self, mask: Tensor, x: Tensor) -> Tensor:  # type: ignore[override]
        return F.linear(x, self.weight, self.bias) * mask


class Keyword(nn.Linear):
    def forward(self, mask: Tensor, *, x: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(x)


class Both(nn.Linear):
    def forward(self, mask: Tensor, x: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(mask) + super().forward(x)


class Made(nn.Linear):
    def forward(self, mask: Tensor, x: Tensor) -> Tensor:  # type: ignore[override]
        return F.linear(x, self.weight / 2) + mask


class Gated(nn.Linear):
    def forward(self, mask: Tensor, x: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(mask * x.sigmoid())


class GatedInPlace(nn.Linear):
    def forward(self, mask: Tensor, x: Tensor) -> Tensor:  # type: ignore[override]
        own = mask.clone()
        own.view(-1).mul_(x.reshape(-1))
        return super().forward(own)


class GatedBehind(nn.Linear):
    def forward(self, mask: Tensor, x: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(mask.abs()) * x


class Adapted(nn.Linear):
    """Multiplies its second input with a weight that is another one's."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs)
        self.other = nn.Parameter(torch.ones(outputs, inputs))

    def forward(self, mask: Tensor, x: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(mask) * F.linear(x, self.other)


class Net(nn.Module):
    def __init__(self, layer: nn.Module, call: Callable[..., Tensor]) -> None:
        super().__init__()
        self.first, self.layer, self.call = nn.Linear(4, 4), layer, call

    def forward(self, x: Tensor) -> Tensor:
        return self.call(self.layer, x, self.first(x))


def by_place(layer: Any, one: Tensor, other: Tensor) -> Tensor:
    return layer(one, other)  # type: ignore[no-any-return]


def by_name(layer: Any, one: Tensor, other: Tensor) -> Tensor:
    return layer(x=other, mask=one)  # type: ignore[no-any-return]


def halves(layer: Any, one: Tensor, other: Tensor) -> Tensor:
    mask, x = torch.cat([one, other], -1).chunk(2, -1)  # two views of one memory
    return layer(mask, x=x)  # type: ignore[no-any-return]


@pytest.mark.parametrize("call", [by_place, by_name, halves])
@pytest.mark.parametrize("kind", [Second, Keyword, Both, Made, Gated, GatedInPlace, GatedBehind, Adapted])
def test_a_layer_that_multiplies_another_input_than_its_first_is_not_searched(
    kind: type[nn.Linear], call: Callable[..., Tensor]
) -> None:
    if kind is Keyword and call is by_place:
        call = by_name
    torch.manual_seed(0)
    layer = kind(4, 4)
    graph = read_graph(Net(layer, call), (4,))
    told = graph.unsupported.get("layer", "")
    assert bool(told) != ("layer" in graph.by_name)
    assert bool(told) == (kind not in (GatedBehind, Adapted))
    assert not told or "'x'" in told
    # Without the first input nothing is left of the weight, unless another one is multiplied with it.
    found = []
    with torch.no_grad():
        layer.bias.zero_()
        for _ in range(2):
            found.append(layer(torch.zeros(1, 4), x=torch.ones(1, 4)))
            layer.weight.add_(1.0)
    assert torch.equal(*found) or told
    assert graph.uncounted_macs == (0 if kind is GatedBehind else 32 if kind is Both else 16)


def test_doctor_tells_which_input_it_is() -> None:
    report = examine(Net(Second(4, 4), by_place), (4,))
    (found,) = [layer for layer in report.layers if layer.name == "layer"]
    assert "multiplies its weight with what it makes of 'x', and of a layer the first input ('mask')" in found.reason


def test_a_convolution_that_pads_its_only_input_is_searched_as_before() -> None:
    class Padded(nn.Conv2d):
        def forward(self, x: Tensor, size: tuple[int, int] = (1, 1)) -> Tensor:  # type: ignore[override]
            return super().forward(F.pad(x, (*size, *size)))

    graph = read_graph(nn.Sequential(nn.Conv2d(1, 2, 1), Padded(2, 2, 3)), (1, 3, 3))
    assert [layer.name for layer in graph.layers] == ["0", "1"]
