"""The fused mixture as kernels for CUDA: one launch forward, two backward, whatever the number of candidates.

They read and write the tensor as it is stored (bfloat16 under autocast), and compute in float32 by the operations of
:mod:`dnas.quantization.mixture` in the same order: no products fused into sums, divisions rounded as IEEE 754 does. The
gradients of what all elements share are sums; each program adds up its own elements, and the second launch adds up the
programs in a fixed order, so that they are the same bits each time.

Triton comes with PyTorch's builds for CUDA, and compiles a kernel when it is first launched; see :func:`works`.
"""

from __future__ import annotations

import importlib
import importlib.util
import warnings
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Any

import torch
from torch import Tensor

from dnas.quantization.quantizers import SMALLEST_CLIP

_FORWARD_BLOCK, _BLOCK = 2048, 1024  # elements that a program handles at a time
_PROGRAMS = 1056  # of one launch, at most, unless there are more rows: eight for each multiprocessor of an H100
_BESIDE = 3  # sums beside those of the codes: of the clip, of the upstream gradient, of the tensor itself


@cache
def works(place: torch.device) -> bool:
    """Whether the kernels run on this device: found out by launching each, and told in one warning where not."""
    if importlib.util.find_spec("triton") is None:
        return False
    try:
        one, x = torch.ones(1, device=place), torch.ones(1, 8, device=place)
        arguments = x, one[None], one, torch.ones(5, 1, device=place), torch.zeros((), device=place), one, True
        forward(*arguments)
        backward(x, *arguments, "full", True, 1.0, 1.0)
    except Exception as error:  # no compiler for what launches them, a device that is too old
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        warnings.warn(f"Triton does not work here ({reason}); mixtures run in plain operations", stacklevel=3)
        return False
    return True


def forward(
    x: Tensor, clip: Tensor, gain: Tensor, grids: Tensor, low: Tensor, coefficients: Tensor, saturates: bool
) -> Tensor:
    """The mixture of ``x`` (R, N); arguments as in :func:`dnas.quantization.mixture.mix`."""
    rows, elements = x.shape
    out, coefficients = torch.empty_like(x), coefficients.contiguous()
    grid = (rows * _cdiv(elements, _FORWARD_BLOCK),)
    shape = {**_shape(gain, coefficients, saturates), "BLOCK": _FORWARD_BLOCK}
    with _on(x):
        _kernels().mixed[grid](x, out, clip, gain, grids, low, coefficients, elements, **shape)
    return out


def backward(
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
    """Gradients of x, clip, coefficients and gain, each but the first None where it is not wanted."""
    rows, elements = x.shape
    candidates, coefficients = gain.shape[0], coefficients.contiguous()
    block = _BLOCK // 2 if wants_coefficients and candidates > 4 else _BLOCK  # a sum for each takes many registers
    per_row = max(1, min(_cdiv(elements, block), _PROGRAMS // rows))
    grad_x = torch.empty_like(x)
    sums = x.new_empty(rows * per_row, candidates + _BESIDE, dtype=torch.float32)
    kernels, shape = _kernels(), {**_shape(gain, coefficients, saturates), "BLOCK": block}
    wanted = {
        "FULL": clip_gradient == "full",
        "SATURATED": clip_gradient == "saturated",
        "COEFFICIENTS": wants_coefficients,
    }
    with _on(x):
        kernels.gradients[rows * per_row,](
            g, x, grad_x, sums, clip, gain, grids, low, coefficients, elements, per_row, **shape, **wanted
        )
    if clip_gradient is None and not wants_coefficients:
        return grad_x, None, None, None
    grad_clip, grad_gain = torch.empty_like(clip), torch.empty_like(gain)
    grad_coefficients = torch.empty_like(coefficients)
    made = sums, grad_clip, grad_gain, grad_coefficients
    first = rows if clip_gradient is None else 0  # sums that are not wanted were not written either
    with _on(x):
        kernels.totals[rows - first + wants_coefficients,](
            *made, clip, gain, grids, coefficients, rows, per_row, first, clip_scale, gain_scale, **shape
        )
    clips = None if clip_gradient is None else grad_clip
    return (grad_x, clips, grad_coefficients, grad_gain) if wants_coefficients else (grad_x, clips, None, None)


def _shape(gain: Tensor, coefficients: Tensor, saturates: bool) -> dict[str, Any]:
    """What a kernel is compiled for."""
    candidates = gain.shape[0]
    return {
        "K": candidates,
        "PADDED": 1 << max(0, candidates - 1).bit_length(),
        "FLOAT": coefficients.shape[0] > candidates,
        "SATURATES": saturates,
        "SMALLEST": SMALLEST_CLIP,
        "BLOCK": _BLOCK,
        "enable_fp_fusion": False,
    }


def _on(x: Tensor) -> AbstractContextManager:
    """Triton launches on the current device, wherever its arguments are."""
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()


def _cdiv(a: int, b: int) -> int:
    return -(-a // b)


def _kernels() -> Any:
    return importlib.import_module("dnas.quantization.triton_kernels")
