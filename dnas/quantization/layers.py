"""The one wrapper that quantizes a layer: fixed, in the supernet and switchable alike.

A :class:`QuantizedLayer` holds the layer's own weight and bias under their own names and quantizes the input and
the weight by two :class:`TensorQuantizer`, each with one candidate width (a fixed layer) or several (a supernet).
The coefficients of several candidates are lent for the time of one forward pass and are never stored.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from dnas.quantization.fitting import best_clip, best_gain
from dnas.quantization.mixture import mix
from dnas.quantization.quantizers import SMALLEST_CLIP, Quantizer
from dnas.quantization.roles import become, holding, reduced
from dnas.quantization.samples import TensorSample, sampled, thinned, whole
from dnas.quantization.schemes import SchemeQuantizer
from search_spaces.channels.slicing import Selection, cut_layer
from search_spaces.layers import FLOAT_BITS, LayerSpec
from search_spaces.models.multiplied import Shapes, changing, multiplied_weight
from search_spaces.network.calls import first_input, with_first_input


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
        prepared, clip = self._prepared(x)
        return prepared, clip.clamp_min(SMALLEST_CLIP)

    def _prepared(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """As :meth:`prepare`, with a clip that may be too small."""
        prepared = self.as_rows(self.quantizer.transform(x) if self.quantizer.transform else x)
        if self.quantizer.clip == "data":
            rows = prepared.detach().abs()
            if not rows.numel():
                return prepared, self.clip
            largest = rows.amax().reshape(1, 1) if self.clip.shape[0] == 1 else rows.flatten(1).amax(1, keepdim=True)
            clip = torch.where(self.clip > 0, self.clip, largest.to(self.clip.dtype))
        else:
            clip = self.clip
        return prepared, clip

    def hold(self, x: Tensor) -> None:
        """Fix a clip that is read from the data at what it is for ``x``: what is removed later then changes nothing."""
        if self.quantizer.clip == "data":
            with torch.no_grad():
                self.clip.copy_(self.prepare(x)[1])

    def fit(self, x: Tensor | TensorSample) -> None:
        """Set the clip (where it is learned) and the gain for the tensor ``x``, or a sample of one."""
        fit_together([self], x)

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
            self.observed += [sampled(x)] if x.numel() else []  # an expert that no token chooses reads nothing
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
        prepared, clip = self._prepared(x)
        mixed = mix(
            prepared,
            clip,
            self.gain,
            self.grids,
            self.low,
            coefficients,
            saturates=self.saturates,
            clip_gradient=self.quantizer.clip_gradient,
            clip_gradient_scale=self.clip_gradient_scale,
            gain_gradient_scale=self.gain_gradient_scale,
        )
        return self.as_rows(mixed)

    def extra_repr(self) -> str:
        """What printing the module shows."""
        return f"{self.quantizer.name}, bits={self.bits}"


def fit_together(quantizers: Sequence[TensorQuantizer], x: Tensor | TensorSample) -> None:
    """Set the one clip that these quantizers share (where it is learned), and the gain of each, for a tensor ``x``."""
    quantizers = [quantizer for quantizer in quantizers if quantizer.widths]
    if not quantizers:
        return
    first = quantizers[0]
    grids = [[q.quantizer.grid(width, q.signed) for width in q.widths] for q in quantizers]
    with torch.no_grad():
        prepared, clip = first.prepare(x.values if isinstance(x, TensorSample) else x)
        rows = prepared.reshape(clip.shape[0], -1)
        sample = TensorSample(rows, x.weights) if isinstance(x, TensorSample) else thinned(whole(rows))
        if first.quantizer.clip == "learned":
            clip = best_clip(sample, [grid for own in grids for grid in own], first.signed)
            first.clip.copy_(clip)
        for quantizer, own in zip(quantizers, grids, strict=True):
            for k, grid in enumerate(own):
                quantizer.gain[k] = best_gain(sample, clip, grid, quantizer.signed)


class QuantizedLayer(nn.Module):
    """A convolution (1-D to 3-D, grouped, depthwise, transposed) or a linear layer with quantized weight and input.

    :func:`quantize_layer` makes it of a layer in place: the object stays, with its hooks, attributes, buffers and
    whoever holds it, and its class becomes a subclass of this class and of its own.
    """

    original_class: ClassVar[type[nn.Module]]
    _first_argument: ClassVar[str]
    _operation: ClassVar[Any]  # an Operation, or None
    weight: nn.Parameter
    bias: nn.Parameter | None
    quantize_input: TensorQuantizer
    quantize_weight: TensorQuantizer | SchemeQuantizer
    made: Shapes | None = None
    """Given where the layer's own code makes the weight that it multiplies with."""

    def forward(self, *inputs: Any, **options: Any) -> Any:
        """Run the layer's own forward on a quantized first input with a quantized weight."""
        x = self.quantize_input(first_input(self, inputs, options))
        given = with_first_input(self, inputs, options, x)
        if self.made is not None:
            with changing(self.made.weight, lambda weight: self.quantize_weight(weight)):
                return self._own_forward(*given[0], **given[1])
        weight = self.quantize_weight(self.weight)
        if self._operation and len(inputs) + len(options) == 1 and "patched_forward" not in vars(self):
            return self._operation(self, x, weight.to(x.dtype))
        with holding(self, weight):
            return self._own_forward(*given[0], **given[1])

    @property
    def _own_forward(self) -> Callable[..., Any]:
        return vars(self).get("patched_forward") or super().forward

    def float_weight(self) -> Tensor:
        """The weight that the layer would multiply with if it did not quantize it."""
        return multiplied_weight(self, self._own_forward, self.made)

    def quantized_weight(self) -> Tensor:
        """The weight as the layer uses it."""
        return cast(Tensor, self.quantize_weight(self.float_weight()))

    def keep_channels(self, selection: Selection) -> None:
        """Keep only some filters and input channels, in place; the weights that stay are quantized as before."""
        if id(self.quantize_weight) not in selection.sliced:  # layers that share a weight may share its quantizer
            selection.sliced[id(self.quantize_weight)] = None
            self.quantize_weight.hold(self.float_weight())
            self.quantize_weight.keep_rows(selection.filters)
        cut_layer(self, selection)

    def __reduce_ex__(self, protocol: Any) -> Any:
        """See :func:`reduced`."""
        return reduced(self, QuantizedLayer, self.original_class)


def quantize_layer(
    layer: nn.Module,
    quantize_input: TensorQuantizer,
    quantize_weight: TensorQuantizer | SchemeQuantizer,
    made: Shapes | None = None,
) -> QuantizedLayer:
    """Let ``layer`` quantize its input and its weight from now on, in place; ``made`` where its code makes the last."""
    patched = vars(layer).pop("forward", None)  # set on the object, it would hide the forward of the new class
    quantized = cast(QuantizedLayer, become(layer, QuantizedLayer))
    if patched is not None:
        quantized.patched_forward = patched
    quantized.quantize_input, quantized.quantize_weight, quantized.made = quantize_input, quantize_weight, made
    return quantized


def shapes_of(spec: LayerSpec) -> Shapes | None:
    """What a quantized layer is given as ``made``: None where its own code makes no weight."""
    return Shapes(spec.input_shape, spec.weight_shape) if spec.weight_from == "made" else None


def float_weight(layer: nn.Module, spec: LayerSpec) -> Tensor:
    """The weight that a layer multiplies with where it is not quantized."""
    if isinstance(layer, QuantizedLayer):
        return layer.float_weight()
    return multiplied_weight(layer, layer.forward, shapes_of(spec))
