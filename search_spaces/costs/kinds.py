"""The costs there are: what each says of one layer, their names, and what is told of a name that none has.

Nothing here waits for torch.

``size_bytes`` is what a packed file takes: the weights of a layer as bit planes, each plane rounded up to a byte;
one fp32 scale per quantized weight tensor (or output channel) and per quantized input; biases in fp32; BatchNorm
folded to one scale and one shift per channel; everything else in fp32. 32 bits mean fp32 without scales.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from search_spaces.errors import InputError, kind_of, nearest
from search_spaces.layers import FLOAT_BITS, LayerGraph, LayerSpec

LATENCY = "latency_ms"
"""The name of the cost that a latency table gives."""
COMBINATIONS = ("sum", "max")
LayerCost = Callable[[LayerSpec, int, int], float]
"""A cost of one layer at (weight bits, activation bits); a skipped layer is never asked for."""


def _nothing(graph: LayerGraph) -> float:
    return 0.0


@dataclass(frozen=True)
class Cost:
    """A named cost: its unit, what one layer costs, and how layers combine (``"sum"`` or ``"max"``).

    ``network`` is what the rest of the network costs whatever the bits. ``shrinks`` says whether a layer with fewer
    filters or inputs costs less, so that pruning can meet a budget on it.
    """

    name: str
    unit: str
    layer: LayerCost
    combine: str = "sum"
    network: Callable[[LayerGraph], float] = _nothing
    shrinks: bool = True

    def __post_init__(self) -> None:
        if self.combine not in COMBINATIONS:
            raise InputError(
                f"cost '{self.name}': layers combine by {' or '.join(map(repr, COMBINATIONS))}, not {self.combine!r}"
            )
        for what, given in (("layer", self.layer), ("network", self.network)):
            if not callable(given):
                raise InputError(f"cost '{self.name}': {what} is {kind_of(given)}, not a function")

    def of_layer(self, spec: LayerSpec, weight_bits: int, activation_bits: int) -> float:
        """The cost of one layer; 0 for a skipped one."""
        return float(self.layer(spec, weight_bits, activation_bits)) if weight_bits else 0.0

    def total(self, values: Sequence[float], rest: float) -> float:
        """Combine the costs of the layers with that of the rest of the network."""
        return max([rest, *values]) if self.combine == "max" else float(np.sum(values, dtype=np.float64)) + rest


def packed_weight_bytes(elements: int, bits: int) -> int:
    """Bytes of ``elements`` integers of ``bits`` bits stored as bit planes, or as fp32 at 32 bits.

    >>> packed_weight_bytes(9, 3), packed_weight_bytes(9, 32)
    (6, 36)
    """
    return 4 * elements if bits == FLOAT_BITS else bits * -(-elements // 8)


def size_bytes(per_channel: bool = False) -> Cost:
    """The size of the packed file, without its header."""
    return Cost("size_bytes", "bytes", partial(_size_bytes, per_channel=per_channel), network=_other_bytes)


def _size_bytes(spec: LayerSpec, weight_bits: int, activation_bits: int, *, per_channel: bool) -> float:
    weights = 0
    if spec.shares_weight_with is None:
        weights = packed_weight_bytes(spec.weight_elements, weight_bits)
        if weight_bits != FLOAT_BITS:
            weights += 4 * (scale_rows(spec) if per_channel else 1)
    input_scale = 0 if activation_bits == FLOAT_BITS else 4
    return weights + input_scale + 4 * spec.bias_elements + 2 * 4 * spec.norm_channels


def _other_bytes(graph: LayerGraph) -> float:
    return float(graph.other_bytes)


def scale_rows(spec: LayerSpec) -> int:
    """Rows of the weight that get a scale each: output channels (per group, where a transposed layer is grouped)."""
    return spec.out_channels // spec.groups if "Transpose" in spec.kind else spec.out_channels


def _bitops(spec: LayerSpec, weight_bits: int, activation_bits: int) -> float:
    return spec.macs * weight_bits * activation_bits


def _macs(spec: LayerSpec, weight_bits: int, activation_bits: int) -> float:
    return spec.macs


def _input_bytes(spec: LayerSpec, weight_bits: int, activation_bits: int) -> float:
    return -(-spec.input_elements * activation_bits // 8)


def _weight_bits(spec: LayerSpec, weight_bits: int, activation_bits: int) -> float:
    return 0.0 if spec.shares_weight_with else spec.weight_elements * weight_bits


WEIGHT_BITS = Cost("weight_bits", "bits", _weight_bits)
"""Bits of the weights alone, as papers count size: no scales, biases, BatchNorm or padding."""
BITOPS = Cost("bitops", "bit operations", _bitops)
MACS = Cost("macs", "multiply-accumulates", _macs)
PEAK_ACTIVATION_BYTES = Cost("peak_activation_bytes", "bytes", _input_bytes, combine="max")
"""The largest input that any layer reads, of one sample at its activation bits."""


def built_in_costs(per_channel: bool = False) -> list[Cost]:
    """The five that every job knows."""
    return [size_bytes(per_channel), BITOPS, MACS, WEIGHT_BITS, PEAK_ACTIVATION_BYTES]


def cost_names(latency: bool, functions: Iterable[str]) -> list[str]:
    """The names of all costs of a job that has a ``latency`` table or none, and these ``functions`` of its own."""
    return [*(cost.name for cost in built_in_costs()), *([LATENCY] if latency else []), *functions]


def require_cost(name: str, known: Collection[str], key: str = "") -> None:
    """Raise :class:`InputError` with the nearest name for a cost that is not ``known``, where a ``key`` names it."""
    if name not in known:
        where = f"{key}: " if key else ""
        next_step = (
            "; a latency needs costs.latency_table, which dnas bench-latency writes"
            if name == LATENCY
            else nearest(name, known)
        )
        raise InputError(f"{where}unknown cost '{name}'; known are {', '.join(known)}{next_step}")
