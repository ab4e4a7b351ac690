"""The one wrapper that quantizes a layer: fixed, in the supernet and switchable alike.

A :class:`QuantizedLayer` holds the layer's own weight and bias under their own names and quantizes the input and
the weight by two :class:`TensorQuantizer`, each with one candidate width (a fixed layer) or several (a supernet).
The coefficients of several candidates are lent for the time of one forward pass and are never stored.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dnas.quantization.mixture import mix
from dnas.quantization.quantizers import Quantizer
from dnas.quantization.samples import TensorSample, sampled
from dnas.quantization.sparsity import SparseQuantizer
from search_spaces.channels.slicing import Selection, slice_layer
from search_spaces.errors import InputError
from search_spaces.layers import FLOAT_BITS

SMALLEST_CLIP = 1e-6


class TensorQuantizer(nn.Module):
    """Quantizes a tensor at one width, or mixes its versions at several widths by the coefficients lent to it.

    ``bits`` are the candidate widths, ascending; 32 stands for the tensor itself. ``channel_axis`` is the axis that
    gets one clip per index (None: one clip in all). State: ``clip`` (R, 1), ``gain`` (K,) and ``grids`` (5, K). A clip
    that is read from the data is 0 until :meth:`hold` fixes it.
    """

    clip: Tensor
    gain: Tensor
    low: Tensor
    grids: Tensor
    alone: Tensor

    def __init__(
        self,
        quantizer: Quantizer,
        bits: tuple[int, ...],
        *,
        signed: bool,
        channel_axis: int | None = None,
        rows: int = 1,
    ) -> None:
        super().__init__()
        for width in bits:
            quantizer.check(width)
        self.quantizer, self.bits, self.channel_axis = quantizer, tuple(bits), channel_axis
        self.widths = tuple(width for width in bits if width != FLOAT_BITS)
        clip = torch.ones(rows, 1)
        if quantizer.clip == "learned" and self.widths:
            self.clip = nn.Parameter(clip)
        else:
            self.register_buffer("clip", torch.zeros_like(clip) if quantizer.clip == "data" else clip)
        self.register_buffer("gain", torch.ones(len(self.widths)))
        self.register_buffer("low", torch.zeros(()))
        self.register_buffer("grids", torch.zeros(5, len(self.widths)))
        self.register_buffer("alone", torch.ones(len(bits)), persistent=False)
        self.clip_gradient_scale = self.gain_gradient_scale = 1.0
        self.lent: Tensor | None = None
        self.observed: list[TensorSample] | None = None
        self.set_sign(signed)

    def set_sign(self, signed: bool) -> None:
        """Choose the grids of signed or of unsigned tensors."""
        self.low.fill_(-1.0 if signed else 0.0)
        for k, width in enumerate(self.widths):
            grid = self.quantizer.grid(width, signed)
            column = [grid.scale, grid.offset, grid.top, grid.step, grid.start]
            self.grids[:, k] = torch.tensor(column, dtype=self.grids.dtype)

    @property
    def signed(self) -> bool:
        """Whether negative values are inside the range."""
        return bool(self.low < 0)

    @property
    def saturates(self) -> bool:
        """Whether some grid needs its codes cut at the top."""
        return any(self.quantizer.grid(w, s).saturates for w in self.widths for s in (False, True))

    def as_rows(self, x: Tensor) -> Tensor:
        """Bring the axis with a clip per index to the front."""
        return x if not self.channel_axis else x.transpose(0, self.channel_axis)

    def prepare(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The tensor as the grid sees it, and the clip that normalises it."""
        prepared = self.as_rows(self.quantizer.transform(x) if self.quantizer.transform else x)
        if self.quantizer.clip == "data":
            rows = prepared.detach().abs()
            largest = rows.amax().reshape(1, 1) if self.clip.shape[0] == 1 else rows.flatten(1).amax(1, keepdim=True)
            clip = torch.where(self.clip > 0, self.clip, largest.to(self.clip.dtype))
        else:
            clip = _scale_gradient(self.clip, self.clip_gradient_scale)
        return prepared, clip.clamp_min(SMALLEST_CLIP)

    def hold(self, x: Tensor) -> None:
        """Fix a clip that is read from the data at what it is for ``x``: what is removed later then changes nothing."""
        if self.quantizer.clip == "data":
            with torch.no_grad():
                self.clip.copy_(self.prepare(x)[1])

    def learn_gain(self) -> None:
        """Make the gain a parameter, trained like a clip: where the clip is shared, levels still differ by width."""
        self.gain = nn.Parameter(self.gain.detach().clone())

    def pass_through(self) -> None:
        """Let tensors pass as they are from now on, as at 32 bits."""
        self.bits, self.widths = (FLOAT_BITS,), ()

    def keep_rows(self, rows: Tensor | None) -> None:
        """Keep the clips of these rows, where each has its own."""
        if rows is None or self.channel_axis is None:
            return
        clip = self.clip.detach().index_select(0, rows.to(self.clip.device))
        if isinstance(self.clip, nn.Parameter):
            self.clip = nn.Parameter(clip, self.clip.requires_grad)
        else:
            self.clip = clip

    def forward(self, x: Tensor) -> Tensor:
        """Quantize ``x`` (any shape)."""
        if self.observed is not None:
            self.observed.append(sampled(x))
            return x
        if self.bits == (FLOAT_BITS,):
            return x
        coefficients = self.alone if len(self.bits) == 1 else self.lent
        if coefficients is None:
            raise RuntimeError("no sample is lent to the supernet; run it inside `with supernet.sampled(sample):`")
        if self.quantizer.transform and FLOAT_BITS in self.bits:
            # The coefficient of 32 bits is that of x itself, not of what the grids see.
            return self._mixed(x, coefficients[:-1]) + coefficients[-1] * x
        return self._mixed(x, coefficients)

    def _mixed(self, x: Tensor, coefficients: Tensor) -> Tensor:
        prepared, clip = self.prepare(x)
        mixed = mix(
            prepared,
            clip,
            _scale_gradient(self.gain, self.gain_gradient_scale),
            self.grids,
            self.low,
            coefficients,
            saturates=self.saturates,
            clip_gradient=self.quantizer.clip_gradient,
        )
        return self.as_rows(mixed)

    def extra_repr(self) -> str:
        """What printing the module shows."""
        return f"{self.quantizer.name}, bits={self.bits}"


class _ScaleGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: float) -> Tensor:
        ctx.scale = scale
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0] * ctx.scale, None


def _scale_gradient(x: Tensor, scale: float) -> Tensor:
    return x if scale == 1.0 else cast(Tensor, _ScaleGradient.apply(x, scale))


def _linear(layer: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return F.linear(x, weight, bias)


def _convolution(layer: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return cast(Tensor, layer._conv_forward(x, weight, bias))


_OPERATIONS: dict[type[nn.Module], Callable[[Any, Tensor, Tensor, Tensor | None], Tensor]] = {
    nn.Linear: _linear,
    nn.Conv1d: _convolution,
    nn.Conv2d: _convolution,
    nn.Conv3d: _convolution,
}
"""Layers whose forward is one operation; transposed convolutions and subclasses with a forward of their own run
that forward with the quantized weight in place of theirs."""


class QuantizedLayer(nn.Module):
    """A convolution (1-D to 3-D, grouped, depthwise, transposed) or a linear layer with quantized weight and input.

    Everything else about the layer (stride, padding, ...) is read from the original, which stays reachable through
    attribute access as before the swap.
    """

    def __init__(
        self, layer: nn.Module, quantize_input: TensorQuantizer, quantize_weight: TensorQuantizer | SparseQuantizer
    ) -> None:
        super().__init__()
        self.weight = cast(nn.Parameter, layer.weight)
        self.bias = cast("nn.Parameter | None", layer.bias)
        device = self.weight.device  # the network may be on another one than the CPU by now
        self.quantize_input, self.quantize_weight = quantize_input.to(device), quantize_weight.to(device)
        self._register_extras(layer)
        # In a tuple, so that the original is no submodule: its parameters would be registered twice.
        self._original = (layer,)
        own_forward = next(k for k in _KINDS if isinstance(layer, k))
        self._operation = _OPERATIONS.get(own_forward) if type(layer).forward is own_forward.forward else None

    def forward(self, x: Tensor) -> Tensor:
        """Run the layer on a quantized input with a quantized weight."""
        x, weight = self.quantize_input(x), self.quantized_weight()
        layer = self._original[0]
        if self._operation is not None:
            return self._operation(layer, x, weight.to(x.dtype), self.bias)
        tensors = {name: getattr(self, name) for name in (*layer._parameters, *layer._buffers)}
        given = {name: tensor for name, tensor in {**tensors, "weight": weight}.items() if tensor is not None}
        return cast(Tensor, torch.func.functional_call(layer, given, (x,)))

    def quantized_weight(self) -> Tensor:
        """The weight as the layer uses it."""
        return cast(Tensor, self.quantize_weight(self.weight))

    def keep_channels(self, selection: Selection) -> None:
        """Keep only some filters and input channels, in place; the weights that stay are quantized as before."""
        if isinstance(self.quantize_weight, SparseQuantizer):
            raise InputError("sparse weights cannot lose filters: their threshold is that of the whole layer")
        if id(self.quantize_weight) not in selection.sliced:  # layers that share a weight may share its quantizer
            selection.sliced[id(self.quantize_weight)] = None
            self.quantize_weight.hold(self.weight)
            self.quantize_weight.keep_rows(selection.filters)
        slice_layer(self._original[0], selection)
        self.weight = cast(nn.Parameter, self._original[0].weight)
        self.bias = cast("nn.Parameter | None", self._original[0].bias)

    def _register_extras(self, layer: nn.Module) -> None:
        """Register what a subclass holds beyond weight and bias, so that it is trained, saved and moved too."""
        for name, parameter in layer._parameters.items():
            if name not in ("weight", "bias"):
                self.register_parameter(name, parameter)
        for name, buffer in layer._buffers.items():
            self.register_buffer(name, buffer, persistent=name not in layer._non_persistent_buffers_set)
        for name, child in layer._modules.items():
            self.register_module(name, child)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name.startswith("_") or "_original" not in self.__dict__:
                raise
            return getattr(self.__dict__["_original"][0], name)


_KINDS: tuple[type[nn.Module], ...] = (
    nn.Linear,
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
)


class SkippedLayer(nn.Module):
    """A layer at 0 bits: zeros of the shape that the layer would give; nothing is computed and nothing is stored."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self._shape_only = (_on_meta(layer),)

    def forward(self, x: Tensor) -> Tensor:
        """Return zeros."""
        with torch.no_grad():
            shape = self._shape_only[0](torch.empty(x.shape, device="meta", dtype=torch.float32)).shape
        return x.new_zeros(shape)

    def keep_channels(self, selection: Selection) -> None:
        """Give zeros for fewer filters."""
        slice_layer(self._shape_only[0], selection)


def _on_meta(layer: nn.Module) -> nn.Module:
    from_layer = {
        id(p): nn.Parameter(torch.empty_like(p, device="meta", dtype=torch.float32)) for p in layer.parameters()
    }
    return copy.deepcopy(layer, cast(Any, from_layer))


class BranchedLayer(nn.Module):
    """One layer per candidate pair, each with its own weight and BatchNorm, in a weighted sum (DNAS, eq. 4)."""

    def __init__(self, branches: list[QuantizedLayer], norms: list[nn.Module]) -> None:
        super().__init__()
        self.branches, self.norms = nn.ModuleList(branches), nn.ModuleList(norms)
        self.lent: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Run every branch on ``x`` and add their outputs weighted by the lent coefficients (K,)."""
        if any(cast(QuantizedLayer, branch).quantize_input.observed is not None for branch in self.branches):
            return cast(Tensor, sum(n(b(x)) for b, n in zip(self.branches, self.norms, strict=True)) / len(self.norms))
        if self.lent is None:
            raise RuntimeError("no sample is lent to the supernet; run it inside `with supernet.sampled(sample):`")
        outputs = (norm(branch(x)) for branch, norm in zip(self.branches, self.norms, strict=True))
        return cast(Tensor, sum(coefficient * output for coefficient, output in zip(self.lent, outputs, strict=True)))


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
