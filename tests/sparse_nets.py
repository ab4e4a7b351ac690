"""Small nets whose inner layers are sparse."""

from __future__ import annotations

from dataclasses import replace

from torch import nn

from dnas.quantization.conversion import QuantizerChoice, quantize_fixed
from search_spaces.assignments import LayerBits
from search_spaces.sparse_weights.scheme import SparseWeights
from tests.toys import plan

OPTIONS = {"weight_bits": (4,), "activation_bits": (4,), "first_layer": 32, "last_layer": 32}


def sparse_layers(model: nn.Module, sigma: float = 0.0, bits: int = 4) -> dict[str, LayerBits]:
    _, space, _ = plan(model, **OPTIONS)
    names = [name for decision in space.decisions for name in decision.layers]
    layers = space.uniform(bits)
    return {n: replace(b, scheme=SparseWeights(sigma)) if n in names else b for n, b in layers.items()}


def quantized(model: nn.Module, sigma: float = 0.0) -> nn.Module:
    graph, _, _ = plan(model, **OPTIONS)
    return quantize_fixed(model, graph, sparse_layers(model, sigma), QuantizerChoice())
