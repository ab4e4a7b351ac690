"""The losses of θ: published factors, and the limits of the cost's weight."""

from __future__ import annotations

import pytest
import torch

from dnas.config.job import SearchSection
from dnas.search.losses import additive, hinge, log_product, log_product_factor, theta_loss
from dnas.search.supernet import Sample, Supernet
from search_spaces.costs.budgets import Budget
from search_spaces.costs.table import CostTable, build_costs
from search_spaces.models.zoo import resnet20
from search_spaces.network.graph import read_graph
from search_spaces.options import SpaceOptions
from search_spaces.spaces import build_space
from tests.toys import Net, build_supernet, trained

BITS = (0, 1, 2, 3, 4, 8, 32)


@pytest.fixture(scope="module")
def published() -> Supernet:
    """DNAS's size search on ResNet-20."""
    model = resnet20()
    graph = read_graph(model, (3, 32, 32))
    space = build_space(graph, SpaceOptions(BITS, (32,), granularity="block", first_layer=32, last_layer=32))
    return Supernet(model, graph, space, CostTable(graph, space, build_costs()))


@pytest.mark.parametrize(("bits", "factor"), [(None, 1.107), (32, 1.210), (2, 1.019)])
def test_the_factor_of_the_log_cost_is_that_of_dnas(published: Supernet, bits: int | None, factor: float) -> None:
    undecided = published.theta.probabilities()
    sample = published.one_hot([(BITS.index(bits), 0)] * 9) if bits is not None else undecided
    loss = log_product(published, "weight_bits", beta=0.1, gamma=0.9)(torch.tensor(1.0), sample, 0.5)
    assert loss.item() == pytest.approx(factor, abs=5e-4)


def test_the_log_product_stays_finite_where_everything_is_skipped(published: Supernet) -> None:
    published.theta.zero_grad()
    nothing = published.one_hot([(0, 0)] * 9)
    assert log_product(published, "weight_bits", 0.1, 0.9)(torch.tensor(2.0), nothing, 0.0).item() == pytest.approx(0.2)
    cost = torch.zeros((), requires_grad=True)
    log_product_factor(cost, 0.1, 0.9).backward()
    assert cost.grad == 0


@pytest.fixture
def supernet() -> Supernet:
    return build_supernet(trained(Net()), weight_bits=(1, 4, 8), activation_bits=(2, 8), first_layer="search")


def cheapest(supernet: Supernet) -> Sample:
    return supernet.one_hot([(0, 0)] * 3)


def test_the_hinge_is_0_within_the_budget_and_grows_with_the_excess(supernet: Supernet) -> None:
    cost = supernet.expected_cost("bitops", cheapest(supernet)).item()
    entropy = torch.tensor(1.25)
    for limit, excess in ((cost, 0.0), (2 * cost, 0.0), (cost / 3, 2.0)):
        loss = hinge(supernet, Budget({"bitops": limit}, ""), penalty=4.0)
        assert loss(entropy, cheapest(supernet), 0.9).item() == pytest.approx(1.25 + 4 * excess)
        assert loss(entropy, cheapest(supernet), 0.25).item() == pytest.approx(
            1.25 + 2 * excess
        )  # half way up its ramp
        assert loss(entropy, cheapest(supernet), 0.0).item() == 1.25


def test_the_hinge_adds_up_the_excess_of_every_limit(supernet: Supernet) -> None:
    sample = supernet.theta.probabilities()
    limits = {name: supernet.expected_cost(name, sample).item() / 1.5 for name in ("size_bytes", "bitops")}
    both = hinge(supernet, Budget(limits, ""), 1.0)(torch.tensor(0.0), sample, 1.0)
    assert both.item() == pytest.approx(2 * 0.5)


def test_the_additive_penalty_starts_at_its_weight_in_nats(supernet: Supernet) -> None:
    loss = additive(supernet, "bitops", penalty=0.35)
    assert loss(torch.tensor(1.0), supernet.theta.probabilities(), 0.0).item() == pytest.approx(1.35)


SECTIONS = [
    SearchSection(loss="hinge", penalty=0.0),
    SearchSection(loss="additive", penalty=0.0),
    SearchSection(loss="log_product", beta=1.0, gamma=0.0),
]


@pytest.mark.parametrize("section", SECTIONS, ids=lambda section: section.loss)
def test_without_weight_the_cost_has_no_say(supernet: Supernet, section: SearchSection) -> None:
    entropy = torch.tensor(1.7, requires_grad=True)
    loss = theta_loss(section, supernet, Budget({"bitops": 1.0}, "tight"))(entropy, supernet.theta.probabilities(), 0.9)
    loss.backward()
    assert loss.item() == entropy.item()
    assert entropy.grad == 1
    assert all(p.grad is None or not p.grad.any() for p in supernet.theta.parameters())


@pytest.mark.parametrize("loss", ["hinge", "additive", "log_product"])
def test_an_overwhelming_cost_makes_everything_as_cheap_as_can_be(supernet: Supernet, loss: str) -> None:
    section = SearchSection(loss=loss, penalty=1e6, gamma=20.0, cost="bitops")
    function = theta_loss(section, supernet, Budget({"bitops": 1.0}, "tight"))
    optimizer = torch.optim.Adam(supernet.theta.parameters(), lr=0.2)
    for _ in range(30):
        optimizer.zero_grad()
        sample = supernet.theta.probabilities()
        widest = sample.weights[:, -1].sum() + sample.activations[:, -1].sum()
        function(5 - 0.01 * widest, sample, 0.9).backward()  # a cross-entropy that would rather have the widest
        optimizer.step()
    assert supernet.decode() == [(0, 0)] * 3
