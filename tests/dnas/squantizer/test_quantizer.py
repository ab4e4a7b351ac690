"""SQuantizer's weights: the formula by hand, its levels, its sparsity on Gaussian weights, its gradients, its sizes."""

from __future__ import annotations

import copy
import io

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from dnas.config.training import TrainingSection
from dnas.quantization.calibration import calibrate, observing
from dnas.quantization.conversion import apply
from dnas.quantization.layers import QuantizedLayer
from dnas.squantizer.quantizer import (
    SparseQuantizer,
    activate,
    codes_of,
    delayed,
    dense_bits,
    sparse_codes,
    sparse_quantizers,
    stored,
)
from dnas.training.trainer import Trainer
from search_spaces.assignments import BitAssignment, ModelReference
from search_spaces.errors import InputError
from search_spaces.sparse_weights.codes import decode, encode
from search_spaces.sparse_weights.scheme import ORDERS, SparseWeights
from tests.sparse_nets import quantized, sparse_layers
from tests.toys import Net, images, inputs, seeded, trained

GAUSSIAN = torch.randn(1_000_000, generator=seeded())
SPARSITY = {-0.5: 0.380, 0.0: 0.575, 0.5: 0.728, 1.0: 0.839}  # methods/pruning.md of the product, section 2
every_order = pytest.mark.parametrize("order", ORDERS)


def by_hand(weight: Tensor, sigma: float, bits: int) -> Tensor:
    """The published formula, word for word, in float64."""
    w = weight.double()
    t = w.abs().mean() + sigma * w.abs().std(correction=0)
    kept = w * (w.abs() >= t)
    top, n = kept.abs().max(), 2 ** (bits - 1) - 1
    level = torch.floor(n * (kept.abs() - t) / (top - t) + 0.5)
    return kept.sign() * (level / n * (top - t) + t)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("sigma", [-0.5, 0.0, 1.0])
def test_the_values_are_those_of_the_formula(bits: int, sigma: float) -> None:
    weight = torch.randn(40, 30, generator=seeded(bits))
    torch.testing.assert_close(sparse_codes(weight, sigma, bits).values().double(), by_hand(weight, sigma, bits))


@pytest.mark.parametrize("bits", [1, 2, 3, 4])
@pytest.mark.parametrize("sigma", SPARSITY)
def test_levels_and_sparsity_on_gaussian_weights(bits: int, sigma: float) -> None:
    found = sparse_codes(GAUSSIAN, sigma, bits)
    values = found.values()
    assert (values == 0).float().mean().item() == pytest.approx(SPARSITY[sigma], abs=2e-3)
    levels = values.unique()
    assert len(levels) == 2**bits + 1  # 2^k values beside zero
    assert torch.equal(levels, -levels.flip(0))
    assert levels[levels > 0].min() == found.start  # the smallest is the threshold
    if bits > 1:
        torch.testing.assert_close(levels.max(), GAUSSIAN.abs().max())


def test_the_published_ratio_leaves_out_the_mask() -> None:
    known = stored(GAUSSIAN.view(1000, -1), 4, SparseWeights(0.0))
    assert known.nonzeros is not None
    assert known.stored_bits is not None
    assert known.storage == "bitmask"
    assert 32 * GAUSSIAN.numel() / (4 * known.nonzeros) == pytest.approx(18.8, abs=0.1)
    assert 32 * GAUSSIAN.numel() / known.stored_bits == pytest.approx(11.9, abs=0.1)


@every_order
@given(scale=st.integers(-20, 20), seed=st.integers(0, 99), bits=st.integers(2, 8), sigma=st.floats(-1, 2))
def test_the_codes_do_not_depend_on_the_scale(order: str, scale: int, seed: int, bits: int, sigma: float) -> None:
    weight = torch.randn(50, generator=seeded(seed))
    found, scaled = (sparse_codes(w, sigma, bits, order) for w in (weight, weight * 2.0**scale))
    assert torch.equal(found.codes, scaled.codes)
    assert torch.equal(found.values() * 2.0**scale, scaled.values())


@every_order
@given(seed=st.integers(0, 99), bits=st.integers(2, 8), sigma=st.floats(-10, 5))
def test_a_code_is_zero_where_the_value_is_and_fits_its_bits(order: str, seed: int, bits: int, sigma: float) -> None:
    weight = torch.randn(7, 9, generator=seeded(seed)).clamp_min(-1.0)  # many equal magnitudes
    weight[0, :3] = 0
    found = sparse_codes(weight, sigma, bits, order)
    assert torch.equal(found.codes == 0, found.values() == 0)
    assert found.codes.abs().max() <= 2 ** (bits - 1)
    codes = codes_of(weight, bits, SparseWeights(sigma, order))
    wide = dense_bits(bits, order)
    assert np.array_equal(decode(encode(codes, "dense", bits, wide), "dense", (7, 9), 0, bits, wide), codes)


@every_order
@pytest.mark.parametrize("bits", [2, 4])
def test_fewer_weights_stay_the_higher_sigma_is(order: str, bits: int) -> None:
    weight = torch.randn(500, generator=seeded(3))
    counts = [int(sparse_codes(weight, s, bits, order).codes.count_nonzero()) for s in torch.arange(-10, 5, 0.05)]
    assert counts == sorted(counts, reverse=True)
    assert counts[-1] == 0
    if order == "sparsify-first":
        assert counts[0] == 500


@pytest.mark.parametrize("weight", [torch.zeros(5), torch.ones(5), torch.tensor([1.0, -1, 1]), torch.tensor([3.0])])
@pytest.mark.parametrize("bits", [1, 4])
def test_equal_magnitudes_all_stay_at_the_threshold(weight: Tensor, bits: int) -> None:
    assert torch.equal(sparse_codes(weight, 0.0, bits).values(), weight)


def test_a_sigma_beyond_the_largest_weight_leaves_nothing() -> None:
    for order in ORDERS:
        assert not sparse_codes(GAUSSIAN[:999], 50.0, 4, order).values().any()


def test_quantize_first_rounds_the_dense_weights_and_drops_the_small_values() -> None:
    weight = torch.tensor([0.1, -0.2, 0.3, 0.6, -1.0])
    dense = torch.tensor([0.0, -1 / 3, 1 / 3, 2 / 3, -1.0])  # 3 bits: thirds; 0.1 * 3 and 0.2 * 3 round to 0 and 1
    t = dense.abs().mean()
    expected = dense * (dense.abs() >= t)
    torch.testing.assert_close(sparse_codes(weight, 0.0, 3, "quantize-first").values(), expected)
    assert torch.equal(sparse_codes(weight, 0.0, 3, "quantize-first").codes, torch.tensor([0.0, 0, 0, 2, -3]))


@pytest.mark.parametrize("gradient", ["straight-through", "zero"])
def test_what_reaches_the_weights_below_the_threshold(gradient: str) -> None:
    weight = torch.randn(30, generator=seeded(), requires_grad=True)
    values = SparseQuantizer(4, SparseWeights(0.0, gradient=gradient))(weight)
    (values * torch.arange(1.0, 31.0)).sum().backward()
    passes = torch.ones(30) if gradient == "straight-through" else (values != 0).float()
    assert weight.grad is not None
    assert torch.equal(weight.grad, torch.arange(1.0, 31.0) * passes)


def test_an_inactive_or_observed_quantizer_passes_the_weight_itself() -> None:
    layer = quantized(Net()).get_submodule("first")
    assert isinstance(layer, QuantizedLayer)
    quantizer = layer.quantize_weight
    assert isinstance(quantizer, SparseQuantizer)
    assert not torch.equal(quantizer(layer.weight), layer.weight)
    with observing([layer]):
        assert quantizer(layer.weight) is layer.weight
    delayed(layer, 0.5)(0.49)
    passed = quantizer(layer.weight)
    assert torch.equal(passed, layer.weight)
    (gradient,) = torch.autograd.grad(passed.sum(), layer.weight)
    assert torch.equal(gradient, torch.ones_like(gradient))
    delayed(layer, 0.5)(0.5)
    assert not torch.equal(quantizer(layer.weight), layer.weight)


@pytest.mark.parametrize(("bits", "order"), [(0, "sparsify-first"), (16, "sparsify-first"), (1, "quantize-first")])
def test_bits_without_a_sparse_form_are_refused(bits: int, order: str) -> None:
    with pytest.raises(InputError, match="bits"):
        SparseQuantizer(bits, SparseWeights(0.0, order))


def test_a_net_has_sparse_weights_in_all_but_its_first_and_last_layer() -> None:
    model = trained(Net(channels=6))
    network = quantized(model)
    assert len(sparse_quantizers(network)) == 2
    assert isinstance(network.get_submodule("stem"), nn.Conv2d)
    for name in ("first", "second"):
        layer = network.get_submodule(name)
        assert isinstance(layer, QuantizedLayer)
        torch.testing.assert_close(layer.quantized_weight(), by_hand(model.get_submodule(name).weight, 0.0, 4).float())
    assert "sigma=0" in repr(network)


def test_an_assignment_with_sparse_layers_is_applied_and_its_state_loaded() -> None:
    model = trained(Net())
    layers = sparse_layers(model, 0.5)
    assignment = BitAssignment("mine", ModelReference("toy", (1, 6, 6)), layers)
    network, other = apply(model, assignment), apply(model, assignment)
    for quantizer in sparse_quantizers(network):
        quantizer.sigma.fill_(1.5)
        quantizer.active.fill_(False)
    other.load_state_dict(copy.deepcopy(network.state_dict()))
    assert [float(q.sigma) for q in sparse_quantizers(other)] == [1.5, 1.5]
    assert not any(q.active for q in sparse_quantizers(other))
    activate(other)
    assert all(q.active for q in sparse_quantizers(other))


def test_calibration_leaves_sparse_weights_alone_and_sets_the_inputs() -> None:
    network = quantized(trained(Net()))
    calibrate(network, [inputs()])
    layer = network.get_submodule("first")
    assert isinstance(layer, QuantizedLayer)
    assert float(layer.quantize_input.clip.detach()) != 1.0


def fresh_trainer(delay: float) -> tuple[Trainer, list[bool]]:
    network = quantized(trained(Net()))
    calibrate(network, [inputs()])
    quantizer = sparse_quantizers(network)[0]
    switch, seen = delayed(network, delay), []

    def note(progress: float) -> None:
        switch(progress)
        seen.append(bool(quantizer.active))

    return Trainer(network, TrainingSection(epochs=3), images=images(), batch_size=12, on_progress=note), seen


@pytest.mark.parametrize(("delay", "dense"), [(0.0, 0), (1 / 3, 4), (0.5, 6), (0.99, 12)])
def test_sparsity_starts_after_its_share_of_the_steps(delay: float, dense: int) -> None:
    trainer, seen = fresh_trainer(delay)
    list(trainer.epochs())
    assert seen == [False] * dense + [True] * (12 - dense)


def test_training_resumed_amid_the_delay_is_the_uninterrupted_one() -> None:
    whole, _ = fresh_trainer(0.5)
    list(whole.epochs())
    for epochs in (1, 2):
        first, _ = fresh_trainer(0.5)
        for _, _ in zip(range(epochs), first.epochs(), strict=False):
            pass
        tensors, values = first.state()
        saved = io.BytesIO()
        torch.save(tensors, saved)
        saved.seek(0)
        second, seen = fresh_trainer(0.5)
        second.restore(torch.load(saved, weights_only=True), values)
        list(second.epochs())
        assert len(seen) == 4 * (3 - epochs)
        for name, value in whole.network.state_dict().items():
            assert torch.equal(value, second.network.state_dict()[name]), name
