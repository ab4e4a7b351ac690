"""The logarithmic quantizer against its formulas in numpy, and everything that works with quantizers of one width."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dnas.config.file import dump_job
from dnas.config.job import JobConfig
from dnas.jobs.context import JobContext
from dnas.quantization.calibration import calibrate
from dnas.quantization.conversion import QuantizerChoice, quantize_fixed, tensor_quantizer
from dnas.quantization.families import find_quantizer
from dnas.quantization.layers import QuantizedLayer, TensorQuantizer
from dnas.quantization.logarithmic import LogarithmicQuantizer
from dnas.search.sensitivity import quantized
from dnas.search.supernet import Supernet
from results.run.environment import environment
from results.run.folder import Run
from search_spaces.assignments import LayerBits
from search_spaces.channels.slicing import remove_filters
from search_spaces.errors import InputError
from tests.known import known_graph
from tests.packed_nets import packed_net
from tests.toys import SHAPE, Net, images, inputs, plan, seeded, trained

FAMILY = find_quantizer("weights", "logarithmic")
RANDOM = torch.randn(4000, generator=seeded(), dtype=torch.float64)
LINE = torch.linspace(-1.25, 1.25, 20002, dtype=torch.float64)  # without 0
BOTH = [(bits, signed) for bits in range(1, 9) for signed in (True, False)]
every = pytest.mark.parametrize(("bits", "signed"), BOTH)


def quantizer(bits: int, signed: bool = True, **options: Any) -> LogarithmicQuantizer:
    return cast(LogarithmicQuantizer, tensor_quantizer(FAMILY, (bits,), signed=signed, **options).double())


def published(x: np.ndarray, bits: int, signed: bool) -> np.ndarray:
    """SP-Nets: clamp, sign, threshold, and the exponent uniformly between its extremes."""
    x = np.clip(x, -1 if signed else 0, 1)
    sign = np.where(x < 0, -1.0, 1.0)
    if signed and bits == 1:
        return sign
    threshold = {2: 0.33, 3: 0.15}.get(bits, 0.03) if signed else 0.03
    exponent = np.log2(np.maximum(np.abs(x), threshold))
    steps = 2 ** (bits - 1) - 1 if signed else 2**bits - 1
    low, high = exponent.min(), exponent.max()
    return sign * 2 ** (low + (high - low) * np.round(steps * (exponent - low) / (high - low)) / steps)


@every
def test_values_are_those_of_the_formula(bits: int, signed: bool) -> None:
    for scale in (0.2, 1.0, 3.0):
        x = scale * RANDOM
        values = quantizer(bits, signed)(x)
        np.testing.assert_allclose(values.numpy(), published(x.numpy(), bits, signed), rtol=1e-12)


@every
def test_every_code_is_used_and_no_more(bits: int, signed: bool) -> None:
    values = np.unique(np.round(quantizer(bits, signed)(LINE).numpy(), 10))
    assert len(values) == 2**bits
    least = 0.03 if not signed else {1: 1.0, 2: 0.33, 3: 0.15}.get(bits, 0.03)
    assert np.abs(values).min() == pytest.approx(least)
    assert values.max() == pytest.approx(1.0)
    assert values.min() == pytest.approx(-1.0 if signed else 0.03)


def test_levels_by_hand() -> None:
    # 4 bits: seven steps of 5/7 from 2^-5 to 1; the exponent -1 is 5.6 steps up, which is nearest to the sixth
    values = quantizer(4)(torch.tensor([1.0, -0.03125, 0.5], dtype=torch.float64))
    assert values.tolist() == pytest.approx([1.0, -(2**-5), 2 ** (-5 / 7)])
    # 2 bits of a signed tensor: one step, from 1/2 to 2, clamped to 1; half way is 1/sqrt(2)
    values = quantizer(2)(torch.tensor([0.5, 0.7, -0.71, 2.0], dtype=torch.float64))
    assert values.tolist() == pytest.approx([0.5, 0.5, -1.0, 1.0])
    # 2 bits of an unsigned one: three steps, of 1, from 1/8 to 1
    values = quantizer(2, signed=False)(torch.tensor([0.125, 0.3, 0.4, 1.0], dtype=torch.float64))
    assert values.tolist() == pytest.approx([0.125, 0.25, 0.5, 1.0])
    values = quantizer(8, signed=False)(torch.tensor([-3.0, 0.0, 1.0], dtype=torch.float64))
    assert values.tolist() == pytest.approx([0.03, 0.03, 1.0])


@every
def test_the_gradient_is_straight_through_inside_the_clamp_and_0_outside(bits: int, signed: bool) -> None:
    x = (2 * RANDOM).requires_grad_()
    upstream = torch.randn(x.shape, generator=seeded(1), dtype=torch.float64)
    module = quantizer(bits, signed)
    module.gain.fill_(1.5)
    module.learn_gain()
    levels = published(x.detach().numpy(), bits, signed)
    module(x).backward(upstream)
    inside = (x >= (-1 if signed else 0)) & (x <= 1)
    assert 500 < inside.sum() < 3000
    assert torch.equal(x.grad, torch.where(inside, upstream, 0.0))
    assert module.gain.grad.item() == pytest.approx(float((upstream.numpy() * levels).sum()))


@pytest.mark.parametrize("bits", range(1, 9))
def test_the_sign_of_0_is_plus(bits: int) -> None:
    values = quantizer(bits)(torch.tensor([0.0, -0.0, -1e-6, 1e-6, 1.0], dtype=torch.float64))
    assert torch.sign(values).tolist() == [1.0, 1.0, -1.0, 1.0, 1.0]
    if bits == 1:
        assert values.tolist() == [1.0, 1.0, -1.0, 1.0, 1.0]


@every
def test_quantizing_twice_is_quantizing_once(bits: int, signed: bool) -> None:
    once = quantizer(bits, signed)(RANDOM)
    torch.testing.assert_close(quantizer(bits, signed)(once), once, rtol=1e-12, atol=0)


def test_one_magnitude_alone_is_a_level() -> None:
    values = quantizer(4)(torch.tensor([0.5, -0.5, 0.5], dtype=torch.float64))
    assert values.tolist() == pytest.approx([0.5, -0.5, 0.5])
    assert quantizer(2)(torch.zeros(3, dtype=torch.float64)).tolist() == pytest.approx([0.33] * 3)


def test_32_bits_and_observed_tensors_pass_as_they_are() -> None:
    assert torch.equal(tensor_quantizer(FAMILY, (32,), signed=True)(RANDOM), RANDOM)
    module = quantizer(4)
    module.observed = []
    assert torch.equal(module(RANDOM), RANDOM)
    assert module.observed[0].values.max() == RANDOM.max()


def test_half_precision_goes_in_and_comes_out() -> None:
    x = RANDOM.to(torch.bfloat16)
    module = tensor_quantizer(FAMILY, (4,), signed=True)
    assert module(x).dtype == torch.bfloat16
    assert torch.equal(module(x), module(x.float()).to(torch.bfloat16))


@pytest.mark.parametrize("axis", [0, 1])
def test_channels_have_ranges_of_their_own(axis: int) -> None:
    x = 0.4 * torch.randn(6, 6, 3, 3, generator=seeded(3), dtype=torch.float64)
    values = quantizer(4, channel_axis=axis, rows=6)(x)
    for channel in range(6):
        own = x.select(axis, channel)
        np.testing.assert_allclose(values.select(axis, channel).numpy(), published(own.numpy(), 4, True), rtol=1e-12)


@pytest.mark.parametrize("per_channel", [False, True])
def test_a_held_range_outlives_what_set_it(per_channel: bool) -> None:
    x = 0.4 * torch.randn(6, 50, generator=seeded(3), dtype=torch.float64)
    x[4, 0] = 5.0
    module = quantizer(4, **({"channel_axis": 0, "rows": 6} if per_channel else {}))
    whole = module(x)
    module.hold(x)
    stays = torch.tensor([0, 2, 5])
    module.keep_rows(stays)
    assert module.clip.shape == module.least.shape == ((3, 1) if per_channel else (1, 1))
    torch.testing.assert_close(module(x[stays]), whole[stays], rtol=1e-12, atol=0)  # log2 of a vector and of its tail
    rebuilt = quantizer(4, **({"channel_axis": 0, "rows": 3} if per_channel else {}))
    rebuilt.load_state_dict(module.state_dict())
    assert torch.equal(rebuilt(x[stays]), module(x[stays]))
    assert module(torch.full((3, 50), 1e-9, dtype=torch.float64)).amin() >= 0.03 - 1e-12  # cut off at the held range


@every
def test_calibration_sets_the_least_squares_gain(bits: int, signed: bool) -> None:
    module = quantizer(bits, signed)
    module.fit(RANDOM)
    levels = torch.from_numpy(published(RANDOM.numpy(), bits, signed))
    residual = RANDOM - module.gain * levels
    assert abs((residual * levels).sum()) < 1e-9 * levels.square().sum()
    assert module.clip.item() == module.least.item() == 0.0  # read from each tensor, not held
    torch.testing.assert_close(module(RANDOM), module.gain * levels)
    errors = [(quantized(FAMILY, RANDOM.float(), b, signed=True) - RANDOM).square().mean() for b in (2, 8)]
    assert errors[1] < errors[0]


# --- in networks ----------------------------------------------------------------------------------------------------

CHOICES = [
    QuantizerChoice("logarithmic", "logarithmic"),
    QuantizerChoice("logarithmic", "tanh", per_channel=True),
    QuantizerChoice("lsq", "tanh"),
]
every_choice = pytest.mark.parametrize("choice", CHOICES, ids=lambda c: f"{c.weights}-{c.activations}")


def fixed(choice: QuantizerChoice, bits: tuple[int, int] = (3, 4)) -> nn.Module:
    model = trained(Net(channels=6))
    graph = known_graph(model, SHAPE)
    network = quantize_fixed(model, graph, {s.name: LayerBits(*bits) for s in graph.layers}, choice)
    calibrate(network, [inputs()])
    return network


@every_choice
@pytest.mark.parametrize("bits", [(1, 1), (3, 4), (3, 32), (32, 4)])
def test_a_step_of_training_lowers_the_loss_and_so_do_more(choice: QuantizerChoice, bits: tuple[int, int]) -> None:
    network, data = fixed(choice, bits).train(), images(48)
    x, y = next(iter(data.batches(48)))
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    losses = []
    for _ in range(8):
        optimizer.zero_grad()
        loss = F.cross_entropy(network(x), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[1] < losses[0]
    assert bits == (1, 1) or losses[-1] < 0.9 * losses[0]  # of 1 bit, the first step alone is steady
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in network.parameters())


@every_choice
def test_the_sign_comes_from_calibration_and_the_state_is_whole(choice: QuantizerChoice) -> None:
    network = fixed(choice).eval()
    layers = {name: module for name, module in network.named_modules() if isinstance(module, QuantizedLayer)}
    assert {name: layer.quantize_input.signed for name, layer in layers.items()} == {
        "stem": True,
        "first": False,
        "second": False,
        "head": False,
    }
    fresh = trained(Net(channels=6), seed=5)
    graph = known_graph(fresh, SHAPE)
    other = quantize_fixed(fresh, graph, {s.name: LayerBits(3, 4) for s in graph.layers}, choice).eval()
    assert not torch.equal(other(inputs()), network(inputs()))
    other.load_state_dict(network.state_dict())
    assert torch.equal(other(inputs()), network(inputs()))
    assert torch.equal(copy.deepcopy(network)(inputs()), network(inputs()))


# --- what it cannot do ----------------------------------------------------------------------------------------------


def test_several_widths_are_refused_by_the_quantizer_and_by_every_supernet() -> None:
    sentence = r"quantizer 'logarithmic' cannot mix the widths 2, 4 in a search: .*search with 'dorefa'"
    with pytest.raises(InputError, match=sentence):
        tensor_quantizer(FAMILY, (2, 4), signed=True)
    with pytest.raises(InputError, match="has no affine grid"):
        TensorQuantizer(FAMILY, (4,), signed=True)
    model = trained(Net())
    graph, space, table = plan(model, weight_bits=(2, 4), activation_bits=(8,))
    for engine in ("composite", "branches"):
        with pytest.raises(InputError, match=sentence):
            Supernet(model, graph, space, table, QuantizerChoice("logarithmic", "pact"), cast(Any, engine))
        Supernet(model, graph, space, table, QuantizerChoice("nested", "logarithmic"), cast(Any, engine))  # one width
    graph, space, table = plan(model, weight_bits=(4,), activation_bits=(2, 4, 32))
    with pytest.raises(InputError, match="'logarithmic' cannot mix the widths 2, 4, 32"):
        Supernet(model, graph, space, table, QuantizerChoice("lsq", "logarithmic"))


def test_a_supernet_mixes_other_widths_beside_the_one_width_it_has() -> None:
    model = trained(Net())
    graph, space, table = plan(model, weight_bits=(3,), activation_bits=(2, 4))
    supernet = Supernet(model, graph, space, table, QuantizerChoice("logarithmic", "tanh")).eval()
    calibrate(supernet.network, [inputs()])
    cells = [(0, 1)] * len(space.decisions)
    layers = space.layers_of(cells)
    alone = quantize_fixed(model, graph, layers, QuantizerChoice("logarithmic", "tanh")).eval()
    calibrate(alone, [inputs()])
    with supernet.sampled(supernet.one_hot(cells)):
        assert torch.equal(supernet(inputs()), alone(inputs()))


@pytest.mark.parametrize("kind", ["weights", "activations"])
def test_a_job_that_searches_is_refused_before_any_training(kind: str, toy: Callable[..., JobConfig]) -> None:
    nothing_is_run = cast(Any, None)
    with pytest.raises(InputError, match="'logarithmic' cannot mix the widths 2, 4, 8"):
        JobContext(toy(f"quantizer.{kind}=logarithmic"), nothing_is_run, print)


@pytest.mark.parametrize(
    "settings",
    [
        ("pipeline=['prune']", "prune.enabled=true", "quantizer.weights=logarithmic"),
        ("quantizer.weights=logarithmic", "space.weight_bits=[4]"),
        ("compression=squantizer",),
    ],
)
def test_jobs_of_fixed_nets_take_it(settings: tuple[str, ...], toy: Callable[..., JobConfig], tmp_path: Path) -> None:
    config = toy("quantizer.activations=tanh", "controls.ilp=false", *settings)
    with Run.create(tmp_path / "run", dump_job(config), environment()) as run:
        assert JobContext(config, run, lambda event: None).job.choice.activations == "tanh"


@pytest.mark.parametrize(
    ("choice", "bits", "sentence"),
    [
        (QuantizerChoice("logarithmic", "lsq"), (3, 4), r"the weights .* by 'logarithmic'.*no affine grid.*'dorefa'"),
        (QuantizerChoice("lsq", "logarithmic"), (3, 4), r"the inputs of .* by 'logarithmic'.*'dorefa'"),
        (QuantizerChoice("lsq", "tanh"), (3, 4), r"the inputs of layer 'stem' .* 'tanh'.*of each batch.*'dorefa'"),
    ],
)
def test_packing_refuses_it_and_names_the_nearest(
    tmp_path: Path, choice: QuantizerChoice, bits: tuple[int, int], sentence: str
) -> None:
    with pytest.raises(InputError, match=sentence):
        packed_net(tmp_path / "a", "residual", bits, choice)
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize("bits", [(3, 32), (32, 32)])
def test_tensors_at_32_bits_are_packed_whatever_their_quantizer(tmp_path: Path, bits: tuple[int, int]) -> None:
    weights = "logarithmic" if bits[0] == 32 else "lsq"
    found = packed_net(tmp_path / "a", "residual", bits, QuantizerChoice(weights, "tanh"))
    assert found.file.tensor_bytes == found.assignment.cost["size_bytes"]


@every_choice
def test_pruning_holds_what_the_weights_set(choice: QuantizerChoice) -> None:
    network = fixed(choice).double().eval()
    graph = known_graph(trained(Net(channels=6)), SHAPE)
    smaller = remove_filters(network, graph.channels, {"first": (1, 4)})
    expected: Tensor = network.get_submodule("first").quantized_weight()[[1, 4]]
    found = smaller.get_submodule("first").quantized_weight()
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)
