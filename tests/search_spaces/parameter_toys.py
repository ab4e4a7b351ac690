"""Networks with parameters of every kind, and what is known of them."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from search_spaces.network.examples import Example
from tests.toys import Net, SharedWeight, Unwatchable


class Toy(nn.Module):
    """Some modules and parameters, and what is computed with them."""

    def __init__(self, run: Callable[[Any, Any], Any], **parts: nn.Module | nn.Parameter) -> None:
        super().__init__()
        self.run = run
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x: Tensor) -> Any:
        return self.run(self, x)


def parameter(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(*shape))


def empty_linear(inputs: int, outputs: int) -> nn.Linear:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of an empty weight nothing can be drawn
        return nn.Linear(inputs, outputs, bias=False)


def head(width: int = 4) -> nn.Linear:
    return nn.Linear(width, 2)


def mixture(toy: Any, x: Tensor) -> Tensor:
    """The router's first choice alone runs."""
    chosen = toy.router(x).argmax(-1)
    out = torch.zeros_like(x)
    for expert in chosen.unique().tolist():
        out[chosen == expert] = toy.experts[expert](x[chosen == expert])
    return toy.head(out)


def listed_mixture(toy: Any, x: Tensor) -> Tensor:
    return toy.head(toy.experts[toy.router(x).argmax(-1).tolist()[0]](x))


def replacing(toy: Any, x: Tensor) -> Tensor:
    """A weight is normalised before each run, and a parameter gets other memory after it."""
    toy.a.weight.data = F.normalize(toy.a.weight.data, dim=1)
    out = toy.head(toy.a(x) * toy.p)
    toy.p.data = toy.p.data.clone()
    return out


def auxiliary(toy: Any, x: Tensor) -> Any:
    x = toy.body(x)
    return (toy.head(x), toy.auxiliary(x)) if toy.training else toy.head(x)


def expert_net(run: Callable[[Any, Any], Any]) -> Toy:
    """Zeros go to expert 0, the unit vector e to expert e."""
    router = nn.Linear(4, 3)
    with torch.no_grad():
        router.weight.copy_(torch.eye(3, 4))
        router.bias.copy_(torch.tensor([0.5, 0.0, 0.0]))
    return Toy(run, router=router, experts=nn.ModuleList(nn.Linear(4, 4) for _ in range(3)), head=head())


def auxiliary_net() -> Toy:
    side = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4, affine=False), nn.BatchNorm1d(4), nn.PReLU(4), head())
    return Toy(auxiliary, body=nn.Linear(4, 4), auxiliary=side, head=head())


class Unlike(nn.Linear):
    """A layer that multiplies with a part of its weight."""

    def forward(self, input: Tensor) -> Tensor:
        return F.linear(input, self.weight[:2])


ZOO: dict[str, tuple[nn.Module, Example, set[str], int]] = {
    # network, example, what is unsupported, bytes outside the layers
    "lstm": (
        Toy(lambda t, x: t.head(t.a(x)[0]), a=nn.LSTM(4, 8, proj_size=3), head=head(3)),
        (5, 4),
        {"a.weight_ih_l0", "a.weight_hh_l0", "a.weight_hr_l0"},
        4 * (32 * 4 + 32 * 3 + 3 * 8 + 64),
    ),
    "gru": (
        Toy(lambda t, x: t.head(t.a(x)[0]), a=nn.GRU(4, 8), head=head(8)),
        (5, 4),
        {"a.weight_ih_l0", "a.weight_hh_l0"},
        4 * (24 * 4 + 24 * 8 + 48),
    ),
    "embedding": (
        Toy(lambda t, x: t.head(t.a(x)), a=nn.Embedding(9, 4), head=head()),
        torch.tensor([[3, 5]]),
        {"a.weight"},
        4 * 36,
    ),
    "bilinear": (Toy(lambda t, x: t.head(t.a(x, x)), a=nn.Bilinear(3, 3, 4), head=head()), (3,), {"a.weight"}, 4 * 40),
    "matmul": (
        Toy(lambda t, x: t.head(x @ t.w + t.b), w=parameter(3, 4), b=parameter(4), head=head()),
        (3,),
        {"w"},
        64,
    ),
    "einsum": (
        Toy(lambda t, x: t.head(torch.einsum("ni,io->no", x, t.w)), w=parameter(3, 4), head=head()),
        (3,),
        {"w"},
        48,
    ),
    "other widths of keys": (
        Toy(
            lambda t, x: t.head(t.a(x, x[..., :2], x[..., :3])[0]),
            a=nn.MultiheadAttention(4, 2, kdim=2, vdim=3, batch_first=True),
            head=head(),
        ),
        (5, 4),
        {"a.q_proj_weight", "a.k_proj_weight", "a.v_proj_weight", "a.out_proj"},
        4 * (16 + 8 + 12 + 12 + 20),
    ),
    "mixture": (
        expert_net(mixture),
        (4,),
        {"experts.1", "experts.2"},
        2 * 80,
    ),
    "listed mixture": (
        expert_net(listed_mixture),
        (4,),
        {"experts.1", "experts.2"},
        2 * 80,
    ),
    "a keyword": (
        Toy(lambda t, x: t.head(input=t.a(input=x).flatten(1)), a=nn.Conv2d(1, 2, 3), head=head(8)),
        (1, 4, 4),
        set(),
        0,
    ),
    "its forward": (Toy(lambda t, x: t.head(t.a.forward(x)), a=nn.Linear(4, 4), head=head()), (4,), {"a"}, 80),
    "tied by a view": (
        Toy(lambda t, x: t.head(F.linear(t.a(x), t.a.weight.t())), a=nn.Linear(4, 3), head=head()),
        (4,),
        {"a"},
        60,
    ),
    "tied by data": (
        Toy(lambda t, x: t.head(t.a(x) @ t.a.weight.data), a=nn.Linear(4, 3), head=head()),
        (4,),
        {"a"},
        60,
    ),
    "only its type read": (
        Toy(
            lambda t, x: t.head(t.a(x.to(t.a.weight)) + torch.zeros_like(t.a.weight)[0, 0]),
            a=head(4),
            head=head(2),
        ),
        (4,),
        set(),
        0,
    ),
    "a part of a weight": (Toy(lambda t, x: t.head(t.a(x)), a=Unlike(4, 4, bias=False), head=head(2)), (4,), {"a"}, 64),
    "weight norm": (
        Toy(lambda t, x: t.head(t.a(x)), a=parametrizations.weight_norm(nn.Linear(4, 4)), head=head()),
        (4,),
        set(),
        0,
    ),
    "vectors": (
        Toy(
            lambda t, x: t.head(t.norm(t.act(t.a(x)) * t.p[0])),
            a=nn.Linear(4, 4),
            norm=nn.LayerNorm(4),
            act=nn.PReLU(4),
            p=nn.ParameterList([parameter(4)]),
            head=head(),
        ),
        (4,),
        set(),
        64,
    ),
    "given out": (Toy(lambda t, x: (t.head(x), t.scale), scale=parameter(1), head=head()), (4,), set(), 4),
    "given to a layer": (
        Toy(
            lambda t, x: t.head(t.a(t.query.expand(len(x), -1)) + x),
            query=parameter(1, 4),
            a=nn.Linear(4, 4),
            head=head(),
        ),
        (4,),
        set(),
        16,
    ),
    "learned queries": (
        Toy(
            lambda t, x: t.head(t.a(x, t.query.expand(len(x), -1, -1))),
            a=nn.Transformer(4, 2, 1, 1, 8, batch_first=True),
            query=parameter(1, 3, 4),
            head=head(),
        ),
        (5, 4),
        {"query"},
        4 * (12 + 7 * 8),
    ),
    "one norm of two": (
        Toy(
            lambda t, x: t.head(t.norm(t.a(x)).relu() + t.norm(t.b(x))),
            a=nn.Linear(4, 4),
            b=nn.Linear(4, 4),
            norm=nn.BatchNorm1d(4),
            head=head(),
        ),
        (4,),
        set(),
        32,
    ),
    "unused": (
        Toy(lambda t, x: t.head(x), p=parameter(3, 3), norm=nn.BatchNorm1d(7), a=nn.Linear(3, 3), head=head()),
        (4,),
        {"p", "a"},
        0,
    ),
    "auxiliary": (auxiliary_net(), (4,), {"auxiliary.0", "auxiliary.4"}, 0),
    "a layer": (nn.Sequential(nn.Linear(4, 4)), (4,), set(), 0),
    "a layer with weight norm": (nn.Sequential(parametrizations.weight_norm(nn.Linear(4, 4))), (4,), set(), 0),
    "tied layers": (SharedWeight(), (1, 6, 6), set(), 0),
    "half": (Net().half(), (1, 6, 6), set(), 0),
    "double, unwatchable": (Unwatchable().double(), (1, 6, 6), set(), 0),
    "an empty weight": (
        Toy(
            lambda t, x: t.head(x) + t.b(t.a(x)).mean(),
            a=empty_linear(4, 0),
            b=empty_linear(0, 2),
            head=head(),
        ),
        (4,),
        {"a", "b"},
        0,
    ),
    "integers first": (
        Toy(
            lambda t, x: t.head(x[:, t.p]),
            p=nn.Parameter(torch.tensor([1, 0, 2, 3]), requires_grad=False),
            head=head(),
        ),
        (4,),
        set(),
        16,
    ),
    "its data replaced": (Toy(replacing, p=parameter(4), a=nn.Linear(4, 4), head=head()), (4,), {"a"}, 4 * (4 + 20)),
    "makes constants": (Toy(lambda t, x: t.head(x + torch.arange(4.0)), a=head(), head=head()), (4,), {"a"}, 0),
}
