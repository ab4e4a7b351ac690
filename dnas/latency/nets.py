"""Whole nets of some widths and filters, ready to run, and random ones."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from dnas.export.stored import StoredNet
from dnas.quantization.calibration import calibrate
from dnas.quantization.conversion import QuantizerChoice, fixed_copy
from search_spaces.assignments import BitAssignment, LayerBits, ModelReference, kept_rows_of
from search_spaces.channels.slicing import remove_filters
from search_spaces.costs.latency import LANES
from search_spaces.errors import InputError
from search_spaces.fields import Pair
from search_spaces.groups import kept_rows, kept_units
from search_spaces.layers import LayerGraph
from search_spaces.models.copies import copy_network

CHOICE = QuantizerChoice("lsq", "pact", per_channel=True)
"""The usual quantizers: nested weights of 8 bits are odd integers, which no runtime has 8 bits for."""
_IMAGES = 2
_FEWEST = 0.25
"""The share of its filters that a group keeps at least in a random net: fewer were not measured."""


class NetMaker:
    """Makes nets of a float ``network``, which is left untouched; times do not depend on what they have learned.

    Ranges are those of seeded noise, found once for all widths. Weights that are equal, such as those of untrained
    BatchNorms, are made to differ, so that each is a tensor of its own in a file.
    """

    def __init__(self, network: nn.Module, graph: LayerGraph, choice: QuantizerChoice = CHOICE) -> None:
        if graph.signature is not None:
            raise InputError(
                "times are measured of networks that take one tensor of floats, and this one does not; give "
                "a table of its own (costs.latency_table) or a cost function"
            )
        self.graph, self.choice, self.shape = graph, choice, tuple(graph.input_shape)
        self.network = _with_weights_of_their_own(network)
        self._calibrated: dict[Pair, nn.Module] = {}

    @property
    def images(self) -> Tensor:
        """Seeded noise (2, C, H, W)."""
        return torch.randn(_IMAGES, *self.shape, generator=torch.Generator().manual_seed(0))

    def stored(self, layers: Mapping[str, LayerBits]) -> StoredNet:
        """The net with these bits and filters."""
        whole = {name: LayerBits(bits.weight_bits, bits.activation_bits) for name, bits in layers.items()}
        fixed = fixed_copy(self.network, self.graph, whole, self.choice)
        for name, bits in whole.items():
            if not bits.is_float:
                known = self._with_ranges((bits.weight_bits, bits.activation_bits)).get_submodule(name)
                fixed.get_submodule(name).load_state_dict(known.state_dict())
        kept = kept_units(self.graph.channels, kept_rows_of(layers))
        fixed = remove_filters(fixed, self.graph.channels, kept) if kept else fixed
        assignment = BitAssignment("net", ModelReference("own", self.shape), dict(layers))
        return StoredNet(fixed.eval(), self.graph, assignment, self.choice, images=self.images)

    def _with_ranges(self, pair: Pair) -> nn.Module:
        """The net with these widths in every layer, calibrated."""
        if pair not in self._calibrated:
            made = fixed_copy(self.network, self.graph, self.uniform(pair), self.choice)
            calibrate(made, [self.images])
            self._calibrated[pair] = made
        return self._calibrated[pair]

    def uniform(self, pair: Pair) -> dict[str, LayerBits]:
        """The same widths in every layer."""
        return {spec.name: LayerBits(*pair, spec.out_channels) for spec in self.graph.layers}


def _with_weights_of_their_own(network: nn.Module) -> nn.Module:
    twin = copy_network(network)
    noise = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for tensor in (*twin.parameters(), *twin.buffers()):
            if tensor.is_floating_point() and tensor.ndim:
                tensor += 1e-3 * torch.rand(tensor.shape, generator=noise)
    return twin


def random_layers(
    graph: LayerGraph, pairs: Sequence[Pair], draw: random.Random, *, prunes: bool
) -> dict[str, LayerBits]:
    """Random widths for every layer, and random filters for every group.

    One pair is the favourite of the whole net, by a random share, so that sums lie far apart; so is the ratio of
    filters.
    """
    favourite, share = draw.choice(pairs), draw.random()
    chosen = {s.name: favourite if draw.random() < share else draw.choice(pairs) for s in graph.layers}
    kept: dict[str, tuple[int, ...]] = {}
    if prunes:
        middle = draw.uniform(_FEWEST, 1.0)
        for group in graph.channels.groups:
            ratio = min(1.0, max(_FEWEST, draw.gauss(middle, 0.15)))
            count = min(group.units, LANES * math.ceil(group.units * ratio / LANES))
            if count < group.units:
                kept[group.name] = tuple(range(count))
    rows = kept_rows(graph.channels, kept)
    layers = {}
    for spec in graph.layers:
        stays = rows.get(spec.name)
        layers[spec.name] = LayerBits(*chosen[spec.name], len(stays) if stays else spec.out_channels, stays)
    return layers
