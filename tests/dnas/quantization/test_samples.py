"""A range fitted on a sample fits the whole tensor, whatever pattern the tensor has along its dimensions."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from dnas.quantization import samples
from dnas.quantization.conversion import tensor_quantizer
from dnas.quantization.families import ACTIVATION_QUANTIZERS, WEIGHT_QUANTIZERS
from dnas.quantization.layers import TensorQuantizer
from dnas.quantization.samples import joined, sampled, thinned, whole
from tests.toys import seeded

MAPS = (32, 8, 32, 32)


@pytest.fixture(autouse=True)
def _small_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    """Samples so small that a stride would step over whole rows and kernels of these small tensors."""
    monkeypatch.setattr(samples, "_MOST", 8192)
    monkeypatch.setattr(samples, "_MOST_IN_ALL", 2**16)


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=seeded(1))


def ramp(size: int, *shape: int) -> Tensor:
    return torch.logspace(-1.5, 0.5, size).reshape(shape)


ACTIVATIONS: dict[str, Callable[[], Tensor]] = {
    "noise": lambda: normal(*MAPS),
    "columns that differ": lambda: normal(*MAPS) * ramp(32, 32),
    "rows that differ": lambda: normal(*MAPS) * ramp(32, 32, 1),
    "channels that differ": lambda: normal(*MAPS) * ramp(8, 8, 1, 1),
    "images that differ": lambda: normal(*MAPS) * ramp(32, 32, 1, 1, 1),
    "rectified": lambda: normal(*MAPS).relu(),
    "saturated": lambda: (3 * normal(*MAPS)).clamp(0, 6),
    "a dark border": lambda: torch.cat([torch.zeros(32, 8, 32, 1), 1 + normal(32, 8, 32, 31)], 3),
    "rare outliers": lambda: torch.where(torch.rand(MAPS, generator=seeded(2)) < 2e-5, 60.0, normal(*MAPS)),
    "one outlier": lambda: normal(*MAPS).index_put((torch.tensor([3]),) * 4, torch.tensor(200.0)),
    "tokens of odd length": lambda: normal(8, 197, 192) * ramp(192, 192),
}


def error(module: TensorQuantizer, x: Tensor) -> float:
    with torch.no_grad():
        return float((module(x) - x).double().square().mean())


@pytest.mark.parametrize("bits", [2, 8])
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_the_fit_on_a_sample_is_within_five_percent_of_the_fit_on_all(name: str, bits: int) -> None:
    x = ACTIVATIONS[name]()
    errors = []
    for sample in (sampled(x), whole(x.reshape(1, -1))):
        module = tensor_quantizer(ACTIVATION_QUANTIZERS["pact"], (bits,), signed=bool(x.min() < 0))
        with torch.no_grad():
            module.fit(sample)
        errors.append(error(module, x))
    assert sampled(x).values.numel() < x.numel() / 2
    assert errors[0] <= 1.05 * errors[1]


@pytest.mark.parametrize("per_channel", [False, True], ids=["one clip", "a clip per filter"])
@pytest.mark.parametrize("bits", [2, 4])
@pytest.mark.parametrize("taps", [(3, 3), (1, 9)])
def test_taps_of_a_large_weight_that_differ_are_all_seen(taps: tuple[int, int], bits: int, per_channel: bool) -> None:
    weight = normal(128, 256, *taps) * ramp(9, *taps) * ramp(128, 128, 1, 1, 1).flip(0)
    rows = {"channel_axis": 0, "rows": 128} if per_channel else {}
    errors = []
    for x in (weight, whole(weight.reshape(128 if per_channel else 1, -1))):
        module = TensorQuantizer(WEIGHT_QUANTIZERS["lsq"], (bits,), signed=True, **rows)
        with torch.no_grad():
            module.fit(x)
        errors.append(error(module, weight))
    assert errors[0] <= 1.05 * errors[1]


def test_weights_add_up_to_the_tensor_and_the_extremes_are_there() -> None:
    for shape in ((1, 30_000), (70, 5_000)):
        rows = normal(*shape)
        sample = thinned(whole(rows))
        assert sample.values.numel() < rows.numel()
        torch.testing.assert_close(sample.weights.sum(1), torch.full((shape[0],), float(shape[1])), rtol=1e-4, atol=0)
        assert torch.equal(sample.values.amax(1), rows.amax(1))
        assert torch.equal(sample.values.amin(1), rows.amin(1))


def test_batches_count_by_their_size() -> None:
    few, many = normal(10), 5 + normal(200_000)
    sample = joined([sampled(few), sampled(many), sampled(normal(200_000))])
    assert sample.weights.sum().item() == pytest.approx(400_010, rel=1e-4)
    mean = (sample.weights * sample.values).sum() / sample.weights.sum()
    assert mean.item() == pytest.approx(2.5, abs=0.05)
    assert joined([]).values.tolist() == [[0.0]]
