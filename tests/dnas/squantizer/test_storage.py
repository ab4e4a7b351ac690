"""What the sparse layers of a net take, and the σ within a budget."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from dnas.quantization.layers import QuantizedLayer
from dnas.quantization.schemes import as_stored
from dnas.squantizer.prices import sparse_prices
from dnas.squantizer.quantizer import codes_of, sparse_codes, sparse_quantizers
from dnas.squantizer.storage import (
    float_weights,
    largest_sigma,
    raised_within,
    sigma_within,
    stored_layers,
    with_sigmas,
)
from search_spaces.costs.budgets import Budget
from search_spaces.sparse_weights.codes import encode
from search_spaces.sparse_weights.scheme import ORDERS
from tests.sparse_nets import OPTIONS, quantized, sparse_layers
from tests.toys import Net, plan, trained

every_order = pytest.mark.parametrize("order", ORDERS)


def test_sizes_follow_the_net_own_sigma_and_encode_to_as_many_bytes() -> None:
    model = trained(Net(channels=12))
    network = quantized(model, 0.5)
    sparse_quantizers(network)[0].sigma.fill_(1.0)
    layers = as_stored(network, sparse_layers(model, 0.5))
    assert [b.scheme.sigma for b in layers.values() if b.scheme] == [1.0, 0.5]
    assert layers["stem"].scheme is None
    for name in ("first", "second"):
        sparse, weight = layers[name].scheme, network.get_submodule(name).weight
        assert sparse is not None
        assert sparse.storage is not None
        assert sparse.stored_bits is not None
        codes = codes_of(weight, 4, sparse)
        assert sparse.nonzeros == np.count_nonzero(codes)
        assert len(encode(codes, sparse.storage, 4, 5)) == -(-sparse.stored_bits // 8)
        values = sparse_codes(weight, sparse.sigma, 4).values()
        layer = network.get_submodule(name)
        assert isinstance(layer, QuantizedLayer)
        assert torch.equal(values, layer.quantized_weight())


@pytest.mark.parametrize("share", [0.5, 0.7, 0.9])
def test_the_least_sigma_within_a_budget(share: float) -> None:
    model = trained(Net(channels=12))
    _, _, table = plan(model, **OPTIONS)
    layers = sparse_layers(model)
    weights = float_weights(model, layers, table.graph)
    dense = sparse_prices(table, stored_layers(weights, with_sigmas(layers, lambda name, own: -1.0)))["size_bytes"]
    least = sparse_prices(table, stored_layers(weights, with_sigmas(layers, lambda name, own: 3.0)))["size_bytes"]
    budget = Budget({"size_bytes": least + share * (dense - least)}, "a budget")
    found = sigma_within(table, layers, weights, budget, ["first", "second"])
    assert found is not None
    assert budget.met_by(sparse_prices(table, found))
    [sigma] = {b.scheme.sigma for b in found.values() if b.scheme}
    lower = stored_layers(weights, with_sigmas(layers, lambda name, own: sigma - 0.05))
    assert not budget.met_by(sparse_prices(table, lower))


@every_order
def test_no_layer_loses_its_last_weight_and_a_budget_below_that_is_not_met(order: str) -> None:
    model = trained(Net(channels=6))
    _, _, table = plan(model, **OPTIONS)
    layers = {
        n: replace(b, scheme=b.scheme and replace(b.scheme, order=order)) for n, b in sparse_layers(model).items()
    }
    assert (
        sigma_within(
            table, layers, float_weights(model, layers, table.graph), Budget({"size_bytes": 1.0}, ""), ["first"]
        )
        is None
    )
    for weight in (model.get_submodule("first").weight, torch.ones(4)):
        end = largest_sigma(weight, 4, order)
        assert sparse_codes(weight, end, 4, order).codes.any()
        if end:
            assert not sparse_codes(weight, end + 0.01, 4, order).codes.any()


def test_every_sigma_is_raised_alike_until_the_trained_weights_fit() -> None:
    model = trained(Net(channels=12))
    _, _, table = plan(model, **OPTIONS)
    layers = with_sigmas(sparse_layers(model), lambda name, own: {"first": 0.0, "second": 0.5}[name])
    weights = float_weights(quantized(model), layers, table.graph)
    now = sparse_prices(table, stored_layers(weights, layers))["size_bytes"]
    same = raised_within(table, layers, weights, Budget({"size_bytes": now}, ""))
    assert same is not None
    assert [b.scheme.sigma for b in same.values() if b.scheme] == [0.0, 0.5]
    smaller = raised_within(table, layers, weights, Budget({"size_bytes": now - 40}, ""))
    assert smaller is not None
    assert sparse_prices(table, smaller)["size_bytes"] <= now - 40
    first, second = (b.scheme.sigma for b in smaller.values() if b.scheme)
    assert second - first == pytest.approx(0.5)
    assert first > 0
    assert raised_within(table, layers, weights, Budget({"size_bytes": 1.0}, "")) is None
    assert math.isfinite(first)
