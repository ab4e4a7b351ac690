"""The logarithmic quantizer: a sign and a magnitude whose exponent is quantized (SP-Nets, arXiv 2002.02815).

With x clamped to [low, 1], its sign s (that of 0 is +1) and m = max(abs(x), t)::

    code  = floor(n * (log2(m) - lowest) / (highest - lowest) + 1/2)        0 <= code <= n
    value = gain * s * 2 ** (lowest + code * (highest - lowest) / n)

``lowest`` and ``highest`` are the extremes of log2(m) over the tensor, anew each time; n is 2^(k-1) - 1 where one of
the k bits is the sign, else 2^k - 1. The levels are no affine grid, so widths are not mixed and codes not packed.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

from dnas.quantization.fitting import least_squares_gain
from dnas.quantization.layers import TensorQuantizer
from dnas.quantization.quantizers import Quantizer
from dnas.quantization.samples import TensorSample, whole

_THRESHOLDS = {1: 1.0, 2: 0.33, 3: 0.15}
"""t of signed tensors by width; at 1 bit every magnitude is 1 and the sign is left."""
_THRESHOLD = 0.03
"""t of wider signed tensors, and of unsigned ones of any width."""


class LogarithmicQuantizer(TensorQuantizer):
    """Quantizes a tensor at one width; 32 stands for the tensor itself.

    State beside that of :class:`TensorQuantizer`: ``clip`` and ``least`` (R, 1) are the largest and the smallest
    magnitude that levels are placed between, 0 until :meth:`hold` fixes them.
    """

    least: Tensor

    def __init__(
        self,
        quantizer: Quantizer,
        bits: tuple[int, ...],
        *,
        signed: bool,
        channel_axis: int | None = None,
        rows: int = 1,
    ) -> None:
        quantizer.check_mixture(bits)
        super().__init__(quantizer, bits, signed=signed, channel_axis=channel_axis, rows=rows)
        self.register_buffer("least", torch.zeros(rows, 1))

    def set_sign(self, signed: bool) -> None:
        """Choose the levels of signed or of unsigned tensors."""
        self.low.fill_(-1.0 if signed else 0.0)

    @property
    def saturates(self) -> bool:
        """Whether some grid needs its codes cut at the top."""
        return False

    def hold(self, x: Tensor) -> None:
        """Fix the range at what it is for ``x``: what is removed later then changes nothing."""
        with torch.no_grad():
            least, largest = self._range(self._magnitudes(self._matrix(x)))
            self.least.copy_(least)
            self.clip.copy_(largest)

    def keep_rows(self, rows: Tensor | None) -> None:
        """Keep the ranges of these rows, where each has its own."""
        super().keep_rows(rows)
        if rows is not None and self.channel_axis is not None:
            self.least = self.least.index_select(0, rows.to(self.least.device))

    def fit(self, x: Tensor | TensorSample) -> None:
        """Set the gain for the tensor ``x``, or a sample of one, by least squares."""
        if not self.widths:
            return
        with torch.no_grad():
            sample = x if isinstance(x, TensorSample) else whole(self._matrix(x))
            self.gain.fill_(least_squares_gain(sample, self.levels(sample.values)))

    def levels(self, rows: Tensor) -> Tensor:
        """What each element of ``rows`` (R, M) is quantized to, before the gain."""
        steps = self._steps
        magnitudes = self._magnitudes(rows)
        lowest, highest = (extreme.log2() for extreme in self._range(magnitudes))
        step = (highest - lowest) / max(steps, 1)
        distance = (magnitudes.log2() - lowest) / torch.where(step > 0, step, torch.ones_like(step))
        codes = torch.floor(distance + 0.5).clamp(0.0, float(steps))
        sizes = torch.exp2(lowest + codes * step)
        return torch.where(rows < 0, -sizes, sizes) if self.signed else sizes

    @property
    def _steps(self) -> int:
        (bits,) = self.widths
        return int(2 ** (bits - 1 if self.signed else bits)) - 1

    def _magnitudes(self, rows: Tensor) -> Tensor:
        """Clamped magnitudes, none below the threshold."""
        (bits,) = self.widths
        threshold = _THRESHOLDS.get(bits, _THRESHOLD) if self.signed else _THRESHOLD
        return (rows.abs() if self.signed else rows).clamp(threshold, 1.0)

    def _range(self, magnitudes: Tensor) -> tuple[Tensor, Tensor]:
        """The smallest and the largest magnitude of each row, or what they are held at; (R, 1)."""
        held = self.clip > 0
        least, largest = magnitudes.amin(1, keepdim=True), magnitudes.amax(1, keepdim=True)
        return torch.where(held, self.least.to(least), least), torch.where(held, self.clip.to(largest), largest)

    def _matrix(self, x: Tensor) -> Tensor:
        """The tensor as (R, M), in float32 or wider, without its history."""
        wide = x.detach().to(torch.promote_types(x.dtype, torch.float32))
        return self.as_rows(wide).reshape(self.clip.shape[0], -1)

    def _mixed(self, x: Tensor, coefficients: Tensor) -> Tensor:
        rows = self.as_rows(x)
        levels = self.levels(self._matrix(x)).reshape(rows.shape).to(x.dtype)
        inside = (rows.detach() >= self.low) & (rows.detach() <= 1.0)
        return self.as_rows(cast(Tensor, _StraightThrough.apply(rows, self.gain, levels, inside)))


class _StraightThrough(torch.autograd.Function):
    """Gives the gain times the levels; backward the gradient passes where x is inside its range."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, gain: Tensor, levels: Tensor, inside: Tensor) -> Tensor:
        ctx.save_for_backward(levels, inside)
        return levels * gain.to(levels.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        levels, inside = ctx.saved_tensors
        grad_gain = (grads[0] * levels).sum()[None] if ctx.needs_input_grad[1] else None
        return grads[0] * inside, grad_gain, None, None
