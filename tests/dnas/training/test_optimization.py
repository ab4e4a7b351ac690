"""The one training step: each key of an `Optimization` against its closed form, and that all of them resume exactly."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dnas.config.job import FinetuneSection, SearchSection
from dnas.config.training import Optimization, TrainingSection
from dnas.quantization.layers import TensorQuantizer
from dnas.search.trainer import theta_optimization
from dnas.training.distillation import Teacher
from dnas.training.optimization import MovingAverage, Updates, accumulated, scheduled_rate, weight_groups
from dnas.training.trainer import Trainer
from tests.dnas.training.test_trainer import IMAGES, network, same
from tests.toys import Net

EVERYTHING: dict[str, Any] = {
    "optimizer": "AdamW",
    "optimizer_options": {"betas": [0.8, 0.9], "amsgrad": True},
    "learning_rate": 0.01,
    "schedule": "step",
    "learning_rate_warmup": 0.2,
    "weight_decay_on": "weights",
    "clip_rate": 0.5,
    "gradient_clipping": 0.7,
    "accumulation": 2,
    "label_smoothing": 0.1,
    "averaging": 0.9,
}


def linear() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(36, 3))


def trained(model: nn.Module, batch_size: int = 48, teacher: Teacher | None = None, **section: Any) -> nn.Module:
    values = {"epochs": 1, "momentum": 0.0, "weight_decay": 0.0, **section}
    whole = Trainer(model, TrainingSection(**values), images=IMAGES, batch_size=batch_size, teacher=teacher)
    list(whole.epochs())
    return model


def gradient(model: nn.Module, loss: Any) -> list[Tensor]:
    ((x, y),) = IMAGES.batches(48)
    return list(torch.autograd.grad(loss(model(x), y), list(model.parameters())))


@pytest.mark.parametrize("optimizer", ["AdamW", "SGD", "timm:lamb"])
def test_everything_at_once_goes_on_bit_for_bit_after_a_restart(optimizer: str) -> None:
    keys = {**EVERYTHING, "optimizer": optimizer, "optimizer_options": {}, "epochs": 3}
    make = lambda: Trainer(network(), TrainingSection(**keys), images=IMAGES, batch_size=16, seed=3)  # noqa: E731
    whole, stopped, resumed = make(), make(), make()
    losses, measured = [], []
    for result in whole.epochs():
        losses.append(result.loss)
        measured.append(whole.measured(IMAGES))
    first = next(stopped.epochs())
    tensors, values = copy.deepcopy(stopped.state())
    with torch.no_grad():
        for parameter in resumed.network.parameters():
            parameter.add_(1.0)
    resumed.restore(tensors, values)
    assert resumed.measured(IMAGES) == measured[0]
    assert [first.loss, *(result.loss for result in resumed.epochs())] == losses
    assert same(resumed.network.state_dict(), whole.network.state_dict())


def test_what_a_checkpoint_holds_of_the_network_is_its_average() -> None:
    one = Trainer(linear(), TrainingSection(averaging=0.5), images=IMAGES, batch_size=16)
    next(one.epochs())
    tensors, _ = one.state()
    assert one.updates.average is not None
    assert torch.equal(tensors["network.1.weight"], one.updates.average.mean[0])
    assert not torch.equal(tensors["network.1.weight"], one.network.state_dict()["1.weight"])


def test_gradients_of_several_batches_make_the_update_of_one_large_batch() -> None:
    apart = trained(linear(), 16, accumulation=3)
    together = trained(linear(), 48)
    for one, other in zip(apart.parameters(), together.parameters(), strict=True):
        torch.testing.assert_close(one, other)


def test_the_last_update_of_an_epoch_may_have_fewer_batches() -> None:
    assert [accumulated(index, 5, 3) for index in range(5)] == [(0, 3)] * 3 + [(3, 2)] * 2
    uneven = Trainer(linear(), TrainingSection(epochs=2, accumulation=2), images=IMAGES, batch_size=16)
    updates: list[int] = []
    uneven.updates.optimizer.register_step_post_hook(lambda *_: updates.append(1))
    list(uneven.epochs())
    assert len(updates) == 4  # three batches an epoch make two updates


def test_a_long_gradient_is_cut_to_its_largest_norm() -> None:
    model = linear()
    start = [parameter.detach().clone() for parameter in model.parameters()]
    trained(model, gradient_clipping=1e-3, learning_rate=0.1)
    moved = torch.cat([(p - s).flatten() for p, s in zip(model.parameters(), start, strict=True)])
    assert moved.norm().item() == pytest.approx(0.1 * 1e-3, rel=1e-3)


def test_label_smoothing_is_a_mixture_with_the_uniform_target() -> None:
    def smoothed(logits: Tensor, y: Tensor) -> Tensor:
        target = 0.8 * F.one_hot(y, 3) + 0.2 / 3
        return -(target * logits.log_softmax(1)).sum(1).mean()

    model = linear()
    expected = [p - 0.1 * g for p, g in zip(model.parameters(), gradient(model, smoothed), strict=True)]
    trained(model, label_smoothing=0.2)
    torch.testing.assert_close(list(model.parameters()), expected)


def test_a_teacher_mixes_into_the_loss_and_is_not_changed() -> None:
    model, other = linear(), trained(linear(), learning_rate=1.0).train()
    before = copy.deepcopy(other.state_dict())
    ((x, _),) = IMAGES.batches(48)
    told = other(x).detach().softmax(1)

    def loss(logits: Tensor, y: Tensor) -> Tensor:
        divergence = (told * (told.log() - logits.log_softmax(1))).sum(1).mean()
        return 0.25 * F.cross_entropy(logits, y) + 0.75 * divergence

    expected = [p - 0.1 * g for p, g in zip(model.parameters(), gradient(model, loss), strict=True)]
    trained(model, teacher=Teacher(other, 0.75))
    # The batch comes in another order: sums differ in their last digits.
    torch.testing.assert_close(list(model.parameters()), expected)
    assert same(other.state_dict(), before)


def test_the_average_is_the_weighted_sum_of_all_that_was() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
    average = MovingAverage(model, 0.3)
    past = [copy.deepcopy(model.state_dict())]
    for _ in range(4):
        with torch.no_grad():
            for tensor in average.live:
                tensor.add_(torch.rand_like(tensor))
        average.update()
        past.append(copy.deepcopy(model.state_dict()))
    decays = [min(0.3, (1 + n) / (10 + n)) for n in range(4)]
    for name in ("0.weight", "0.bias", "1.weight", "1.running_mean", "1.running_var"):
        expected = past[0][name]
        for decay, state in zip(decays, past[1:], strict=True):
            expected = decay * expected + (1 - decay) * state[name]
        trained_value = average.take_over()
        torch.testing.assert_close(model.state_dict()[name], expected)
        average.put_back(trained_value)
        assert torch.equal(model.state_dict()[name], past[-1][name])


def test_a_network_that_is_averaged_ends_with_its_average_and_is_measured_with_it() -> None:
    averaging = Trainer(network(), TrainingSection(epochs=2, averaging=0.9), images=IMAGES, batch_size=16)
    plain = Trainer(network(), TrainingSection(epochs=2), images=IMAGES, batch_size=16)
    measured = [averaging.measured(IMAGES) for _ in averaging.epochs()][-1]
    list(plain.epochs())
    assert averaging.updates.average is not None
    assert averaging.measured(IMAGES) == measured
    assert all(map(torch.equal, averaging.updates.average.mean, averaging.updates.average.live))
    assert not same(averaging.network.state_dict(), plain.network.state_dict())


@pytest.mark.parametrize(
    ("values", "rates"),
    [
        ({"schedule": "cosine"}, {0.0: 1.0, 0.5: 0.5, 0.75: 0.1464466}),
        ({"schedule": "constant"}, {0.0: 1.0, 0.99: 1.0}),
        ({"schedule": "step"}, {0.0: 1.0, 0.49: 1.0, 0.5: 0.1, 0.8: 0.01}),
        ({"schedule": "step", "milestones": (0.9,), "milestone_factor": 0.5}, {0.89: 1.0, 0.9: 0.5}),
        ({"schedule": "cosine", "learning_rate_warmup": 0.2}, {0.0: 0.01, 0.1: 0.505, 0.2: 1.0, 0.6: 0.5}),
        ({"schedule": "constant", "learning_rate_warmup": 0.5}, {0.25: 0.505, 0.5: 1.0}),
    ],
)
def test_the_learning_rate_follows_its_schedule(values: dict[str, Any], rates: dict[float, float]) -> None:
    optimization = Optimization(learning_rate=1.0, **values)
    assert {p: scheduled_rate(optimization, p) for p in rates} == pytest.approx(rates)


def test_clips_may_be_trained_at_a_rate_of_their_own() -> None:
    clips = lambda model: [m.clip.clone() for m in model.modules() if isinstance(m, TensorQuantizer)]  # noqa: E731
    model = network()
    before, weight = clips(model), model.get_parameter("head.weight").detach().clone()
    trained(model, clip_rate=0.0)
    assert all(map(torch.equal, clips(model), before))
    assert not torch.equal(model.get_parameter("head.weight"), weight)
    one, twice = (trained(network(), clip_rate=rate) for rate in (1.0, 2.0))
    for start, once, both in zip(before, clips(one), clips(twice), strict=True):
        torch.testing.assert_close(both - start, 2 * (once - start), atol=1e-6, rtol=1e-3)


def test_decay_may_spare_what_has_one_dimension() -> None:
    groups = weight_groups(Net(), Optimization(weight_decay=0.1, weight_decay_on="weights"))
    assert [(group["weight_decay"], {p.ndim for p in group["params"]}) for group in groups] == [
        (0.1, {2, 4}),
        (0.0, {1}),
    ]


class Normalised(nn.Module):
    """Every kind of normalisation, some of whose scales have the shape of what they normalise."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.depthwise = nn.Conv2d(1, 4, 3), nn.Conv1d(4, 4, 3, groups=4)
        self.norms = nn.ModuleList(
            [nn.BatchNorm2d(4), nn.LayerNorm([4, 2, 2]), nn.GroupNorm(2, 4), nn.InstanceNorm2d(4, affine=True)]
        )
        self.norms.append(nn.RMSNorm([2, 2]))
        self.activation, self.head = nn.PReLU(4), nn.Linear(4, 3)


def test_decay_spares_normalisations_of_any_shape_and_keeps_to_weights() -> None:
    model = Normalised()
    decayed, spared = weight_groups(model, Optimization(weight_decay=0.1, weight_decay_on="weights"))
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    assert {names[id(p)] for p in decayed["params"]} == {"conv.weight", "depthwise.weight", "head.weight"}
    assert len(decayed["params"]) + len(spared["params"]) == len(names)
    assert (decayed["weight_decay"], spared["weight_decay"]) == (0.1, 0.0)


def test_fine_tuning_decays_neither_clips_nor_normalisations_nor_biases() -> None:
    """A step with a gradient of zero moves what decays, and only that."""
    model = network()
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    updates = Updates(model, FinetuneSection(weight_decay=0.5))
    updates.step(0, 1, 0.0, lambda part: [setattr(p, "grad", torch.zeros_like(p)) for p in model.parameters()])
    moved = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
    assert moved == {f"{name}.weight" for name in ("stem", "first", "second", "head")}


def test_theta_does_not_decay_unless_asked_and_is_in_no_group_of_weights() -> None:
    assert theta_optimization(SearchSection()).weight_decay == 0
    assert theta_optimization(SearchSection(theta_weight_decay=0.1)).weight_decay == 0.1
