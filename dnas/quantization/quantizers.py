"""Quantizers as staircases: every family, width and sign is one affine grid on a normalised variable.

A tensor x is normalised by a clip, u = x / clip, clamped to [low, 1] (low = -1 for signed, 0 for unsigned tensors),
coded as an integer and placed back::

    code  = min(floor(u * scale + offset), top)        0 <= code < 2**bits
    value = clip * gain * (code * step + start)

Rounding is half-up everywhere (floor of x + 1/2), the rule of integer shifts, so that training and integer
execution agree. Families differ in their grids, in how the clip is found, and in its gradient; nothing else.

Which there are is listed in :mod:`dnas.quantization.families`; one that is no such staircase has a module of its own.

Sources: DoReFa, arXiv 1606.06160, eq. 5 and 9; PACT, arXiv 1805.06085, eq. 1-3; LSQ, arXiv 1902.08153, eq. 1-3;
SP-Nets, arXiv 2002.02815 (DoReFa's weights on activations, and logarithmic); the nested grid is ours (its codes are
prefixes of one another: code_l = code_h >> (h - l)).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from search_spaces.errors import InputError
from search_spaces.layers import FLOAT_BITS

SMALLEST_CLIP = 1e-6  # a smaller one counts as this


@dataclass(frozen=True)
class Grid:
    """One staircase: ``code = min(floor(u * scale + offset), top)`` and ``value = code * step + start``."""

    scale: float
    offset: float
    top: float
    step: float
    start: float

    @property
    def saturates(self) -> bool:
        """Whether the upper end of the range would get a code above ``top``."""
        return math.floor(self.scale + self.offset) > self.top


def sign_grid() -> Grid:
    """1 bit: -1 below zero and +1 from zero on (so that sign(0) = +1)."""
    return Grid(scale=1.0, offset=1.0, top=1.0, step=2.0, start=-1.0)


def even_grid(bits: int, signed: bool) -> Grid:
    """DoReFa's and PACT's levels: 2**bits values from the lower to the upper end, both included.

    Unsigned: Q_k(u) = round((2^k - 1) u) / (2^k - 1); signed: 2 Q_k((u + 1) / 2) - 1 (DoReFa eq. 9).
    """
    top = float(2**bits - 1)
    if not signed:
        return Grid(top, 0.5, top, 1 / top, 0.0)
    return sign_grid() if bits == 1 else Grid(top / 2, top / 2 + 0.5, top, 2 / top, -1.0)


def integer_grid(bits: int, signed: bool) -> Grid:
    """LSQ's levels: integers times a step, zero among them; signed from -2^(k-1) to 2^(k-1) - 1."""
    if not signed:
        return even_grid(bits, signed=False)
    half = float(2 ** (bits - 1))
    return sign_grid() if bits == 1 else Grid(half, half + 0.5, 2 * half - 1, 1 / half, -1.0)


def symmetric_grid(bits: int, signed: bool) -> Grid:
    """PACT's levels on a signed input: zero, and as many levels above as below."""
    if not signed:
        return even_grid(bits, signed=False)
    top = float(2 ** (bits - 1) - 1)
    return sign_grid() if bits == 1 else Grid(top, top + 0.5, 2 * top, 1 / top, -1.0)


def nested_grid(bits: int, signed: bool) -> Grid:
    """Cells of equal width with the value in the middle: dropping low bits of a code gives the narrower code."""
    cells = float(2**bits)
    if not signed:
        return Grid(cells, 0.0, cells - 1, 1 / cells, 0.5 / cells)
    return Grid(cells / 2, cells / 2, cells - 1, 2 / cells, 1 / cells - 1)


def binary_grid(bits: int, signed: bool) -> Grid:
    """1 bit only: the sign, or whether an unsigned input is in the upper half of its range."""
    return even_grid(1, signed)


def no_grid(bits: int, signed: bool) -> Grid:
    """For a family whose levels are no affine grid: always raises :class:`InputError`."""
    raise InputError("this quantizer has no affine grid; 'dorefa' has one")


@dataclass(frozen=True)
class Quantizer:
    """A family of quantizers.

    ``clip`` says where the clip comes from: ``"learned"`` (calibrated, then trained), ``"data"`` (the largest
    magnitude of the tensor, anew each time) or ``"one"`` (fixed at 1). ``clip_gradient`` is what a learned clip is
    trained with: ``"saturated"`` (PACT: only where the input is clipped) or ``"full"`` (LSQ: the rounding error too).
    ``transform`` is applied to the tensor first (DoReFa's tanh). ``nests`` says whether the first bits of a code are
    the code at fewer bits under the same clip, so that one stored integer serves every width. A family whose levels are
    no affine ``grid`` has a ``module`` of its own, made like a :class:`dnas.quantization.layers.TensorQuantizer`; its
    widths cannot be mixed.
    """

    name: str
    grid: Callable[[int, bool], Grid] = no_grid
    clip: Literal["learned", "data", "one"] = "learned"
    clip_gradient: Literal["saturated", "full"] = "full"
    transform: Callable[[Tensor], Tensor] | None = None
    widths: tuple[int, ...] = (1, 2, 3, 4, 5, 6, 7, 8, 16)
    nests: bool = False
    module: Callable[..., Any] | None = None

    @property
    def affine(self) -> bool:
        """Whether the levels are those of ``grid``."""
        return self.module is None

    def check(self, bits: int) -> None:
        """Raise :class:`InputError` for a width that this family does not have."""
        if bits not in (*self.widths, FLOAT_BITS):
            raise InputError(
                f"quantizer '{self.name}' has no {bits}-bit form; it offers {self.widths} and {FLOAT_BITS}"
            )

    def check_mixture(self, widths: tuple[int, ...]) -> None:
        """Raise :class:`InputError` where these widths are several and cannot be mixed."""
        if len(widths) > 1 and not self.affine:
            raise InputError(
                f"quantizer '{self.name}' cannot mix the widths {', '.join(map(str, widths))} in a search: its levels "
                "are no affine grid; search with 'dorefa', or give it one width"
            )


def encode(x: Tensor, clip: Tensor, grid: Grid, signed: bool) -> Tensor:
    """Integer codes (int32, any shape) of ``x``; ``clip`` broadcasts against it."""
    u = (x / clip).clamp(-1.0 if signed else 0.0, 1.0)
    return torch.floor(u * grid.scale + grid.offset).clamp_max(grid.top).to(torch.int32)


def decode(codes: Tensor, clip: Tensor, grid: Grid) -> Tensor:
    """Values of integer codes, in the clip's dtype; ``clip`` has the gain multiplied in."""
    return clip * (codes.to(clip.dtype) * grid.step + grid.start)
