"""Pruning in a few calls: how many units stay, what is refused, and an optimizer that goes on undisturbed."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import bayesopt
from search_spaces.errors import InputError
from search_spaces.groups import ChannelGroups
from tests.search_spaces.channel_toys import CASES, built, some_kept
from tests.toys import SHAPE, Net, Unwatchable, trained

Made = Callable[[list[dict[str, Any]]], torch.optim.Optimizer]
OPTIMIZERS: dict[str, Made] = {
    "sgd": lambda groups: torch.optim.SGD(groups, lr=0.1),
    "momentum": lambda groups: torch.optim.SGD(groups, lr=0.1, momentum=0.9, weight_decay=0.01, nesterov=True),
    "adam": lambda groups: torch.optim.Adam(groups, lr=0.1, betas=(0.8, 0.99), amsgrad=True),
    "adamw": lambda groups: torch.optim.AdamW(groups, lr=0.1, weight_decay=0.1),
}


@pytest.fixture
def net() -> nn.Module:
    return trained(Net(channels=7))


def test_the_groups_are_those_of_the_layers_that_can_lose_filters(net: nn.Module) -> None:
    by_shape, by_example = bayesopt.groups(net, SHAPE), bayesopt.groups(net, torch.zeros(5, *SHAPE))
    assert by_shape == by_example
    assert {group.name: (group.units, group.layers) for group in by_shape.groups} == {
        "stem": (7, ("stem", "second")),
        "first": (7, ("first",)),
    }


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 9), st.integers(0, 99), st.integers(1, 12))
@example(10, 70, 1)  # in floats, 10 × (1 - 0.7) is a hair above 3
def test_so_many_units_stay_as_the_ratio_says(units: int, percent: int, min_keep: int) -> None:
    network = nn.Sequential(nn.Conv2d(1, units, 1), nn.ReLU(), nn.Flatten(), nn.Linear(4 * units, 2))
    groups = bayesopt.groups(network, (1, 2, 2))
    kept = bayesopt.choose(network, groups, percent / 100, "latent_l1", min_keep=min_keep)
    stays = min(units, max(min_keep, math.ceil(units * (1 - Fraction(percent, 100)))))
    assert len(kept.get("0", range(units))) == stays
    assert list(kept.get("0", ())) == sorted(set(kept.get("0", ())))
    smaller = bayesopt.prune(network, groups, percent / 100, "latent_l1", min_keep=min_keep)
    assert smaller[0].weight.shape == (stays, 1, 1, 1)
    assert smaller[3].weight.shape == (2, 4 * stays)
    assert network[0].weight.shape == (units, 1, 1, 1)


def test_ratios_by_name_leave_the_other_groups_alone(net: nn.Module) -> None:
    groups = bayesopt.groups(net, SHAPE)
    kept = bayesopt.choose(net, groups, {"first": 0.5, "stem": 0.0}, "latent_l1")
    sizes = net.get_submodule("first").weight.detach().abs().mean((1, 2, 3))
    assert kept == {"first": tuple(sorted(sizes.argsort()[-4:].tolist()))}  # the largest stay


def test_the_units_that_stay_at_a_larger_ratio_stay_at_a_smaller_one(net: nn.Module) -> None:
    groups = bayesopt.groups(net, SHAPE)
    for criterion in ("geometric", "hamming", "random"):
        kept = [bayesopt.choose(net, groups, ratio, criterion, seed=2)["stem"] for ratio in (0.2, 0.5, 0.8)]
        assert set(kept[0]) > set(kept[1]) > set(kept[2])


@pytest.mark.parametrize("ratio", [-0.1, 1.0, 2, math.nan, math.inf])
def test_a_ratio_that_is_none_is_refused(net: nn.Module, ratio: float) -> None:
    groups = bayesopt.groups(net, SHAPE)
    for ratios in (ratio, {"stem": ratio}):
        for call in (bayesopt.choose, bayesopt.prune):
            with pytest.raises(InputError, match=r"ratio of channel group 'stem' is .*; a ratio lies in \[0, 1\)"):
                call(net, groups, ratios)


def test_an_unknown_group_or_criterion_is_refused_with_the_nearest(net: nn.Module) -> None:
    groups = bayesopt.groups(net, SHAPE)
    with pytest.raises(InputError, match="no channel group 'frist'; did you mean 'first'"):
        bayesopt.prune(net, groups, {"frist": 0.5})
    with pytest.raises(InputError, match=r"unknown criterion 'haming'.*did you mean 'hamming'"):
        bayesopt.prune(net, groups, 0.5, "haming")
    with pytest.raises(InputError, match="criterion 'taylor' needs batches"):
        bayesopt.prune(net, groups, 0.5, "taylor")


def test_a_network_that_cannot_be_followed_says_why() -> None:
    network = Unwatchable()
    groups = bayesopt.groups(network, SHAPE)
    assert groups == ChannelGroups(groups=(), frozen=groups.frozen, unknown=groups.unknown)
    for call in (bayesopt.choose, bayesopt.prune):
        with pytest.raises(InputError, match=r"the network cannot be pruned: .*followed"):
            call(network, groups, 0.5)


def elements(network: nn.Module, groups: ChannelGroups, kept: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Where each element of the smaller network's parameters lies in the flattened parameter of the whole one."""
    numbered = copy.deepcopy(network)
    with torch.no_grad():
        for parameter in numbered.parameters():
            parameter.copy_(torch.arange(parameter.numel(), dtype=torch.float64).view_as(parameter))
    smaller = bayesopt.remove_filters(numbered, groups, kept)
    return {name: parameter.detach().long() for name, parameter in smaller.named_parameters()}


def in_groups(network: nn.Module) -> list[dict[str, Any]]:
    """Weights at one learning rate, the rest at two others."""
    parameters = list(network.parameters())
    weights = [parameter for parameter in parameters if parameter.dim() > 1]
    rest = [parameter for parameter in parameters if parameter.dim() == 1]
    return [{"params": weights}, {"params": rest[::2], "lr": 0.01}, {"params": rest[1::2], "lr": 0.001}]


def set_gradients(network: nn.Module, step: int, where: dict[str, Tensor] | None = None) -> None:
    """The same gradients for the whole network and, at the elements ``where``, for the smaller one."""
    for number, (name, parameter) in enumerate(network.named_parameters()):
        size = parameter.numel() if where is None else SIZES[name]
        drawn = torch.randn(size, dtype=torch.float64, generator=torch.Generator().manual_seed(1000 * step + number))
        parameter.grad = drawn.view_as(parameter) if where is None else drawn[where[name]]


SIZES: dict[str, int] = {}


@pytest.mark.parametrize("optimizer_name", OPTIMIZERS)
@pytest.mark.parametrize("toy", ["residual", "concat", "depthwise", "grouped", "flatten", "shared_parameter", "prelu"])
def test_the_optimizer_goes_on_with_what_is_left(toy: str, optimizer_name: str) -> None:
    network, graph = built(CASES[toy])
    kept = some_kept(graph.channels)
    SIZES.clear()
    SIZES.update({name: parameter.numel() for name, parameter in network.named_parameters()})
    optimizer = OPTIMIZERS[optimizer_name](in_groups(network))
    for step in range(3):
        set_gradients(network, step)
        optimizer.step()
    where = elements(network, graph.channels, kept)
    smaller = bayesopt.remove_filters(network, graph.channels, kept)
    before = copy.deepcopy(optimizer.state_dict())
    rebuilt = bayesopt.rebuild_optimizer(optimizer, network, smaller, graph.channels, kept)

    assert type(rebuilt) is type(optimizer)
    old, new = dict(network.named_parameters()), dict(smaller.named_parameters())
    assert {name for name in new if new[name].shape != old[name].shape}  # something was cut
    for name, parameter in new.items():
        state, whole = rebuilt.state[parameter], optimizer.state[old[name]]
        assert state.keys() == whole.keys()
        for key, value in whole.items():
            cut = value.flatten()[where[name]] if isinstance(value, Tensor) and value.dim() else value
            assert torch.equal(torch.as_tensor(state[key]), torch.as_tensor(cut)), (name, key)
            assert state[key] is not value or not isinstance(value, Tensor)
    assert [{**group, "params": 0} for group in rebuilt.param_groups] == [
        {**group, "params": 0} for group in optimizer.param_groups
    ]
    for step in range(3, 6):  # every element is trained as it would have been in the whole network
        set_gradients(network, step)
        set_gradients(smaller, step, where)
        optimizer.step()
        rebuilt.step()
        for name, parameter in new.items():
            torch.testing.assert_close(parameter, old[name].flatten()[where[name]], rtol=0, atol=1e-12)
    assert repr(before["param_groups"]) == repr(optimizer.state_dict()["param_groups"])


def test_an_optimizer_that_has_not_stepped_or_holds_a_part_only_is_rebuilt_too(net: nn.Module) -> None:
    groups = bayesopt.groups(net, SHAPE)
    kept = bayesopt.choose(net, groups, 0.5)
    smaller = bayesopt.remove_filters(net, groups, kept)
    head = net.get_submodule("head")
    for parameters in (net.parameters(), head.parameters()):
        optimizer = torch.optim.Adam(parameters, lr=0.3)
        rebuilt = bayesopt.rebuild_optimizer(optimizer, net, smaller, groups, kept)
        assert not rebuilt.state
        assert rebuilt.param_groups[0]["lr"] == rebuilt.defaults["lr"] == 0.3
        smaller(torch.randn(2, *SHAPE)).sum().backward()
        rebuilt.step()
    assert [tuple(p.shape) for p in rebuilt.param_groups[0]["params"]] == [(3, 4), (3,)]


def test_a_foreign_parameter_is_refused(net: nn.Module) -> None:
    groups = bayesopt.groups(net, SHAPE)
    kept = bayesopt.choose(net, groups, 0.5)
    smaller = bayesopt.remove_filters(net, groups, kept)
    optimizer = torch.optim.SGD([*net.parameters(), nn.Parameter(torch.zeros(4, 2))], lr=0.1)
    with pytest.raises(InputError, match=r"a parameter \(4, 2\) that is not the network's"):
        bayesopt.rebuild_optimizer(optimizer, net, smaller, groups, kept)
