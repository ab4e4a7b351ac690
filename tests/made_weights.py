"""Layers that multiply with another weight than the one they hold, and what that is, written by hand."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, parametrize, prune

from search_spaces.layers import LayerGraph
from search_spaces.network.graph import read_graph
from tests.packed_nets import statistics
from tests.toys import seeded

SHAPE = (3, 6, 6)


class Doubled(nn.Module):
    """A parametrization of one's own."""

    def forward(self, weight: Tensor) -> Tensor:
        return 2 * weight.tanh()


class Standardized(nn.Conv2d):
    """Weight standardisation (arXiv 1903.10520) with a gain, and a parameter that the output is multiplied by."""

    def __init__(self, *sizes: Any, **options: Any) -> None:
        super().__init__(*sizes, **options)
        self.gain, self.scale = nn.Parameter(torch.ones(self.out_channels, 1, 1, 1)), nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, standard(self.weight) * self.gain, self.bias) * self.scale


class Tangent(nn.Conv2d):
    """The forward of Conv2d, on another weight."""

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return super()._conv_forward(input, weight.tanh(), bias)


def standard(weight: Tensor) -> Tensor:
    """The weight (R, ...) with mean 0 and variance 1 in each row."""
    flat = weight.flatten(1)
    flat = (flat - flat.mean(1, keepdim=True)) / flat.std(1, keepdim=True)
    return flat.reshape(weight.shape)


def conv(kind: type[nn.Conv2d] = nn.Conv2d) -> nn.Conv2d:
    return kind(4, 6, 3, padding=1)


def by_hooks(function: Callable[..., nn.Module], layer: nn.Module) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return function(layer)


def norm_of(direction: Tensor, size: Tensor) -> Tensor:
    """Weight norm, arXiv 1602.07868, eq. 2."""
    return size * direction / direction.flatten(1).norm(dim=1).reshape(-1, *[1] * (direction.dim() - 1))


def spectral(weight: Tensor, u: Tensor, v: Tensor) -> Tensor:
    """Spectral norm, arXiv 1802.05957, eq. 8, with the vectors as they are."""
    return weight / (u @ (weight.flatten(1) @ v))


Made = dict[str, tuple[Callable[[], nn.Module], Callable[[Any], Tensor]]]
KINDS: Made = {
    "weight norm by hooks": (
        lambda: by_hooks(nn.utils.weight_norm, conv()),
        lambda layer: norm_of(layer.weight_v, layer.weight_g),
    ),
    "spectral norm by hooks": (
        lambda: by_hooks(nn.utils.spectral_norm, conv()),
        lambda layer: spectral(layer.weight_orig, layer.weight_u, layer.weight_v),
    ),
    "masks": (
        lambda: prune.l1_unstructured(prune.random_unstructured(conv(), "weight", 0.5), "bias", 0.3),
        lambda layer: layer.weight_orig * layer.weight_mask,
    ),
    "weight norm": (
        lambda: parametrizations.weight_norm(conv()),
        lambda layer: norm_of(layer.parametrizations.weight.original1, layer.parametrizations.weight.original0),
    ),
    "spectral norm": (
        lambda: parametrizations.spectral_norm(conv()),
        lambda layer: spectral(
            layer.parametrizations.weight.original,
            layer.parametrizations.weight[0]._u,
            layer.parametrizations.weight[0]._v,
        ),
    ),
    "a parametrization": (
        lambda: parametrize.register_parametrization(conv(), "weight", Doubled()),
        lambda layer: 2 * layer.parametrizations.weight.original.tanh(),
    ),
    "standardisation": (lambda: conv(Standardized), lambda layer: standard(layer.weight) * layer.gain),
    "a product of one's own": (lambda: conv(Tangent), lambda layer: layer.weight.tanh()),
    "a parametrization under standardisation": (
        lambda: parametrize.register_parametrization(conv(Standardized), "weight", Doubled()),
        lambda layer: standard(2 * layer.parametrizations.weight.original.tanh()) * layer.gain,
    ),
    "weight norm of a transposed layer": (
        lambda: by_hooks(nn.utils.weight_norm, nn.ConvTranspose2d(4, 6, 3, padding=1)),
        lambda layer: norm_of(layer.weight_v, layer.weight_g),
    ),
    "an orthogonal linear layer": (
        lambda: Inside(parametrizations.orthogonal(nn.Linear(6, 6, bias=False))),
        lambda layer: torch.linalg.qr(layer.weight)[0] * torch.linalg.qr(layer.weight)[1].diagonal().sign(),
    ),
}


class Inside(nn.Sequential):
    """A linear layer over the last axis, between two convolutions."""

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(super().forward(x), (0, 0, 0, 0, 0, 2))


def network(kind: str) -> nn.Module:
    """A network whose module ``made`` is (or holds, as its ``0``) a layer of this kind."""
    torch.manual_seed(0)
    parts: dict[str, nn.Module] = {"stem": nn.Conv2d(3, 4, 1), "norm": nn.BatchNorm2d(4), "made": KINDS[kind][0]()}
    parts |= {"act": nn.ReLU(), "last": nn.Conv2d(6, 5, 1), "flat": nn.Flatten(), "head": nn.Linear(180, 3)}
    model = nn.Sequential()
    for name, part in parts.items():
        model.add_module(name, part)
    return statistics(model)


@cache
def graph_of(kind: str) -> LayerGraph:
    """What is read of that network, which reading leaves as it is."""
    return read_graph(network(kind), SHAPE)


def name_of(kind: str) -> str:
    """The name of its layer of this kind."""
    return "made.0" if kind == "an orthogonal linear layer" else "made"


def images(count: int = 8) -> Tensor:
    return torch.randn(count, *SHAPE, generator=seeded())
