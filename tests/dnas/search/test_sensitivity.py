"""Sensitivities: the exact Hessian of a tiny network, and an order that follows the bits."""

from __future__ import annotations

import weakref
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from dnas.quantization.conversion import QuantizerChoice
from dnas.quantization.families import find_quantizer
from dnas.search.hessian import STANDARD_ERROR, hessian_traces
from dnas.search.sensitivity import hessian_sensitivities, quantized, sensitivities
from search_spaces.allocation.program import Cells
from search_spaces.allocation.widening import allocate_widest
from search_spaces.costs.budgets import Budget, parse_budget
from search_spaces.costs.table import CostTable
from search_spaces.errors import InputError
from search_spaces.spaces import PrecisionSpace
from tests.toys import Net, images, plan, seeded, trained

BATCHES = list(images(32).batches(16))


def tiny() -> nn.Sequential:
    return trained(nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3))).double()


def exact_trace(model: nn.Module, name: str, x: Tensor, y: Tensor) -> float:
    """The trace of the full Hessian, one second derivative at a time."""
    weight = model.get_parameter(f"{name}.weight").detach()

    def loss(flat: Tensor) -> Tensor:
        return F.cross_entropy(functional_call(model, {f"{name}.weight": flat.view_as(weight)}, (x,)), y)

    return float(torch.autograd.functional.hessian(loss, weight.flatten()).trace())


def test_hutchinsons_estimate_is_the_trace_of_the_exact_hessian() -> None:
    model = tiny()
    layers = {"0": model[0], "2": model[2]}
    batches = [(torch.randn(8, 5, generator=seeded(k), dtype=torch.float64), torch.arange(8) % 3) for k in range(2)]
    traces = hessian_traces(model, layers, batches, probes=1500).values
    for name in layers:
        exact = np.mean([exact_trace(model, name, x, y) for x, y in batches])
        assert traces[name] == pytest.approx(exact, rel=0.05), name


def test_one_probe_is_exact_where_the_hessian_is_diagonal() -> None:
    class Diagonal(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(1, 2, bias=False).double()

        def forward(self, x: Tensor) -> Tensor:
            u = self.layer.weight.view(1, 2).exp()
            return u.log()  # logits are the weights: the Hessian of cross-entropy is diag(p) - p p^T

    model = Diagonal()
    with torch.no_grad():
        model.layer.weight.copy_(torch.tensor([[0.0], [-60.0]]))  # p = (1, 0): the Hessian vanishes
    x, y = torch.zeros(1, 1, dtype=torch.float64), torch.tensor([0])
    assert hessian_traces(model, {"layer": model.layer}, [(x, y)], probes=1).values["layer"] == pytest.approx(
        0, abs=1e-12
    )


@pytest.mark.parametrize("inplace", [False, True])
def test_a_hardsigmoid_is_differentiated_twice(inplace: bool) -> None:
    """As in MobileNetV3; PyTorch itself has no derivative of its backward pass."""

    class Written(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return (x / 6 + 0.5).clamp(0, 1)

    nets = [nn.Sequential(nn.Linear(5, 4), gate, nn.Linear(4, 3)) for gate in (nn.Hardsigmoid(inplace), Written())]
    found = []
    for net in nets:
        net.load_state_dict(tiny().state_dict())
        net.double()
        x = torch.randn(8, 5, generator=seeded(0), dtype=torch.float64)
        layers = {"0": net[0], "2": net[2]}
        found.append(hessian_traces(net, layers, [(x, torch.arange(8) % 3)], probes=3).values)
    assert found[0] == pytest.approx(found[1], rel=1e-12)
    assert min(map(abs, found[0].values())) > 0


def space(**options: object) -> PrecisionSpace:
    return plan(Net(), first_layer="search", **options)[1]


@pytest.mark.parametrize(
    "choice", [QuantizerChoice(), QuantizerChoice("nested", "lsq"), QuantizerChoice("dorefa", "nested")]
)
def test_more_bits_never_hurt_more(choice: QuantizerChoice) -> None:
    bits = (1, 2, 3, 4, 6, 8, 32)
    table = sensitivities(trained(Net()), space(weight_bits=bits, activation_bits=bits), choice, BATCHES)
    assert table.shape == (3, 7, 7)
    assert (table >= 0).all()
    if choice.weights == "dorefa":
        table = table[:, -1:]  # what its tanh costs does not fall with the bits
    slack = 1e-9 + 0.02 * table.max()
    assert (np.diff(table, axis=1) <= slack).all()
    assert (np.diff(table, axis=2) <= slack).all()
    assert (table[:, 0, 0] > table[:, -1, -1]).all() or choice.weights == "dorefa"


def test_the_loss_of_weights_is_half_the_mean_curvature_times_the_squared_error() -> None:
    model = trained(Net()).eval()
    chosen = space(weight_bits=(2, 32), activation_bits=(32,))
    table = sensitivities(model, chosen, QuantizerChoice(), BATCHES, seed=3, probes=2)
    layers = {name: model.get_submodule(name) for name in ("stem", "first", "second")}
    traces = hessian_traces(model, layers, BATCHES, seed=3, probes=2).values
    for index, (name, layer) in enumerate(layers.items()):
        weight = layer.weight.detach()
        error = float((quantized(find_quantizer("weights", "lsq"), weight, 2, signed=True) - weight).square().sum())
        assert table[index, 0, 0] == pytest.approx(0.5 * max(traces[name], 1e-6) / weight.numel() * error, rel=1e-5)
        assert table[index, 1, 0] == 0


def test_skipping_costs_what_its_weights_are_worth_whatever_the_activations() -> None:
    blocks = space(weight_bits=(0, 2), activation_bits=(2, 8), granularity="block", include=("first", "second"))
    table = sensitivities(trained(Net()), blocks, QuantizerChoice(), BATCHES)
    assert table[0, 0, 0] == table[0, 0, 1] > 0


def test_the_same_seed_gives_the_same_table() -> None:
    chosen = space(weight_bits=(2, 8), activation_bits=(2, 8))
    model = trained(Net())
    first, second = (sensitivities(model, chosen, QuantizerChoice(), BATCHES, seed=s) for s in (0, 0))
    np.testing.assert_array_equal(first, second)


def test_an_image_that_is_not_finite_is_refused() -> None:
    x, y = BATCHES[1]
    with pytest.raises(InputError, match="image 1 of batch 2 holds values that are not finite"):
        sensitivities(Net(), plan(Net())[1], QuantizerChoice(), [BATCHES[0], (x * torch.inf, y)])


@pytest.mark.parametrize("what", ["channels", "label", "float labels", "count"])
def test_batches_that_do_not_fit_are_told_in_a_sentence(what: str) -> None:
    x, y = BATCHES[0]
    given = {
        "channels": (torch.cat([x, x], 1), y),
        "label": (x, y + 7),
        "float labels": (x, y / 2),
        "count": (x, y[:3]),
    }[what]
    model = trained(Net())
    with pytest.raises(InputError, match=r"cannot be computed on a batch: .*; give inputs and targets as in training"):
        sensitivities(model, plan(model)[1], QuantizerChoice(), [given])


def test_a_network_that_overflows_is_refused() -> None:
    model = Net()
    with torch.no_grad():
        next(model.parameters()).fill_(1e38)
    with pytest.raises(InputError, match=r"the sensitivity of layer '\w+' is not finite, though weights"):
        sensitivities(model, plan(Net())[1], QuantizerChoice(), BATCHES)


# --- sure of what it says ------------------------------------------------------------------------------------------


def test_batches_count_by_their_images() -> None:
    """A last batch that is short weighs no more than its images do; nor does the number of batches matter."""
    model, chosen = trained(Net()), space(weight_bits=(2, 8), activation_bits=(2, 8))
    x, y = next(iter(images(30).batches(30)))
    whole, uneven = (
        hessian_sensitivities(
            model,
            chosen,
            QuantizerChoice(activations="dorefa"),
            list(zip(x.split(size), y.split(size), strict=True)),
            probes=1,
        )
        for size in (30, 24)
    )
    assert whole.images == uneven.images == 30
    for name in whole.inputs:
        assert uneven.inputs[name] == pytest.approx(whole.inputs[name], rel=1e-2)


def test_probes_are_drawn_until_their_error_is_small_and_the_error_told_is_the_true_one() -> None:
    model = trained(nn.Sequential(nn.Linear(5, 4))).double()  # convex: no trace vanishes
    layers = {"0": model[0]}

    def drawn(first: int) -> list[tuple[Tensor, Tensor]]:
        inputs = [torch.randn(8, 5, generator=seeded(first + k), dtype=torch.float64) for k in range(6)]
        return [(x, torch.arange(8) % 3) for x in inputs]

    exact = np.mean([exact_trace(model, "0", x, y) for x, y in drawn(0)])
    same = [hessian_traces(model, layers, drawn(0), seed=seed) for seed in range(40)]
    assert {traces.probes for traces in same} <= {2, 4, 6}
    assert np.std([traces.values["0"] / exact for traces in same]) < 1.3 * STANDARD_ERROR  # the images are the same
    other = [hessian_traces(model, layers, drawn(1000 * seed), seed=seed) for seed in range(40)]
    spread = np.std([traces.values["0"] for traces in other]) / np.mean([traces.values["0"] for traces in other])
    assert np.mean([traces.errors["0"] for traces in other]) == pytest.approx(spread, rel=0.4)


def test_batches_are_read_one_at_a_time_and_those_that_come_once_are_kept() -> None:
    model, chosen = trained(Net()), space(weight_bits=(2, 8), activation_bits=(8,))
    held: list[weakref.ref[Tensor]] = []

    class Stream:
        def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
            for x, y in images(64).batches(8):
                x = x.clone()
                held.append(weakref.ref(x))
                assert sum(ref() is not None for ref in held) <= 3
                yield x, y

    streamed = sensitivities(model, chosen, QuantizerChoice(), Stream())
    once = sensitivities(model, chosen, QuantizerChoice(), iter(images(64).batches(8)))
    np.testing.assert_array_equal(streamed, once)
    for nothing in ([], iter([]), [torch.zeros(2, 1, 6, 6)]):
        with pytest.raises(InputError, match="at least one"):
            sensitivities(model, chosen, QuantizerChoice(), nothing)


@pytest.mark.whole
def test_two_draws_of_enough_images_choose_nearly_the_same_bits() -> None:
    """1,024 images each, none in both: what one draw chooses is next to the best by the other."""
    widths = {"weight_bits": (1, 2, 3, 4, 6, 8), "activation_bits": (8,)}
    _, chosen, table = plan(Net(8), **widths, first_layer="search", last_layer="search")
    model = fitted(trained(Net(8)))
    shares = ("12%", "15%", "18%", "20%", "22%", "27%")
    draws = [draw(model, chosen, 1024, seed) for seed in (1, 2)]
    assert max(regret(draws, table, parse_budget({"size_bytes": share}, table)) for share in shares) < 0.1


def fitted(model: nn.Module) -> nn.Module:
    """Trained on the toy's images until it knows them roughly."""
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(4):
        for x, y in noisy(512, seed=9, batch_size=64):
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
    return model.eval()


def noisy(count: int, seed: int, batch_size: int = 256) -> list[tuple[Tensor, Tensor]]:
    """Images of the toy under so much noise that some are mistaken: a few of these make most of the curvature."""
    return [
        (x + torch.randn(x.shape, generator=seeded(seed + 100 * k)), y)
        for k, (x, y) in enumerate(images(count, seed=seed).batches(batch_size))
    ]


def draw(model: nn.Module, chosen: PrecisionSpace, count: int, seed: int) -> np.ndarray:
    return sensitivities(model, chosen, QuantizerChoice(), noisy(count, seed), seed=seed)


def regret(losses: list[np.ndarray], table: CostTable, budget: Budget) -> float:
    """How much more loss, relatively, the choice by one draw has by the other draw than the other's own choice."""
    choices = [allocate_widest(-each, table, budget) for each in losses]

    def total(cells: Cells, each: np.ndarray) -> float:
        return sum(float(each[index, *cell]) for index, cell in enumerate(cells))

    return max(total(choices[1 - k], losses[k]) / total(choices[k], losses[k]) - 1 for k in range(2))
