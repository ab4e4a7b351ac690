"""The one wrapper that quantizes a layer: fixed, in the supernet and switchable alike.

A :class:`QuantizedLayer` holds the layer's own weight and bias under their own names and quantizes the input and
the weight by two :class:`TensorQuantizer`, each with one candidate width (a fixed layer) or several (a supernet).
The coefficients of several candidates are lent for the time of one forward pass and are never stored.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from dnas.quantization.fitting import SMALLEST_CLIP, best_clip, best_gain
from dnas.quantization.mixture import mix
from dnas.quantization.operations import operation_of
from dnas.quantization.quantizers import Quantizer
from dnas.quantization.samples import TensorSample, sampled, thinned, whole
from dnas.quantization.schemes import SchemeQuantizer
from search_spaces.channels.slicing import Selection, cut_layer
from search_spaces.layers import FLOAT_BITS
from search_spaces.network.calls import first_input, input_name, with_first_input


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

    def forward(self, *inputs: Any, **options: Any) -> Any:
        """Run the layer's own forward on a quantized first input with a quantized weight."""
        x, weight = self.quantize_input(first_input(self, inputs, options)), self.quantized_weight()
        patched = vars(self).get("patched_forward")
        plain = len(inputs) + len(options) == 1 and not patched and not parametrize.is_parametrized(self)
        if plain and self._operation:
            return self._operation(self, x, weight.to(x.dtype))
        inputs, options = with_first_input(self, inputs, options, x)
        with _holding(self, weight):
            return (patched or super().forward)(*inputs, **options)

    def quantized_weight(self) -> Tensor:
        """The weight as the layer uses it."""
        return cast(Tensor, self.quantize_weight(self.weight))

    def keep_channels(self, selection: Selection) -> None:
        """Keep only some filters and input channels, in place; the weights that stay are quantized as before."""
        if id(self.quantize_weight) not in selection.sliced:  # layers that share a weight may share its quantizer
            selection.sliced[id(self.quantize_weight)] = None
            self.quantize_weight.hold(self.weight)
            self.quantize_weight.keep_rows(selection.filters)
        cut_layer(self, selection)

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Copies and pickles name the two classes: the one made of them is in no module."""
        return blank, (QuantizedLayer, self.original_class), self.__getstate__()


def quantize_layer(
    layer: nn.Module, quantize_input: TensorQuantizer, quantize_weight: TensorQuantizer | SchemeQuantizer
) -> QuantizedLayer:
    """Let ``layer`` quantize its input and its weight from now on, in place."""
    patched = vars(layer).pop("forward", None)  # set on the object, it would hide the forward of the new class
    quantized = cast(QuantizedLayer, become(layer, QuantizedLayer))
    if patched is not None:
        quantized.patched_forward = patched
    quantized.quantize_input, quantized.quantize_weight = quantize_input, quantize_weight
    return quantized


_CLASSES: dict[tuple[type[nn.Module], type[nn.Module]], type[nn.Module]] = {}


def _class_of(role: type[nn.Module], original: type[nn.Module]) -> type[nn.Module]:
    """The class of layers of class ``original`` in the given role."""
    if (role, original) not in _CLASSES:
        name = f"{role.__name__.removesuffix('Layer')}{original.__name__}"
        operation = operation_of(original)
        told = {
            "original_class": original,
            "_first_argument": input_name(original),
            "_operation": operation and staticmethod(operation),
            "__module__": role.__module__,
        }
        _CLASSES[role, original] = type(name, (role, original), told)
    return _CLASSES[role, original]


def become(layer: nn.Module, role: type[nn.Module]) -> nn.Module:
    """Make ``layer`` one of a subclass of ``role`` and of its own class, in place."""
    layer.__class__ = _class_of(role, type(layer))
    return layer


def blank(role: type[nn.Module], original: type[nn.Module]) -> nn.Module:
    """An object without attributes, for a copy to fill."""
    kind = _class_of(role, original)
    return kind.__new__(kind)


@contextmanager
def _holding(layer: nn.Module, weight: Tensor) -> Iterator[None]:
    """Let the layer's own code find ``weight`` as its weight inside this context.

    What an object holds itself hides its parameters, but not the properties of a parametrized class.
    """
    found, kind = {"weight": weight}, type(layer)
    if parametrize.is_parametrized(layer):
        found = {key: getattr(layer, key) for key in cast(nn.ModuleDict, layer.parametrizations)} | found
    before = {key: vars(layer)[key] for key in found if key in vars(layer)}
    vars(layer).update(found)
    layer.__class__ = parametrize.type_before_parametrizations(layer)
    try:
        yield
    finally:
        layer.__class__ = kind
        for key in found:
            vars(layer).pop(key)
        vars(layer).update(before)


_HOOKS = tuple(key for key in vars(nn.Module()) if key.endswith(("_hooks", "_with_kwargs", "_always_called")))


def has_hooks(module: nn.Module) -> bool:
    """Whether something is called before or after the module's own forward or backward."""
    return any(vars(module)[key] for key in _HOOKS)


def copy_without_hooks(module: nn.Module, memo: dict[int, Any] | None = None) -> nn.Module:
    """A copy on which nothing hangs: a hook may hold the whole network."""
    hooks = {key: vars(module)[key] for key in _HOOKS}
    vars(module).update({key: OrderedDict() for key in _HOOKS})
    try:
        return copy.deepcopy(module, memo)
    finally:
        vars(module).update(hooks)
