"""The fused mixture of quantized versions of one tensor: the step whose cost must not grow with the candidates.

``mix(x, clip, gain, grids, low, coefficients)`` returns ``sum_k coefficients[k] * q_k(x)`` in one pass over x; a single
candidate with coefficient 1 is plain fake quantization, so a fixed layer, a one-hot supernet layer and a switchable
layer run the same arithmetic. Forward and backward are pure functions, compiled with torch.compile on request, and
kernels of our own on CUDA; x is seen as a matrix (rows, elements) with one clip per row, which keeps both few.

The gradient is straight-through: 1 inside the clip, 0 outside (arXiv 1308.3432).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from dnas.quantization import mixture_kernels
from dnas.quantization.quantizers import SMALLEST_CLIP

SATURATED, FULL = "saturated", "full"


def _forward(
    x: Tensor, clip: Tensor, gain: Tensor, grids: Tensor, low: Tensor, coefficients: Tensor, saturates: bool
) -> Tensor:
    wide, clip = x.to(torch.promote_types(x.dtype, torch.float32)), clip.clamp_min(SMALLEST_CLIP)
    u = (wide / clip).clamp_min_(low).clamp_max_(1.0)
    mixed = _staircases(u, gain, grids, coefficients, saturates).mul_(clip)
    if coefficients.shape[0] > gain.shape[0]:  # the last coefficient is that of the tensor itself, at 32 bits
        mixed += coefficients[-1] * wide
    return mixed.to(x.dtype)


def _staircases(u: Tensor, gain: Tensor, grids: Tensor, coefficients: Tensor, saturates: bool) -> Tensor:
    """``sum_k c_k gain_k (code_k * step_k + start_k)``, with everything that does not depend on u out of the loop."""
    weight = coefficients[: gain.shape[0]] * gain
    slopes, start = weight * grids[3], (weight * grids[4]).sum()
    mixed = _codes(u, grids[:, 0], saturates).mul_(slopes[0]).add_(start)
    memory = torch.empty_like(u) if gain.shape[0] > 1 else None
    for k in range(1, gain.shape[0]):
        mixed += _codes(u, grids[:, k], saturates, memory).mul_(slopes[k])
    return mixed


def _codes(u: Tensor, grid: Tensor, saturates: bool, memory: Tensor | None = None) -> Tensor:
    """The codes of one grid, in ``memory`` where it is given: fresh memory costs more than what is computed in it."""
    codes = torch.mul(u, grid[0], out=memory).add_(grid[1]).floor_()
    return codes.clamp_max_(grid[2]) if saturates else codes


def _backward(
    g: Tensor,
    x: Tensor,
    clip: Tensor,
    gain: Tensor,
    grids: Tensor,
    low: Tensor,
    coefficients: Tensor,
    saturates: bool,
    clip_gradient: str | None,
    wants_coefficients: bool,
    clip_scale: float,
    gain_scale: float,
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
    wide, g_wide = x.to(clip.dtype), g.to(clip.dtype)
    given, clip = clip, clip.clamp_min(SMALLEST_CLIP)
    unclipped = wide / clip
    u = unclipped.clamp_min(low).clamp_max_(1.0)
    inside = unclipped.eq_(u)  # 1 or 0, in the same memory
    quantized = coefficients[: gain.shape[0]].sum()
    grad_clip = None
    if clip_gradient == FULL:
        within = (u * quantized).mul_(inside)
        grad_clip = _staircases(u, gain, grids, coefficients, saturates).sub_(within).mul_(g_wide)
    elif clip_gradient == SATURATED:
        # Where x is clipped, u is 1 or low, and so (for these grids) is the value: no staircase to evaluate.
        grad_clip = (u * quantized).mul_(1.0 - inside).mul_(g_wide)
    if grad_clip is not None:
        grad_clip = torch.where(given >= SMALLEST_CLIP, clip_scale * grad_clip.sum(1, keepdim=True), 0.0)
    slope = inside.mul_(quantized)
    if coefficients.shape[0] > gain.shape[0]:
        slope += coefficients[-1]
    grad_x = slope.mul_(g_wide).to(x.dtype)
    if not wants_coefficients:
        return grad_x, grad_clip, None, None
    g_clip = g_wide * clip
    memory = torch.empty_like(u)
    code_sums = [_codes(u, grids[:, k], saturates, memory).mul_(g_clip).sum() for k in range(gain.shape[0])]
    along = grids[3] * torch.stack(code_sums) + grids[4] * g_clip.sum()  # what coefficient times gain multiplies
    grad_coefficients = gain * along
    if coefficients.shape[0] > gain.shape[0]:
        grad_coefficients = torch.cat([grad_coefficients, (g_wide * wide).sum()[None]])
    return grad_x, grad_clip, grad_coefficients, gain_scale * coefficients[: gain.shape[0]] * along


class _Implementation:
    """The pair of functions in use: eager, or compiled once per process."""

    def __init__(self) -> None:
        self.forward: Callable[..., Tensor] = _forward
        self.backward: Callable[..., Any] = _backward
        self.compiled: tuple[Callable[..., Any], Callable[..., Any]] | None = None


_active = _Implementation()


@contextmanager
def compiled_mixture(enabled: bool = True) -> Iterator[bool]:
    """Run mixtures compiled inside this context; yields whether they are (False where no compiler works)."""
    before = _active.forward, _active.backward
    if enabled and _active.compiled is None:
        _active.compiled = _compile()
    if enabled and _active.compiled:
        _active.forward, _active.backward = _active.compiled
    try:
        yield bool(enabled and _active.compiled)
    finally:
        _active.forward, _active.backward = before


def _compile() -> tuple[Callable[..., Any], Callable[..., Any]] | None:
    """Compile both functions and try them once; None, told in one warning, where that fails."""
    # One graph per number of candidates, sign and gradient: more than the default limit allows one function.
    torch._dynamo.config.recompile_limit = max(64, torch._dynamo.config.recompile_limit)
    forward = torch.compile(_forward, dynamic=True)
    backward = torch.compile(_backward, dynamic=True)
    one = torch.ones(1)
    try:
        forward(torch.ones(1, 8), torch.ones(1, 1), one, torch.ones(5, 1), torch.zeros(()), one, False)
    except Exception as error:  # no C++ compiler, or one that torch.compile cannot use
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        warnings.warn(f"torch.compile does not work here ({reason}); the search runs uncompiled", stacklevel=3)
        return None
    return forward, backward


_PLAIN = _Implementation()


def _implementation(x: Tensor) -> Any:
    """What computes the mixture of ``x``: kernels on CUDA, where there is what they are written in.

    Where the network around it is compiled, plain operations, which are then fused with those beside them.
    """
    if torch.compiler.is_compiling():
        return _PLAIN
    return mixture_kernels if x.dtype != torch.float64 and has_kernels(x.device) else _active


def has_kernels(place: torch.device) -> bool:
    """Whether mixtures are computed by kernels of our own on this device."""
    return place.type == "cuda" and mixture_kernels.works(place)


class _Mix(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        clip: Tensor,
        gain: Tensor,
        grids: Tensor,
        low: Tensor,
        coefficients: Tensor,
        saturates: bool,
        clip_gradient: str,
        scales: tuple[float, float],
    ) -> Tensor:
        if not (ctx.needs_input_grad[2] or ctx.needs_input_grad[5]):
            gain, grids, coefficients = _taking_part(gain, grids, coefficients)
        ctx.save_for_backward(x, clip, gain, grids, low, coefficients)
        ctx.saturates, ctx.clip_gradient, ctx.scales = saturates, clip_gradient, scales
        # Detached: torch.compile looks at what a tensor is a view of, and would compile once more for a gradient.
        mixed = _implementation(x).forward(
            _matrix(x, clip), clip.detach(), gain.detach(), grids, low, coefficients.detach(), saturates
        )
        return mixed.as_strided(x.shape, x.stride())

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, clip, gain, grids, low, coefficients = ctx.saved_tensors
        wants_clip, wants_gain, wants_coefficients = (ctx.needs_input_grad[index] for index in (1, 2, 5))
        g = _laid_out_like(grads[0], x)
        grad_x, grad_clip, grad_coefficients, grad_gain = _implementation(x).backward(
            _matrix(g, clip),
            _matrix(x, clip),
            clip.detach(),
            gain.detach(),
            grids,
            low,
            coefficients.detach(),
            ctx.saturates,
            ctx.clip_gradient if wants_clip else None,
            wants_coefficients or wants_gain,
            *ctx.scales,
        )
        grad_x = grad_x.as_strided(x.shape, x.stride())
        return grad_x, grad_clip, grad_gain, None, None, grad_coefficients, None, None, None


def _taking_part(gain: Tensor, grids: Tensor, coefficients: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Without the candidates whose coefficient is 0, where the host may look at them: a hard sample has one other.

    They would add 0 to every value.
    """
    if coefficients.device.type != "cpu" or torch.compiler.is_compiling():
        return gain, grids, coefficients
    count, values = gain.shape[0], coefficients.detach().tolist()
    kept = [k for k in range(count) if values[k]] or [0]
    if len(kept) == count:
        return gain, grids, coefficients
    return gain[kept], grids[:, kept], coefficients[[*kept, *range(count, len(values))]]


def _matrix(x: Tensor, clip: Tensor) -> Tensor:
    """See a dense tensor as (rows, elements) in memory order, without a copy."""
    rows = clip.shape[0]
    elements = x.numel() // rows
    return x.detach().as_strided((rows, elements), (elements, 1))


def _laid_out_like(tensor: Tensor, example: Tensor) -> Tensor:
    """The same values with the strides of ``example``."""
    strides = zip(tensor.shape, tensor.stride(), example.stride(), strict=True)
    if all(size == 1 or own == wanted for size, own, wanted in strides):
        return tensor
    return torch.empty_like(example, dtype=tensor.dtype).copy_(tensor)


def _is_dense(x: Tensor) -> bool:
    """Whether x fills one block of memory without gaps or overlaps, index after index of its first dimension."""
    return x.is_contiguous() or (x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last))


def mix(
    x: Tensor,
    clip: Tensor,
    gain: Tensor,
    grids: Tensor,
    low: Tensor,
    coefficients: Tensor,
    *,
    saturates: bool = True,
    clip_gradient: str = FULL,
    clip_gradient_scale: float = 1.0,
    gain_gradient_scale: float = 1.0,
) -> Tensor:
    """Return the mixture of the quantized versions of ``x``, with straight-through gradients.

    Shapes: ``x`` any; ``clip`` (R, 1), one per row where R > 1 rows are the first dimension of x;
    ``gain`` (K,); ``grids`` (5, K), the columns of :class:`dnas.quantization.quantizers.Grid`; ``low`` () is -1 or 0;
    ``coefficients`` (K,), or (K + 1,) with that of x itself last. Gradients reach x, clip, gain and coefficients.
    ``saturates`` says whether some grid's code can exceed its top at u = 1 (see :attr:`Grid.saturates`). A clip below
    1e-6 counts as that. The scales multiply the gradients of clip and gain.
    """
    dense = x if _is_dense(x) else x.contiguous()
    scales = clip_gradient_scale, gain_gradient_scale
    return _Mix.apply(dense, clip, gain, grids, low, coefficients, saturates, clip_gradient, scales)
