"""The pieces of a fixed net that a packed file holds: codes, folded BatchNorms, and everything between layers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from dnas.quantization.layers import QuantizedLayer, TensorQuantizer, float_weight
from dnas.quantization.quantizers import SMALLEST_CLIP, Grid, encode
from dnas.quantization.roles import has_hooks
from dnas.quantization.schemes import SchemeQuantizer, module_of
from dnas.switchable.views import Picked
from search_spaces.assignments import BitAssignment, LayerBits
from search_spaces.errors import InputError
from search_spaces.layers import FLOAT_BITS, LayerGraph, LayerSpec
from search_spaces.models.computed import make_plain
from search_spaces.models.copies import copy_network
from search_spaces.network.graph import LAYER_TYPES

Network = TypeVar("Network", bound=nn.Module)
_GEOMETRY = ("stride", "padding", "dilation", "output_padding", "groups", "padding_mode")
OURS = (TensorQuantizer, SchemeQuantizer, Picked)
"""What conversion puts into a network: the file describes it otherwise."""


@dataclass(frozen=True)
class Codes:
    """Integers (of the tensor's shape) with the clip (R,) and the grid, gain included, that make them values."""

    codes: np.ndarray
    clip: np.ndarray
    grid: Grid


def on_cpu(network: Network) -> Network:
    """``network``, or a copy of it on the CPU, where codes and folded BatchNorms are computed.

    Raises :class:`InputError` for tensors of the meta device, which have no values.
    """
    tensors = {name: tensor for name, tensor in (*network.named_parameters(), *network.named_buffers())}
    lost = next((name for name, tensor in tensors.items() if tensor.is_meta), None)
    if lost is not None:
        raise InputError(f"'{lost}' is on the meta device and has no values; load the trained weights first")
    elsewhere = any(tensor.device.type != "cpu" for tensor in tensors.values())
    return copy_network(network).cpu() if elsewhere else network


def deployed_copy(network: nn.Module) -> nn.Module:
    """A copy in eval mode, in fp32 on the CPU, that holds as parameters what it computed of others."""
    twin = copy_network(network).cpu().float().eval()
    make_plain(twin)
    return twin


def smallest_clip(clip: Tensor) -> Tensor:
    """A clip as it is used."""
    return clip.detach().clamp_min(SMALLEST_CLIP)


def array_of(tensor: Tensor) -> np.ndarray:
    """A tensor as fp32, on the CPU."""
    return tensor.detach().float().cpu().contiguous().numpy()


def used_weight(layer: nn.Module, spec: LayerSpec) -> Tensor:
    """The weight as the layer uses it."""
    with torch.no_grad():
        return layer.quantized_weight() if isinstance(layer, QuantizedLayer) else float_weight(layer, spec)


def grid_with_gain(quantizer: TensorQuantizer) -> Grid:
    """The grid of a quantizer of one width, its gain multiplied into step and start in the quantizer's own dtype."""
    scale, offset, top, step, start = quantizer.grids[:, 0]
    gain = quantizer.gain.detach()[0]
    return Grid(*(float(number) for number in (scale, offset, top, gain * step, gain * start)))


def weight_codes(layer: QuantizedLayer) -> Codes:
    """The codes (int64, the weight's shape) of a layer with a plain quantized weight of one width."""
    quantizer = cast(TensorQuantizer, layer.quantize_weight)
    with torch.no_grad():
        weight = layer.float_weight()
        clip = quantizer.prepare(weight)[1]
    return Codes(codes_of(quantizer, weight), array_of(clip).reshape(-1), grid_with_gain(quantizer))


def codes_of(quantizer: TensorQuantizer, weight: Tensor) -> np.ndarray:
    """The codes (int64, the weight's shape) that a quantizer of one width gives."""
    grid = grid_with_gain(quantizer)
    with torch.no_grad():
        prepared, clip = quantizer.prepare(weight)
        rows = prepared.reshape(clip.shape[0], -1)
        codes = quantizer.as_rows(encode(rows, clip, grid, quantizer.signed).reshape(prepared.shape))
    return codes.cpu().numpy().astype(np.int64)


def geometry(layer: Any) -> dict[str, Any]:
    """How the layer runs over its input; ``standard`` says whether it does nothing else."""
    own_class = layer.original_class if isinstance(layer, QuantizedLayer) else type(layer)
    kind = next(kind for kind in LAYER_TYPES if isinstance(layer, kind))
    found = {name: getattr(layer, name) for name in _GEOMETRY if hasattr(layer, name)}
    listed = {name: list(value) if isinstance(value, tuple) else value for name, value in found.items()}
    return {**listed, "standard": own_class.forward is kind.forward and not has_hooks(layer)}


def folded_norm(name: str, norm: nn.Module, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Scale and shift (C,) of a BatchNorm in eval mode: what PyTorch itself makes of 1 without mean and bias, and of 0.

    On the CPU it computes x · scale + shift with these two, so that the folded BatchNorm gives the same bits. Files
    hold them in fp32.
    """
    if not isinstance(norm, _BatchNorm) or norm.running_mean is None or norm.running_var is None:
        raise InputError(
            f"'{name}' normalises by the statistics of each batch; it cannot be folded, so it is not packed"
        )
    tensors = (norm.running_mean, norm.running_var, norm.weight, norm.bias)
    mean, var, weight, bias = (None if tensor is None else tensor.detach().cpu().to(dtype) for tensor in tensors)
    one = torch.ones(1, norm.num_features, dtype=dtype)
    scale = F.batch_norm(one, torch.zeros_like(mean), var, weight, None, eps=norm.eps)
    return scale[0], F.batch_norm(0 * one, mean, var, weight, bias, eps=norm.eps)[0]


def other_norms(network: nn.Module, graph: LayerGraph) -> Iterator[tuple[str, nn.Module]]:
    """Every deployed BatchNorm that no layer accounts for, by name."""
    owned = {spec.norm for spec in graph.layers} | graph.unused
    for name, module in network.named_modules():
        if isinstance(module, _BatchNorm) and name not in owned:
            yield name, module


def other_parameters(network: nn.Module, graph: LayerGraph) -> Iterator[tuple[str, nn.Parameter]]:
    """Every deployed parameter outside layers, quantizers and folded BatchNorms, by name; one of several names once."""
    layers = set(graph.by_name)
    seen: set[int] = set()
    for name, module in network.named_modules():
        if isinstance(module, OURS):
            continue
        known = ("weight", "bias") if name in layers or isinstance(module, _BatchNorm) else ()
        for key, parameter in module._parameters.items():
            if parameter is None or id(parameter) in seen:
                continue
            seen.add(id(parameter))
            full = f"{name}.{key}" if name else key
            if key not in known and full not in graph.unused:
                yield full, parameter


def check_parameter(name: str, parameter: Tensor) -> None:
    """Refuse a parameter outside the layers with values that fp32 cannot hold: complex ones and large integers."""
    if parameter.is_floating_point():
        return
    if parameter.is_complex() or not torch.equal(parameter.float().to(parameter.dtype), parameter):
        raise InputError(
            f"the parameter '{name}' is of {parameter.dtype}, and a packed file holds parameters in fp32; make it a "
            "buffer (register_buffer) or real numbers (torch.view_as_real) and export again"
        )


def check_storable(name: str, layer: nn.Module, bits: LayerBits) -> None:
    """Refuse levels that are no affine grid, inputs whose range is that of each batch, and others than were told."""
    quantized = isinstance(layer, QuantizedLayer)
    for what, width in (("weight", bits.weight_bits), ("input", bits.activation_bits)):
        quantizer: Any = getattr(layer, f"quantize_{what}") if quantized else None
        found = (FLOAT_BITS,) if quantizer is None else tuple(quantizer.bits)
        if found != (width,):
            told = " or ".join(map(str, found))
            raise InputError(
                f"the {what} of layer '{name}' has {told} bits in this net and {width} in the assignment; give the "
                "assignment that the net was made of (a net from a packed file is in that file already)"
            )
        if isinstance(quantizer, TensorQuantizer) and quantizer.widths:
            _check_grid(name, what, quantizer)
    made = getattr(layer, "quantize_weight", None)
    told_scheme = None if bits.scheme is None else module_of(bits.scheme)
    if told_scheme is not (type(made) if isinstance(made, SchemeQuantizer) else None):
        words = made.words if isinstance(made, SchemeQuantizer) else bits.scheme and bits.scheme.words
        raise InputError(
            f"layer '{name}' has {words} in {'the assignment' if told_scheme else 'this net'} alone; give the "
            "assignment that the net was made of"
        )


def _check_grid(name: str, what: str, quantizer: TensorQuantizer) -> None:
    source = quantizer.quantizer
    dynamic = what == "input" and source.clip == "data"
    if dynamic or not source.affine:
        why = "their range is that of each batch" if dynamic else "their levels are no affine grid"
        raise InputError(
            f"the {what}s of layer '{name}' are quantized by '{source.name}', which a packed file cannot hold "
            f"({why}); the nearest that it can is 'dorefa'"
        )


def check_skipped(graph: LayerGraph, assignment: BitAssignment) -> None:
    """Refuse a skipped layer whose output is still read: nothing of its BatchNorm would be stored."""
    skipped = {name for name, bits in assignment.layers.items() if not bits.weight_bits}
    gone = {name for branch in graph.branches if skipped.issuperset(branch.layers) for name in branch.layers}
    for name in sorted(skipped - gone):
        raise InputError(f"layer '{name}' is skipped but its branch is not; the net is not packed")
