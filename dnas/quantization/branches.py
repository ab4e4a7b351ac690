"""Layers that are skipped, layers of several branches, layers with a given weight: what else becomes of a layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from dnas.quantization.layers import QuantizedLayer, TensorQuantizer, quantize_layer, shapes_of
from dnas.quantization.roles import become, copy_without_hooks, has_hooks, reduced
from search_spaces.channels.slicing import Selection, slice_layer
from search_spaces.layers import LayerSpec
from search_spaces.models.computed import forget_sources, make_plain
from search_spaces.models.copies import copy_network
from search_spaces.models.multiplied import changing
from search_spaces.network.calls import first_input, with_first_input


class SkippedLayer(nn.Module):
    """A layer at 0 bits: zeros of the shape that the layer would give; nothing is computed and nothing is stored.

    :func:`skip_layer` makes it of a layer in place. Code that reads its weight, for a type or a penalty, reads zeros.
    """

    original_class: ClassVar[type[nn.Module]]
    _first_argument: ClassVar[str]
    _shape_only: tuple[nn.Module]

    def forward(self, *inputs: Any, **options: Any) -> Tensor:
        """Return zeros."""
        x = first_input(self, inputs, options)
        given = with_first_input(self, inputs, options, torch.empty(x.shape, device="meta", dtype=torch.float32))
        with torch.no_grad():
            shape = self._shape_only[0](*given[0], **given[1]).shape
        return cast(Tensor, x.new_zeros(shape))

    def __getattr__(self, name: str) -> Any:
        """What was a parameter of the layer is zeros that take no memory."""
        found = super().__getattr__(name)
        like = getattr(self._shape_only[0], name, None) if found is None else None
        return found if like is None else self._buffers["zero"].expand(like.shape)

    def keep_channels(self, selection: Selection) -> None:
        """Give zeros for fewer filters."""
        slice_layer(self._shape_only[0], selection)

    def __reduce_ex__(self, protocol: Any) -> Any:
        """As :class:`QuantizedLayer`."""
        return reduced(self, SkippedLayer, self.original_class)


def skip_layer(layer: nn.Module) -> SkippedLayer:
    """Let ``layer`` give zeros from now on, in place; it forgets its weights."""
    make_plain(layer)
    meta = {id(p): nn.Parameter(torch.empty_like(p, device="meta", dtype=torch.float32)) for p in layer.parameters()}
    # In a tuple, so that it is no submodule: nothing of it is stored.
    shape_only = (copy_without_hooks(layer, meta),)
    zero = next(layer.parameters()).new_zeros(())
    vars(layer).pop("forward", None)
    _forget_tensors(layer)
    skipped = cast(SkippedLayer, become(layer, SkippedLayer))
    skipped._shape_only = shape_only
    skipped.register_buffer("zero", zero, persistent=False)
    return skipped


class BranchedLayer(nn.Module):
    """One layer per candidate pair, each with its own weight and BatchNorm, in a weighted sum (DNAS, eq. 4).

    :func:`branch_layer` makes it of a layer in place.
    """

    original_class: ClassVar[type[nn.Module]]
    _first_argument: ClassVar[str]
    branches: nn.ModuleList
    norms: nn.ModuleList
    lent: Tensor | None

    def forward(self, *inputs: Any, **options: Any) -> Tensor:
        """Run every branch and add their outputs weighted by the lent coefficients (K,)."""
        pairs = list(zip(self.branches, self.norms, strict=True))
        outputs = (norm(branch(*inputs, **options)) for branch, norm in pairs)
        if any(cast(QuantizedLayer, branch).quantize_input.observed is not None for branch in self.branches):
            return cast(Tensor, sum(outputs) / len(pairs))
        if self.lent is None:
            raise RuntimeError("no sample is lent to the supernet; run it inside `with supernet.sampled(sample):`")
        return cast(Tensor, sum(coefficient * output for coefficient, output in zip(self.lent, outputs, strict=True)))

    def __reduce_ex__(self, protocol: Any) -> Any:
        """As :class:`QuantizedLayer`."""
        return reduced(self, BranchedLayer, self.original_class)


def branch_layer(
    twin: nn.Module, spec: LayerSpec, quantizers: Sequence[tuple[TensorQuantizer, TensorQuantizer]]
) -> BranchedLayer:
    """Let a layer of ``twin`` be a weighted sum of copies from now on, in place, one per pair of quantizers.

    Each has its own copy of the BatchNorm behind, which then returns its input, unless hooks stand between the two.
    """
    layer = twin.get_submodule(spec.name)
    norm = twin.get_submodule(spec.norm) if spec.norm else None
    if norm is None or has_hooks(layer) or has_hooks(norm):
        norm = nn.Identity()
    made = shapes_of(spec)
    branches = [quantize_layer(copy_without_hooks(layer), *pair, made) for pair in quantizers]
    norms = [copy_network(norm) for _ in quantizers]
    for module in (layer, norm):
        vars(module).pop("forward", None)
        forget_sources(module)
        _forget_tensors(module)
    norm.__class__ = nn.Identity
    branched = cast(BranchedLayer, become(layer, BranchedLayer))
    branched.branches, branched.norms, branched.lent = nn.ModuleList(branches), nn.ModuleList(norms), None
    return branched


class DirectLayer(nn.Module):
    """A layer that multiplies with the weight that it holds, whatever its own code makes of it.

    :func:`direct_layer` makes it of a layer in place.
    """

    original_class: ClassVar[type[nn.Module]]
    weight: nn.Parameter

    def forward(self, *inputs: Any, **options: Any) -> Any:
        """Run the layer's own code, with its weight in the place of the one that the code makes."""
        weight = self.weight
        with changing(weight.shape, lambda _: weight):
            return (vars(self).get("own_code") or super().forward)(*inputs, **options)

    def __reduce_ex__(self, protocol: Any) -> Any:
        """As :class:`QuantizedLayer`."""
        return reduced(self, DirectLayer, self.original_class)


def direct_layer(layer: nn.Module) -> DirectLayer:
    """Let ``layer`` multiply with the weight that it holds from now on, in place."""
    own_code = vars(layer).pop("forward", None)
    direct = cast(DirectLayer, become(layer, DirectLayer))
    if own_code is not None:
        direct.own_code = own_code
    return direct


def _forget_tensors(module: nn.Module) -> None:
    for held in (module._parameters, module._buffers, module._modules):
        held.update(dict.fromkeys(held))


class BranchGate:
    """A forward hook that multiplies a residual branch's output by the coefficient of not skipping it."""

    def __init__(self) -> None:
        self.lent: Tensor | None = None

    def __call__(self, module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        """Return the branch's output times its coefficient."""
        return output if self.lent is None else output * self.lent.to(output.dtype)


class DroppedBranch:
    """A forward hook on the end of a skipped residual branch: the branch adds nothing."""

    def __call__(self, module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        """Return zeros in the place of the branch's output."""
        return torch.zeros_like(output)
