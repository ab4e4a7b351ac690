"""Layers whose own code makes the weight that they multiply with: what serves it, or why it is not one weight."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from search_spaces.models.copies import copy_network
from search_spaces.models.multiplied import is_standard, read_making
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
