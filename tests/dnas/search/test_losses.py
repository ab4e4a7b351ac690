"""The losses of θ: published factors, and the limits of the cost's weight."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from dnas.config.job import SearchSection
from dnas.search.losses import additive, hinge, log_product, log_product_factor, theta_loss, two_sided
from dnas.search.sandwich import Sandwich
from dnas.search.supernet import Sample, Supernet
from search_spaces.costs.budgets import Budget
from search_spaces.costs.table import CostTable, build_costs
from search_spaces.models.zoo import resnet20
from search_spaces.options import SpaceOptions
from search_spaces.spaces import build_space
from tests.known import known_graph
from tests.toys import Net, build_supernet, seeded, trained

BITS = (0, 1, 2, 3, 4, 8, 32)
SPACES: list[dict[str, Any]] = [
    {"weight_bits": (1, 4, 8), "activation_bits": (2, 8), "first_layer": "search"},
    {"weight_bits": (2, 4, 8), "activation_bits": (2, 4, 8), "pairing": "tied", "first_layer": "search"},
    {"weight_bits": (0, 2, 8), "activation_bits": (4, 32), "granularity": "block", "include": ("first", "second")},
]


@pytest.fixture(scope="module")
def published() -> Supernet:
    """DNAS's size search on ResNet-20."""
    model = resnet20()
    graph = known_graph(model, (3, 32, 32))
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


def drawn_theta(supernet: Supernet, seed: int = 0) -> None:
    with torch.no_grad():
        for parameter in supernet.theta.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=seeded(seed)))


@pytest.mark.parametrize("options", SPACES, ids=["independent", "tied", "skip"])
@pytest.mark.parametrize("ratio", [0.5, 0.99, 1.0, 1.02, 3.0])
def test_the_two_sided_pull_and_its_gradient_are_those_of_the_closed_form(options: Any, ratio: float) -> None:
    """dE/dθ_k = p_k (E[c | k] - E[c]) per decision; h' is -1 to 1, and linear near the budget."""
    supernet = build_supernet(trained(Net()), **options)
    drawn_theta(supernet)
    soft = supernet.theta.probabilities()
    spent = {name: supernet.expected_cost(name, soft).item() for name in ("size_bytes", "bitops")}
    least = supernet.table.cells_cost(Sandwich(supernet.table, (), 1).narrowest)["size_bytes"]
    room = (spent["size_bytes"] - least) / ratio
    budget = Budget({"size_bytes": least + room, "bitops": 1e3 * spent["bitops"]}, "")
    loss = two_sided(supernet, budget, penalty=3.0)(
        torch.tensor(1.25), supernet.one_hot([(0, 0)] * len(soft.cells)), 0.25
    )
    loss.backward()
    distance, sign = abs(ratio - 1), (ratio > 1) - (ratio < 1)
    pull = distance**2 / 0.1 if distance < 0.05 else distance - 0.025
    assert loss.item() == pytest.approx(1.25 + 1.5 * pull, abs=1e-5)  # half way up its ramp
    slope = 1.5 * sign * min(1.0, distance / 0.05) / room
    entries = torch.from_numpy(supernet.table.entries["size_bytes"])
    cells = soft.cells.detach().double()
    mean = (cells * entries).sum((1, 2), keepdim=True)
    along = cells * (entries - mean)  # what each cell's own logit would move
    parts = [along.sum(2), along.sum(1)] if supernet.theta.independent else [along.flatten(1)]
    for parameter, part in zip(supernet.theta.parameters(), parts, strict=True):
        assert parameter.grad is not None
        torch.testing.assert_close(parameter.grad.double(), slope * part, rtol=1e-3, atol=2e-6)


@pytest.mark.parametrize(  # any two of these meet
    ("wish", "share", "names"),
    [
        ((-0.5, 0.0, 0.5)[(at + number) % 3], share, names)
        for at, names in enumerate([("size_bytes",), ("bitops", "size_bytes"), ("peak_activation_bytes",)])
        for number, share in enumerate([0.1, 0.3, 0.8])
    ],
)
def test_the_expected_cost_ends_on_the_budget_from_either_side(
    supernet: Supernet, wish: float, share: float, names: tuple[str, ...]
) -> None:
    """Whatever the task's loss would rather have: wider, narrower, or nothing."""
    table = supernet.table
    ends = [table.cells_cost([(row, column)] * 3) for row, column in ((0, 0), (2, 1))]
    budget = Budget({name: ends[0][name] + share * (ends[1][name] - ends[0][name]) for name in names}, "")
    loss = two_sided(supernet, budget, penalty=10.0)
    optimizer = torch.optim.Adam(supernet.theta.parameters(), lr=0.05)
    for step in range(120):
        optimizer.zero_grad()
        soft = supernet.theta.probabilities()
        loss(wish * soft.weights[:, -1].sum(), soft, step / 120).backward()
        optimizer.step()
    soft = supernet.theta.probabilities()
    ratios = [supernet.expected_cost(name, soft).item() / limit for name, limit in budget.limits.items()]
    assert max(ratios) == pytest.approx(1, abs=0.03)


def test_the_additive_penalty_starts_at_its_weight_in_nats(supernet: Supernet) -> None:
    loss = additive(supernet, "bitops", penalty=0.35)
    assert loss(torch.tensor(1.0), supernet.theta.probabilities(), 0.0).item() == pytest.approx(1.35)


SECTIONS = [
    SearchSection(loss="two_sided", penalty=0.0),
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


@pytest.mark.parametrize("loss", ["two_sided", "hinge", "additive", "log_product"])
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
