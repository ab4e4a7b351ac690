"""What the sparse layers of a net take once its weights are known, and the σ that brings them within a budget."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from torch import Tensor, nn

from dnas.quantization.sparsity import SparseQuantizer, moments, sparse_codes, stored
from search_spaces.assignments import LayerBits
from search_spaces.costs.budgets import Budget
from search_spaces.costs.sparse import sparse_prices
from search_spaces.costs.table import CostTable
from search_spaces.sparse_codes import ORDERS

Layers = dict[str, LayerBits]
LEAST_SIGMA = -10.0
"""At this σ every weight stays."""
EPSILON = 1e-6
"""How far below the last weight that stays t is put, as a share of it: t is rounded to float32."""
_BISECTIONS = 32


def as_stored(tensors: Mapping[str, Tensor], layers: Mapping[str, LayerBits]) -> Layers:
    """The layers with non-zeros, format and bits of their sparse weights; ``tensors`` is a net's state.

    Where the net has a σ of its own (``LAYER.quantize_weight.sigma``), it takes the place of the assignment's.
    """
    found = dict(layers)
    for name, bits in layers.items():
        if bits.sparse is not None:
            own = tensors.get(f"{name}.quantize_weight.sigma")
            sparse = bits.sparse if own is None else replace(bits.sparse, sigma=float(own))
            found[name] = replace(bits, sparse=stored(tensors[f"{name}.weight"], bits.weight_bits, sparse))
    return found


def with_sigmas(layers: Mapping[str, LayerBits], sigma: Callable[[str, float], float]) -> Layers:
    """The layers with another σ in each sparse one: ``sigma`` of its name and its σ so far."""
    found = dict(layers)
    for name, bits in layers.items():
        if bits.sparse is not None:
            found[name] = replace(bits, sparse=replace(bits.sparse, sigma=sigma(name, bits.sparse.sigma)))
    return found


def set_sigmas(network: nn.Module, layers: Mapping[str, LayerBits]) -> None:
    """Give every sparse layer of ``network`` the σ that it has in ``layers``."""
    for name, bits in layers.items():
        quantizer = getattr(network.get_submodule(name), "quantize_weight", None)
        if bits.sparse is not None and isinstance(quantizer, SparseQuantizer):
            quantizer.sigma.fill_(bits.sparse.sigma)


def largest_sigma(weight: Tensor, bits: int, order: str) -> float:
    """The σ beyond which no weight would stay."""
    sizes = weight.detach().abs()
    if order == "quantize-first":
        sizes = sparse_codes(weight, LEAST_SIGMA, bits, order).values().abs()
    mean, std = (float(moment) for moment in moments(sizes))
    return (float(sizes.amax()) * (1 - EPSILON) - mean) / std if std else 0.0


def sigma_within(
    table: CostTable,
    layers: Mapping[str, LayerBits],
    weights: Mapping[str, Tensor],
    budget: Budget,
    free: Sequence[str],
) -> Layers | None:
    """The layers with one σ, the same in all ``free`` ones and the least that meets ``budget``; None if none does.

    ``weights`` is a net's state. No layer is emptied: σ ends where the first free layer would lose its last weight.
    """

    def at(sigma: float) -> Layers:
        return with_sigmas(layers, lambda name, own: sigma if name in free else own)

    return _least(table, at, weights, budget, LEAST_SIGMA, min(_largest(weights, layers, free)))


def raised_within(
    table: CostTable, layers: Mapping[str, LayerBits], weights: Mapping[str, Tensor], budget: Budget
) -> Layers | None:
    """The layers with the least amount added to every σ that meets ``budget`` on ``weights``; None if none does."""
    names = [name for name, bits in layers.items() if bits.sparse is not None]
    ends = dict(zip(names, _largest(weights, layers, names), strict=True))

    def at(added: float) -> Layers:
        return with_sigmas(layers, lambda name, own: max(own, min(own + added, ends[name])))

    return _least(table, at, weights, budget, 0.0, max(end - LEAST_SIGMA for end in ends.values()))


def _least(
    table: CostTable,
    at: Callable[[float], Layers],
    weights: Mapping[str, Tensor],
    budget: Budget,
    low: float,
    high: float,
) -> Layers | None:
    """Bisect for the least number in [low, high] whose layers meet the budget: size never rises with σ."""
    weights = {name: tensor for name, tensor in weights.items() if name.endswith(".weight")}  # not the net's own σ

    def meets(layers: Layers) -> bool:
        return budget.met_by(sparse_prices(table, as_stored(weights, layers)))

    if meets(at(low)):
        return as_stored(weights, at(low))
    if not meets(at(high)):
        return None
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        low, high = (low, middle) if meets(at(middle)) else (middle, high)
    return as_stored(weights, at(high))


def _largest(weights: Mapping[str, Tensor], layers: Mapping[str, LayerBits], names: Sequence[str]) -> list[float]:
    ends = []
    for name in names:
        bits, sparse = layers[name], layers[name].sparse
        order = sparse.order if sparse else ORDERS[0]
        ends.append(largest_sigma(weights[f"{name}.weight"], bits.weight_bits, order))
    return ends
