"""Prove on real input that quantized layers do what the network does with such weights, or say which layer does not.

A network may read a layer past its forward pass: its type, its weight through a copy, what it overwrites. So before
layers are quantized, two copies run on one random input: the network with other weights, and its twin whose layers
make the same weights of the old ones as a quantizer would. Both must give the same output.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from dnas.quantization.branches import BranchedLayer, branch_layer
from dnas.quantization.families import find_quantizer
from dnas.quantization.layers import QuantizedLayer, TensorQuantizer, quantize_layer, shapes_of
from dnas.quantization.randomness import seeded
from search_spaces.channels.running import tensors
from search_spaces.errors import InputError
from search_spaces.layers import FLOAT_BITS, LayerGraph
from search_spaces.models.copies import copy_network, fresh_copy
from search_spaces.network.examples import drawn, floats_of
from search_spaces.signature import Signature

_TOLERANCE = 1e-4
"""Relative to the largest output; unfolded attention sums in another order."""


def check_twin(model: nn.Module, graph: LayerGraph, names: Sequence[str], *, branched: bool = False) -> None:
    """Raise :class:`InputError` that names the first of the layers whose quantized twin is not the network's.

    Nothing is proven where the network does not run on one random input (one on the meta device). ``branched`` proves
    layers of several branches, which hold no weight of their own: code that only training runs may not read it either.
    """
    if _agree(model, graph, names, branched):
        return
    if not _agree(model, graph, (), branched):
        raise InputError(
            "the network's copy that is quantized gives another output than the network, with every layer still in "
            "fp32; something in it depends on attention modules or on the identity of its modules"
        )
    first, last = 0, len(names)  # the first `first` layers agree, the first `last` do not
    while last - first > 1:
        middle = (first + last) // 2
        first, last = (middle, last) if _agree(model, graph, names[:middle], branched) else (first, middle)
    what, instead = ("branched", 'use engine = "composite", ') if branched else ("quantized", "")
    raise InputError(
        f"layer '{names[first]}' cannot be {what}: the network reads it otherwise than by calling it (its weight, its "
        f"type, or what it overwrites), so that its twin gives another output; {instead}leave it out with "
        f'space.exclude = ["{names[first]}"] or change the network'
    )


def _check_layers(twin: nn.Module, names: Sequence[str]) -> None:
    """Refuse a network that lacks a layer, as the graph of another one has it, or whose layers are quantized."""
    modules = dict(twin.named_modules(remove_duplicate=False))
    for name in names:
        if name not in modules:
            raise InputError(f"the network has no layer '{name}'; give the graph that read_graph told of this network")
        if isinstance(modules[name], (QuantizedLayer, BranchedLayer)):
            raise InputError(f"layer '{name}' is quantized already; give the float network that this one was made of")


def _agree(model: nn.Module, graph: LayerGraph, names: Sequence[str], branched: bool) -> bool:
    """Whether other weights in these layers are the same as quantizers that give them; True where nothing runs."""
    copied: dict[int, Any] = {}
    network = copy_network(model, copied).eval()
    copied_twin: dict[int, Any] = {}
    twin = fresh_copy(model, copied_twin).eval()
    _check_layers(twin, names)
    # The parameters of a scripted module are copied past Python.
    known = [parameter for parameter in model.parameters() if id(parameter) in copied_twin]
    originals = {id(copied_twin[id(parameter)]): parameter for parameter in known}
    with torch.no_grad():
        weights = {}
        for name in names:
            layer, spec = twin.get_submodule(name), graph[name]
            changes: nn.Module = _Other()
            if spec.weight_from == "parameter":
                weight = cast(Tensor, layer.weight)
                weights[id(weight)] = copied[id(originals[id(weight)])]
            elif spec.weight_from == "computed":
                _change_computed(network.get_submodule(name))
            else:  # the layer's own code makes it: what else reads the one that it holds was seen as it ran
                changes = _passing()
            quantizers = _passing(), cast(TensorQuantizer, changes)
            if branched:
                branch_layer(twin, spec, [quantizers]).lent = floats_of(network).new_ones(1)
            else:
                quantize_layer(layer, *quantizers, shapes_of(spec))
        for weight in weights.values():
            weight.copy_(_other(weight))
    expected = outputs_on_noise(network, graph.example)
    if expected is not None and not agree(outputs_on_noise(twin, graph.example), expected):
        return False
    return not branched or _trains(twin, graph.example) or not _trains(network, graph.example)


def _trains(network: nn.Module, example: tuple[int, ...] | Signature) -> bool:
    return outputs_on_noise(network.train(), example, samples=2) is not None


def _change_computed(layer: nn.Module) -> None:
    """Let a weight that is computed of others become another one last."""
    if parametrize.is_parametrized(layer, "weight"):
        parametrize.register_parametrization(layer, "weight", _Other(), unsafe=True)
    else:
        layer.register_forward_pre_hook(lambda module, _: setattr(module, "weight", _other(module.weight)))


def _passing() -> TensorQuantizer:
    return TensorQuantizer(find_quantizer("activations", "pact"), (FLOAT_BITS,), signed=True)


class _Other(nn.Module):
    """Stands for a quantizer of weights."""

    def forward(self, weight: Tensor) -> Tensor:
        """Other values of the same shape."""
        return _other(weight)


def _other(weight: Tensor) -> Tensor:
    """Each value a quarter less, as it is, or a quarter more, by turns."""
    factors = 1 + 0.25 * (torch.arange(weight.numel(), device=weight.device) % 3 - 1)
    return weight * factors.to(weight.dtype).view(weight.shape)


def outputs_on_noise(
    network: nn.Module, example: tuple[int, ...] | Signature, *, samples: int = 1
) -> list[Tensor] | None:
    """All tensors that the network returns for random samples; None where it cannot run."""
    like = floats_of(network)
    with torch.no_grad(), seeded(0, like.device):
        try:
            found = drawn(example, samples, network).run(network)
        except Exception:  # code of a foreign network
            return None
    return [tensor.detach() for tensor in tensors(found)]


def agree(actual: list[Tensor] | None, expected: list[Tensor]) -> bool:
    """Whether what one network returned is what another did, up to rounding."""
    return actual is not None and len(actual) == len(expected) and all(map(_close, actual, expected))


def _close(actual: Tensor, expected: Tensor) -> bool:
    if actual.shape != expected.shape or actual.dtype != expected.dtype:
        return False
    if actual.is_meta or not expected.numel():
        return True
    actual, expected = actual.cpu().double(), expected.cpu().double()
    allowed = _TOLERANCE * expected.nan_to_num(0, 0, 0).abs().amax()
    close = ((actual - expected).abs() <= allowed) | (actual == expected)
    return bool((close | (actual.isnan() & expected.isnan())).all())
