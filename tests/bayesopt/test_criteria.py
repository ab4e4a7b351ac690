"""Importance of filters: every criterion keeps one contract, and each agrees with a slow oracle."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Sequence
from fractions import Fraction
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from bayesopt.criteria import CRITERIA, importance, keep, rankings, removal_order
from search_spaces.errors import InputError
from search_spaces.groups import ChannelGroup, ChannelGroups

UNITS = 7


class Signed(nn.Conv2d):
    """A convolution of ±scale; the scale is fixed, or the mean of the weight."""

    scale: float | None = 0.37

    def quantized_weight(self) -> Tensor:
        scale = self.weight.abs().mean() if self.scale is None else self.scale
        return torch.where(self.weight < 0, -1.0, 1.0).to(self.weight.dtype) * scale

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight + (self.quantized_weight() - self.weight).detach()
        return self._conv_forward(x, weight, self.bias)


class Residual(nn.Module):
    """Two convolutions whose filters meet in an addition, and a classifier."""

    def __init__(self, units: int = UNITS, kind: type[nn.Conv2d] = Signed) -> None:
        super().__init__()
        self.stem = kind(3, units, 3, padding=1, bias=False)
        self.stem_norm = nn.BatchNorm2d(units)
        self.second = kind(units, units, 1, bias=False)
        self.second_norm = nn.BatchNorm2d(units)
        self.head = nn.Linear(units, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem_norm(self.stem(x)).relu()
        return self.head((x + self.second_norm(self.second(x))).relu().mean((2, 3)))


def residual(seed: int = 0, kind: type[nn.Conv2d] = Signed) -> Residual:
    torch.manual_seed(seed)
    net = Residual(kind=kind).double()
    with torch.no_grad():
        for name, tensor in [*net.named_parameters(), *net.named_buffers()]:
            if tensor.is_floating_point():
                tensor.copy_(torch.rand_like(tensor) + 0.5 if "norm" in name else torch.randn_like(tensor))
    return net


def group_of(units: int = UNITS) -> ChannelGroup:
    every = tuple(range(units))
    return ChannelGroup(
        "stem",
        units,
        rows={"stem": every, "second": every},
        columns={"second": every, "head": every},
        vectors={"stem_norm": every, "second_norm": every},
    )


def of_rows(layer: nn.Module, rows: Sequence[int] | None = None) -> tuple[nn.Sequential, ChannelGroup]:
    rows = tuple(range(len(layer.weight)) if rows is None else rows)
    return nn.Sequential(layer), ChannelGroup("0", max(rows) + 1, {"0": rows})


def linear(weight: Any) -> nn.Linear:
    weight = torch.as_tensor(weight, dtype=torch.float64)
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False, dtype=torch.float64)
    layer.weight.data.copy_(weight)
    return layer


def signs(count: int, length: int, seed: int) -> Tensor:
    return 2.0 * torch.randint(0, 2, (count, length), generator=torch.Generator().manual_seed(seed)) - 1


LOSS_SUM = functools.partial(F.cross_entropy, reduction="sum")


def batches() -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(5)
    images = torch.randn(10, 3, 4, 4, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, 3, (10,), generator=generator)
    return [(images[:6], labels[:6]), (images[6:], labels[6:])]


def largest_weight(network: nn.Module, group: ChannelGroup) -> Tensor:
    """A user's own criterion."""
    return network.get_submodule(group.name).weight.abs().flatten(1).amax(1)


CASES = [*CRITERIA, largest_weight]
QUANTIZED = ("hamming", "geometric")
every_criterion = pytest.mark.parametrize("criterion", CASES, ids=lambda case: getattr(case, "__name__", case))


# The contract of every criterion.


@every_criterion
def test_the_order_is_a_permutation_and_scores_rise_along_it(criterion: Any) -> None:
    found = rankings(residual(), ChannelGroups((group_of(),)), criterion, batches=batches(), loss_sum=LOSS_SUM)["stem"]
    assert sorted(found.order) == list(range(UNITS))
    assert all(type(unit) is int for unit in found.order)
    assert found.scores.shape == (UNITS,)
    assert found.scores.dtype == np.float64
    along = found.scores[list(found.order)]
    assert (np.diff(along) >= 0).all()
    assert 0 <= along[0] < along[-1] == 1.0


@every_criterion
def test_the_two_answers_are_parts_of_one(criterion: Any) -> None:
    net, group = residual(), group_of()
    alone = ChannelGroup("second", UNITS, {"second": tuple(range(UNITS))}, {}, {"second_norm": tuple(range(UNITS))})
    groups = ChannelGroups((group, alone))
    both = rankings(net, groups, criterion, batches=iter(batches()), loss_sum=LOSS_SUM)
    scores = importance(net, groups, criterion, batches=batches(), loss_sum=LOSS_SUM)
    assert list(both) == list(scores) == ["stem", "second"]
    for one in groups.groups:
        assert removal_order(net, one, criterion, batches=batches(), loss_sum=LOSS_SUM) == both[one.name].order
        np.testing.assert_array_equal(scores[one.name], both[one.name].scores)


@every_criterion
@pytest.mark.parametrize("training", [True, False])
def test_the_network_is_left_untouched(criterion: Any, training: bool) -> None:
    net = residual().train(training)
    net.second_norm.eval()
    net.stem.weight.requires_grad_(False)
    net.head(torch.ones(1, UNITS, dtype=torch.float64)).sum().backward()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    grads = {name: None if p.grad is None else p.grad.clone() for name, p in net.named_parameters()}
    modes = [module.training for module in net.modules()]
    attributes = {name: set(vars(module)) for name, module in net.named_modules()}
    noise = torch.get_rng_state()
    with torch.no_grad():
        removal_order(net, group_of(), criterion, batches=batches(), loss_sum=LOSS_SUM)
    assert torch.equal(noise, torch.get_rng_state())
    assert modes == [module.training for module in net.modules()]
    assert attributes == {name: set(vars(module)) for name, module in net.named_modules()}
    assert [p.requires_grad for p in net.parameters()] == [False] + [True] * 7
    for name, tensor in net.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    for name, parameter in net.named_parameters():
        assert (parameter.grad is None) == (grads[name] is None)
        assert parameter.grad is None or torch.equal(parameter.grad, grads[name])


def permuted(net: Residual, order: Sequence[int]) -> Residual:
    """The same function with unit ``order[k]`` at place k."""
    twin, places = copy.deepcopy(net), list(order)
    with torch.no_grad():
        for name, tensor in [*twin.named_parameters(), *twin.named_buffers()]:
            rows = places if name.split(".")[0] != "head" and tensor.dim() > 0 else slice(None)
            columns = places if name in ("second.weight", "head.weight") else slice(None)
            if tensor.dim() > 1:
                tensor.copy_(tensor[rows][:, columns].clone())
            elif tensor.dim() == 1:
                tensor.copy_(tensor[rows].clone())
    return twin


@pytest.mark.parametrize("kind", [Signed, nn.Conv2d])
@pytest.mark.parametrize("criterion", [case for case in CASES if case != "random"])  # that is an order of places
def test_permuting_the_filters_permutes_the_answer(criterion: Any, kind: type[nn.Conv2d]) -> None:
    for seed in range(3):
        net, places = residual(seed, kind), np.random.default_rng(seed).permutation(UNITS).tolist()
        twin = permuted(net, places)
        images = batches()[0][0]
        torch.testing.assert_close(twin.eval()(images), net.eval()(images), rtol=0, atol=1e-12)
        order = removal_order(net, group_of(), criterion, batches=batches(), loss_sum=LOSS_SUM)
        found = removal_order(twin, group_of(), criterion, batches=batches(), loss_sum=LOSS_SUM)
        assert tuple(places[unit] for unit in found) == order


@every_criterion
def test_ties_are_decided_the_same_way_each_time(criterion: Any) -> None:
    net = residual()
    with torch.no_grad():
        for name, tensor in net.named_parameters():
            tensor.fill_(0.25 if "weight" in name else 0.0)
    first = removal_order(net, group_of(), criterion, batches=batches(), loss_sum=LOSS_SUM)
    assert first == removal_order(copy.deepcopy(net), group_of(), criterion, batches=batches(), loss_sum=LOSS_SUM)
    if criterion not in ("random", "taylor"):  # gradients of equal filters differ in their last digits
        assert first == tuple(range(UNITS))


@every_criterion
def test_a_group_of_one_unit_has_one_order(criterion: Any) -> None:
    group = ChannelGroup("stem", 1, {"stem": (0,) * UNITS}, {}, {"stem_norm": (0,) * UNITS})
    found = rankings(residual(), ChannelGroups((group,)), criterion if criterion is not largest_weight else "geometric",
                     batches=batches(), loss_sum=LOSS_SUM)["stem"]  # fmt: skip
    assert found.order == (0,)
    assert found.scores == [1.0]


@pytest.mark.parametrize("criterion", QUANTIZED)
@pytest.mark.parametrize("scale", [0.37, None])
@pytest.mark.parametrize("factor", [1e-6, 3.7, 1e5])
def test_scaling_the_latent_weights_changes_nothing(criterion: str, scale: float | None, factor: float) -> None:
    net = residual()
    net.stem.scale = net.second.scale = scale  # fixed, or one that grows with the weights
    groups = ChannelGroups((group_of(),))
    before = rankings(net, groups, criterion)["stem"]
    with torch.no_grad():
        net.stem.weight.mul_(factor)
    after = rankings(net, groups, criterion)["stem"]
    assert after.order == before.order
    np.testing.assert_allclose(after.scores, before.scores, rtol=1e-9)


# Twins.


@pytest.mark.parametrize(
    ("criterion", "flipped"),
    [("hamming", False), ("hamming", True), ("geometric", False)],  # only Hamming sees through a flip
)
def test_of_planted_twins_exactly_one_goes_first(criterion: str, flipped: bool) -> None:
    for seed in range(5):
        filters = signs(20, 576, seed)
        pairs = [(3, 11), (0, 19), (7, 8), (5, 16)]
        for kept, copied in pairs:
            filters[copied] = -filters[kept] if flipped else filters[kept]
        order = removal_order(*of_rows(linear(filters)), criterion)
        first = set(order[: len(pairs)])
        assert [len(first & set(pair)) for pair in pairs] == [1, 1, 1, 1]


def test_of_triplets_one_stays_longest() -> None:
    filters = signs(9, 64, 0)
    filters[4] = filters[8] = filters[1]
    found = rankings(*in_groups(linear(filters)), "hamming")["0"]
    assert len(set(found.order[:2]) & {1, 4, 8}) == 2
    assert found.scores[list(found.order[:2])].tolist() == [0, 0]
    assert found.scores[found.order[2]] > 0


def in_groups(layer: nn.Module, rows: Sequence[int] | None = None) -> tuple[nn.Sequential, ChannelGroups]:
    net, group = of_rows(layer, rows)
    return net, ChannelGroups((group,))


def test_of_quantized_twins_the_one_with_less_latent_weight_goes() -> None:
    for smaller in (2, 5):
        latent = signs(8, 64, 1)
        latent[5] = latent[2]
        latent[smaller] *= 0.9
        layer = Signed(64, 8, 1, bias=False)
        layer.weight.data.copy_(latent[:, :, None, None])
        for criterion in QUANTIZED:
            assert removal_order(*of_rows(layer), criterion)[0] == smaller


# Oracles.


def hamming_oracle(layers: Sequence[np.ndarray], latent: Sequence[float]) -> tuple[list[int], list[Fraction]]:
    """Greedy removal in exact arithmetic, everything computed anew at each step."""

    def distance(i: int, j: int) -> Fraction:
        parts = [(int((w[i] != w[j]).sum()), len(w[i])) for w in layers]
        return sum((Fraction(min(h, n - h), n) for h, n in parts), Fraction(0)) / len(layers)

    left, order, levels = list(range(len(latent))), [], []
    while len(left) > 1:
        others = {i: [distance(i, j) for j in left if j != i] for i in left}
        gone = min(left, key=lambda i: (min(others[i]), sum(others[i]), latent[i], i))
        order.append(gone)
        levels.append(min(others[gone]))
        left.remove(gone)
    return order + left, [*levels, levels[-1]]


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_hamming_agrees_with_the_exact_greedy_removal(data: st.DataObject) -> None:
    units = data.draw(st.integers(2, 7))
    lengths = data.draw(st.lists(st.sampled_from([2, 4, 8]), min_size=1, max_size=2))
    latent = data.draw(st.lists(st.integers(1, 3), min_size=units, max_size=units))
    bits = st.lists(st.sampled_from([-1, 1]), min_size=units * sum(lengths), max_size=units * sum(lengths))
    filters = np.array(data.draw(bits)).reshape(units, -1)
    layers = np.split(filters, np.cumsum(lengths)[:-1], axis=1)
    net = nn.Sequential(*(linear(layer * np.array(latent)[:, None]) for layer in layers))
    every = tuple(range(units))
    group = ChannelGroup("0", units, {str(index): every for index in range(len(layers))})
    found = rankings(net, ChannelGroups((group,)), "hamming")["0"]
    order, levels = hamming_oracle(layers, latent)
    assert list(found.order) == order
    top = max(levels) or 1
    np.testing.assert_allclose(found.scores[order], [float(level / top) for level in levels], atol=1e-9)


def geometric_oracle(layers: Sequence[np.ndarray]) -> tuple[list[int], np.ndarray]:
    """Σ_j ||Q_i - Q_j||₂ over what remains, difference by difference in float64."""
    tables = []
    for weight in layers:
        count = len(weight)
        table = np.array([[np.sqrt(((weight[i] - weight[j]) ** 2).sum()) for j in range(count)] for i in range(count)])
        tables.append(table / (table.sum() / (count * (count - 1))))
    mean = np.mean(tables, axis=0)
    latent = np.mean([np.abs(weight).mean(1) / np.abs(weight).mean() for weight in layers], axis=0)
    left, order, levels = list(range(len(mean))), [], []
    while len(left) > 1:
        sums = {i: sum(mean[i, j] for j in left) for i in left}
        order.append(min(left, key=lambda i: (round(sums[i], 9), latent[i])))  # the last two always tie
        levels.append(sums[order[-1]] / (len(left) - 1))
        left.remove(order[-1])
    levels = np.maximum.accumulate([*levels, levels[-1]])
    return order + left, levels / levels[-1]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("members", [1, 2])
def test_geometric_agrees_with_brute_force(seed: int, members: int) -> None:
    random = np.random.default_rng(seed)
    layers = [scale * random.standard_normal((12, length)) for scale, length in [(1e-3, 9), (50.0, 20)][:members]]
    net = nn.Sequential(*(linear(layer) for layer in layers))
    group = ChannelGroup("0", 12, {str(index): tuple(range(12)) for index in range(members)})
    found = rankings(net, ChannelGroups((group,)), "geometric")["0"]
    order, levels = geometric_oracle(layers)
    assert list(found.order) == order
    np.testing.assert_allclose(found.scores[order], levels, atol=1e-9)


def test_geometric_of_signs_is_the_root_of_hamming() -> None:
    filters = signs(10, 64, 3)
    differing = (filters[:, None] != filters[None]).sum(2).double().sqrt().mul(2).numpy()
    found = importance(*in_groups(linear(filters)), "geometric")["0"]
    sums = differing.sum(1)
    first = int(sums.argmin())
    assert (sums > sums[first] + 1e-6).sum() == 9
    assert removal_order(*of_rows(linear(filters)), "geometric")[0] == first
    assert found.argmin() == first


def test_hamming_judges_signs_only_and_zero_counts_as_positive() -> None:
    weight = torch.tensor([[5.0, -1.0, 0.0, 2.0], [0.1, -9.0, 3.0, 0.1], [-1.0, 1.0, 1.0, -1.0], [1.0, 1.0, -1.0, 0.0]])
    found = rankings(*in_groups(linear(weight)), "hamming")["0"]
    assert set(found.order[:1]) <= {0, 1, 2}
    assert found.scores[found.order[0]] == 0  # rows 0 and 1 have equal signs


def test_the_quantized_weight_is_judged_where_a_layer_has_one() -> None:
    latent = torch.tensor([[0.1, 9.0], [9.0, 0.1], [5.0, -5.0], [-6.0, 5.5]])  # 0 and 1 are far, but have equal signs
    layer = Signed(2, 4, 1, bias=False)
    layer.weight.data.copy_(latent[:, :, None, None])
    plain = linear(latent)
    quantized, raw = (importance(*in_groups(one), "geometric")["0"] for one in (layer, plain))
    np.testing.assert_allclose(quantized, importance(*in_groups(linear(latent.sign())), "geometric")["0"], atol=1e-9)
    assert np.abs(quantized - raw).max() > 0.01


def test_scores_of_coupled_layers_are_averaged_after_each_is_divided_by_its_mean() -> None:
    net = nn.Sequential(linear([[1.0, 3.0], [2.0, 2.0], [-4.0, 0.0]]), linear([[100.0], [-200.0], [600.0]]))
    group = ChannelGroup("0", 3, {"0": (0, 1, 2), "1": (2, 1, 0)})  # the second layer's filters run backwards
    scores = importance(net, ChannelGroups((group,)), "latent_l1")["0"]
    expected = np.array([2 / 2 + 600 / 300, 2 / 2 + 200 / 300, 2 / 2 + 100 / 300])
    np.testing.assert_allclose(scores, expected / expected.max())


def test_bn_scale_averages_the_norms_of_the_group() -> None:
    net, group = residual(), group_of()
    with torch.no_grad():
        net.stem_norm.weight.copy_(torch.tensor([1.0, -2, 3, -4, 5, -6, 7]))
        net.second_norm.weight.zero_()  # as zero-initialised residual branches have it
    scores = importance(net, ChannelGroups((group,)), "bn_scale")["stem"]
    np.testing.assert_allclose(scores, np.arange(1, 8) / 7)


def test_bn_scale_leaves_out_channels_of_other_groups_and_modules_that_are_no_norm() -> None:
    net = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(3), nn.PReLU(2), nn.BatchNorm1d(2, affine=False))
    net.gamma = nn.Parameter(torch.ones(2))  # a layer scale
    with torch.no_grad():
        net[1].weight.copy_(torch.tensor([9.0, 4.0, -1.0]))
    group = ChannelGroup("0", 2, {"0": (0, 1)}, {}, {"1": (-1, 0, 1), "2": (0, 1), "3": (0, 1), "gamma": (0, 1)})
    assert importance(net, ChannelGroups((group,)), "bn_scale")["0"].tolist() == [1.0, 0.25]


def mean_loss(net: nn.Module) -> float:
    images, labels = (torch.cat(parts) for parts in zip(*batches(), strict=True))
    with torch.no_grad():
        return F.cross_entropy(net(images), labels).item()


def test_taylor_is_the_slope_of_the_loss_as_a_filter_is_scaled() -> None:
    net, step = residual(kind=nn.Conv2d), 1e-5  # in training mode, to be measured in evaluation mode
    group = ChannelGroup("stem", UNITS, {"stem": tuple(range(UNITS))})
    expected = np.zeros(UNITS)
    for unit in range(UNITS):
        losses = []
        for sign in (1, -1):
            twin = copy.deepcopy(net).eval()
            with torch.no_grad():
                twin.stem.weight[unit] *= 1 + sign * step
            losses.append(mean_loss(twin))
        expected[unit] = abs(losses[0] - losses[1]) / (2 * step)
    scores = importance(net, ChannelGroups((group,)), "taylor", batches=batches(), loss_sum=LOSS_SUM)["stem"]
    np.testing.assert_allclose(scores, expected / expected.max(), atol=1e-6)


def test_taylor_sums_over_a_unit_before_the_absolute_value() -> None:
    # Logits are the weights themselves: ∂L/∂w = softmax - one-hot, by hand.
    net = nn.Sequential(linear([[1.0], [2.0], [0.0], [-1.0]]))
    group = ChannelGroup("0", 2, {"0": (0, 0, 1, 1)})
    chance = np.exp([1.0, 2.0, 0.0, -1.0]) / np.exp([1.0, 2.0, 0.0, -1.0]).sum()
    slope = chance - np.array([1.0, 0, 0, 0])
    expected = np.abs([1.0 * slope[0] + 2.0 * slope[1], -1.0 * slope[3]])
    batch = (torch.ones(1, 1, dtype=torch.float64), torch.tensor([0]))
    scores = importance(net, ChannelGroups((group,)), "taylor", batches=[batch], loss_sum=LOSS_SUM)["0"]
    np.testing.assert_allclose(scores, expected / expected.max())


def test_random_depends_on_the_seed_and_on_the_groups_name_only() -> None:
    def order(name: str, seed: int) -> tuple[int, ...]:
        net = nn.ModuleDict({"a": nn.Linear(1, 30), "b": nn.Linear(1, 30)})
        return removal_order(net, ChannelGroup(name, 30, {name: tuple(range(30))}), "random", seed=seed)

    assert order("a", 0) == order("a", 0)
    assert len({order("a", 0), order("a", 1), order("b", 0)}) == 3


# Layers of every kind, and units of several filters.


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Linear(5, 6), (5,)),
        (nn.Conv1d(4, 6, 3, groups=2), (4, 3)),
        (nn.Conv2d(6, 6, 2, groups=6), (6, 2, 2)),
        (nn.Conv3d(2, 6, 2), (2, 2, 2, 2)),
        (nn.ConvTranspose1d(3, 6, 2), (3, 1)),
        (nn.ConvTranspose2d(4, 6, 2, groups=2), (4, 1, 1)),
        (nn.ConvTranspose3d(6, 6, 1, groups=6), (6, 1, 1, 1)),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_a_filter_is_every_weight_that_its_output_channel_reads(layer: Any, shape: tuple[int, ...]) -> None:
    expected = []
    for channel in range(6):
        output = layer(torch.rand(1, *shape) + 1)[:, channel].sum()
        used = torch.autograd.grad(output, layer.weight)[0] != 0
        expected.append(layer.weight[used].abs().mean().item())
    every = tuple(range(6))
    scores = importance(nn.Sequential(layer), ChannelGroups((ChannelGroup("0", 6, {"0": every}),)), "latent_l1")["0"]
    np.testing.assert_allclose(scores, np.array(expected) / max(expected), rtol=1e-6)


@pytest.mark.parametrize("criterion", ["hamming", "geometric", "latent_l1"])
def test_the_filters_of_a_unit_are_joined_and_those_of_no_unit_left_out(criterion: str) -> None:
    filters = torch.randn(8, 16, dtype=torch.float64)
    scattered = in_groups(linear(filters), (0, 1, 2, -1, 1, 0, -1, 2))
    joined = in_groups(linear(torch.stack([filters[[0, 5]], filters[[1, 4]], filters[[2, 7]]]).flatten(1)))
    found, expected = (rankings(*case, criterion)["0"] for case in (scattered, joined))
    assert found.order == expected.order
    np.testing.assert_allclose(found.scores, expected.scores, rtol=1e-9)


@pytest.mark.parametrize("criterion", [name for name in CRITERIA if name not in ("bn_scale", "taylor")])
def test_units_may_be_missing_in_a_layer_or_hold_unequal_numbers_of_filters(criterion: str) -> None:
    net = nn.Sequential(nn.Linear(9, 5), nn.Linear(9, 3))
    group = ChannelGroup("0", 5, {"0": (0, 0, 1, 2, -1), "1": (3, 4, 0)})
    found = rankings(net, ChannelGroups((group,)), criterion)["0"]
    assert sorted(found.order) == list(range(5))
    assert (np.diff(found.scores[list(found.order)]) >= 0).all()


@pytest.mark.parametrize("criterion", QUANTIZED)
def test_a_unit_that_meets_no_other_in_a_layer_is_not_redundant(criterion: str) -> None:
    net = nn.Sequential(linear(signs(4, 64, 0)), linear(signs(1, 64, 1)))
    group = ChannelGroup("0", 5, {"0": (0, 1, 2, 4), "1": (3,)})
    assert removal_order(net, group, criterion)[0] != 3


def test_equal_filters_are_at_distance_zero_whatever_the_rounding() -> None:
    filter_ = torch.randn(1, 577, generator=torch.Generator().manual_seed(0), dtype=torch.float64) / 3
    found = rankings(*in_groups(linear(filter_.expand(41, -1))), "geometric")["0"]
    assert found.order == tuple(range(41))
    assert found.scores.tolist() == [0.0] * 41


def test_half_precision_weights_are_judged_in_full_precision() -> None:
    for dtype in (torch.float16, torch.bfloat16):
        net, groups = in_groups(nn.Linear(300, 6).to(dtype))
        wide = copy.deepcopy(net).double()
        for criterion in ("hamming", "geometric", "latent_l1"):
            found, expected = importance(net, groups, criterion)["0"], importance(wide, groups, criterion)["0"]
            np.testing.assert_allclose(found, expected, atol=1e-3)


# The ratios, and the user's own functions.


@given(st.permutations(range(9)), st.data())
def test_what_is_kept_is_nested(order: list[int], data: st.DataObject) -> None:
    kept = [set(keep(tuple(order), count)) for count in range(1, 10)]
    assert all(fewer < more for fewer, more in pairwise(kept))
    count = data.draw(st.integers(1, 9))
    assert keep(tuple(order), count) == tuple(sorted(order[9 - count :]))


@pytest.mark.parametrize("count", [0, -1, 4])
def test_at_least_one_unit_stays_and_no_more_than_there_are(count: int) -> None:
    with pytest.raises(InputError, match=rf"cannot keep {count} of 3 units; keep between 1 and 3"):
        keep((2, 1, 0), count)


@pytest.mark.parametrize("convert", [list, tuple, np.array, torch.tensor, lambda v: torch.tensor(v).requires_grad_()])
def test_a_users_function_may_return_any_kind_of_array(convert: Callable[[list[float]], Any]) -> None:
    net, groups = in_groups(nn.Linear(2, 3))
    found = rankings(net, groups, lambda network, group: convert([3.0, -1.0, 1.0]))["0"]
    assert found.order == (1, 2, 0)
    np.testing.assert_allclose(found.scores, [1.0, 0.0, 0.5])


def test_scores_of_any_size_come_out_in_the_unit_interval() -> None:
    net, groups = in_groups(nn.Linear(2, 3))
    for values in ([1e308, -1e308, 0.0], [5e-324, 0.0, 0.0], [0.0, 0.0, 0.0], [-2.0, -2.0, -2.0]):
        scores = importance(net, groups, lambda network, group, values=values: values)["0"]
        assert ((scores >= 0) & (scores <= 1)).all()


def test_a_function_is_found_in_a_module_of_the_working_directory(tmp_path: Any, monkeypatch: Any) -> None:
    (tmp_path / "own_importance.py").write_text(
        "def backwards(network, group):\n    import own_importance_helper\n    return range(group.units, 0, -1)\n"
    )
    (tmp_path / "own_importance_helper.py").write_text("")
    monkeypatch.chdir(tmp_path)
    net, group = of_rows(nn.Linear(2, 3))
    assert removal_order(net, group, "own_importance:backwards") == (2, 1, 0)
    assert removal_order(net, group, CRITERIA.find("own_importance:backwards")) == (2, 1, 0)
    with pytest.raises(InputError, match=r"criterion 'own_importance:backward': .* did you mean 'backwards'"):
        CRITERIA.find("own_importance:backward")


def test_built_in_criteria_are_found_by_name() -> None:
    assert all(CRITERIA.find(name) is CRITERIA[name] for name in CRITERIA)
    with pytest.raises(InputError, match=r"unknown criterion 'geometrik'; .*did you mean 'geometric'"):
        CRITERIA.find("geometrik")
    with pytest.raises(InputError, match="unknown criterion 'geometrik'"):
        removal_order(*of_rows(nn.Linear(2, 3)), "geometrik")


@pytest.mark.parametrize(
    ("scores", "sentence"),
    [
        ([1.0, 2.0], r"criterion 'own' gives scores of shape \(2,\) for group '0'; .* 3 units"),
        (1.0, r"criterion 'own' gives scores of shape \(\) for group '0'"),
        ([[1.0], [2.0], [3.0]], r"criterion 'own' gives scores of shape \(3, 1\) for group '0'"),
        ([1.0, float("nan"), 2.0], r"criterion 'own' gives scores for group '0' that are not finite"),
        ([1.0, float("inf"), 2.0], r"criterion 'own' gives scores for group '0' that are not finite"),
        (None, r"criterion 'own' gives scores of shape \(\) for group '0'"),
        ("high", r"criterion 'own' cannot score group '0': ValueError"),
    ],
)
def test_scores_that_cannot_be_used_are_refused_by_name(scores: Any, sentence: str) -> None:
    def own(network: nn.Module, group: ChannelGroup) -> Any:
        return scores

    own.__qualname__ = "own"
    with pytest.raises(InputError, match=sentence):
        removal_order(*of_rows(nn.Linear(2, 3)), own)


def test_a_function_that_fails_is_named() -> None:
    class Broken:
        def __call__(self, network: nn.Module, group: ChannelGroup) -> Any:
            raise KeyError("no such thing")

    with pytest.raises(InputError, match=r"criterion 'Broken' cannot score group '0': KeyError: 'no such thing'"):
        removal_order(*of_rows(nn.Linear(2, 3)), Broken())


# What cannot be judged.


def test_what_a_criterion_needs_is_said() -> None:
    net, group = of_rows(nn.Linear(2, 3))
    with pytest.raises(InputError, match=r"'bn_scale' needs a BatchNorm .* behind the filters of group '0'"):
        removal_order(net, group, "bn_scale")
    with pytest.raises(InputError, match="'taylor' needs batches of images and labels"):
        removal_order(net, group, "taylor")


def test_gradients_that_are_not_finite_are_refused() -> None:
    bad = [(torch.full((2, 3, 4, 4), float("nan"), dtype=torch.float64), torch.tensor([0, 1]))]
    with pytest.raises(InputError, match="criterion 'taylor' gives scores for group 'stem' that are not finite"):
        removal_order(residual(), group_of(), "taylor", batches=bad, loss_sum=LOSS_SUM)


@pytest.mark.parametrize("criterion", ["hamming", "geometric", "latent_l1", "taylor"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(criterion: str, value: float) -> None:
    net = residual(kind=nn.Conv2d)
    net.second.weight.data[1, 0] = value
    with pytest.raises(InputError, match="channel group 'stem': the weight of layer 'second' is not finite"):
        removal_order(net, group_of(), criterion, batches=batches(), loss_sum=LOSS_SUM)


def test_a_group_of_another_network_is_refused() -> None:
    net = nn.Sequential(nn.Linear(2, 3))
    with pytest.raises(InputError, match="group '0' tells of 4 channels of '0', which has 3"):
        removal_order(net, ChannelGroup("0", 4, {"0": (0, 1, 2, 3)}), "geometric")
    with pytest.raises(InputError, match="group 'x': the network has no module 'x'"):
        removal_order(net, ChannelGroup("x", 3, {"x": (0, 1, 2)}), "geometric")


def test_no_groups_give_no_rankings() -> None:
    assert rankings(nn.Linear(2, 3), ChannelGroups(unknown="cannot be traced"), "hamming") == {}
