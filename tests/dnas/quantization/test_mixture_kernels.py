"""The kernels give what the functions of the mixture give; run by Triton's interpreter, on the CPU."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from dnas.quantization import mixture, mixture_kernels
from dnas.quantization.quantizers import even_grid, integer_grid, symmetric_grid
from tests.toys import seeded

triton = pytest.importorskip("triton", reason="PyTorch brings no Triton here")
OLD = tuple(map(int, triton.__version__.split(".")[:2])) < (3, 7)
pytestmark = [
    pytest.mark.skipif(OLD, reason="the interpreter of Triton before 3.7 cannot loop with this NumPy"),
    pytest.mark.skipif(torch.cuda.is_available(), reason="where there is a GPU, test_gpu.py runs the kernels there"),
]


def arguments(
    bits: tuple[int, ...], rows: int, grid: object = integer_grid, signed: bool = True, with_float: bool = False
) -> tuple[Tensor, ...]:
    """Clip, gain, grids, low and coefficients."""
    grids = [grid(width, signed) for width in bits]  # type: ignore[operator]
    columns = torch.tensor([[g.scale, g.offset, g.top, g.step, g.start] for g in grids]).T.contiguous()
    draw = seeded(7)
    coefficients = torch.rand(len(bits) + with_float, generator=draw) + 0.1
    clip = torch.rand(rows, 1, generator=draw) + 0.5
    return clip, torch.rand(len(bits), generator=draw) + 0.5, columns, torch.tensor(-1.0 if signed else 0), coefficients


CASES = {
    "one": ((4,), 1, integer_grid, True, False),
    "many": ((1, 2, 3, 4, 5, 6, 8), 1, even_grid, False, False),
    "beside the tensor itself": ((2, 4, 8), 1, symmetric_grid, True, True),
    "a clip per row": ((2, 4, 8), 3, integer_grid, True, False),
}


@pytest.fixture
def _unwritten_sums_show(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory that nothing was written to holds both infinities, whose sum is a warning."""

    new_empty = Tensor.new_empty

    def infinite(self: Tensor, *shape: Any, **options: Any) -> Tensor:
        if options.get("dtype") != torch.float32 or len(shape) != 2:
            return new_empty(self, *shape, **options)
        signs = torch.randint(0, 2, shape, generator=seeded()).mul_(2).sub_(1)
        return signs.to(options["dtype"]) * torch.inf

    monkeypatch.setattr(Tensor, "new_empty", infinite)


@pytest.mark.parametrize(
    ("case", "dtype"),
    [
        ("one", torch.float32),
        ("beside the tensor itself", torch.float32),
        *(pytest.param(case, torch.float32, marks=pytest.mark.whole) for case in ("many", "a clip per row")),
        pytest.param("beside the tensor itself", torch.bfloat16, marks=pytest.mark.whole),
        ("a clip per row", torch.bfloat16),
    ],
)
@pytest.mark.usefixtures("_unwritten_sums_show")
def test_kernels_compute_what_the_functions_do(case: str, dtype: torch.dtype) -> None:
    own = arguments(*CASES[case])
    rows = own[0].shape[0]
    if rows > 1:
        own[0][-1] = 1e-9  # counts as the smallest there is
    x, g = (torch.randn(rows, 2500, generator=seeded(seed)).to(dtype) for seed in (1, 2))
    fine, sums = (1e-6, 1e-4) if dtype == torch.float32 else (1e-2, 1e-2)
    torch.testing.assert_close(
        mixture_kernels.forward(x, *own, True), mixture._forward(x, *own, True), rtol=fine, atol=fine
    )
    for clip_gradient, wants in (("full", True), ("saturated", True), ("saturated", False), (None, True)):
        rest = (*own, True, clip_gradient, wants, 0.3, 0.7)
        found, expected = mixture_kernels.backward(g, x, *rest), mixture._backward(g, x, *rest)
        assert [each is None for each in found] == [each is None for each in expected]
        for own_value, value in zip(found, expected, strict=True):
            if value is not None:
                torch.testing.assert_close(own_value, value, rtol=sums, atol=sums * float(value.abs().max()))


def test_what_is_no_number_stays_none() -> None:
    x = torch.tensor([[1.0, float("nan"), float("inf"), -5.0]])
    clip, _, grids, low, _ = arguments((4,), 1)
    out = mixture_kernels.forward(x, clip, torch.ones(1), grids, low, torch.ones(1), True)
    assert out.isnan().tolist() == [[False, True, False, False]]
    nowhere = mixture_kernels.forward(x, clip * torch.nan, torch.ones(1), grids, low, torch.ones(1), True)
    assert nowhere.isnan().all()


def test_mixtures_have_kernels_on_cuda_alone_and_only_where_they_run(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not mixture.has_kernels(torch.device("cpu"))
    assert mixture_kernels.works(torch.device("cpu"))  # by the interpreter
    mixture_kernels.works.cache_clear()

    def fail() -> None:
        raise RuntimeError("Python.h: no such file")

    monkeypatch.setattr(mixture_kernels, "_kernels", fail)
    with pytest.warns(UserWarning, match=r"Triton does not work here \(.*Python.h"):
        assert not mixture_kernels.works(torch.device("cpu"))
    mixture_kernels.works.cache_clear()
