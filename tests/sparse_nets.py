"""Small nets whose inner layers are sparse."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from dnas.quantization.conversion import QuantizerChoice, quantize_fixed
from results.packed.file import PackedFile
from search_spaces.assignments import LayerBits
from search_spaces.sparse_weights.codes import decode, encode
from search_spaces.sparse_weights.scheme import SparseWeights
from tests.packed_nets import Packed, packed_net
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


def sparse_net(path: Path, name: str) -> Packed:
    """A case whose weights are all sparse, stored as it is smallest."""
    scheme = SparseWeights(0.3)
    return packed_net(
        path, name, lambda graph: {s.name: LayerBits(3, 4, s.out_channels, scheme=scheme) for s in graph.layers}
    )


def stored_as(file: PackedFile, format: str) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The description and the tensors of a sparse net with all its codes in one format."""
    described, tensors = copy.deepcopy(dict(file.description)), dict(file.tensors)
    for layer in described["layers"].values():
        stored = layer["weight"]
        if stored["storage"] != "shared":
            widths = stored["nonzeros"], stored["bits"], stored["dense_bits"]
            codes = decode(tensors[stored["tensor"]].tobytes(), stored["storage"], tuple(layer["shape"]), *widths)
            data = encode(codes, format, *widths[1:])
            tensors[stored["tensor"]], stored["storage"] = np.frombuffer(data, np.uint8), format
    return described, tensors
