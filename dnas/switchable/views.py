"""Fixed quantized nets over one set of weights: what a switchable net is made of."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import parametrize

from dnas.quantization.conversion import QuantizerChoice, fixed_copy, layer_quantizers
from dnas.quantization.layers import QuantizedLayer, TensorQuantizer
from search_spaces.assignments import LayerBits, kept_rows_of
from search_spaces.errors import InputError
from search_spaces.layers import LayerGraph
from search_spaces.models.buffers import FOLDED
from search_spaces.models.computed import make_plain, sources_of
from search_spaces.models.copies import copy_network

_COARSE_BITS, _COARSE_STEP = 2, 0.1
"""The gain of up to 2 bits gets about ten times the gradient of wider ones; it takes smaller steps instead."""


def key_of(name: str) -> str:
    """A layer's name as the key of a module dictionary, which has no dots.

    >>> key_of("layer1.0.conv1")
    'layer1/0/conv1'
    """
    return name.replace(".", "/")


class SharedQuantizers(nn.Module):
    """One quantizer for each layer and width, for weights and for inputs, over all profiles.

    Where the quantizer of weights nests, those of one layer share their clip and have a trained gain each. Layers that
    share a weight share its quantizers.
    """

    def __init__(
        self, base: nn.Module, graph: LayerGraph, profiles: list[Mapping[str, LayerBits]], choice: QuantizerChoice
    ) -> None:
        super().__init__()
        self.owners = {spec.name: spec.shares_weight_with or spec.name for spec in graph.layers}
        self.weights, self.inputs = nn.ModuleDict(), nn.ModuleDict()
        for layers in profiles:
            for name, bits in layers.items():
                if bits.weight_bits and not bits.is_float:
                    self._add(base, graph, name, bits, choice)

    def _add(self, base: nn.Module, graph: LayerGraph, name: str, bits: LayerBits, choice: QuantizerChoice) -> None:
        key = f"{key_of(self.owners[name])}@{bits.weight_bits}", f"{key_of(name)}@{bits.activation_bits}"
        pair = (bits.weight_bits,), (bits.activation_bits,)
        inputs, weight = layer_quantizers(base.get_submodule(name), graph[name], *pair, choice)
        if key[0] not in self.weights:
            self.weights[key[0]] = self._sharing_clip(self.owners[name], weight)
        if key[1] not in self.inputs:
            self.inputs[key[1]] = inputs

    def _sharing_clip(self, owner: str, quantizer: nn.Module) -> nn.Module:
        if isinstance(quantizer, TensorQuantizer) and quantizer.quantizer.nests and quantizer.widths:
            quantizer.learn_gain()
            coarse = quantizer.widths[0] <= _COARSE_BITS
            quantizer.gain_gradient_scale = quantizer.clip_gradient_scale * (_COARSE_STEP if coarse else 1.0)
            first = next((q for q in self.of_weight(owner) if q.widths), None)
            if first is not None:
                quantizer.clip = first.clip
        return quantizer

    def of_weight(self, owner: str) -> list[TensorQuantizer]:
        """The quantizers of a layer's weight, one for each width."""
        return [cast(TensorQuantizer, q) for key, q in self.weights.items() if key.rpartition("@")[0] == key_of(owner)]

    def of_input(self, name: str) -> list[TensorQuantizer]:
        """The quantizers of a layer's input, one for each width."""
        return [cast(TensorQuantizer, q) for key, q in self.inputs.items() if key.rpartition("@")[0] == key_of(name)]

    def give(self, name: str, layer: QuantizedLayer, bits: LayerBits) -> None:
        """Put the quantizers of these widths into a layer that has all its filters and inputs, or fewer."""
        layer.quantize_input = cast(TensorQuantizer, self.inputs[f"{key_of(name)}@{bits.activation_bits}"])
        whole = cast(Any, self.weights[f"{key_of(self.owners[name])}@{bits.weight_bits}"])
        own = cast(Any, layer.quantize_weight)
        clip = getattr(own, "clip", None)
        if clip is None or clip.shape == whole.clip.shape:
            layer.quantize_weight = whole
            return
        rows = bits.kept_channels or ()  # a clip for each filter, of which only some are left
        if len(rows) != len(clip):
            raise InputError(f"layer '{name}' loses filters of which several share a scale; it cannot be shared")
        own.gain, own.gain_gradient_scale = whole.gain, whole.gain_gradient_scale
        own._buffers["grids"], own._buffers["low"] = whole.grids, whole.low
        _share(own, "clip", whole.clip, Picked(torch.tensor(rows)[:, None], tuple(whole.clip.shape)))


class Picked(nn.Module):
    """Part of a tensor: the entries at ``positions`` (int64, the part's shape) of a tensor of ``shape``, row-major.

    Used as a parametrization, so that a layer with fewer filters reads its weight from the whole one each time.
    ``positions`` lie on the CPU; the module then goes where the tensor is.
    """

    def __init__(self, positions: Tensor, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.shape = tuple(positions.shape)
        inner = 1
        for size in shape[1:]:
            inner *= size
        matrix = positions.reshape(self.shape[0], -1)
        rows, columns = matrix[:, 0] // inner, matrix[0] % inner
        is_product = torch.equal(rows[:, None] * inner + columns, matrix)
        self.is_product = is_product
        self.register_buffer("rows", rows if is_product else positions.flatten(), persistent=False)
        all_columns = torch.equal(columns, torch.arange(inner))
        self.register_buffer("columns", columns if is_product and not all_columns else None, persistent=False)

    def forward(self, whole: Tensor) -> Tensor:
        """The part of ``whole``."""
        rows, columns = cast(Tensor, self.rows), cast("Tensor | None", self.columns)
        if not self.is_product:
            return whole.flatten().index_select(0, rows).reshape(self.shape)
        part = whole.index_select(0, rows)
        if columns is not None:
            part = part.flatten(1).index_select(1, columns)
        return part.reshape(self.shape)


def build_view(
    base: nn.Module,
    graph: LayerGraph,
    layers: Mapping[str, LayerBits],
    choice: QuantizerChoice,
    quantizers: SharedQuantizers,
) -> nn.Module:
    """The fixed net of these layers whose parameters are those of ``base``, but scales and shifts of BatchNorms."""
    _check_sharable(base)
    view = fixed_copy(base, graph, layers, choice)
    whole = dict(base.named_parameters(remove_duplicate=False))
    served = _serving_buffers(base, graph)
    numbered = None
    if kept_rows_of(layers):
        numbered = dict(fixed_copy(_numbered(base), graph, layers, choice).named_modules())
    for name, module in list(view.named_modules()):
        if ".quantize_" in f".{name}":
            continue
        own = FOLDED if isinstance(module, _BatchNorm) else ()
        for key in module._buffers.keys() & served.get(name, {}).keys():
            module._buffers[key] = served[name][key]
        for key, parameter in list(module._parameters.items()):
            if parameter is None or key in own:
                continue
            full = whole[f"{name}.{key}" if name else key]
            pick = None
            if parameter.shape != full.shape and numbered is not None:
                positions = cast(Tensor, numbered[name]._parameters[key]).detach().round().long()
                pick = Picked(positions, tuple(full.shape))
            _share(module, key, full, pick)
        if isinstance(module, QuantizedLayer):
            quantizers.give(name, module, layers[name])
    return view


def _check_sharable(base: nn.Module) -> None:
    """Refuse scripted parts that hold parameters: those of another module cannot be put into them."""
    for name, module in base.named_modules():
        if isinstance(module, torch.jit.ScriptModule) and next(module.parameters(), None) is not None:
            raise InputError(
                f"module '{name}' is made by torch.jit, which lets no profiles share its parameters; give the network "
                "with that module as it was before, or quantize each assignment into a net of its own"
            )


def _serving_buffers(base: nn.Module, graph: LayerGraph) -> dict[str, dict[str, Tensor]]:
    """By module and key, buffers of which weights are computed: as these are one, so are they."""
    found: dict[str, dict[str, Tensor]] = {}
    for spec in graph.layers:
        for name, tensor in sources_of(base.get_submodule(spec.name)).items():
            module, _, key = f"{spec.name}.{name}".rpartition(".")
            if not isinstance(tensor, nn.Parameter):
                found.setdefault(module, {})[key] = tensor
    return found


def _share(module: nn.Module, key: str, full: Tensor, pick: Picked | None) -> None:
    """Let the parameter or buffer ``key`` be ``full``, or what ``pick`` takes of it."""
    if isinstance(full, nn.Parameter):
        module._parameters[key] = full
    else:
        module._buffers[key] = full
    if pick is not None:
        parametrize.register_parametrization(module, key, pick.to(full.device), unsafe=True)


def _numbered(base: nn.Module) -> nn.Module:
    """A copy in which every entry of a parameter is its own position, so that a pruned copy tells what it keeps.

    It lies on the CPU, where positions are read, wherever the network is.
    """
    twin = copy_network(base)
    make_plain(twin)
    twin.to_empty(device="cpu")
    for parameter in twin.parameters():
        count = parameter.numel()
        parameter.data = torch.arange(count, dtype=torch.float64).reshape(parameter.shape)
    return twin


def share_norms(first: nn.Module, view: nn.Module) -> None:
    """Put the BatchNorms of ``first`` into ``view``, in the place of its own."""
    for name, module in list(first.named_modules()):
        if isinstance(module, _BatchNorm):
            _replace(view, view.get_submodule(name), module)


def _replace(view: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """Put ``new`` in the place of ``old``, under every name that it is registered by."""
    for parent in list(view.modules()):
        for key, child in parent._modules.items():
            if child is old:
                parent._modules[key] = new


def once_each(change: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """The same change (such as a move to a device), so that what several modules have in common stays one tensor."""
    known: dict[int, tuple[Tensor, Tensor]] = {}  # with the tensor itself, whose id another could get otherwise

    def changed(tensor: Tensor) -> Tensor:
        if id(tensor) not in known:
            known[id(tensor)] = tensor, change(tensor)
        return known[id(tensor)][1]

    return changed


def is_part(module: nn.Module, key: str | None = None) -> bool:
    """Whether a module reads its ``key`` (None: any tensor) from a part of a shared one."""
    if not parametrize.is_parametrized(module, key):
        return False
    lists = cast(nn.ModuleDict, module.parametrizations)
    return all(isinstance(cast(Any, parts)[0], Picked) for at, parts in lists.items() if key in (None, at))


def own_parts(module: nn.Module) -> None:
    """Give a module tensors of its own in the place of its parts of shared ones."""
    lists = dict(cast(nn.ModuleDict, module.parametrizations).items())
    parts = {key: getattr(module, key).detach().clone() for key in lists}
    # Not parametrize.remove_parametrizations: it changes the class, which a copied module has in common with others.
    module.__class__ = parametrize.type_before_parametrizations(module)
    del module.parametrizations
    for key, part in parts.items():
        is_parameter = isinstance(lists[key].original, nn.Parameter)
        _share(module, key, nn.Parameter(part) if is_parameter else part, None)


def part_of(module: nn.Module, key: str) -> tuple[Tensor | None, Tensor | None]:
    """Rows and columns (int64) of the shared tensor that a module uses as its ``key``; None: all."""
    if not is_part(module, key):
        return None, None
    picked = cast(Picked, cast(Any, module.parametrizations)[key][0])
    if not picked.is_product:
        raise InputError(f"'{key}' of a pruned layer is no rows and columns of the whole; it cannot be packed")
    return cast(Tensor, picked.rows), cast("Tensor | None", picked.columns)
