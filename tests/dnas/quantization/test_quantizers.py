"""The contract that every family, width and sign keeps, and each family's published formula."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dnas.quantization.families import ACTIVATION_QUANTIZERS, WEIGHT_QUANTIZERS, find_quantizer
from dnas.quantization.layers import TensorQuantizer
from dnas.quantization.quantizers import Grid, Quantizer, decode, encode, integer_grid, nested_grid
from search_spaces.errors import InputError
from tests.toys import seeded

CLIP = torch.tensor(0.75, dtype=torch.float64)


class Case(NamedTuple):
    quantizer: Quantizer
    bits: int
    signed: bool

    @property
    def grid(self) -> Grid:
        return self.quantizer.grid(self.bits, self.signed)

    def codes(self, x: Tensor) -> Tensor:
        return encode(x, CLIP.to(x.dtype), self.grid, self.signed)

    def values(self, codes: Tensor) -> Tensor:
        return decode(codes, CLIP, self.grid)


FAMILIES = {
    f"{kind}-{quantizer.name}-{'signed' if signed else 'unsigned'}": [
        Case(quantizer, bits, signed) for bits in quantizer.widths
    ]
    for kind, registry in (("weights", WEIGHT_QUANTIZERS), ("activations", ACTIVATION_QUANTIZERS))
    for quantizer in registry.values()
    if quantizer.affine  # for the others, test_logarithmic.py
    for signed in ((True,) if kind == "weights" else (True, False))
}


def every(law: Callable[[Case], None]) -> Callable[[str], None]:
    """A test of ``law`` for each family and sign, at all widths."""

    def at_all_widths(family: str) -> None:
        for case in FAMILIES[family]:
            law(case)

    at_all_widths.__name__ = law.__name__
    return pytest.mark.parametrize("family", FAMILIES)(at_all_widths)


RANDOM = torch.randn(4000, generator=seeded(), dtype=torch.float64)  # no ties
X = torch.cat([RANDOM, torch.linspace(-1, 1, 4001).double()])


@every
def test_codes_fit_their_width_and_each_is_used(case: Case) -> None:
    codes = case.codes(X)
    assert codes.dtype == torch.int32
    assert codes.min() == 0
    assert codes.max() == case.grid.top <= 2**case.bits - 1
    if case.bits <= 8:
        assert len(codes.unique()) == case.grid.top + 1


@every
def test_the_error_inside_the_range_is_at_most_half_a_step(case: Case) -> None:
    lowest, highest = case.values(torch.tensor([0, case.grid.top]))
    half_step = CLIP * case.grid.step / 2
    inside = (X >= lowest - half_step) & (X <= highest + half_step) & (X.abs() <= CLIP) & (case.signed | (X >= 0))
    errors = (case.values(case.codes(X)) - X).abs()[inside]
    assert len(errors) > 1000
    assert errors.max() <= half_step * (1 + 1e-9)


@every
def test_quantizing_twice_with_the_same_clip_is_quantizing_once(case: Case) -> None:
    once = case.codes(X)
    assert torch.equal(case.codes(case.values(once)), once)


@every
def test_codes_never_fall_as_the_input_rises(case: Case) -> None:
    assert (case.codes(X.sort().values).diff() >= 0).all()


@every
def test_values_stay_within_the_clip(case: Case) -> None:
    values = case.values(case.codes(1e6 * X))
    assert values.max() <= CLIP
    assert values.min() >= (-CLIP if case.signed else 0)


@every
def test_the_trained_tensor_is_what_its_codes_stand_for(case: Case) -> None:
    module = TensorQuantizer(case.quantizer, (case.bits,), signed=case.signed)
    with torch.no_grad():
        module.clip.fill_(0.75)
        module.gain.fill_(1.25)
        x = X.float()
        prepared, clip = module.prepare(x)
        codes = encode(prepared, clip[0], case.grid, case.signed)
        torch.testing.assert_close(module(x), decode(codes, clip[0] * 1.25, case.grid), rtol=1e-5, atol=1e-6)


@every
def test_the_gradient_is_straight_through_inside_the_clip_and_0_outside(case: Case) -> None:
    if case.quantizer.clip == "data":
        return  # nothing is outside
    module = TensorQuantizer(case.quantizer, (case.bits,), signed=case.signed)
    x = (2 * X.float()).requires_grad_()
    upstream = torch.randn(x.shape, generator=seeded(1))
    module(x).backward(upstream)
    inside = (x >= (-1 if case.signed else 0)) & (x <= 1)
    assert 0 < inside.sum() < len(x)
    assert torch.equal(x.grad, torch.where(inside, upstream, 0.0))


# --- the published formulas, in float64 -----------------------------------------------------------------------------


def q_k(u: np.ndarray, bits: int) -> np.ndarray:
    return np.round((2**bits - 1) * u) / (2**bits - 1)


def fake(case: Case) -> np.ndarray:
    return case.values(case.codes(RANDOM)).numpy()


@pytest.mark.parametrize("bits", range(2, 9))
def test_dorefa_weights_are_equation_9(bits: int) -> None:
    module = TensorQuantizer(find_quantizer("weights", "dorefa"), (bits,), signed=True).double()
    module.set_sign(True)
    tanh = np.tanh(RANDOM.numpy())
    top = np.abs(tanh).max()
    published = 2 * q_k(tanh / (2 * top) + 0.5, bits) - 1
    np.testing.assert_allclose(module(RANDOM).numpy() / top, published, atol=1e-12)


@pytest.mark.parametrize("bits", range(1, 9))
def test_dorefa_activations_are_equation_5(bits: int) -> None:
    grid = find_quantizer("activations", "dorefa").grid(bits, False)
    one = torch.ones((), dtype=torch.float64)
    values = decode(encode(RANDOM, one, grid, False), one.double(), grid).numpy()
    np.testing.assert_allclose(values, q_k(np.clip(RANDOM.numpy(), 0, 1), bits), atol=1e-12)


@pytest.mark.parametrize("bits", range(1, 9))
def test_tanh_activations_are_the_formula_of_dorefa_weights(bits: int) -> None:
    module = TensorQuantizer(find_quantizer("activations", "tanh"), (bits,), signed=True).double()
    module.set_sign(True)
    line = torch.linspace(-1.5, 1.5, 4000, dtype=torch.float64)  # without 0, which is half way between two levels
    for x in (0.3 * RANDOM, 2 * RANDOM, line):  # the largest magnitude is that of each tensor
        tanh = np.tanh(x.numpy())
        top = np.abs(tanh).max()
        published = 2 * q_k(tanh / (2 * top) + 0.5, bits) - 1
        np.testing.assert_allclose(module(x).numpy() / top, published, atol=1e-12)
    assert len(np.unique(np.round(module(line).numpy(), 9))) == 2**bits


@pytest.mark.parametrize("bits", [1, 2, 8])
def test_tanh_activations_that_are_never_negative_use_all_levels_from_0(bits: int) -> None:
    module = TensorQuantizer(find_quantizer("activations", "tanh"), (bits,), signed=False).double()
    module.set_sign(False)
    tanh = np.tanh(RANDOM.abs().numpy())
    np.testing.assert_allclose(module(RANDOM.abs()).numpy() / tanh.max(), q_k(tanh / tanh.max(), bits), atol=1e-12)


@pytest.mark.parametrize("bits", range(1, 9))
def test_pact_is_its_equations_1_and_2(bits: int) -> None:
    alpha = CLIP.item()
    published = alpha * q_k(np.clip(RANDOM.numpy(), 0, alpha) / alpha, bits)
    np.testing.assert_allclose(fake(Case(find_quantizer("activations", "pact"), bits, False)), published, atol=1e-12)


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("bits", range(2, 9))
def test_lsq_is_its_equations_1_and_2(bits: int, signed: bool) -> None:
    lower, upper = (2 ** (bits - 1), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    step = CLIP.item() / (lower or upper)
    published = step * np.round(np.clip(RANDOM.numpy() / step, -lower, upper))
    np.testing.assert_allclose(fake(Case(find_quantizer("activations", "lsq"), bits, signed)), published, atol=1e-12)


@pytest.mark.parametrize("bits", range(1, 9))
def test_nested_is_floor_with_the_value_in_the_middle(bits: int) -> None:
    u = np.clip(RANDOM.numpy() / CLIP.item(), -1, 1)
    codes = np.minimum(np.floor(2 ** (bits - 1) * (u + 1)), 2**bits - 1)
    published = CLIP.item() * ((2 * codes + 1) / 2**bits - 1)
    np.testing.assert_allclose(fake(Case(find_quantizer("weights", "nested"), bits, True)), published, atol=1e-12)


SIGNS = [("weights", name) for name, quantizer in WEIGHT_QUANTIZERS.items() if quantizer.affine]


@pytest.mark.parametrize(("kind", "name"), [*SIGNS, ("activations", "pact"), ("activations", "tanh")])
def test_one_bit_is_the_sign_and_the_sign_of_0_is_plus(kind: Any, name: str) -> None:
    grid = find_quantizer(kind, name).grid(1, True)
    one = torch.ones(())
    codes = encode(torch.tensor([-0.5, -1e-4, -0.0, 0.0, 1e-4, 0.5]), one, grid, True)
    assert codes.tolist() == [0, 0, 1, 1, 1, 1]
    negative, positive = decode(torch.tensor([0, 1]), one, grid).tolist()
    assert negative == -positive < 0


def test_halves_are_rounded_up_as_shifts_do() -> None:
    clip = torch.tensor(8.0)  # a step of 1
    x = torch.tensor([-2.5, -1.5, -0.5, 0.5, 1.5, 2.5, 3.5])
    grid = integer_grid(4, signed=True)
    assert decode(encode(x, clip, grid, True), clip, grid).tolist() == [-2.0, -1.0, 0.0, 1.0, 2.0, 3.0, 4.0]
    for bits in range(1, 9):  # 2^bits - 1 steps: the middle of the range is a half
        assert encode(torch.tensor(0.5), torch.ones(()), integer_grid(bits, False), False) == 2 ** (bits - 1)


@settings(max_examples=200)
@given(st.lists(st.floats(-2, 2, width=32), min_size=1), st.booleans(), st.floats(0.125, 4, width=32))
def test_a_narrow_nested_code_is_the_start_of_every_wider_one(values: list[float], signed: bool, clip: float) -> None:
    x = torch.tensor(values)
    widths = find_quantizer("weights", "nested").widths
    codes = {bits: encode(x, torch.tensor(clip), nested_grid(bits, signed), signed) for bits in widths}
    for high in widths:
        for low in widths:
            if low < high:
                assert torch.equal(codes[low], codes[high] >> (high - low)), (low, high)


def test_the_dorefa_grid_does_not_nest() -> None:
    grid = find_quantizer("weights", "dorefa").grid
    codes = {bits: encode(RANDOM, torch.ones(1), grid(bits, True), True) for bits in (2, 4)}
    assert not torch.equal(codes[2], codes[4] >> 2)


# --- gradients of the clip ------------------------------------------------------------------------------------------


def test_pact_trains_its_clip_where_the_input_is_clipped_and_nowhere_else() -> None:
    module = TensorQuantizer(find_quantizer("activations", "pact"), (4,), signed=False).double()
    with torch.no_grad():
        module.clip.fill_(0.75)
    x = RANDOM.clone()
    upstream = torch.randn(x.shape, generator=seeded(2), dtype=torch.float64)
    module(x).backward(upstream)
    alpha = CLIP.clone().requires_grad_()
    (0.5 * (x.abs() - (x - alpha).abs() + alpha) * upstream).sum().backward()  # PACT, equation 1
    torch.testing.assert_close(module.clip.grad[0, 0], alpha.grad, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(alpha.grad, upstream[x > CLIP].sum())


@pytest.mark.parametrize("bits", [1, 2, 3, 8])
def test_lsq_trains_its_step_by_equation_3(bits: int) -> None:
    module = TensorQuantizer(find_quantizer("activations", "lsq"), (bits,), signed=False).double()
    module.set_sign(False)
    with torch.no_grad():
        module.clip.fill_(0.75)
    upstream = torch.randn(RANDOM.shape, generator=seeded(2), dtype=torch.float64)
    module(RANDOM).backward(upstream)
    most = 2**bits - 1
    v = RANDOM / (CLIP / most)  # the clip is the step times Q_p
    published = torch.where(v <= 0, 0.0, torch.where(v >= most, float(most), torch.floor(v + 0.5) - v))
    torch.testing.assert_close(module.clip.grad[0, 0], (published * upstream).sum() / most, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("kind", "name"), [("weights", "dorefa"), ("activations", "tanh")])
def test_a_transformed_tensor_passes_the_gradient_of_tanh_alone(kind: Any, name: str) -> None:
    module = TensorQuantizer(find_quantizer(kind, name), (3,), signed=True)
    x = RANDOM.float().requires_grad_()
    module(x).sum().backward()
    torch.testing.assert_close(x.grad, 1 - torch.tanh(x.detach()) ** 2)
    assert not list(module.parameters())


@pytest.mark.parametrize(("kind", "name"), [("weights", "dorefa"), ("activations", "tanh")])
def test_a_transformed_tensor_is_not_idempotent_because_its_tanh_runs_again(kind: Any, name: str) -> None:
    module = TensorQuantizer(find_quantizer(kind, name), (4,), signed=True)
    once = module(RANDOM.float())
    assert not torch.allclose(module(once), once, atol=1e-3)


# --- wrong names and widths -----------------------------------------------------------------------------------------


def test_an_unknown_quantizer_names_the_nearest() -> None:
    with pytest.raises(InputError, match=r"unknown weight quantizer 'lsp'; .*did you mean 'lsq'"):
        find_quantizer("weights", "lsp")
    with pytest.raises(InputError, match="unknown weight quantizer 'pact'"):
        find_quantizer("weights", "pact")
    with pytest.raises(InputError, match="unknown weight quantizer 'tanh'"):
        find_quantizer("weights", "tanh")  # that is 'dorefa'


@pytest.mark.parametrize(("name", "bits"), [("binary", 2), ("lsq", 0), ("lsq", 9)])
def test_a_width_that_a_family_does_not_have_is_refused(name: str, bits: int) -> None:
    with pytest.raises(InputError, match=f"'{name}' has no {bits}-bit form"):
        TensorQuantizer(find_quantizer("weights", name), (bits,), signed=True)
