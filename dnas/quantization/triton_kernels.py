"""The kernels of :mod:`dnas.quantization.mixture_kernels`, in Triton's language.

``K`` candidates are handled as a block of ``PADDED`` rows, the next power of two, whose surplus has coefficient 0.
"""
# mypy: ignore-errors

import triton
import triton.language as tl


@triton.jit
def _candidates(gain, grids, coefficients, K: tl.constexpr, PADDED: tl.constexpr):
    """Scale, offset, top, step, start, gain and coefficient of every candidate, each (PADDED,)."""
    k = tl.arange(0, PADDED)
    there = k < K
    scale = tl.load(grids + k, there, 0.0)
    offset = tl.load(grids + K + k, there, 0.0)
    top = tl.load(grids + 2 * K + k, there, 0.0)
    step = tl.load(grids + 3 * K + k, there, 0.0)
    start = tl.load(grids + 4 * K + k, there, 0.0)
    own_gain = tl.load(gain + k, there, 0.0)
    coefficient = tl.load(coefficients + k, there, 0.0)
    return scale, offset, top, step, start, own_gain, coefficient


@triton.jit
def _clip(clip, row, SMALLEST: tl.constexpr):
    return tl.maximum(tl.load(clip + row), SMALLEST, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def _clamped(u, low):
    """Values in [low, 1]; one that is no number stays none."""
    above = tl.maximum(u, low, propagate_nan=tl.PropagateNan.ALL)
    return tl.minimum(above, 1.0, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def _codes(u, scale, offset, top, SATURATES: tl.constexpr):
    """The code of every element by every candidate, (PADDED, BLOCK)."""
    code = tl.floor(u[None, :] * scale[:, None] + offset[:, None])
    if SATURATES:
        code = tl.minimum(code, top[:, None], propagate_nan=tl.PropagateNan.ALL)
    return code


@triton.jit
def _value(u, gain, grids, coefficients, K: tl.constexpr, SATURATES: tl.constexpr):
    """sum_k c_k q_k of every element over its clip, (BLOCK,); one candidate after the other, which is fastest."""
    base = 0.0
    for k in tl.static_range(K):
        base += tl.load(coefficients + k) * tl.load(gain + k) * tl.load(grids + 4 * K + k)
    value = tl.zeros_like(u) + base
    for k in tl.static_range(K):
        code = tl.floor(u * tl.load(grids + k) + tl.load(grids + K + k))
        if SATURATES:
            code = tl.minimum(code, tl.load(grids + 2 * K + k), propagate_nan=tl.PropagateNan.ALL)
        value += tl.load(coefficients + k) * tl.load(gain + k) * tl.load(grids + 3 * K + k) * code
    return value


@triton.jit
def mixed(
    x, out, clip, gain, grids, low, coefficients, elements,
    K: tl.constexpr, PADDED: tl.constexpr, FLOAT: tl.constexpr, SATURATES: tl.constexpr, SMALLEST: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """One block of one row: sum_k c_k q_k(x)."""
    blocks = tl.cdiv(elements, BLOCK)
    row = tl.program_id(0) // blocks
    place = (tl.program_id(0) % blocks) * BLOCK + tl.arange(0, BLOCK)
    inside = place < elements
    where = row.to(tl.int64) * elements + place
    wide = tl.load(x + where, inside, 0.0).to(tl.float32)
    own_clip = _clip(clip, row, SMALLEST)
    u = _clamped(tl.div_rn(wide, own_clip), tl.load(low))
    value = own_clip * _value(u, gain, grids, coefficients, K, SATURATES)
    if FLOAT:
        value += tl.load(coefficients + K) * wide
    tl.store(out + where, value.to(out.dtype.element_ty), inside)


@triton.jit
def gradients(
    g, x, grad_x, sums, clip, gain, grids, low, coefficients, elements, per_row,
    K: tl.constexpr, PADDED: tl.constexpr, FLOAT: tl.constexpr, SATURATES: tl.constexpr, SMALLEST: tl.constexpr,
    BLOCK: tl.constexpr,
    FULL: tl.constexpr, SATURATED: tl.constexpr, COEFFICIENTS: tl.constexpr,
):  # fmt: skip
    """Some blocks of one row: the gradient of x, and this program's sums (K + 3,)."""
    row, first = tl.program_id(0) // per_row, tl.program_id(0) % per_row
    own_clip, lowest = _clip(clip, row, SMALLEST), tl.load(low)
    scale, offset, top, _, _, _, coefficient = _candidates(gain, grids, coefficients, K, PADDED)
    quantized = tl.sum(coefficient, 0)
    of_float = tl.load(coefficients + K) if FLOAT else 0.0
    along_clip = tl.zeros((BLOCK,), tl.float32)
    along_g = tl.zeros((BLOCK,), tl.float32)
    along_x = tl.zeros((BLOCK,), tl.float32)
    along_codes = tl.zeros((PADDED, BLOCK), tl.float32)
    for block in range(first, tl.cdiv(elements, BLOCK), per_row):
        place = block * BLOCK + tl.arange(0, BLOCK)
        there = place < elements
        where = row.to(tl.int64) * elements + place
        wide = tl.load(x + where, there, 0.0).to(tl.float32)
        upstream = tl.load(g + where, there, 0.0).to(tl.float32)
        u = tl.div_rn(wide, own_clip)
        inside = (u >= lowest) & (u <= 1.0)
        u = _clamped(u, lowest)
        own = upstream * (tl.where(inside, quantized, 0.0) + of_float)
        tl.store(grad_x + where, own.to(grad_x.dtype.element_ty), there)
        if FULL:
            value = _value(u, gain, grids, coefficients, K, SATURATES)
            along_clip += upstream * (value - tl.where(inside, quantized * u, 0.0))
        if COEFFICIENTS:
            along_codes += (upstream * own_clip)[None, :] * _codes(u, scale, offset, top, SATURATES)
            along_g += upstream * own_clip
            along_x += upstream * wide
        if SATURATED:
            along_clip += upstream * tl.where(inside, 0.0, quantized * u)
    mine = sums + tl.program_id(0) * (K + 3)
    k = tl.arange(0, PADDED)
    if FULL or SATURATED:
        tl.store(mine + K, tl.sum(along_clip, 0))
    if COEFFICIENTS:
        tl.store(mine + k, tl.sum(along_codes, 1), k < K)
        tl.store(mine + K + 1, tl.sum(along_g, 0))
        tl.store(mine + K + 2, tl.sum(along_x, 0))


@triton.jit
def totals(
    sums, grad_clip, grad_gain, grad_coefficients, clip, gain, grids, coefficients, rows, per_row,
    first, clip_scale, gain_scale,
    K: tl.constexpr, PADDED: tl.constexpr, FLOAT: tl.constexpr, SATURATES: tl.constexpr, SMALLEST: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Program r adds up the clip's gradient of row ``first`` + r; one past the last row those of all candidates."""
    row = first + tl.program_id(0)
    k = tl.arange(0, PADDED)
    if row < rows:
        total = tl.zeros((256,), tl.float32)
        for block in range(0, per_row, 256):
            place = block + tl.arange(0, 256)
            total += tl.load(sums + (row * per_row + place) * (K + 3) + K, place < per_row, 0.0)
        reached = tl.load(clip + row) >= SMALLEST
        tl.store(grad_clip + row, tl.where(reached, clip_scale * tl.sum(total, 0), 0.0))
    else:
        codes = tl.zeros((PADDED, 256), tl.float32)
        of_g = tl.zeros((256,), tl.float32)
        of_x = tl.zeros((256,), tl.float32)
        for block in range(0, rows * per_row, 256):
            place = block + tl.arange(0, 256)
            there = place < rows * per_row
            own = sums + place * (K + 3)
            codes += tl.load(own[None, :] + k[:, None], there[None, :] & (k < K)[:, None], 0.0)
            of_g += tl.load(own + K + 1, there, 0.0)
            of_x += tl.load(own + K + 2, there, 0.0)
        _, _, _, step, start, own_gain, coefficient = _candidates(gain, grids, coefficients, K, PADDED)
        along = step * tl.sum(codes, 1) + start * tl.sum(of_g, 0)
        tl.store(grad_coefficients + k, own_gain * along, k < K)
        tl.store(grad_gain + k, gain_scale * coefficient * along, k < K)
        if FLOAT:
            tl.store(grad_coefficients + K, tl.sum(of_x, 0))
