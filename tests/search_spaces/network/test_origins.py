"""Of a layer only its first input is quantized: one that multiplies its weight with anything else is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

from dnas.jobs.doctor import examine
from search_spaces.errors import InputError
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


class Offset(nn.Linear):
    """Adds its second input, in the place of a bias."""

    def forward(self, x: Tensor, shift: Tensor) -> Tensor:  # type: ignore[override]
        return F.linear(x, self.weight, shift)


def test_what_a_layer_adds_is_not_multiplied() -> None:
    graph = read_graph(Net(Offset(4, 4, bias=False), lambda layer, x, y: layer(x, y.mean(0))), (4,))
    assert set(graph.by_name) == {"first", "layer"}


class Left(nn.Linear):
    """A layer with which others leave something (``kept``) before they call it."""

    kept: Any

    def __init__(self, use: Callable[[Any, Tensor, Tensor], Tensor]) -> None:
        super().__init__(4, 4)
        self.kept, self.use, self.calls = torch.ones(4), use, 0
        self.register_buffer("level", torch.ones(4))

    def forward(self, x: Tensor) -> Tensor:
        kept = self.kept["last"][0] if isinstance(self.kept, dict) else self.kept
        return self.use(self, x, kept)


USES: dict[str, Callable[[Any, Tensor, Tensor], Tensor]] = {
    "on the input": lambda m, x, kept: F.linear(x * kept, m.weight, m.bias),
    "on a copy of the input": lambda m, x, kept: F.linear(x.clone().mul_(kept), m.weight),
    "on the weight": lambda m, x, kept: F.linear(x, m.weight * kept, m.bias),
    "on the weight as a function": lambda m, x, kept: F.linear(x, m.weight * kept.mean().tanh()),
    "on the output": lambda m, x, kept: F.linear(x, m.weight, m.bias) * kept,
    "as a bias": lambda m, x, kept: F.linear(x, m.weight, kept.mean(0) if kept.dim() > 1 else kept),
    "nowhere": lambda m, x, kept: F.linear(x, m.weight, m.bias),
}
MULTIPLIED = ("on the input", "on a copy of the input", "on the weight", "on the weight as a function")
CONSTANTS = ("a constant", "one made once", "ones like it")
LEAVINGS: dict[str, Callable[[Any, Tensor], Any]] = {
    "an attribute": lambda m, y: setattr(m, "kept", y.sigmoid()),
    "in a dict": lambda m, y: setattr(m, "kept", {"last": [y.sigmoid()]}),
    "a buffer": lambda m, y: (m.level.copy_(y.mean(0)), setattr(m, "kept", m.level)),
    "the input itself": lambda m, y: setattr(m, "kept", m.given),
    "of a parameter": lambda m, y: setattr(m, "kept", m.bias.exp()),
    "a constant": lambda m, y: setattr(m, "kept", torch.linspace(0, 1, 4)),
    "one made once": lambda m, y: (
        setattr(m, "kept", m.kept if m.calls else torch.arange(4.0)) or setattr(m, "calls", 1)
    ),
    "ones like it": lambda m, y: setattr(m, "kept", torch.ones_like(y)),
}


class Leaving(nn.Module):
    def __init__(self, leave: Callable[[Any, Tensor], Any], layer: Left) -> None:
        super().__init__()
        self.first, self.layer, self.leave = nn.Linear(4, 4), layer, leave

    def forward(self, x: Tensor) -> Tensor:
        self.layer.given = x
        self.leave(self.layer, self.first(x))
        return self.layer(self.layer(x))


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("leave", LEAVINGS)
def test_what_others_leave_with_a_layer_is_no_part_of_what_it_multiplies(leave: str, use: str) -> None:
    """A gate that reaches a layer as an attribute is quantized nowhere; a weight made of it is in no file."""
    graph = read_graph(Leaving(LEAVINGS[leave], Left(USES[use])), (4,))
    told = graph.unsupported.get("layer", "")
    assert bool(told) == (leave not in CONSTANTS and use in MULTIPLIED)
    assert not told or "what others computed and left with it as an attribute" in told
    assert ("layer" in graph.by_name) == (not told)


def test_a_parametrization_that_follows_the_input_is_told() -> None:
    class Scaling(nn.Module):
        scale: Any = 1.0

        def forward(self, weight: Tensor) -> Tensor:
            return weight * self.scale

    class Following(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.layer, self.scaling = nn.Linear(4, 4), nn.Linear(4, 4), Scaling()
            parametrize.register_parametrization(self.layer, "weight", self.scaling)

        def forward(self, x: Tensor) -> Tensor:
            self.scaling.scale = self.first(x).mean()
            return self.layer(x)

    graph = read_graph(Following(), (4,))
    assert set(graph.by_name) == {"first"}
    assert "its weight is made of what others computed" in graph.unsupported["layer"]


class Drawing(nn.Module):
    def __init__(self, draw: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.draw = draw

    def forward(self, weight: Tensor) -> Tensor:
        return self.draw(weight)


class Drawn(nn.Linear):
    def __init__(self, draw: Callable[[Tensor], Tensor]) -> None:
        super().__init__(4, 4)
        self.draw = draw

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.draw(self.weight) if self.training or self.draw is not in_training else self.weight)


def in_training(weight: Tensor) -> Tensor:
    return weight + torch.randn_like(weight)


def by_parametrization(draw: Callable[[Tensor], Tensor]) -> nn.Module:
    return parametrize.register_parametrization(nn.Linear(4, 4), "weight", Drawing(draw))


DRAWS: dict[str, Callable[[Tensor], Tensor]] = {
    "normal": lambda w: w + 0.1 * torch.randn(4, 4),
    "like": lambda w: w * torch.rand_like(w),
    "dropout": lambda w: F.dropout(w, 0.3, training=True),
    "bernoulli": lambda w: w * torch.bernoulli(w.sigmoid()),
    "in place": lambda w: w + torch.empty_like(w).normal_(),
}


@pytest.mark.parametrize("layer", [by_parametrization, Drawn])
@pytest.mark.parametrize("way", DRAWS)
def test_a_weight_that_is_drawn_is_told(way: str, layer: Callable[..., nn.Module]) -> None:
    """A file would hold one draw of it."""
    graph = read_graph(nn.Sequential(nn.Linear(4, 4), layer(DRAWS[way])), (4,))
    assert set(graph.by_name) == {"0"}
    assert "its weight is drawn by chance each time the network runs" in graph.unsupported["1"]


def test_noise_in_training_and_on_the_input_is_none_of_the_weight() -> None:
    class Noisy(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x + torch.randn_like(x))

    assert set(read_graph(nn.Sequential(Noisy(4, 4), Drawn(in_training)), (4,)).by_name) == {"0", "1"}


def test_what_was_drawn_before_the_call_was_computed_elsewhere() -> None:
    for use in ("on the weight", "on the output"):
        graph = read_graph(Leaving(lambda m, y: setattr(m, "kept", torch.rand(4)), Left(USES[use])), (4,))
        assert ("layer" in graph.by_name) == (use == "on the output")


def test_a_network_that_draws_a_buffer_when_it_runs_first_is_refused() -> None:
    class Projecting(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            if not hasattr(self, "projection"):
                self.register_buffer("projection", torch.randn(4, 4))
            return x @ self.projection

    with pytest.raises(InputError, match=r"makes its buffer '0.projection' when it runs first, so every copy"):
        read_graph(nn.Sequential(Projecting(), nn.Linear(4, 4)), (4,))


class Numbered(nn.Module):
    """Hands a number that it reads of its input to a layer that makes, or has, a weight of it."""

    def __init__(self, layer: nn.Module, hand: Callable[[Any, Tensor], Any]) -> None:
        super().__init__()
        self.layer, self.hand = layer, hand

    def forward(self, x: Tensor) -> Tensor:
        self.hand(self, x)
        return self.layer(x)  # type: ignore[no-any-return]


class Times(nn.Module):
    def __init__(self, number: dict[str, float]) -> None:
        super().__init__()
        self.number = number

    def forward(self, weight: Tensor) -> Tensor:
        return weight * self.number["gate"]


class Scaled(nn.Linear):
    def __init__(self, number: dict[str, float]) -> None:
        super().__init__(4, 4)
        self.number = number

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight * self.number["gate"], self.bias)


class Normed(Scaled):
    """Its weight is the same, whatever the number is."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight / self.weight.norm(), self.bias) * self.number["gate"]


def parametrized(number: dict[str, float]) -> nn.Module:
    return parametrize.register_parametrization(nn.Linear(4, 4), "weight", Times(number))


def inside(number: dict[str, float]) -> nn.Module:
    return nn.Sequential(Scaled(number), nn.ReLU())


HANDED: dict[str, Callable[[Any, Tensor], Any]] = {
    "item": lambda m, x: m.number.update(gate=x.mean().sigmoid().item()),
    "float": lambda m, x: m.number.update(gate=float(x[0, 0].exp())),
    "list": lambda m, x: m.number.update(gate=x.tolist()[0][1] + 2),
    "numpy": lambda m, x: m.number.update(gate=float(x.abs().sum().numpy())),
    "condition": lambda m, x: m.number.update(gate=2.0 if x.mean() > 0 else 0.5),
    "count": lambda m, x: m.number.update(gate=float((x > 0).sum().item() + 1)),
    "round": lambda m, x: m.number.update(gate=round(x.var().item() + 1, 2)),
    "constant": lambda m, x: m.number.update(gate=0.5 + (x.mean().item() > 1e9)),
}


@pytest.mark.parametrize("layer", [Scaled, Normed, parametrized, inside])
@pytest.mark.parametrize("way", HANDED)
@pytest.mark.parametrize("example", [(4,), torch.linspace(-1, 2, 8).view(2, 4)], ids=["shape", "example"])
def test_a_number_that_scales_a_weight_is_told(way: str, layer: Callable[..., nn.Module], example: Any) -> None:
    """Read off the input, it reaches the layer by no tensor; a file would hold the weight of one image."""
    number = {"gate": 1.0}
    net = Numbered(layer(number), HANDED[way])
    net.number = number
    graph = read_graph(net, example)
    told = next(iter(graph.unsupported.values()), "")
    assert bool(told) == (way != "constant" and layer is not Normed)
    assert bool(graph.layers) == (not told)
    assert not told or "another one each time the network runs" in told


class Twice(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight - self.weight.mean()
        return F.linear(x, weight) + F.linear(x, weight.flip(0))


def test_several_weights_are_told_as_that_whatever_the_network_asks() -> None:
    net = Numbered(Twice(4, 4), lambda m, x: x.mean().item())
    assert "multiplies with several weights" in read_graph(net, (4,)).unsupported["layer"]


def test_drawn_data_that_the_network_cannot_take_tells_nothing() -> None:
    class Picky(Numbered):
        def forward(self, x: Tensor) -> Tensor:
            if x.min().item() != 0.0:
                raise ValueError("only zeros")
            return super().forward(x)

    number = {"gate": 2.0}
    assert read_graph(Picky(Scaled(number), lambda *_: None), (4,)).by_name.keys() == {"layer"}


def test_a_layer_inside_a_transformation_of_functions_is_told() -> None:
    """Quantizers run in plain PyTorch alone."""

    class Mapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.layer = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return torch.vmap(self.layer)(self.first(x))  # type: ignore[no-any-return]

    graph = read_graph(Mapped(), (4,))
    assert set(graph.by_name) == {"first"}
    assert "torch.vmap" in graph.unsupported["layer"]
