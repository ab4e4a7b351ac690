"""Quantizers as ONNX's own operators, in the types that a target loads.

What each grid becomes, with the words of :mod:`dnas.export.fixed_layers`:

* weights: integers q in the first type of the target that holds them, times ``level_step``. Where levels stand around
  zero, the odd integers 2q + 1 times half a step, or else q with half a step added;
* inputs that round: QuantizeLinear by ``threshold_step`` and DequantizeLinear by ``level_step``; where the type is
  wider than the grid, Clip in front of them, or on the integers between them;
* inputs whose thresholds are at multiples of the step: Div, Floor, Clip, Add, Mul in fp32. Zero is a threshold there
  and frequent, and QuantizeLinear, which rounds half to even, would give zeros either of two levels;
* inputs of layers whose weight stays fp32 are arithmetic too: ONNX Runtime would round that weight to 8 bits. So are
  those that no type of the target holds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from dnas.export.fixed_layers import DenseWeight, FixedLayer, Levels
from dnas.export.onnx_packages import need
from dnas.export.onnx_types import bits_of, first_holding, holds, packed, type_range
from dnas.export.targets import Target
from dnas.quantization.schemes import GappedWeight

_MOST_OF_PAIRS = 2**15 - 1


@dataclass(frozen=True)
class StoredTensor:
    """How the weight of a layer is stored: the type, how many bytes, and one step per filter or one in all.

    ``even`` is False where half a step is added, or there is a gap around zero: no runtime takes these for integers.
    """

    kind: str
    stored_bytes: int
    step: np.ndarray
    even: bool = True


class Initializers:
    """The constants of a graph; equal ones are stored once."""

    def __init__(self, format: str) -> None:
        (self.onnx,) = need(format, "onnx")
        self.initializers: dict[str, Any] = {}
        self._names: dict[Any, str] = {}

    def constant(self, name: str, values: Any, kind: str = "FLOAT") -> str:
        """The name of a constant with these values."""
        array = np.asarray(values, dtype=np.float32 if kind == "FLOAT" else np.int64)
        key = (kind, array.shape, array.tobytes())
        if key not in self._names:
            code = getattr(self.onnx.TensorProto, kind)
            data = array.tobytes() if kind == "FLOAT" else packed(array, kind)
            self.initializers[name] = self.onnx.helper.make_tensor(name, code, array.shape, data, raw=True)
            self._names[key] = name
        return self._names[key]

    def chain(self, source: str, target: str, steps: list[tuple[str, list[str]]], **attributes: Any) -> list[Any]:
        """Nodes that apply operators one after the other: (operator, its other inputs)."""
        nodes, name = [], source
        for at, (operator, others) in enumerate(steps):
            out = target if at == len(steps) - 1 else f"{target}.{at}"
            extra = attributes.get(operator, {})
            nodes.append(self.onnx.helper.make_node(operator, [name, *others], [out], name=f"{out}_node", **extra))
            name = out
        return nodes


class OnnxBuilder(Initializers):
    """Quantizers as ONNX's own operators; ``weights`` and ``inputs`` tell what was stored for each layer.

    ``bias_errors`` are those of rounded biases, in steps of what follows.
    """

    def __init__(self, target: Target) -> None:
        super().__init__("onnx")
        self.target = target
        self.weights: dict[str, StoredTensor] = {}
        self.inputs: dict[str, str] = {}
        self.bias_errors: dict[str, float] = {}

    def in_integers(self, name: str) -> bool:
        """Whether the weight and the input of a layer are integers of 8 bits at most, with nothing in between."""
        weight, entry = self.weights.get(name), self.inputs.get(name, "FLOAT")
        if weight is None or not weight.even or entry == "FLOAT":
            return False
        return weight.kind != "FLOAT" and bits_of(weight.kind) <= 8 and bits_of(entry) <= 8

    def weight(self, layer: FixedLayer, target: str) -> list[Any]:
        """DequantizeLinear of integers."""
        if isinstance(layer.weight, GappedWeight):
            return self._gapped(layer.name, layer.weight, target)
        found = layer.weight
        assert found is not None
        kind, odd = _weight_type(found.levels, self.target)
        if not kind:
            return self._float(layer.name, found, target)
        codes, step = found.codes, found.levels.level_step
        if odd:
            codes, step = 2 * codes + 1, step / 2
        finer = _finer(odd, layer) if self.target.biases == "integers" and kind == "INT8" else 1
        codes, step = _silenced(found, codes * finer, step / finer)
        even = odd or not found.levels.centre
        self.weights[layer.name] = StoredTensor(kind, len(packed(codes, kind)), step, even)
        name = f"{layer.name}.weight"
        stored = self.constant(f"{name}.codes", codes, kind)
        scale = self.constant(f"{name}.scale", step.reshape(()) if found.axis is None else step)
        steps = [("DequantizeLinear", [scale])]
        if not even:
            half = step / 2 if found.silent is None else np.where(found.silent, 0.0, step / 2)
            steps.append(("Add", [self.constant(f"{name}.half_step", found.along_axis(half))]))
        axis = {} if found.axis is None else {"DequantizeLinear": {"axis": found.axis}}
        return self.chain(stored, target, steps, **axis)

    def _float(self, name: str, weight: DenseWeight, target: str) -> list[Any]:
        """What no type of the target holds, as the values that they stand for."""
        values = (weight.codes + weight.levels.centre) * weight.along_axis(weight.levels.level_step)
        if weight.silent is not None:
            values = np.where(weight.along_axis(weight.silent), 0.0, values)
        stored = self.constant(f"{name}.weight.values", values)
        self.weights[name] = StoredTensor("FLOAT", 4 * values.size, weight.levels.level_step, even=False)
        return self.chain(stored, target, [("Identity", [])])

    def _gapped(self, name: str, weight: GappedWeight, target: str) -> list[Any]:
        """Multiples of the step, and by the sign what is missing: m stands for start + (m - 1) step."""
        kind = first_holding(self.target.weight_types, *_gapped_range(weight))
        if not kind:
            return self._gapped_values(name, weight, target)
        size = len(packed(weight.codes, kind))
        self.weights[name] = StoredTensor(kind, size, np.array([weight.step]), even=False)
        stored = self.constant(f"{name}.weight.codes", weight.codes, kind)
        if weight.step == weight.start or not weight.step:  # zero is a level like the others, or there is one level
            scale = self.constant(f"{name}.weight.scale", weight.start)
            return self.chain(stored, target, [("DequantizeLinear", [scale])])
        scale = self.constant(f"{name}.weight.scale", weight.step)
        missing = self.constant(f"{name}.weight.gap", weight.start - weight.step)
        multiples, gaps = f"{target}.multiples", f"{target}.gaps"
        return [
            *self.chain(stored, multiples, [("DequantizeLinear", [scale])]),
            *self.chain(multiples, gaps, [("Sign", []), ("Mul", [missing])]),
            *self.chain(multiples, target, [("Add", [gaps])]),
        ]

    def _gapped_values(self, name: str, weight: GappedWeight, target: str) -> list[Any]:
        missing = weight.start - weight.step
        values = weight.codes * weight.step + np.sign(weight.codes) * missing
        self.weights[name] = StoredTensor("FLOAT", 4 * values.size, np.array([weight.step]), even=False)
        return self.chain(self.constant(f"{name}.weight.values", values), target, [("Identity", [])])

    def input(self, layer: FixedLayer, source: str, target: str) -> list[Any]:
        """QuantizeLinear and DequantizeLinear, or arithmetic."""
        assert layer.input is not None
        levels, name = layer.input, f"{layer.name}.input"
        kind, zero = _input_type(levels, self.target)
        if not levels.rounds or layer.weight is None or not kind:
            self.inputs[layer.name] = "FLOAT"
            return self._arithmetic(name, levels, source, target)
        self.inputs[layer.name] = kind
        threshold, step = float(levels.threshold_step[0]), float(levels.level_step[0])
        apart, scale = self.constant(f"{name}.threshold_step", threshold), self.constant(f"{name}.scale", step)
        point = self.constant(f"{kind.lower()}.{zero}", zero, kind)
        ends = {"low": levels.low, "high": levels.high}
        before, between = [], []
        if (levels.low + zero, levels.high + zero) != type_range(kind):
            if self.target.ranges == "floats":
                before = [("Clip", [self.constant(f"{name}.{end}", threshold * at) for end, at in ends.items()])]
            else:
                limits = [self.constant(f"{kind.lower()}.{at + zero}", at + zero, kind) for at in ends.values()]
                between = [("Clip", limits)]
        quantize, dequantize = ("QuantizeLinear", [apart, point]), ("DequantizeLinear", [scale, point])
        return self.chain(source, target, [*before, quantize, *between, dequantize])

    def _arithmetic(self, name: str, levels: Levels, source: str, target: str) -> list[Any]:
        apart = self.constant(f"{name}.threshold_step", float(levels.threshold_step[0]))
        low, high = (self.constant(f"{name}.{end}", getattr(levels, end)) for end in ("low", "high"))
        centre, scale = self.constant("half", 0.5), self.constant(f"{name}.scale", float(levels.level_step[0]))
        half = [("Add", [centre])] if levels.rounds else []
        middle = [("Add", [centre])] if levels.centre else []
        steps = [("Div", [apart]), *half, ("Floor", []), ("Clip", [low, high]), *middle, ("Mul", [scale])]
        return self.chain(source, target, steps)


def _input_type(levels: Levels, target: Target) -> tuple[str, int]:
    """The type of an input, and its zero point; empty where no type holds its codes."""
    for kind in target.input_types:
        zero = 2 ** (bits_of(kind) - 1) if levels.low < 0 and target.zero_points else 0
        if holds(kind, levels.low + zero, levels.high + zero):
            return kind, zero
    return "", 0


def _silenced(weight: DenseWeight, codes: np.ndarray, step: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Zeros where the weight is silent, with a step like those of the others."""
    if weight.silent is None:
        return codes, step
    return np.where(weight.along_axis(weight.silent), 0, codes), np.where(weight.silent, np.median(np.abs(step)), step)


def _weight_type(levels: Levels, target: Target) -> tuple[str, bool]:
    """The type of a weight, and whether it holds the odd integers 2q + 1; empty where no type holds its codes."""
    plain = first_holding(target.weight_types, levels.low, levels.high)
    if not levels.centre:
        return plain, False
    ends = 2 * levels.low + 1, 2 * levels.high + 1
    small = [kind for kind in target.weight_types if bits_of(kind) <= 8]
    odd = plain if plain and holds(plain, *ends) else first_holding(small, *ends)
    return (odd, True) if odd == plain or (odd and not target.half_steps) else (plain, False)


def _finer(odd: bool, layer: FixedLayer) -> int:
    """By what the codes of a weight are multiplied, and its step divided, so that biases have small steps.

    AVX2 adds two products with an input of 8 bits in 16 bits, which must not be more than they hold.
    """
    assert isinstance(layer.weight, DenseWeight)
    levels, factor = layer.weight.levels, 1
    low, high = (2 * end + 1 if odd else end for end in (levels.low, levels.high))
    most = _MOST_OF_PAIRS // (2 * _span(layer.input))
    while holds("INT8", 2 * factor * low, 2 * factor * high) and 2 * factor * max(-low, high) <= most:
        factor *= 2
    return factor


def _span(levels: Levels | None) -> int:
    return 255 if levels is None or levels.low < 0 else max(levels.high, 1)


def _gapped_range(weight: GappedWeight) -> tuple[int, int]:
    """Least and greatest code; below zero at least by one, as weights are signed."""
    return min(-1, int(weight.codes.min())), int(weight.codes.max())
