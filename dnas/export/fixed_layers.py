"""The layers of a fixed quantized net as integers: what every export reads, whatever the format.

A grid of this package is a staircase of integers q from ``low`` to ``high``::

    q     = clamp(floor(x / threshold_step + (1/2 if rounds else 0)))
    value = level_step * (q + centre)

Levels that stand around zero without zero among them (nested, DoReFa's signed grid, the sign) have ``centre`` 1/2 and
thresholds at multiples of their step; all others have ``centre`` 0 and round. ``level_step`` is ``threshold_step``
times the gain (of the sign twice that: its two levels are two clips apart).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from dnas.export.parts import smallest_clip, weight_codes
from dnas.quantization.layers import QuantizedLayer, TensorQuantizer
from dnas.quantization.quantizers import Grid
from dnas.quantization.schemes import GappedWeight, SchemeQuantizer
from search_spaces.assignments import BitAssignment
from search_spaces.errors import InputError


@dataclass(frozen=True)
class StoredLayer:
    """How one layer is written: the types of weights and inputs (FLOAT: fp32), and the bytes of the weights.

    ``packed_bytes`` is what the weights take at their own width. ``runs`` says what the runtime does with the layer:
    "integers", "fp32", or "" where nobody looked; ``why`` tells why in fp32. ``bias_error`` is by how much the rounded
    bias is off, in steps of the quantizer that follows (0: it is not rounded).
    """

    weights: str
    inputs: str
    stored_bytes: int
    packed_bytes: int
    runs: str = ""
    why: str = ""
    bias_error: float = 0.0

    @property
    def words(self) -> str:
        """For people."""
        wider = self.stored_bytes - self.packed_bytes if self.packed_bytes else 0
        more = f", {wider:+,} over its own width" if wider else ""
        stored = f"weights {self.weights} ({self.stored_bytes:,} bytes{more}), inputs {self.inputs}"
        reason = f" ({self.why})" if self.why else ""
        stored += f", bias off by {self.bias_error:.2g} steps of the next" if self.bias_error else ""
        return f"{stored}; runs in {self.runs}{reason}" if self.runs else stored


@dataclass(frozen=True)
class ExportedFile:
    """A file for another tool, what it takes, and what the cost table says that the net needs (``size_bytes``).

    ``left_out`` maps layers to what of them the format has no words for, ``layers`` to how they are stored, and
    ``notes`` are sentences on the whole. ``header_bytes`` is what describes the tensors, in a packed file.
    """

    path: Path
    format: str
    file_bytes: int
    ideal_bytes: int | None
    left_out: Mapping[str, str] = field(default_factory=dict)
    layers: Mapping[str, StoredLayer] = field(default_factory=dict)
    notes: Sequence[str] = ()
    header_bytes: int | None = None


@dataclass(frozen=True)
class Levels:
    """The staircase of one tensor; both steps are (R,) float64, one per channel or one in all."""

    bits: int
    low: int
    high: int
    rounds: bool
    centre: float
    threshold_step: np.ndarray
    level_step: np.ndarray


@dataclass(frozen=True)
class DenseWeight:
    """Integers q (int64, of the weight's shape) with their levels; ``axis`` has a step per index (None: one step).

    ``silent`` (R,) says which indices are zero whatever their codes; None where none is.
    """

    codes: np.ndarray
    levels: Levels
    axis: int | None
    silent: np.ndarray | None = None

    def times(self, factor: float | np.ndarray, axis: int | None = None) -> DenseWeight:
        """The weight times one number, or one for each index of ``axis`` (which is its own, if it has one)."""
        factors = np.asarray(factor, dtype=np.float64)
        steps = self.levels.level_step * np.where(factors == 0, 1.0, factors)
        silent = self.silent if factors.all() else np.broadcast_to(factors == 0, steps.shape)
        levels = dataclasses.replace(self.levels, level_step=steps)
        return DenseWeight(self.codes, levels, self.axis if factors.ndim == 0 else axis, silent)

    def along_axis(self, steps: np.ndarray) -> np.ndarray:
        """``steps`` (R,) in a shape that broadcasts against the weight."""
        if self.axis is None:
            return steps.reshape(())
        return steps.reshape([-1 if axis == self.axis else 1 for axis in range(self.codes.ndim)])


@dataclass(frozen=True)
class FixedLayer:
    """One quantized layer; a weight or an input that stays fp32 is None."""

    name: str
    weight: DenseWeight | GappedWeight | None
    input: Levels | None


def fixed_layers(network: nn.Module) -> dict[str, FixedLayer]:
    """Every quantized layer of a fixed net by name; :class:`InputError` for levels that are no even integers."""
    found = ((name, module) for name, module in network.named_modules() if isinstance(module, QuantizedLayer))
    return {name: FixedLayer(name, _weight(name, layer), _input(name, layer)) for name, layer in found}


def ideal_bytes(assignment: BitAssignment) -> int | None:
    """What the assignment's weights, scales and biases take when they are packed; None where it was never priced."""
    size = assignment.cost.get("size_bytes")
    return None if size is None else int(size)


def _weight(name: str, layer: QuantizedLayer) -> DenseWeight | GappedWeight | None:
    quantizer = layer.quantize_weight
    if isinstance(quantizer, SchemeQuantizer):
        return quantizer.gapped(name, layer.float_weight())
    if not quantizer.widths:
        return None
    _check_affine(f"the weight of layer '{name}'", quantizer)
    found = weight_codes(layer)
    levels = _levels(f"the weight of layer '{name}'", quantizer, found.clip)
    grid = _grid(f"the weight of layer '{name}'", quantizer)
    axis = None if len(found.clip) == 1 else quantizer.channel_axis
    return DenseWeight(found.codes - math.floor(grid.offset), levels, axis)


def _input(name: str, layer: QuantizedLayer) -> Levels | None:
    quantizer = layer.quantize_input
    if not quantizer.widths:
        return None
    _check_affine(f"the input of layer '{name}'", quantizer)
    if quantizer.quantizer.clip == "data" or quantizer.quantizer.transform is not None:
        raise InputError(
            f"the input of layer '{name}' is quantized by '{quantizer.quantizer.name}', whose range is that of each "
            "batch; only json and csv hold such a net"
        )
    clip = smallest_clip(quantizer.clip)
    return _levels(f"the input of layer '{name}'", quantizer, clip.float().cpu().numpy().reshape(-1))


def _grid(what: str, quantizer: TensorQuantizer) -> Grid:
    if len(quantizer.bits) > 1:
        raise InputError(f"{what} has {len(quantizer.bits)} candidate widths; only a fixed net is exported")
    return quantizer.quantizer.grid(quantizer.widths[0], quantizer.signed)


def _levels(what: str, quantizer: TensorQuantizer, clip: np.ndarray) -> Levels:
    grid = _grid(what, quantizer)
    shift, fraction = math.floor(grid.offset), grid.offset % 1
    centre = round(2 * (shift + grid.start / grid.step)) / 2
    fits = abs(shift + grid.start / grid.step - centre) < 1e-6
    if not fits or (fraction, centre) not in ((0.5, 0.0), (0.0, 0.5)):
        raise _not_even(what, quantizer)
    lowest = math.floor((-1.0 if quantizer.signed else 0.0) * grid.scale + grid.offset)
    highest = min(math.floor(grid.scale + grid.offset), int(grid.top))
    gain = float(quantizer.gain.detach()[0])
    wide = clip.astype(np.float64)
    return Levels(
        bits=quantizer.widths[0],
        low=lowest - shift,
        high=highest - shift,
        rounds=fraction == 0.5,
        centre=centre,
        threshold_step=wide / grid.scale,
        level_step=wide * gain * grid.step,
    )


def _check_affine(what: str, quantizer: TensorQuantizer) -> None:
    if not quantizer.quantizer.affine:
        raise _not_even(what, quantizer)


def _not_even(what: str, quantizer: TensorQuantizer) -> InputError:
    return InputError(
        f"{what} is quantized by '{quantizer.quantizer.name}', whose levels are no evenly spaced integers; "
        "only json and csv hold such a net"
    )


def as_tensor(x: np.ndarray) -> Tensor:
    """``x`` as a tensor of its own."""
    return torch.from_numpy(np.array(x))
