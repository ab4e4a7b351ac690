"""BatchNorm as a packed file holds it, and the proof that the network reads nothing else of it."""

from __future__ import annotations

import sys
from collections.abc import Collection
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import parametrize
from torch.nn.utils.prune import BasePruningMethod

from dnas.export.parts import folded_norm
from dnas.quantization.layers import TensorQuantizer
from dnas.quantization.proof import agree, outputs_on_noise
from dnas.switchable.views import Picked
from search_spaces.errors import InputError
from search_spaces.layers import LayerGraph
from search_spaces.models.computed import computed_names, hooked_name
from search_spaces.models.copies import copy_network

_LEAST = sys.float_info.min  # adds nothing to 1; some versions of PyTorch refuse 0


def fold(norm: _BatchNorm, scale: Tensor, shift: Tensor) -> None:
    """Make a BatchNorm the folded scale and shift (C,): mean 0, variance 1 and next to no eps leave x as it is.

    One of 16 bits becomes fp32, in which it computed its scale, too; its inputs and outputs stay of 16 bits.
    """
    assert norm.running_mean is not None
    assert norm.running_var is not None
    like = norm.running_mean.new_zeros((), dtype=torch.promote_types(norm.running_mean.dtype, torch.float32))
    norm.running_mean, norm.running_var = norm.running_mean.to(like), norm.running_var.to(like)
    norm.running_mean.zero_()
    norm.running_var.fill_(1.0)
    norm.eps = _LEAST
    norm.weight, norm.bias = (nn.Parameter(tensor.to(like)) for tensor in (scale, shift))


def check_folded(network: nn.Module, graph: LayerGraph) -> None:
    """Raise :class:`InputError` that names a BatchNorm whose folding the network's own code notices.

    Code may read a weight or a statistic itself, and a file holds scale and shift alone. Both run in float64 on one
    random input, their layers' inputs unquantized; nothing is proven where the network does not run so. BatchNorms are
    folded in float64 too: a detector chooses boxes by their scores, and the rounding of fp32 would choose others.
    """
    norms = [
        name
        for name, norm in network.named_modules()
        if isinstance(norm, _BatchNorm) and norm.running_mean is not None and name not in graph.unused
    ]
    for name in norms:
        _check_plain(name, network.get_submodule(name))
    expected = outputs_on_noise(_folded(network, ()), graph.example) if norms else None
    if expected is None or agree(outputs_on_noise(_folded(network, norms), graph.example), expected):
        return
    for name in norms:
        if not agree(outputs_on_noise(_folded(network, [name]), graph.example), expected):
            raise InputError(
                f"the network reads the weight or the statistics of the BatchNorm '{name}' itself, and a packed file "
                "holds them folded into a scale and a shift; let the code read a parameter or a buffer of its own"
            )


def _check_plain(name: str, norm: nn.Module) -> None:
    """Refuse a BatchNorm that makes its weight or bias anew each time: what it makes them of would be stored too."""
    masked = [hook for hook in norm._forward_pre_hooks.values() if isinstance(hook, BasePruningMethod)]
    for key in (hooked_name(hook) for hook in masked):
        raise InputError(
            f"the {key} of the BatchNorm '{name}' is behind a mask of torch.nn.utils.prune, and a packed file holds it "
            "folded; keep what the mask left before the network is quantized: "
            f"prune.remove(network.get_submodule('{name}'), '{key}')"
        )
    for key in computed_names(norm):
        if not (parametrize.is_parametrized(norm, key) and isinstance(_first_of(norm, key), Picked)):
            raise InputError(
                f"the {key} of the BatchNorm '{name}' is computed of other tensors, and a packed file holds it folded; "
                "let the network hold it as a parameter before it is quantized, as "
                "parametrize.remove_parametrizations does"
            )


def _first_of(module: nn.Module, key: str) -> nn.Module:
    """The first parametrization of a tensor."""
    return cast(nn.ModuleList, cast(nn.ModuleDict, module.parametrizations)[key])[0]


def _folded(network: nn.Module, names: Collection[str]) -> nn.Module:
    twin = copy_network(network).eval().double()
    with torch.no_grad():
        for name in names:
            norm = twin.get_submodule(name)
            if isinstance(norm, _BatchNorm):
                fold(norm, *folded_norm(name, norm, torch.float64))
    for module in twin.modules():
        if isinstance(module, TensorQuantizer):
            module.pass_through()
    return twin
