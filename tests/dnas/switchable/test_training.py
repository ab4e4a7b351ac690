"""Training all profiles at once: its gradients, its teachers, what a step costs, and that it resumes bit for bit."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dnas.config.job import FinaliseSection
from dnas.data.image_sets import MemoryImages
from dnas.quantization.conversion import QuantizerChoice
from dnas.switchable.net import SwitchableNet
from dnas.switchable.training import (
    SwitchableTrainer,
    accumulate_gradients,
    passes_per_step,
    profile_loss,
)
from dnas.training.device import CPU
from dnas.training.loss_meter import LossMeter
from dnas.training.trainer import Trainer
from search_spaces.assignments import BitAssignment, ModelReference
from search_spaces.errors import JobError
from tests.known import known_graph
from tests.packed_nets import same_bits
from tests.toys import Net, seeded

NESTED = QuantizerChoice("nested", "pact")
BITS = {"b8": 8, "b6": 6, "b4": 4, "b3": 3, "b2": 2}


def data(count: int = 24) -> tuple[Tensor, Tensor]:
    x = torch.randn(count, 1, 6, 6, generator=seeded())
    return x, (x.mean((1, 2, 3)) > 0).long()


def images(count: int = 24) -> MemoryImages:
    x, y = data(count)
    return MemoryImages(((x - x.min()) / (x.max() - x.min()) * 255).byte(), y, (0.5,), (0.25,))


def net_of(bits: dict[str, int] | None = None, choice: QuantizerChoice = NESTED, **options: Any) -> SwitchableNet:
    torch.manual_seed(0)
    model = Net(4)
    graph = known_graph(model, (1, 6, 6))
    reference = ModelReference("toy", (1, 6, 6))
    profiles = {n: BitAssignment(n, reference, same_bits(graph, b, b)) for n, b in (bits or BITS).items()}
    net = SwitchableNet(model, graph, profiles, choice, **options)
    net.calibrate(model, [data()[0]])
    return net


def section(**values: Any) -> FinaliseSection:
    return FinaliseSection.model_validate({"epochs": 2, "learning_rate": 0.05, **values})


def gradients(net: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in net.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("method", ["sp_nets", "quantizable", "profiles"])
@pytest.mark.parametrize("teacher", ["widest", "next", "none", "ensemble"])
def test_gradients_are_those_of_the_mean_of_the_losses_written_out(method: str, teacher: str) -> None:
    net = net_of().double().train()
    oracle = copy.deepcopy(net)
    x, y = data()
    x, names = x.double(), ["b8", "b4", "b2"]
    accumulate_gradients(net, names, x, y, section(method=method, teacher=teacher, distillation=0.7), LossMeter(CPU, 1))
    logits = {name: oracle.view_of(name)(x) for name in names}
    fixed = {name: value.detach().softmax(1) for name, value in logits.items()}
    tutors: dict[str, Tensor | None] = {
        "widest": {"b8": None, "b4": fixed["b8"], "b2": fixed["b8"]},
        "next": {"b8": None, "b4": fixed["b8"], "b2": fixed["b4"]},
        "none": dict.fromkeys(names),
        "ensemble": dict.fromkeys(names, sum(fixed.values()) / 3),
    }[teacher]
    losses = []
    for name in names:
        own, tutor = F.cross_entropy(logits[name], y), tutors[name]
        if tutor is not None:
            told = (tutor * (tutor.log() - logits[name].log_softmax(1))).sum(1).mean()
            own = own + 0.7 * told if method == "sp_nets" else 0.3 * own + 0.7 * told
        losses.append(own)
    torch.stack(losses).mean().backward()
    expected = gradients(oracle)
    assert set(gradients(net)) == set(expected)
    for name, gradient in gradients(net).items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-9, atol=1e-12)


def test_the_teacher_learns_from_the_labels_alone() -> None:
    """With one pupil whose gradient is taken out, what is left is cross-entropy on the widest."""
    net, alone = (net_of({"wide": 32, "narrow": 2}).double().train() for _ in range(2))
    x, y = data()
    x = x.double()
    accumulate_gradients(net, ["wide", "narrow"], x, y, section(method="sp_nets"), LossMeter(CPU, 1))
    F.cross_entropy(alone.view_of("wide")(x), y).div(2).backward()
    wide = {name for name, _ in alone.named_parameters() if "view0" in name}
    own = gradients(alone)
    assert wide
    for name in wide:  # the BatchNorms of the widest, which no other profile reaches
        torch.testing.assert_close(gradients(net)[name], own[name])


def test_lambda_defaults_by_method() -> None:
    logits, teacher = torch.randn(4, 3, generator=seeded()), torch.randn(4, 3, generator=seeded(1))
    y = torch.tensor([0, 1, 2, 0])
    own = F.cross_entropy(logits, y)
    told = F.kl_div(logits.log_softmax(1), teacher.softmax(1), reduction="batchmean")
    torch.testing.assert_close(profile_loss(logits, y, teacher, section(method="sp_nets")), own + told)
    for method in ("quantizable", "profiles"):
        torch.testing.assert_close(profile_loss(logits, y, teacher, section(method=method)), (own + told) / 2)
    assert torch.equal(profile_loss(logits, y, None, section()), own)


def test_a_step_of_the_sandwich_is_the_widest_the_narrowest_and_some_between() -> None:
    trainer = SwitchableTrainer(net_of(), section(sampled=1), images=images())
    generator = seeded()
    drawn = [trainer.chosen(generator) for _ in range(60)]
    assert all(names[0] == "b8" and names[-1] == "b2" and len(names) == 3 for names in drawn)
    assert {names[1] for names in drawn} == {"b6", "b4", "b3"}
    two = SwitchableTrainer(net_of(), section(sampled=2), images=images())
    order = list(BITS)
    for _ in range(20):
        names = two.chosen(generator)
        assert len(set(names)) == 4
        assert names == sorted(names, key=order.index)


@pytest.mark.parametrize(
    ("values", "profiles", "passes"),
    [
        ({}, 2, 2),
        ({}, 3, 3),
        ({}, 16, 3),
        ({"sampled": 2}, 16, 4),
        ({"all_profiles": True}, 16, 16),
        ({"method": "sp_nets"}, 16, 16),
        ({"method": "quantizable"}, 5, 5),
    ],
)
def test_passes_of_a_step(values: dict[str, Any], profiles: int, passes: int) -> None:
    assert passes_per_step(section(**values), profiles) == passes


def test_every_pass_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    net = net_of()
    trainer = SwitchableTrainer(net, section(epochs=1), images=images(), batch_size=8)
    calls: list[str] = []
    for name in net.profiles:
        net.view_of(name).register_forward_hook(lambda *_, name=name: calls.append(name))
    list(trainer.epochs())
    assert len(calls) == 3 * 3  # steps × passes
    assert calls.count("b8") == calls.count("b2") == 3


@pytest.mark.parametrize("values", [{}, {"method": "sp_nets", "teacher": "ensemble"}, {"private_norms": False}])
def test_training_goes_on_bit_for_bit_where_it_was_left(values: dict[str, Any]) -> None:
    options = {"private_norms": values.get("private_norms", True)}
    whole = SwitchableTrainer(net_of(**options), section(**values), images=images(), batch_size=8)
    records = list(whole.epochs())
    first = SwitchableTrainer(net_of(**options), section(**values), images=images(), batch_size=8)
    next(iter(first.epochs()))
    state = first.state()
    snapshot = {name: value.clone() for name, value in state[0].items()}
    list(first.epochs())
    assert all(torch.equal(value, snapshot[name]) for name, value in state[0].items())
    second = SwitchableTrainer(net_of(**options), section(**values), images=images(), batch_size=8)
    second.restore(*state)
    assert list(second.epochs()) == records[1:]
    for name, value in whole.network.tensors().items():
        assert torch.equal(value, second.network.tensors()[name]), name


def test_training_learns() -> None:
    trainer = SwitchableTrainer(net_of(), section(epochs=10, learning_rate=0.2), images=images(64), batch_size=16)
    losses = [record.loss for record in trainer.epochs()]
    assert losses[-1] < 0.7 * losses[0]
    found = trainer.measured(images(64))
    assert set(found["profiles"]) == set(BITS)
    assert found["score"] == pytest.approx(sum(found["profiles"].values()) / 5)
    assert found["profiles"]["b8"] > 0.7


def test_one_profile_is_the_ordinary_trainer() -> None:
    """A list of one switch is the quantized trainer: the same weights after two epochs."""
    choice = QuantizerChoice()
    net = net_of({"only": 4}, choice)
    fixed = copy.deepcopy(net.view_of("only"))
    values = section(momentum=0.9, weight_decay=1e-3)
    list(SwitchableTrainer(net, values, images=images(), batch_size=8, seed=3, label="x").epochs())
    list(Trainer(fixed, values, images=images(), batch_size=8, seed=3, label="x").epochs())
    own = net.view_of("only").state_dict()
    assert all(torch.equal(value, own[name]) for name, value in fixed.state_dict().items())


def test_a_loss_that_is_not_finite_names_a_layer() -> None:
    net = net_of()
    with torch.no_grad():
        net.shared["first/weight"].fill_(float("nan"))
    with pytest.raises(JobError, match="layer 'first'"):
        list(SwitchableTrainer(net, section(), images=images(), batch_size=8).epochs())


def test_the_float_network_may_teach_every_profile_the_widest_too() -> None:
    net, (x, y) = net_of(), data()
    torch.manual_seed(1)
    told = Net(4).eval()(x).detach()
    accumulate_gradients(net, ["b8", "b2"], x, y, section(teacher="float"), LossMeter(CPU, 1), told)
    found = gradients(net)
    net.zero_grad(set_to_none=True)
    for name in ("b8", "b2"):
        logits = net.view_of(name)(x)
        divergence = (told.softmax(1) * (told.log_softmax(1) - logits.log_softmax(1))).sum(1).mean()
        ((F.cross_entropy(logits, y) + divergence) / 4).backward()
    for name, value in gradients(net).items():
        torch.testing.assert_close(found[name], value)


def test_every_kind_of_update_goes_on_bit_for_bit() -> None:
    keys = {"epochs": 3, "optimizer": "AdamW", "learning_rate": 0.01, "accumulation": 2, "averaging": 0.8}
    whole, stopped, resumed = (
        SwitchableTrainer(net_of(), section(**keys, method="sp_nets"), images=images(), batch_size=8) for _ in range(3)
    )
    losses = [result.loss for result in whole.epochs()]
    first = next(stopped.epochs())
    resumed.restore(*copy.deepcopy(stopped.state()))
    assert [first.loss, *(result.loss for result in resumed.epochs())] == losses
    assert all(torch.equal(value, whole.network.tensors()[name]) for name, value in resumed.network.tensors().items())
