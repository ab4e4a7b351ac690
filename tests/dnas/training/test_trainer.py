"""Training one network: resumable bit for bit, honest about a loss that is not finite, right in what it measures."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dnas.config.training import TrainingSection
from dnas.data.augmentation import Augmentation
from dnas.data.image_sets import MemoryImages
from dnas.quantization.calibration import calibrate
from dnas.quantization.conversion import QuantizerChoice, quantize_fixed
from dnas.quantization.layers import TensorQuantizer
from dnas.training.device import Device
from dnas.training.loss_meter import first_non_finite
from dnas.training.optimization import weight_groups
from dnas.training.trainer import Trainer, evaluate, steps_per_epoch, training_batches
from search_spaces.assignments import LayerBits
from search_spaces.errors import InputError, JobError
from search_spaces.network.graph import read_graph
from tests.known import known_graph
from tests.toys import SHAPE, Net, images, inputs, seeded, trained

CPU = torch.device("cpu")
IMAGES = images(48)


class WithDropout(Net):
    """Its training uses global randomness."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.dropout(x, 0.2, self.training))


def network() -> nn.Module:
    model = trained(WithDropout())
    graph = known_graph(model, SHAPE)
    quantized = quantize_fixed(model, graph, {s.name: LayerBits(3, 4) for s in graph.layers}, QuantizerChoice())
    calibrate(quantized, [inputs()])
    return quantized


def trainer(seed: int = 0, label: str = "fine", model: nn.Module | None = None, **section: Any) -> Trainer:
    return Trainer(
        model or network(), TrainingSection(epochs=4, **section), images=IMAGES, batch_size=16,
        augmentation=Augmentation(crop_padding=1, flip=True), seed=seed, label=label, device=CPU,
    )  # fmt: skip


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("momentum", [0.9, 0.0])
def test_a_restored_trainer_goes_on_bit_for_bit(momentum: float) -> None:
    whole = trainer(momentum=momentum)
    losses = [result.loss for result in whole.epochs()]
    stopped = trainer(momentum=momentum)
    iterator = stopped.epochs()
    before = [next(iterator).loss, next(iterator).loss]
    tensors, values = copy.deepcopy(stopped.state())
    torch.manual_seed(77)  # what else happens in a process must not matter
    resumed = trainer(momentum=momentum, model=network())
    resumed.restore(tensors, values)
    results = list(resumed.epochs())
    assert [result.epoch for result in results] == [3, 4]
    assert before + [result.loss for result in results] == losses
    assert same(resumed.network.state_dict(), whole.network.state_dict())


def test_a_state_is_a_snapshot_that_can_be_restored_more_than_once() -> None:
    stopped = trainer()
    next(iterator := stopped.epochs())
    tensors, values = stopped.state()
    kept = {name: value.clone() for name, value in tensors.items()}
    next(iterator)
    assert same(tensors, kept)
    ends = []
    for _ in range(2):
        resumed = trainer()
        resumed.restore(tensors, values)
        list(resumed.epochs())
        ends.append(resumed.network.state_dict())
        assert same(tensors, kept)
    assert same(*ends)


def test_seed_and_label_decide_everything() -> None:
    first, again, other_seed, other_label = trainer(), trainer(), trainer(seed=1), trainer(label="other")
    losses = [[result.loss for result in each.epochs()] for each in (first, again, other_seed, other_label)]
    assert losses[0] == losses[1]
    assert losses[0] != losses[2] != losses[3] != losses[0]


def test_the_callers_random_state_is_not_touched() -> None:
    epochs = trainer().epochs()
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    next(epochs)
    assert torch.equal(torch.rand(3), expected)


def test_training_learns_and_reports_every_step() -> None:
    seen: list[tuple[int, int]] = []
    losses = [r.loss for r in trainer(learning_rate=0.05).epochs(lambda step, steps, loss: seen.append((step, steps)))]
    assert losses[-1] < losses[0]
    assert seen == [(step, 3) for _ in range(4) for step in (1, 2, 3)]


def test_a_step_of_plain_sgd_is_the_textbook_one() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 3))
    start, bias = (parameter.detach().clone() for parameter in model.parameters())
    section = TrainingSection(epochs=1, learning_rate=0.1, momentum=0.0, weight_decay=0.01)
    one = Trainer(model, section, images=IMAGES, batch_size=48, augmentation=None, seed=0, label="", device=CPU)
    list(one.epochs())
    by_hand = start.clone().requires_grad_()
    ((x, y),) = IMAGES.batches(48)
    F.cross_entropy(x.flatten(1) @ by_hand.T + bias, y).backward()
    torch.testing.assert_close(model[1].weight, start - 0.1 * (by_hand.grad + 0.01 * start))


def test_clips_are_not_decayed() -> None:
    quantized = network()
    decayed, free = weight_groups(quantized, TrainingSection(weight_decay=0.1))
    clips = {id(module.clip) for module in quantized.modules() if isinstance(module, TensorQuantizer)}
    assert {id(p) for p in free["params"]} == clips
    assert (decayed["weight_decay"], free["weight_decay"]) == (0.1, 0.0)
    assert {id(p) for p in decayed["params"]} == {id(p) for p in quantized.parameters()} - clips


def test_frozen_parameters_are_not_trained() -> None:
    model = Net()
    model.stem.weight.requires_grad_(False)
    assert model.stem.weight not in {p for group in weight_groups(model, TrainingSection()) for p in group["params"]}


@pytest.mark.parametrize("count", [5, 16, 17, 48])
def test_a_short_last_batch_is_left_out_where_there_is_a_full_one(count: int) -> None:
    sizes = [len(x) for x, _ in training_batches(images(count), 16, 0, None, Device.of(CPU))]
    assert len(sizes) == steps_per_epoch(count, 16)
    assert sizes == ([16] * (count // 16) or [count])


def test_a_measurement_is_the_mean_over_all_images() -> None:
    model = trained(Net()).eval()
    measured = evaluate(model, images(20), 7, CPU)
    ((x, y),) = images(20).batches(20)
    logits = model(x).detach().double()
    assert measured.images == 20
    assert measured.top1 == (logits.argmax(1) == y).double().mean().item()
    assert measured.loss == pytest.approx(F.cross_entropy(logits, y).item(), rel=1e-6)


@pytest.mark.parametrize("broken", ["stem", "second", "head"])
def test_a_loss_that_is_not_finite_stops_before_the_step_and_names_the_first_layer(broken: str) -> None:
    failing = trainer()
    layer: Any = failing.network.get_submodule(broken)
    with torch.no_grad():
        layer.weight.view(-1)[0] = math.nan
    before = {name: value.clone() for name, value in failing.network.named_parameters()}
    with pytest.raises(JobError, match=rf"loss became nan: layer '{broken}' is the first whose output is not finite"):
        next(failing.epochs())
    for name, value in failing.network.named_parameters():
        assert torch.equal(value.nan_to_num(7.0), before[name].nan_to_num(7.0)), name


def test_an_input_that_is_not_finite_is_blamed_itself() -> None:
    x = inputs()
    x[0, 0, 0, 0] = math.inf
    assert "input images" in first_non_finite(network(), x)


def test_finite_outputs_leave_the_gradient_to_blame() -> None:
    model = Net()
    assert "the gradient is not" in first_non_finite(model, inputs())
    assert "the targets of this batch are not" in first_non_finite(model, inputs(), [{"mean": torch.tensor(math.nan)}])
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("spoil", ["weight", "image", "neither"])
def test_a_loss_that_is_nan_is_no_measurement(spoil: str) -> None:
    """The largest of logits that are all NaN is the first class: some images would be right."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
    x = torch.randn(5, 1, 2, 2, generator=seeded())
    with torch.no_grad():
        if spoil == "weight":
            model[1].weight[0, 0] = float("nan")
        elif spoil == "image":
            x[3, 0, 0, 0] = float("inf")
        else:
            model[1].weight.fill_(3e38)
    data = MemoryImages(10 * x, torch.arange(5) % 3, (0.0,), (1.0,))
    told = {"weight": "'1.weight' holds 1 of 12 values", "image": "image 4 holds", "neither": "the loss is NaN"}[spoil]
    with pytest.raises(JobError if spoil == "neither" else InputError, match=told):
        evaluate(model, data, 2)


def quantized(model: nn.Module, shape: tuple[int, ...]) -> nn.Module:
    graph = read_graph(model, shape)
    network = quantize_fixed(model, graph, {name: LayerBits(4, 4) for name in graph.by_name})
    calibrate(network, [torch.randn(8, *shape, generator=seeded())])
    return network.eval()


def test_weights_that_a_quantizer_would_hide_are_no_measurement_either() -> None:
    """Clipped, infinity is the largest code, and the loss is finite."""
    model = quantized(nn.Sequential(nn.Flatten(), nn.Linear(4, 3)), (1, 2, 2))
    data = MemoryImages(torch.randn(5, 1, 2, 2, generator=seeded()), torch.arange(5) % 3, (0.0,), (1.0,))
    assert math.isfinite(evaluate(model, data).loss)
    with torch.no_grad():
        model[1].weight[0, 0] = math.inf
    assert model(next(iter(data.batches(5)))[0]).isfinite().all()
    with pytest.raises(InputError, match=r"'1.weight' holds 1 of 12 values that are not finite"):
        evaluate(model, data)


def test_images_that_the_network_does_not_take_are_told_in_a_sentence() -> None:
    data = MemoryImages(torch.randn(5, 1, 3, 3, generator=seeded()), torch.arange(5) % 3, (0.0,), (1.0,))
    with pytest.raises(InputError, match="the network does not run on the given images: RuntimeError"):
        evaluate(nn.Sequential(nn.Flatten(), nn.Linear(4, 3)), data)


class Masked(nn.Module):
    """Attention with a mask that is a parameter."""

    def __init__(self, least: float, trained: bool) -> None:
        super().__init__()
        self.value, self.mask = nn.Linear(4, 3), nn.Parameter(torch.full((4,), 0.0), requires_grad=trained)
        with torch.no_grad():
            self.mask[1] = least

    def forward(self, x: Tensor) -> Tensor:
        return self.value(x.flatten(1) * self.mask.softmax(0))  # type: ignore[no-any-return]


@pytest.mark.parametrize(("least", "trained"), [(-math.inf, False), (-math.inf, True), (math.inf, False)])
def test_a_mask_of_minus_infinity_is_measured_and_calibrated(least: float, trained: bool) -> None:
    data = MemoryImages(torch.randn(5, 1, 2, 2, generator=seeded()), torch.arange(5) % 3, (0.0,), (1.0,))
    model = Masked(least, trained)
    if least > 0 or trained:
        with pytest.raises(InputError, match="'mask' holds 1 of 4 values"):
            evaluate(model, data)
        return
    assert math.isfinite(evaluate(model, data).loss)
    assert evaluate(quantized(model, (1, 2, 2)), data).images == 5
