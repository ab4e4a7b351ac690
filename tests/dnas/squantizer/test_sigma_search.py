"""The space of σ for every layer."""

from __future__ import annotations

from dataclasses import replace

import pytest

from dnas.squantizer.prices import sparse_prices
from dnas.squantizer.sigma_search import SigmaSpace
from dnas.squantizer.storage import float_weights, stored_layers
from search_spaces.sparse_weights.scheme import ORDERS
from tests.sparse_nets import OPTIONS, sparse_layers
from tests.toys import Net, plan, trained


@pytest.mark.parametrize("order", ORDERS)
def test_a_search_space_of_sigmas_prices_every_choice_exactly(order: str) -> None:
    model = trained(Net(channels=12))
    _, _, table = plan(model, **OPTIONS)
    layers = {
        n: replace(b, scheme=b.scheme and replace(b.scheme, order=order)) for n, b in sparse_layers(model).items()
    }
    weights = float_weights(model, layers, table.graph)
    space = SigmaSpace(table, layers, weights, ["first", "second"])
    for counts in ({"first": 1, "second": 32}, {"first": 7, "second": 16}, {"first": 32, "second": 1}):
        found = stored_layers(weights, space.layers_at(counts))
        prices = sparse_prices(table, found)
        assert space.ratios.cost(counts) == {name: prices[name] for name in table.costs}
        if order == "sparsify-first":
            for name, count in counts.items():
                sparse, elements = found[name].scheme, model.get_submodule(name).weight.numel()
                assert sparse is not None
                assert sparse.nonzeros == max(1, round(elements * count / 32))
    assert space.layers_at({"first": 3, "second": 4})["stem"] == layers["stem"]
