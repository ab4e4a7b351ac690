"""How the layers of a channel group are met: their filters, quantized or latent, and the unit of each."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from search_spaces.errors import InputError
from search_spaces.groups import ChannelGroup


@dataclass(frozen=True)
class Member:
    """A layer of a group, its filters (R, K), and the unit of each (R,), -1 for one that is none of the group's."""

    name: str
    layer: nn.Module
    filters: Tensor
    rows: np.ndarray


def members(network: nn.Module, group: ChannelGroup, read: Callable[[nn.Module], Tensor]) -> Iterator[Member]:
    """The layers of a group with the filters that ``read`` gives; :class:`InputError` where they do not fit it."""
    for name, rows in group.rows.items():
        layer = submodule(network, name, group)
        filters = filters_of(layer, read(layer))
        if not torch.isfinite(filters).all():
            raise InputError(f"channel group '{group.name}': the weight of layer '{name}' is not finite")
        yield Member(name, layer, filters, checked_rows(rows, len(filters), name, group))


def checked_rows(rows: tuple[int, ...], count: int, name: str, group: ChannelGroup) -> np.ndarray:
    """The unit of each of a module's ``count`` channels, as an array."""
    if len(rows) != count:
        raise InputError(
            f"channel group '{group.name}' tells of {len(rows)} channels of '{name}', which has {count}; "
            "read the groups of this very network"
        )
    return np.asarray(rows)


def submodule(network: nn.Module, name: str, group: ChannelGroup) -> nn.Module:
    """The module of that name; :class:`InputError` where the network has none."""
    try:
        return network.get_submodule(name)
    except AttributeError:
        raise InputError(f"channel group '{group.name}': the network has no module '{name}'") from None


def quantized_weight(layer: nn.Module) -> Tensor:
    """The weight as the layer uses it: ``quantized_weight()`` where the layer has it."""
    quantized = getattr(layer, "quantized_weight", None)
    with torch.no_grad():
        return cast(Tensor, quantized() if callable(quantized) else layer.weight).detach()


def latent_weight(layer: nn.Module) -> Tensor:
    """The weight as it is trained, before quantization."""
    return cast(Tensor, layer.weight).detach()


def filters_of(layer: nn.Module, weight: Tensor) -> Tensor:
    """Bring a weight to one row per output channel (R, K); that of a transposed convolution is (in, out/groups, …)."""
    if getattr(layer, "transposed", False):
        groups = int(cast(Any, layer).groups)
        parts = weight.reshape(groups, weight.shape[0] // groups, weight.shape[1], -1)
        return parts.transpose(1, 2).reshape(groups * weight.shape[1], -1)
    return weight.flatten(1)
