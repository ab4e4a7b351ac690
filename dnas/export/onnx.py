"""A fixed quantized net as ONNX: integer weights, QuantizeLinear and DequantizeLinear (docs/export-formats.md)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from dnas.export.calls import rows_of
from dnas.export.fixed_layers import FixedLayer, StoredLayer
from dnas.export.graph_export import ASSIGNMENT_KEY, Feeds
from dnas.export.onnx_biases import place_biases, round_biases
from dnas.export.onnx_check import check_same_results
from dnas.export.onnx_folding import fold
from dnas.export.onnx_layers import name_operators, stored_layers
from dnas.export.onnx_nodes import OnnxBuilder
from dnas.export.onnx_packages import need
from dnas.export.onnx_ranges import pads_before_quantizers, ranges_as_integers, strides_on_integers
from dnas.export.onnx_residuals import RESIDUAL_BITS, quantize_tensors, unquantized
from dnas.export.onnx_tracing import Tap, replace_marks
from dnas.export.runtimes import extra_of, is_installed, run_graph
from dnas.export.targets import DEFAULT_TARGET, Target, find_target
from search_spaces.assignments import BitAssignment
from search_spaces.errors import InputError


@dataclass(frozen=True)
class OnnxFormat:
    """ONNX for one target."""

    target: Target = field(default_factory=lambda: find_target(DEFAULT_TARGET))
    residual_bits: int | None = None
    name: str = "onnx"
    packages: tuple[str, ...] = ("onnx", "onnxruntime", "onnxscript")
    batch: int | None = None

    @property
    def opset(self) -> int:
        """That of the target."""
        return self.target.opset

    def write(self, model: Any, network: nn.Module, layers: Mapping[str, FixedLayer]) -> OnnxNet:
        """Fold what is exact, and put integers where the marks are."""
        target = self.target
        written, folds = fold(model, layers, network, norms=True, negative_scales=target.negative_scales)
        builder = OnnxBuilder(target)
        taps = replace_marks(model, written, builder, folds)
        place_biases(model, taps, builder)
        round_biases(model, taps, written, builder)
        model.ir_version = target.ir_version
        name_operators(model, taps)
        return OnnxNet(model, taps, written, builder, self.residual_bits is not None)


@dataclass(frozen=True)
class OnnxNet:
    """The graph of one net for one target."""

    model: Any
    taps: Sequence[Tap]
    layers: Mapping[str, FixedLayer]
    builder: OnnxBuilder
    residuals: bool

    def run(self, feeds: Feeds, names: list[str]) -> Mapping[str, np.ndarray]:
        """In ONNX Runtime, without what changes values."""
        return run_graph(self.model, feeds, names)

    def finish(self, feeds: Feeds) -> tuple[Mapping[str, StoredLayer], Sequence[str]]:
        """Quantize sums if asked, move the limits of integers, and look what the target's runtime makes of it."""
        model, target = self.model, self.builder.target
        notes = [self._quantize_sums(feeds)] if self.residuals else []
        if target.integer_operators and target.runtime is not None and not is_installed(target.runtime):
            notes.append(
                f"what runs in integers was not looked at: {target.runtime} is not there; "
                f"pip install 'dnas[{extra_of(target.runtime)}]'"
            )
        if target.integer_operators:
            before = run_graph(model, feeds, [])
            arrange(model, target)
            check_same_results(run_graph(model, feeds, []), before)
        first = rows_of(feeds)[0]
        run_graph(model, first, [], optimized=True)  # as a user would: another batch size, every optimization
        return stored_layers(model, self.taps, self.layers, self.builder), notes

    def _quantize_sums(self, feeds: Feeds) -> str:
        """Quantize what nothing else does, by its range on ``x``, and tell what that changes."""
        names = unquantized(self.model, self.taps, self.builder)
        before = run_graph(self.model, feeds, names)
        quantize_tensors(self.model, {name: before[name] for name in names}, self.builder.target.input_types)
        round_biases(self.model, self.taps, self.layers, self.builder)
        after = run_graph(self.model, feeds, [])
        return _change(before, {name: values for name, values in after.items() if name not in feeds}, len(names))


def arrange(model: Any, target: Target) -> None:
    """Move pads, strides and the limits of integers to where the target's runtime wants them, in place."""
    pads_before_quantizers(model)
    if target.strided_integers:
        strides_on_integers(model)
    if target.ranges == "integers":
        ranges_as_integers(model)


def _change(before: Mapping[str, np.ndarray], after: Mapping[str, np.ndarray], count: int) -> str:
    """What ``count`` more quantized tensors do to the results, in words."""
    numbers = {name: (before[name].astype(np.float64), values.astype(np.float64)) for name, values in after.items()}
    off = max(float(np.abs(found - known).max()) for known, found in numbers.values())
    largest = max(float(np.abs(known).max()) for known, _ in numbers.values())
    told = (
        f"{count} sums and outputs in {RESIDUAL_BITS} bits move results by up to {off:.3g} where {largest:.3g} is most"
    )
    name = next(iter(after))
    first = before[name]
    if first.ndim != 2:
        return told
    same = int((first.argmax(1) == after[name].argmax(1)).sum())
    return f"{told}; the largest output is the same for {same} of {len(first)} images"


def read_assignment(path: Path) -> BitAssignment:
    """The assignment that an ONNX or QONNX file was made of."""
    (onnx,) = need("onnx", "onnx")
    for entry in onnx.load(path).metadata_props:
        if entry.key == ASSIGNMENT_KEY:
            return BitAssignment.loads(entry.value)
    raise InputError(f"{path} holds no assignment")
