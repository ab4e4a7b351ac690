"""The fused mixture against a naive one with autograd's straight-through, in float64, on every layout."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from dnas.quantization import mixture
from dnas.quantization.mixture import FULL, SATURATED, compiled_mixture, mix
from dnas.quantization.quantizers import Grid, even_grid, integer_grid, nested_grid, sign_grid
from tests.toys import seeded

SIGNED = [sign_grid(), integer_grid(2, True), nested_grid(3, True), even_grid(5, True)]
UNSIGNED = [even_grid(1, False), integer_grid(3, False), nested_grid(4, False)]


def columns(grids: list[Grid], dtype: torch.dtype) -> Tensor:
    return torch.tensor([[g.scale, g.offset, g.top, g.step, g.start] for g in grids], dtype=dtype).T


def naive(
    x: Tensor, clip: Tensor, gain: Tensor, grids: list[Grid], low: float, coefficients: Tensor, clip_gradient: str
) -> Tensor:
    """sum_k p_k Q_k(x), each Q_k written as its definition with the rounding error detached."""
    rows = clip.view(-1, *[1] * (x.dim() - 1))
    total = torch.zeros_like(x)
    for k, grid in enumerate(grids):
        u = torch.clamp(x / rows, low, 1.0)
        code = torch.minimum(torch.floor(u * grid.scale + grid.offset), torch.tensor(grid.top))
        value = gain[k] * (code * grid.step + grid.start)
        if clip_gradient == FULL:
            through = rows * (u + (value - u).detach())
        else:
            clipped = torch.minimum(torch.maximum(x, low * rows), rows)
            through = clipped + (rows * value - clipped).detach()
        total = total + coefficients[k] * through
    return total + coefficients[-1] * x if len(coefficients) > len(grids) else total


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda x: x,
    "channels_last": lambda x: x.to(memory_format=torch.channels_last),
    "transposed": lambda x: x.transpose(1, 3).contiguous().transpose(1, 3),
    "sliced": lambda x: torch.cat([x, x], 3)[..., ::2],
    "offset": lambda x: torch.cat([x, x])[len(x) :],
    "expanded": lambda x: x[:, :1].expand_as(x),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(  # any two of these meet
    ("grids", "low", "rows", "clip_gradient", "with_float"),
    [
        (SIGNED, -1.0, 1, FULL, True),
        (SIGNED, -1.0, 4, SATURATED, False),
        (UNSIGNED, 0.0, 1, SATURATED, True),
        (UNSIGNED, 0.0, 4, FULL, False),
        (SIGNED[2:3], -1.0, 1, SATURATED, False),
        (SIGNED[2:3], -1.0, 4, FULL, True),
    ],
)
def test_outputs_and_all_gradients_are_those_of_the_naive_mixture(
    layout: str, clip_gradient: str, with_float: bool, grids: list[Grid], low: float, rows: int
) -> None:
    generator = seeded()

    def drawn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    base = drawn(4, 3, 5, 6)
    clip = drawn(rows, 1).abs() + 0.3
    gain = drawn(len(grids)).abs() + 0.5
    coefficients = drawn(len(grids) + with_float).softmax(0)
    upstream = drawn(4, 3, 6, 5).transpose(2, 3)
    results = []
    for function in (mix, naive):
        leaves = [tensor.clone().requires_grad_() for tensor in (base, clip, coefficients)]
        x = LAYOUTS[layout](leaves[0])
        if function is mix:
            out = mix(
                x, leaves[1], gain, columns(grids, torch.float64), torch.tensor(low, dtype=torch.float64), leaves[2],
                clip_gradient=clip_gradient,
            )  # fmt: skip
        else:
            out = naive(x, leaves[1], gain, grids, low, leaves[2], clip_gradient)
        results.append([out, *torch.autograd.grad(out, leaves, upstream)])
    for fused, expected in zip(*results, strict=True):
        torch.testing.assert_close(fused, expected, rtol=1e-12, atol=1e-12)


def test_one_candidate_among_many_is_that_candidate_alone_bit_for_bit() -> None:
    x = torch.randn(1000, generator=seeded())
    clip, low = torch.full((1, 1), 0.7), torch.tensor(-1.0)
    gain = torch.tensor([0.9, 1.1, 1.0, 0.8])
    grids = columns(SIGNED, torch.float32)
    for k in range(4):
        coefficients = torch.zeros(5)
        coefficients[k] = 1.0
        alone = mix(x, clip, gain[k : k + 1], grids[:, k : k + 1], low, torch.ones(1))
        assert torch.equal(mix(x, clip, gain, grids, low, coefficients), alone)
    assert torch.equal(mix(x, clip, gain, grids, low, torch.tensor([0.0, 0, 0, 0, 1])), x)


def test_half_precision_is_quantized_in_float32_and_keeps_its_type() -> None:
    x = torch.randn(500, generator=seeded()).bfloat16()
    arguments = torch.full((1, 1), 0.7), torch.ones(4), columns(SIGNED, torch.float32), torch.tensor(-1.0)
    mixed = mix(x, *arguments, torch.full((4,), 0.25))
    assert mixed.dtype == torch.bfloat16
    assert torch.equal(mixed, mix(x.float(), *arguments, torch.full((4,), 0.25)).bfloat16())


def test_a_nan_stays_a_nan() -> None:
    x = torch.tensor([0.5, torch.nan])
    out = mix(x, torch.ones(1, 1), torch.ones(4), columns(SIGNED, torch.float32), torch.tensor(-1.0), torch.ones(4))
    assert out.isnan().tolist() == [False, True]


@pytest.mark.slow  # compiling takes longer than all other tests of this file
def test_the_compiled_mixture_is_the_eager_one_to_rounding() -> None:
    for low, grids in ((-1.0, SIGNED), (0.0, UNSIGNED)):
        for layout in LAYOUTS.values():
            for clip_gradient in (FULL, SATURATED):
                results = []
                for compiled in (False, True):
                    x = torch.randn(4, 3, 5, 6, generator=seeded()).requires_grad_()
                    clip = torch.full((1, 1), 0.7, requires_grad=True)
                    coefficients = torch.full((len(grids) + 1,), 1 / (len(grids) + 1), requires_grad=True)
                    gain = torch.linspace(0.8, 1.2, len(grids))
                    with compiled_mixture(compiled) as is_compiled:
                        assert is_compiled == compiled
                        out = mix(
                            layout(x), clip, gain, columns(grids, torch.float32), torch.tensor(low), coefficients,
                            clip_gradient=clip_gradient,
                        )  # fmt: skip
                        out.square().sum().backward()
                    results.append((out, x.grad, clip.grad, coefficients.grad))
                for compiled_value, eager in zip(*results, strict=True):
                    torch.testing.assert_close(compiled_value, eager, rtol=1e-4, atol=1e-4)


class Counting(TorchDispatchMode):
    """Counts the staircases that are evaluated."""

    floors = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.floors += func._schema.name in ("aten::floor", "aten::floor_")
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("clip_gradient", [FULL, SATURATED])
@pytest.mark.parametrize(
    ("coefficients", "staircases"),
    [([0.0, 1.0, 0.0, 0.0], 1), ([0.0, 0.5, 0.0, 0.5], 2), ([0.0, 0.0, 0.7, 0.0, 0.3], 1), ([0.0] * 4 + [1.0], 1)],
)
def test_candidates_that_take_no_part_cost_nothing_and_change_no_bit(
    coefficients: list[float], staircases: int, clip_gradient: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, clip = torch.randn(4, 50, generator=seeded()), torch.rand(4, 1, generator=seeded(1)) + 0.5
    grids, gain = columns(SIGNED, torch.float32), torch.rand(4, generator=seeded(2)) + 0.5
    low, weight = torch.tensor(-1.0), torch.randn(4, 50, generator=seeded(3))
    ends, counted = [], []
    for thins in (True, False):
        if not thins:
            monkeypatch.setattr(mixture, "_taking_part", lambda *values: values)
        leaves = x.clone().requires_grad_(), clip.clone().requires_grad_()
        with Counting() as count:
            out = mix(*leaves, gain, grids, low, torch.tensor(coefficients), clip_gradient=clip_gradient)
        counted.append(count.floors)
        (out * weight).sum().backward()
        ends.append([out.detach(), *(leaf.grad for leaf in leaves)])
    assert counted == [staircases, 4]
    assert all(torch.equal(found, expected) for found, expected in zip(*ends, strict=True))


def test_all_candidates_are_evaluated_for_gradients_of_their_coefficients() -> None:
    coefficients = torch.tensor([0.0, 1.0, 0.0, 0.0], requires_grad=True)
    x, clip, gain = torch.randn(4, 50, generator=seeded()), torch.ones(1, 1), torch.ones(4)
    out = mix(x, clip, gain, columns(SIGNED, torch.float32), torch.tensor(-1.0), coefficients)
    (out * x).sum().backward()
    assert coefficients.grad is not None
    assert bool((coefficients.grad != 0).all())
