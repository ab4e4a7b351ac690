"""Oscillation damping: its gradient in closed form, what it is for, and that training with it resumes exactly."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from dnas.config.job import FinetuneSection
from dnas.quantization.calibration import calibrate
from dnas.quantization.conversion import QuantizerChoice, quantize_fixed
from dnas.quantization.families import WEIGHT_QUANTIZERS
from dnas.quantization.layers import TensorQuantizer
from dnas.training.damping import damped_weights, damping_loss, damping_strength
from dnas.training.trainer import Trainer
from search_spaces.assignments import LayerBits
from search_spaces.network.graph import read_graph
from tests.dnas.training.test_trainer import IMAGES, same
from tests.toys import SHAPE, Net, inputs


def quantizer(family: str, bits: int, rows: int = 1) -> TensorQuantizer:
    axis = 0 if rows > 1 else None
    return TensorQuantizer(WEIGHT_QUANTIZERS.find(family), (bits,), signed=True, channel_axis=axis, rows=rows)


@pytest.mark.parametrize(("family", "bits"), [("lsq", 2), ("lsq", 3), ("lsq", 1), ("nested", 2), ("nested", 3)])
@pytest.mark.parametrize("rows", [1, 4])
def test_the_gradient_is_twice_the_distance_to_the_level_and_nothing_beyond_the_clip(
    family: str, bits: int, rows: int
) -> None:
    made = quantizer(family, bits, rows).double()
    weight = torch.linspace(-1.4, 1.4, 24, dtype=torch.float64).view(4, 6).roll(5).requires_grad_()
    with torch.no_grad():
        made.clip.copy_(torch.linspace(0.7, 1.1, rows).view(rows, 1))
        made.gain.fill_(1.3)
    loss = damping_loss(made, weight)
    (gradient,) = torch.autograd.grad(loss, weight)
    grid = made.quantizer.grid(bits, True)
    clip = made.clip.detach().double().expand(4, 1) if rows == 1 else made.clip.detach().double()
    u = (weight.detach() / clip).clamp(-1, 1)
    level = clip * ((u * grid.scale + grid.offset).floor().clamp(0, grid.top) * grid.step + grid.start)
    inside = weight.detach().abs() <= clip
    torch.testing.assert_close(gradient, torch.where(inside, 2 * (weight.detach() - level), 0.0))
    torch.testing.assert_close(loss.detach(), (level - u * clip).square().sum())
    assert made.clip.grad is None


@pytest.mark.parametrize("family", ["dorefa", "binary", "logarithmic"])
def test_it_reaches_a_weight_through_its_transform(family: str) -> None:
    bits = 1 if family == "binary" else 2
    family_of = WEIGHT_QUANTIZERS.find(family)
    made = (family_of.module or TensorQuantizer)(family_of, (bits,), signed=True).double()
    weight = torch.randn(5, 3, dtype=torch.float64).requires_grad_()
    made.fit(weight.detach())
    transform = family_of.transform or (lambda w: w)

    def value(w: torch.Tensor) -> torch.Tensor:
        levels = made(weight).detach() / made.gain
        return (levels - transform(w)).square().sum()

    (gradient,) = torch.autograd.grad(damping_loss(made, weight), weight)
    (expected,) = torch.autograd.grad(value(weight), weight)
    torch.testing.assert_close(gradient, expected)


def fixed(model: nn.Module, **bits: int) -> nn.Module:
    graph = read_graph(model, SHAPE)
    layers = {spec.name: LayerBits(bits.get(spec.name, 2), 4) for spec in graph.layers}
    network = quantize_fixed(model, graph, layers, QuantizerChoice())
    calibrate(network, [inputs()])
    return network


def test_only_weights_below_four_bits_are_damped() -> None:
    network = fixed(Net(), stem=8, first=4, second=3, head=32)
    assert [layer for layer, _ in damped_weights(network)] == [network.get_submodule("second")]


def trainer(network: nn.Module, damping: float, epochs: int = 3) -> Trainer:
    section = FinetuneSection(epochs=epochs, damping=damping, weight_decay=0.0, learning_rate=0.05)
    return Trainer(network, section, images=IMAGES, batch_size=16, seed=1)


def distance(network: nn.Module) -> float:
    return sum(float(damping_loss(q, layer.float_weight()).detach()) for layer, q in damped_weights(network))


def test_damped_weights_end_nearer_to_their_levels_and_resume_bit_for_bit() -> None:
    model = Net()
    plain, whole, stopped, resumed = (trainer(fixed(model), damping) for damping in (0.0, 2.0, 2.0, 2.0))
    for each in (plain, whole):
        list(each.epochs())
    assert distance(whole.network) < 0.5 * distance(plain.network)
    next(stopped.epochs())
    tensors, values = copy.deepcopy(stopped.state())
    resumed.restore(tensors, values)
    list(resumed.epochs())
    assert same(resumed.network.state_dict(), whole.network.state_dict())


def test_the_factor_rises_from_nothing_to_what_was_asked_for() -> None:
    strengths = [damping_strength(0.7, epoch, 50) for epoch in range(50)]
    assert strengths == sorted(strengths)
    assert strengths[0] < 0.001
    assert strengths[-1] == pytest.approx(0.7, abs=0.001)
