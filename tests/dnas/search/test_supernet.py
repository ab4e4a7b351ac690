"""The supernet: one-hot it is the fixed net, mixed it is the sum of its branches, and its cost is the table's."""

from __future__ import annotations

import copy
import itertools
import math
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from dnas.quantization.branches import BranchedLayer
from dnas.quantization.calibration import calibrate, recalibrate_batchnorm
from dnas.quantization.conversion import QuantizerChoice, quantize_fixed, quantized_layer
from dnas.quantization.layers import QuantizedLayer, TensorQuantizer
from dnas.quantization.quantizers import Quantizer
from dnas.search.supernet import Sample, Supernet, Theta
from search_spaces.allocation.program import Cells
from search_spaces.costs.budgets import Budget
from search_spaces.costs.kinds import Cost
from search_spaces.costs.table import CostTable, build_costs
from search_spaces.errors import InputError
from search_spaces.network.graph import read_graph
from search_spaces.options import SpaceOptions
from search_spaces.spaces import build_space
from tests.known import known_graph
from tests.search_spaces.allocation.brute_force import single_widenings
from tests.toys import SHAPE, Net, build_supernet, hand_over, images, inputs, plan, seeded, trained

OPEN = {"first_layer": "search", "last_layer": "search"}
SKIPPING = {"granularity": "block", "include": ("first", "second")}
CHOICES = [
    QuantizerChoice(),
    QuantizerChoice("dorefa", "dorefa"),
    QuantizerChoice("nested", "nested", per_channel=True),
    QuantizerChoice("lsq", "lsq", per_channel=True),
]


def calibrated(**options: Any) -> Supernet:
    supernet = build_supernet(trained(Net()), **options)
    calibrate(supernet.network, [inputs()])
    return supernet.eval()


def random_cells(supernet: Supernet, seed: int) -> Cells:
    supernet_cells = [np.argwhere(cells) for cells in supernet.space.allowed]
    rng = np.random.default_rng(seed)
    return [tuple(map(int, rng.choice(cells))) for cells in supernet_cells]


def random_sample(supernet: Supernet, seed: int = 0, dtype: torch.dtype = torch.float32) -> Sample:
    logits = torch.randn(supernet.space.allowed.shape, generator=seeded(seed), dtype=dtype)
    logits = logits.masked_fill(~torch.from_numpy(supernet.space.allowed), -torch.inf)
    return Sample.from_cells(logits.flatten(1).softmax(1).view_as(logits))


def fixed_twin(supernet: Supernet, cells: Cells, choice: QuantizerChoice) -> nn.Module:
    """The fixed net of these cells with the supernet's weights, ranges and statistics."""
    model = trained(Net())
    layers = supernet.space.layers_with([supernet.space.pair(*cell) for cell in cells])  # of any pair of widths
    fixed = quantize_fixed(model, known_graph(model, SHAPE), layers, choice).eval()
    for name, target in fixed.named_modules():
        if isinstance(target, QuantizedLayer):
            source: Any = supernet.network.get_submodule(name)
            hand_over(source.quantize_weight, target.quantize_weight)
            hand_over(source.quantize_input, target.quantize_input)
    return fixed


@pytest.mark.parametrize("choice", CHOICES, ids=lambda choice: f"{choice.weights}-{choice.activations}")
@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize(
    "options",
    [
        {**OPEN, "weight_bits": (1, 2, 4, 8, 32), "activation_bits": (1, 3, 8, 32)},
        {**OPEN, "pairing": "tied", "weight_bits": (2, 4, 32)},
        {**OPEN, "pairing": "pairs", "pairs": ((1, 4), (3, 3), (8, 8), (32, 32))},
        {**SKIPPING, "weight_bits": (0, 2, 32), "activation_bits": (3, 32)},
    ],
    ids=["independent", "tied", "pairs", "skip"],
)
def test_a_one_hot_supernet_is_the_fixed_net_bit_for_bit(options: Any, seed: int, choice: QuantizerChoice) -> None:
    supernet = calibrated(choice=choice, **options)
    cells = random_cells(supernet, seed)
    fixed = fixed_twin(supernet, cells, choice)
    x = inputs(seed=seed)
    with supernet.sampled(supernet.one_hot(cells)):
        assert torch.equal(supernet(x), fixed(x))
        recalibrate_batchnorm(supernet.network, [x])
        recalibrate_batchnorm(fixed, [x])
        assert torch.equal(supernet(x), fixed(x))


def test_a_skipped_branch_of_the_supernet_is_the_fixed_net_without_it() -> None:
    for engine in ("composite", "branches"):
        supernet = calibrated(engine=engine, **SKIPPING, weight_bits=(0, 2, 32), activation_bits=(32,))
        fixed = fixed_twin(supernet, [(0, 0)], QuantizerChoice())
        with supernet.sampled(supernet.one_hot([(0, 0)])):
            assert torch.equal(supernet(inputs()), fixed(inputs()))


@pytest.mark.parametrize("seed", range(3))
def test_one_hot_branches_are_the_chosen_convolution_and_norm_bit_for_bit(seed: int) -> None:
    supernet = calibrated(engine="branches", **OPEN, weight_bits=(2, 32), activation_bits=(3, 8))
    cells = random_cells(supernet, seed)
    with torch.no_grad():  # branches have weights of their own
        for index, parameter in enumerate(supernet.weights):
            parameter.add_(0.01 * torch.randn(parameter.shape, generator=seeded(index)))
    alone = copy.deepcopy(supernet.network)
    for decision, (row, column) in zip(supernet.space.decisions, cells, strict=True):
        branched = alone.get_submodule(decision.layers[0])
        chosen = row * 2 + column
        alone.set_submodule(decision.layers[0], nn.Sequential(branched.branches[chosen], branched.norms[chosen]))
    with supernet.sampled(supernet.one_hot(cells)):
        assert torch.equal(supernet(inputs()), alone(inputs()))


# --- composite = separate branches, against a naive oracle in float64 ------------------------------------------------


class Naive(torch.autograd.Function):
    """Q(x), with the gradient of clip(x)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, clip: Tensor, quantized: Tensor, low: float) -> Tensor:
        ctx.save_for_backward((x >= low * clip) & (x <= clip))
        return quantized

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return torch.where(ctx.saved_tensors[0], grads[0], 0.0), None, None, None


def candidate(module: TensorQuantizer, x: Tensor, bits: int) -> Tensor:
    if bits == 32:
        return x
    family: Quantizer = module.quantizer
    grid, gain = family.grid(bits, module.signed), module.gain[module.widths.index(bits)]
    if family.transform:
        x = family.transform(x)
    clip = x.detach().abs().max() if family.clip == "data" else module.clip.detach().view(-1, *[1] * (x.dim() - 1))
    low = -1.0 if module.signed else 0.0
    code = torch.floor((x.detach() / clip).clamp(low, 1) * grid.scale + grid.offset).clamp_max(grid.top)
    return Naive.apply(x, clip, clip * gain * (code * grid.step + grid.start), low)


@pytest.mark.parametrize("choice", CHOICES, ids=lambda choice: f"{choice.weights}-{choice.activations}")
@pytest.mark.parametrize("layer", [nn.Conv2d(3, 4, 3, padding=1), nn.Linear(6, 5), nn.Conv2d(3, 6, 3, groups=3)])
def test_one_convolution_of_mixtures_is_the_mixture_of_convolutions(layer: nn.Module, choice: QuantizerChoice) -> None:
    shape, widths = (3, 6, 6), ((1, 2, 4, 32), (2, 3, 8))
    spec = known_graph(nn.Sequential(layer), shape).layers[0]
    wrapped = quantized_layer(copy.deepcopy(layer), spec, *widths, choice).double()
    x = torch.randn(2, *shape, generator=seeded(), dtype=torch.float64)
    wrapped.quantize_weight.set_sign(True)  # its grid, anew in float64
    calibrate(wrapped, [x])
    upstream = torch.randn(layer(x.float()).shape, generator=seeded(1), dtype=torch.float64)
    shares = [torch.randn(len(w), generator=seeded(k), dtype=torch.float64).softmax(0) for k, w in enumerate(widths)]

    def run(mixture: Any) -> list[Tensor]:
        p, q, data = (tensor.clone().requires_grad_() for tensor in (*shares, x))
        out = mixture(p, q, data)
        return [out, *torch.autograd.grad(out, [wrapped.weight, p, q, data, wrapped.bias], upstream)]

    def composite(p: Tensor, q: Tensor, data: Tensor) -> Tensor:
        wrapped.quantize_weight.lent, wrapped.quantize_input.lent = p, q
        return wrapped(data)

    def separate(p: Tensor, q: Tensor, data: Tensor) -> Tensor:
        operation: Any = F.linear if isinstance(layer, nn.Linear) else wrapped._conv_forward
        total = wrapped.bias if isinstance(layer, nn.Linear) else wrapped.bias[:, None, None]
        for (i, w_bits), (j, a_bits) in itertools.product(enumerate(widths[0]), enumerate(widths[1])):
            weight = candidate(wrapped.quantize_weight, wrapped.weight, w_bits)
            total = total + p[i] * q[j] * operation(candidate(wrapped.quantize_input, data, a_bits), weight, None)
        return total

    for fused, naive in zip(run(composite), run(separate), strict=True):
        torch.testing.assert_close(fused, naive, rtol=1e-12, atol=1e-12)


def test_branches_are_the_sum_of_convolution_and_norm_weighted_by_their_shares() -> None:
    supernet = calibrated(engine="branches", **OPEN, weight_bits=(2, 4), activation_bits=(3, 8)).double()
    sample = random_sample(supernet, dtype=torch.float64)
    layer = supernet.network.stem
    assert isinstance(layer, BranchedLayer)
    x = inputs().double()
    with supernet.sampled(sample):
        mixed = layer(x)
    shares = sample.cells[0].flatten()
    by_hand = sum(shares[k] * layer.norms[k](layer.branches[k](x)) for k in range(4))
    torch.testing.assert_close(mixed, by_hand, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("pairing", ["independent", "tied"])
@pytest.mark.parametrize("engine", ["composite", "branches"])
def test_a_share_of_skipping_scales_the_branch_and_nothing_inside_it(engine: Any, pairing: str) -> None:
    supernet = calibrated(
        engine=engine, pairing=pairing, **SKIPPING, weight_bits=(0, 2, 4), activation_bits=(2, 4)
    ).double()
    skip = supernet.one_hot([(0, 1)]).cells.double()
    kept = torch.rand(skip.shape, generator=seeded(), dtype=torch.float64) * torch.from_numpy(supernet.space.allowed)
    kept[:, 0] = 0
    if pairing == "independent":
        kept = kept.sum(2, keepdim=True) * kept.sum(1, keepdim=True)
    kept = kept / kept.sum()
    seen: list[Tensor] = []
    supernet.network.second_norm.register_forward_hook(lambda module, given, output: seen.append(output))
    for sample in (kept, 0.7 * kept + 0.3 * skip):
        whole = Sample.from_cells(sample)
        if pairing == "independent":
            whole = Sample(sample, sample.sum(2), kept.sum(1))
        with supernet.sampled(whole):
            supernet(inputs().double())
    torch.testing.assert_close(seen[1], 0.7 * seen[0], rtol=1e-10, atol=1e-12)


# --- cost -----------------------------------------------------------------------------------------------------------

COSTLY = {**SKIPPING, "weight_bits": (0, 1, 4, 32), "activation_bits": (2, 8)}
SUPERNETS = [build_supernet(trained(Net()), **options) for options in (COSTLY, {**OPEN, "weight_bits": (1, 8, 32)})]


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 1), st.integers(0, 10**6))
def test_the_expected_cost_at_one_hot_is_the_exact_cost(which: int, seed: int) -> None:
    supernet = SUPERNETS[which]
    cells = random_cells(supernet, seed)
    exact = supernet.table.price(supernet.space.layers_of(cells))
    for name, value in exact.items():
        assert supernet.expected_cost(name, supernet.one_hot(cells)).item() == value


def test_the_expected_cost_is_exact_beyond_what_float32_holds() -> None:
    graph, space, _ = plan(Net(), **OPEN)
    table = CostTable(graph, space, [Cost("huge", "", lambda layer, w, a: layer.macs * 2.0**40 + w * a)])
    supernet = Supernet(Net(), graph, space, table)
    cells = random_cells(supernet, 0)
    assert supernet.expected_cost("huge", supernet.one_hot(cells)).item() == table.cells_cost(cells)["huge"]


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 10**6))
def test_the_expected_cost_is_the_mean_over_all_assignments(seed: int) -> None:
    supernet = SUPERNETS[0]
    sample = random_sample(supernet, seed, torch.float64)
    for name in ("size_bytes", "bitops", "macs", "weight_bits"):
        mean = sum(
            sample.cells[0, row, column].item() * supernet.table.cells_cost([(row, column)])[name]
            for row, column in np.ndindex(*supernet.space.allowed.shape[1:])
        )
        assert supernet.expected_cost(name, sample).item() == pytest.approx(mean, rel=1e-12)


# --- theta and its samples ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [{}, {"pairing": "tied"}, {"capability": {"*": ((2, 8), (4, 8), (8, 2))}}],
    ids=["product", "tied", "listed"],
)
@pytest.mark.parametrize("sampling", ["gumbel", "gumbel_hard", "softmax"])
def test_every_sample_is_a_distribution_over_the_allowed_cells(options: Any, sampling: Any) -> None:
    _, space, _ = plan(Net(), weight_bits=(2, 4, 8), activation_bits=(2, 4, 8), **options)
    theta = Theta(space)
    sample = theta.sample(1.0, sampling, seeded())
    assert (sample.cells >= 0).all()
    assert not sample.cells[~theta.allowed].any()
    torch.testing.assert_close(sample.cells.sum((1, 2)), torch.ones(len(space.decisions)))
    torch.testing.assert_close(sample.weights, sample.cells.sum(2))
    torch.testing.assert_close(sample.activations, sample.cells.sum(1))


def theta_with(logits: Tensor) -> Theta:
    _, space, _ = plan(Net(), weight_bits=(2, 4, 8), activation_bits=(8,))
    theta = Theta(space)
    with torch.no_grad():
        theta.weight.copy_(logits)
    return theta


def test_a_soft_sample_at_temperature_0_is_the_hard_one_and_the_hard_one_is_the_argmax_of_theta_and_noise() -> None:
    theta = theta_with(torch.randn(2, 3, generator=seeded()))
    for seed in range(20):
        soft, hard = (theta.sample(1e-4, kind, seeded(seed)).weights.detach() for kind in ("gumbel", "gumbel_hard"))
        torch.testing.assert_close(soft, hard, atol=1e-5, rtol=0)
        noise = -torch.log(-torch.log(torch.rand(2, 3, generator=seeded(seed))))
        assert torch.equal(hard.argmax(1), (theta.weight + noise).argmax(1))


def test_hard_samples_of_a_decided_theta_are_its_argmax_and_decode() -> None:
    supernet = calibrated(**OPEN, weight_bits=(2, 4, 8), activation_bits=(3, 8))
    cells = random_cells(supernet, 3)
    with torch.no_grad():
        for index, (row, column) in enumerate(cells):
            supernet.theta.weight[index, row] = supernet.theta.activation[index, column] = 100.0
    hard = supernet.sample(0.1, "gumbel_hard", seeded())
    assert torch.equal(hard.cells, supernet.one_hot(cells).cells)
    assert supernet.decode() == supernet.draw(seeded()) == cells
    with supernet.sampled(hard):
        drawn = supernet(inputs())
    with supernet.sampled(supernet.one_hot(cells)):
        assert torch.equal(drawn, supernet(inputs()))


def test_hard_samples_come_with_the_probabilities_of_theta() -> None:
    theta = theta_with(torch.log(torch.tensor([0.6, 0.3, 0.1])).expand(2, 3))
    generator = seeded()
    counts = sum(theta.sample(3.0, "gumbel_hard", generator).weights.detach() for _ in range(3000)) / 3000
    torch.testing.assert_close(counts, theta.probabilities().weights.detach(), atol=0.03, rtol=0)


def test_a_hard_sample_has_the_gradient_of_the_soft_one() -> None:
    gradients = []
    for sampling in ("gumbel", "gumbel_hard"):
        theta = theta_with(torch.zeros(2, 3))
        values = torch.arange(6.0).view(2, 3)
        (theta.sample(0.7, sampling, seeded(5)).weights * values).sum().backward()
        gradients.append(theta.weight.grad)
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("options", [OPEN, {**OPEN, "pairing": "pairs", "pairs": ((1, 4), (3, 3), (8, 8))}])
def test_draws_come_with_the_probabilities_of_theta(options: dict[str, Any]) -> None:
    """Against the softmax of the logits, by the share of many draws."""
    supernet = build_supernet(Net(), **options)
    with torch.no_grad():
        for logits in supernet.theta.parameters():
            logits.copy_(torch.randn(logits.shape, generator=seeded(1)))
    expected = supernet.theta.probabilities().cells.detach().double().numpy()
    generator, counts, draws = seeded(0), np.zeros(expected.shape), 600
    for _ in range(draws):
        for index, cell in enumerate(supernet.draw(generator)):
            counts[index, *cell] += 1
    assert np.abs(counts / draws - expected).max() < 4 * math.sqrt(0.25 / draws)


@pytest.mark.parametrize("share", [0.1, 0.5])
def test_a_draw_within_a_budget_meets_and_spends_it_and_draws_differ(share: float) -> None:
    supernet = build_supernet(Net(), **OPEN)
    least, most = (supernet.table.cells_cost([(at, at)] * len(supernet.space.decisions))["bitops"] for at in (0, -1))
    budget = Budget({"bitops": least + share * (most - least)}, "a share")
    generator = seeded(0)
    drawn = [supernet.draw(generator, budget) for _ in range(8)]
    assert all(budget.met_by(supernet.table.cells_cost(cells)) for cells in drawn)
    assert len({tuple(cells) for cells in drawn}) > 1
    for cells in drawn:
        assert not single_widenings(supernet.table, cells, budget, None)


def test_noise_comes_from_the_generator_given_alone() -> None:
    theta = theta_with(torch.zeros(2, 3))
    first = theta.sample(1.0, "gumbel", seeded(3)).weights
    torch.manual_seed(99)
    assert torch.equal(theta.sample(1.0, "gumbel", seeded(3)).weights, first)
    generator = seeded(3)
    theta.sample(1.0, "gumbel", generator)
    assert not torch.equal(theta.sample(1.0, "gumbel", generator).weights, first)


def test_entropies_are_1_undecided_0_decided_and_those_of_the_distribution_between() -> None:
    undecided, decided = theta_with(torch.zeros(2, 3)).entropies(), theta_with(100 * torch.eye(3)[:2]).entropies()
    torch.testing.assert_close(undecided, torch.ones(2))
    torch.testing.assert_close(decided, torch.zeros(2))
    shares = torch.tensor([0.5, 0.25, 0.25])
    between = theta_with(shares.log().expand(2, 3)).entropies()
    torch.testing.assert_close(between, torch.full((2,), 1.5 * np.log(2) / np.log(3)).float())


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 10**6), st.floats(0.0, 1.0))
def test_a_decoded_budget_is_met_and_spent(seed: int, share: float) -> None:
    supernet = copy.deepcopy(SUPERNETS[1])
    with torch.no_grad():
        for parameter in supernet.theta.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=seeded(seed)))
    least, most = (supernet.table.price(supernet.space.uniform(*bits))["size_bytes"] for bits in ((1, 2), (32, 2)))
    budget = Budget({"size_bytes": least + share * (most - least)}, "between")
    cells = supernet.decode(budget)
    assert budget.met_by(supernet.table.cells_cost(cells))
    for index, (row, column) in enumerate(cells):
        for wider in range(row + 1, 3):
            other = [*cells[:index], (wider, column), *cells[index + 1 :]]
            assert not budget.met_by(supernet.table.cells_cost(other))


# --- lending --------------------------------------------------------------------------------------------------------


def lent(supernet: Supernet) -> list[Any]:
    gates = [gate for gate in supernet._gates if gate is not None]
    return [part.lent for part in (*supernet.modules(), *gates) if getattr(part, "lent", None) is not None]


@pytest.mark.parametrize("engine", ["composite", "branches"])
def test_nothing_lent_remains_also_after_an_error(engine: Any) -> None:
    supernet = build_supernet(trained(Net()), engine=engine, **SKIPPING, weight_bits=(0, 2, 4), activation_bits=(2, 8))
    calibrate(supernet.network, [inputs()])
    keys = supernet.state_dict().keys()
    sample = supernet.theta.probabilities()
    with supernet.sampled(sample):
        supernet(inputs()).sum().backward()
        assert lent(supernet)
        assert supernet.state_dict().keys() == keys
    assert not lent(supernet)
    with pytest.raises(ValueError, match="stop"), supernet.sampled(sample):
        raise ValueError("stop")
    assert not lent(supernet)
    with pytest.raises(RuntimeError, match="no sample is lent"):
        supernet(inputs())


@pytest.mark.parametrize("engine", ["composite", "branches"])
def test_a_copy_after_a_training_step_is_whole_and_independent(engine: Any) -> None:
    supernet = build_supernet(trained(Net()), engine=engine, **SKIPPING, weight_bits=(0, 2, 4), activation_bits=(2, 8))
    calibrate(supernet.network, [inputs()])
    optimizer = torch.optim.SGD(supernet.parameters(), lr=0.1)
    with supernet.sampled(supernet.sample(1.0, "gumbel", seeded())):
        F.cross_entropy(supernet(inputs(6)), images(6).labels).backward()
    optimizer.step()
    supernet.eval()
    twin = copy.deepcopy(supernet)
    sample = random_sample(supernet)
    with supernet.sampled(sample), twin.sampled(sample):
        expected = supernet(inputs())
        assert torch.equal(twin(inputs()), expected)
    with torch.no_grad():
        for parameter in supernet.weights:
            parameter.mul_(2)
    with twin.sampled(sample):
        assert torch.equal(twin(inputs()), expected)
    with twin.sampled(twin.one_hot([(0, 0)])):  # its gates are its own
        assert lent(twin)
        assert not lent(supernet)


def test_the_state_holds_weights_ranges_and_theta_and_loads_into_a_fresh_supernet() -> None:
    supernet, fresh = calibrated(**OPEN), build_supernet(Net(), **OPEN).eval()
    with torch.no_grad():
        supernet.theta.weight.normal_(generator=seeded())
    fresh.load_state_dict(supernet.state_dict())
    sample = supernet.theta.probabilities()
    with supernet.sampled(sample), fresh.sampled(fresh.theta.probabilities()):
        assert torch.equal(fresh(inputs()), supernet(inputs()))


def test_weights_and_theta_are_told_apart() -> None:
    supernet = build_supernet(Net(), **OPEN)
    weights, theta = {id(p) for p in supernet.weights}, {id(p) for p in supernet.theta.parameters()}
    assert not weights & theta
    assert weights | theta == {id(p) for p in supernet.parameters()}


@pytest.mark.parametrize("engine", ["composite", "branches"])
def test_a_supernet_can_be_pickled(engine: Any) -> None:
    supernet = build_supernet(trained(Net()), engine=engine).eval()
    calibrate(supernet.network, [inputs()])
    again = pickle.loads(pickle.dumps(supernet))
    outputs = []
    for net in (supernet, again):
        with net.sampled(net.one_hot([(0, 0)] * len(net.space.decisions))):
            outputs.append(net(inputs()))
    assert torch.equal(*outputs)
    uniform = supernet.space.uniform(4, 4)
    assert again.table.price(uniform) == supernet.table.price(uniform)


@pytest.mark.parametrize(
    ("cells", "told"),
    [
        ([(0, 0)], "there are 1 cells for 2 decisions; give one for each"),
        ([(0, 0), (0, 9)], r"cannot take the cell \(0, 9\)"),
        ([(0, 0), 1], "cannot take the cell 1;"),
        ("ab", "the cells of a choice cannot be a str"),
    ],
    ids=str,
)
def test_what_runs_exactly_one_candidate_per_decision_names_one_for_each(cells: Any, told: str) -> None:
    """Of a decision without a cell every candidate would be missing: its layers would multiply with zeros."""
    supernet = build_supernet(Net(), weight_bits=(2, 8), activation_bits=(2, 8), pairing="tied")
    for refusing in (supernet.one_hot, supernet.table.cells_cost):
        with pytest.raises(InputError, match=told):
            refusing(cells)


@pytest.mark.parametrize("cell", [(0, 1), (0, -1)])
def test_a_pair_that_the_space_leaves_out_runs_but_has_no_price(cell: tuple[int, int]) -> None:
    """Sensitivities are measured of one width that alone is changed."""
    supernet = build_supernet(Net(), weight_bits=(2, 8), activation_bits=(2, 8), pairing="tied")
    assert supernet.one_hot([(0, 0), cell]).cells[1, 0, 1] == 1
    with pytest.raises(InputError, match=rf"decision 'second.*' cannot take the cell \({cell[0]}, {cell[1]}\)"):
        supernet.table.cells_cost([(0, 0), cell])


def test_only_a_sample_of_its_own_space_is_lent() -> None:
    supernet, other = (build_supernet(Net(), weight_bits=bits) for bits in ((2, 8), (2, 4, 8)))
    for wrong, told in (
        (None, "cannot be a NoneType"),
        ([(0, 0)] * 2, "cannot be a list"),
        (other, r"of \(2, 3, 6\) cells"),
    ):
        sample = wrong.one_hot([(0, 0)] * 2) if isinstance(wrong, Supernet) else wrong
        with pytest.raises(InputError, match=told), supernet.sampled(sample):
            pass


def test_layers_inside_layers_have_no_branches_and_are_mixed_as_any() -> None:
    """A branch is a copy of a layer whole: what is inside would be lent no sample."""

    class Holding(nn.Conv2d):
        def __init__(self) -> None:
            super().__init__(3, 4, 1)
            self.inside = nn.Conv2d(4, 4, 1, groups=4)

        def forward(self, x: Tensor) -> Tensor:
            return self.inside(super().forward(x))  # type: ignore[no-any-return]

    model = nn.Sequential(Holding(), nn.ReLU())
    graph = read_graph(model, (3, 4, 4))
    options = SpaceOptions(weight_bits=(2, 4), activation_bits=(4,), first_layer="search", last_layer="search")
    space = build_space(graph, options)
    table = CostTable(graph, space, build_costs())
    with pytest.raises(InputError, match=r"layer '0.inside' is inside layer '0', .* engine = \"composite\""):
        Supernet(model, graph, space, table, engine="branches")
    supernet = Supernet(model, graph, space, table)
    with supernet.sampled(supernet.one_hot([(0, 0)] * 2)):
        assert supernet(torch.randn(2, 3, 4, 4)).isfinite().all()
