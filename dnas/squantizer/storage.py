"""What the sparse layers of a net take once its weights are known, and the σ that brings them within a budget."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from torch import Tensor, nn

from dnas.quantization.layers import float_weight
from dnas.squantizer.prices import sparse_of
from dnas.squantizer.quantizer import SparseQuantizer, moments, sparse_codes, stored
from search_spaces.assignments import LayerBits
from search_spaces.costs.budgets import Budget
from search_spaces.costs.stored import stored_prices
from search_spaces.costs.table import CostTable
from search_spaces.layers import LayerGraph
from search_spaces.sparse_weights.scheme import SparseWeights

Layers = dict[str, LayerBits]
Weights = Mapping[str, Tensor]
"""Layer → its float weight, for every sparse layer at least."""
LEAST_SIGMA = -10.0
"""At this σ every weight stays."""
EPSILON = 1e-6
"""How far below the last weight that stays t is put, as a share of it: t is rounded to float32."""
_BISECTIONS = 32


def with_sigmas(layers: Mapping[str, LayerBits], sigma: Callable[[str, float], float]) -> Layers:
    """The layers with another σ in each sparse one: ``sigma`` of its name and its σ so far."""
    changed = {name: replace(known, sigma=sigma(name, known.sigma)) for name, known in sparse_of(layers).items()}
    return _with_schemes(layers, changed)


def stored_layers(weights: Weights, layers: Mapping[str, LayerBits]) -> Layers:
    """The layers with non-zeros, format and bits of their sparse ``weights``, at the σ that they have."""
    found = {name: stored(weights[name], layers[name].weight_bits, known) for name, known in sparse_of(layers).items()}
    return _with_schemes(layers, found)


def _with_schemes(layers: Mapping[str, LayerBits], schemes: Mapping[str, SparseWeights]) -> Layers:
    return {**layers, **{name: replace(layers[name], scheme=scheme) for name, scheme in schemes.items()}}


def float_weights(network: nn.Module, layers: Mapping[str, LayerBits], graph: LayerGraph) -> Weights:
    """The float weights of the sparse layers, quantized or not, on the CPU: where their sizes are counted.

    Another device may add up the statistics to another last digit.
    """
    found = {name: float_weight(network.get_submodule(name), graph[name]) for name in sparse_of(layers)}
    return {name: weight.detach().cpu() for name, weight in found.items()}


def set_sigmas(network: nn.Module, layers: Mapping[str, LayerBits]) -> None:
    """Give every sparse layer of ``network`` the σ that it has in ``layers``."""
    for name, known in sparse_of(layers).items():
        quantizer = getattr(network.get_submodule(name), "quantize_weight", None)
        if isinstance(quantizer, SparseQuantizer):
            quantizer.sigma.fill_(known.sigma)


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
    weights: Weights,
    budget: Budget,
    free: Sequence[str],
) -> Layers | None:
    """The layers with one σ, the same in all ``free`` ones and the least that meets ``budget``; None if none does.

    No layer is emptied: σ ends where the first free layer would lose its last weight.
    """

    def at(sigma: float) -> Layers:
        return with_sigmas(layers, lambda name, own: sigma if name in free else own)

    return _least(table, at, weights, budget, LEAST_SIGMA, min(_largest(weights, layers, free)))


def raised_within(table: CostTable, layers: Mapping[str, LayerBits], weights: Weights, budget: Budget) -> Layers | None:
    """The layers with the least amount added to every σ that meets ``budget`` on ``weights``; None if none does."""
    names = list(sparse_of(layers))
    ends = dict(zip(names, _largest(weights, layers, names), strict=True))

    def at(added: float) -> Layers:
        return with_sigmas(layers, lambda name, own: max(own, min(own + added, ends[name])))

    return _least(table, at, weights, budget, 0.0, max(end - LEAST_SIGMA for end in ends.values()))


def _least(
    table: CostTable,
    at: Callable[[float], Layers],
    weights: Weights,
    budget: Budget,
    low: float,
    high: float,
) -> Layers | None:
    """Bisect for the least number in [low, high] whose layers meet the budget: size never rises with σ."""

    def meets(layers: Layers) -> bool:
        return budget.met_by(stored_prices(table, stored_layers(weights, layers)))

    if meets(at(low)):
        return stored_layers(weights, at(low))
    if not meets(at(high)):
        return None
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        low, high = (low, middle) if meets(at(middle)) else (middle, high)
    return stored_layers(weights, at(high))


def _largest(weights: Weights, layers: Mapping[str, LayerBits], names: Sequence[str]) -> list[float]:
    known = sparse_of(layers)
    return [largest_sigma(weights[name], layers[name].weight_bits, known[name].order) for name in names]
