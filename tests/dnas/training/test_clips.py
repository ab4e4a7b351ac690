"""Learned clips stay where a quantizer can work, whatever pulls at them."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from dnas.config.training import TrainingSection
from dnas.quantization.calibration import calibrate
from dnas.quantization.conversion import QuantizerChoice, quantize_fixed
from dnas.quantization.layers import QuantizedLayer
from dnas.quantization.quantizers import SMALLEST_CLIP
from dnas.training.clips import LearnedClips
from dnas.training.optimization import Updates
from search_spaces.assignments import LayerBits
from search_spaces.network.graph import read_graph
from tests.toys import seeded


def network(bits: int, per_channel: bool = False) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, bias=False), nn.BatchNorm2d(8),
        nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4),
    )  # fmt: skip
    graph = read_graph(model, (3, 8, 8))
    layers = {spec.name: LayerBits(bits, 8) for spec in graph.layers}
    made = quantize_fixed(model, graph, layers, QuantizerChoice("lsq", "pact", per_channel))
    calibrate(made, [torch.randn(16, 3, 8, 8, generator=seeded())])
    return made.train()


def layers_of(made: nn.Module) -> list[QuantizedLayer]:
    return [module for module in made.modules() if isinstance(module, QuantizedLayer)]


@pytest.mark.parametrize("per_channel", [False, True])
def test_each_clip_is_at_least_an_eightieth_of_the_largest_weight_of_its_row(per_channel: bool) -> None:
    made = network(2, per_channel)
    before = [layer.quantize_weight.clip.detach().clone() for layer in layers_of(made)]
    for number, layer in enumerate(layers_of(made)):
        with torch.no_grad():
            layer.quantize_weight.clip[-1] = -0.3 * number
            layer.quantize_input.clip.fill_(-1.0)
    LearnedClips(made).keep()
    for layer, clip in zip(layers_of(made), before, strict=True):
        rows = layer.weight.flatten(1) if per_channel else layer.weight.flatten()[None]
        assert float(layer.quantize_weight.clip.detach()[-1]) == pytest.approx(
            float(rows[-1].detach().abs().max()) / 80
        )
        assert torch.equal(layer.quantize_weight.clip[:-1], clip[:-1]), "which were large enough"
        assert float(layer.quantize_input.clip.detach()) == pytest.approx(SMALLEST_CLIP)


@pytest.mark.parametrize("kept", [True, False])
def test_layers_at_one_bit_under_batchnorms_do_not_die(kept: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """LSQ pulls their clips down however good they are; without a bound momentum carries one through zero."""
    if not kept:
        monkeypatch.setattr(LearnedClips, "keep", lambda clips: None)
    made = network(1)
    section = TrainingSection(learning_rate=0.3, momentum=0.95, clip_rate=30.0, schedule="constant")
    updates, clips = Updates(made, section), [layer.quantize_weight.clip.detach() for layer in layers_of(made)]
    x, y, least = torch.randn(64, 3, 8, 8, generator=seeded(1)), torch.arange(64) % 4, 1.0
    for step in range(100):
        updates.step(0, 1, step / 100, lambda part: (part * F.cross_entropy(made(x), y)).backward())
        least = min(least, *(float(clip) for clip in clips))
    assert (least > 100 * SMALLEST_CLIP) == kept


def test_clips_that_are_not_trained_stay_as_they_are() -> None:
    made = network(2)
    for layer in layers_of(made):
        layer.quantize_weight.clip.requires_grad_(False).fill_(-1.0)
    LearnedClips(made).keep()
    assert all(float(layer.quantize_weight.clip) == -1.0 for layer in layers_of(made))


def test_weights_that_are_computed_count_as_they_are_and_other_clips_are_left_alone() -> None:
    made = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 4, 3)), nn.Flatten(), nn.Linear(144, 2))
    graph = read_graph(made, (3, 8, 8))
    for weights in ("lsq", "dorefa"):
        net = quantize_fixed(made, graph, {s.name: LayerBits(2, 8) for s in graph.layers}, QuantizerChoice(weights))
        convolution = layers_of(net)[0]
        with torch.no_grad():
            convolution.quantize_weight.clip.fill_(-1.0)
        LearnedClips(net).keep()
        least = float(convolution.float_weight().detach().abs().max()) / 80
        assert float(convolution.quantize_weight.clip.detach()) == pytest.approx(least if weights == "lsq" else -1.0)
