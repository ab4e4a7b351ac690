"""Layers whose own code makes the weight that they multiply with: what serves it, or why it is not one weight."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from search_spaces.models.copies import copy_network
from search_spaces.models.multiplied import Products, is_standard, read_making
from search_spaces.network.examples import Call
from search_spaces.network.observation import LayerRecord, Observation


@dataclass(frozen=True)
class Making:
    """Of one layer: why its weight cannot be quantized ("" where it can), and the tensors that only serve it."""

    reason: str
    serving: frozenset[str]


def read_makings(model: nn.Module, seen: Observation) -> dict[str, Making]:
    """Every layer that makes its weight, by name; tried on copies of the layers of ``model``."""
    found = {}
    for name, record in seen.layers.items():
        if record.outputs and record.made and not record.products and not is_standard(record.module):
            found[name] = Making(*read_making(_copy(model, name, record), _sample_shape(record)))
    return found


def _copy(model: nn.Module, name: str, record: LayerRecord) -> nn.Module:
    try:
        return copy_network(model.get_submodule(name))
    except AttributeError:  # a layer that only the observed copy has
        return copy_network(record.module)


def _sample_shape(record: LayerRecord) -> tuple[int, ...]:
    shape = record.inputs[0].shape
    return tuple(shape[1:]) if shape[0] == 1 else tuple(shape)


def varying_weights(twin: nn.Module, seen: Observation, calls: Iterable[Call]) -> set[str]:
    """The layers of ``twin`` that multiply with one weight in one of these calls and with another in the next.

    Such as one that is scaled by a number that the network reads of its input: no tensor leads from one to the other.
    Only a network that asks for values is run, and only where a layer's weight is made or computed.
    """
    layers = {name: record.module for name, record in seen.layers.items() if record.made}
    first: dict[tuple[str, int], Tensor] = {}
    products: Counter[str] = Counter()
    varying: set[str] = set()
    running: list[str] = []

    def note(weight: Tensor) -> Tensor:
        if running and weight.shape == cast(Tensor, layers[running[-1]].weight).shape:
            known = first.setdefault((running[-1], products[running[-1]]), weight.detach().clone())
            products[running[-1]] += 1
            if not torch.allclose(weight, known, rtol=0, atol=0, equal_nan=True):
                varying.add(running[-1])
        return weight

    with torch.no_grad(), torch.random.fork_rng(devices=[]), _named(layers, running), Products(note):
        for call in calls if layers and seen.depends_on_data else ():
            with suppress(Exception):  # drawn data may be nonsense for the network's code
                call.run(twin)
            running.clear()
            products.clear()
    return varying


@contextmanager
def _named(layers: Mapping[str, nn.Module], running: list[str]) -> Iterator[None]:
    """Keep the names of the layers that run in ``running``, the innermost last."""
    with ExitStack() as stack:
        for name, layer in layers.items():
            enter = layer.register_forward_pre_hook(lambda *_, name=name: running.append(name), prepend=True)
            stack.callback(enter.remove)
            stack.callback(layer.register_forward_hook(lambda *_: running.pop() and None).remove)
        yield
