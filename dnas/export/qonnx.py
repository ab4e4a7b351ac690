"""A fixed quantized net as QONNX: Quant with the width of each tensor, for FPGA tools.

The batch size is 1, as these tools want shapes that are known. Zero points are 0 and scales are inside Quant, as tools
take a tensor for fp32 behind any other node: the gain of an input is in the next weight. Scales of single filters stand
behind the layer, whose weights are integers then. A sign is a Quant of 1 bit.
Weights that have no zero among their levels are the odd integers, of one bit more; such inputs are a Quant that floors
and half a step added behind it.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from torch import nn

from dnas.export.calls import rows_of
from dnas.export.fixed_layers import FixedLayer, Levels, StoredLayer
from dnas.export.graph_export import Feeds
from dnas.export.onnx_folding import fold
from dnas.export.onnx_nodes import Initializers
from dnas.export.onnx_packages import need
from dnas.export.onnx_tracing import Tap, replace_marks
from dnas.export.qonnx_operators import move_scales_behind, with_known_operators
from dnas.quantization.schemes import GappedWeight
from search_spaces.errors import InputError

_DOMAIN = "qonnx.custom_op.general"
_IR_VERSION = 8


@dataclass(frozen=True)
class QonnxFormat:
    """QONNX for one image at a time."""

    name: str = "qonnx"
    packages: tuple[str, ...] = ("onnx", "onnxscript", "onnxruntime", "qonnx")
    opset: int = 18
    batch: int | None = 1

    def write(self, model: Any, network: nn.Module, layers: Mapping[str, FixedLayer]) -> QonnxNet:
        """Put Quant nodes where the marks are."""
        for layer in layers.values():
            if isinstance(layer.weight, GappedWeight):
                raise InputError(
                    f"layer '{layer.name}' has {layer.weight.words}, which QONNX has no node for; "
                    "export it as onnx or packed"
                )
        written, folds = fold(model, layers, network, norms=False)
        move_scales_behind(model, written, folds)
        taps = replace_marks(model, written, QonnxBuilder(), folds)
        model.opset_import.append(need(self.name, "onnx")[0].helper.make_opsetid(_DOMAIN, 1))
        model.ir_version = _IR_VERSION
        model = with_shapes(model)
        with_known_operators(model)
        return QonnxNet(with_shapes(model), taps)


@dataclass(frozen=True)
class QonnxNet:
    """The graph of one net."""

    model: Any
    taps: Sequence[Tap]

    def run(self, feeds: Feeds, names: list[str]) -> Mapping[str, np.ndarray]:
        """In QONNX's executor."""
        return run_qonnx(self.model, feeds, names)

    def finish(self, feeds: Feeds) -> tuple[Mapping[str, StoredLayer], Sequence[str]]:
        """Nothing is left to do."""
        return {}, ()


def with_shapes(model: Any) -> Any:
    """The model with the shape of every tensor, which QONNX's executor and the tools want."""
    wrapper, shapes = need("qonnx", "qonnx.core.modelwrapper", "qonnx.transformation.infer_shapes")
    drawn = random.getstate()
    random.seed(0)  # qonnx draws the names of tensors: the same net is the same file
    try:
        return wrapper.ModelWrapper(model).transform(shapes.InferShapes()).model
    finally:
        random.setstate(drawn)


def run_qonnx(model: Any, feeds: Feeds, names: list[str]) -> dict[str, np.ndarray]:
    """Run ``model`` on each sample of its inputs in QONNX's executor: these, outputs, and the tensors ``names``."""
    wrapper, executor = need("qonnx", "qonnx.core.modelwrapper", "qonnx.core.onnx_exec")
    wrapped = wrapper.ModelWrapper(model)
    made = {name for node in model.graph.node for name in node.output}
    wanted = [name for name in dict.fromkeys([*names, *(out.name for out in model.graph.output)]) if name in made]
    fixed = {name for name in wanted if name.endswith(".weight.dequantized")}
    with _readable_versions(executor):
        samples = rows_of(feeds)
        runs = [executor.execute_onnx(wrapped, sample, return_full_exec_context=True) for sample in samples]
    found = {
        name: np.array(runs[0][name]) if name in fixed else np.concatenate([np.asarray(run[name]) for run in runs])
        for name in wanted
    }
    return {**feeds, **found}


@contextmanager
def _readable_versions(executor: Any) -> Iterator[None]:
    """Let the executor hand ONNX Runtime the version of its files that both know; onnx's newest may be too new."""
    make_model = executor.qonnx_make_model

    def make_readable_model(*args: Any, **kwargs: Any) -> Any:
        model = make_model(*args, **kwargs)
        model.ir_version = _IR_VERSION
        return model

    executor.qonnx_make_model = make_readable_model
    try:
        yield
    finally:
        executor.qonnx_make_model = make_model


class QonnxBuilder(Initializers):
    """Quantizers as nodes of QONNX."""

    def __init__(self) -> None:
        super().__init__("qonnx")

    def weight(self, layer: FixedLayer, target: str) -> list[Any]:
        """Quant of weights that lie on its grid."""
        found, name = layer.weight, f"{layer.name}.weight"
        assert found is not None
        assert not isinstance(found, GappedWeight)
        levels = found.levels
        values = self.constant(f"{name}.values", (found.codes + levels.centre) * found.along_axis(levels.level_step))
        if levels.centre:  # the odd integers, by half the step
            bits, step = 1 if _is_sign(levels) else levels.bits + 1, levels.level_step / 2
            levels = replace(levels, bits=bits, low=2 * levels.low + 1, high=2 * levels.high + 1, level_step=step)
        scale = self.constant(f"{name}.scale", found.along_axis(levels.level_step))
        return [self._quant(values, scale, levels, "ROUND", target)]

    def input(self, layer: FixedLayer, source: str, target: str) -> list[Any]:
        """Quant, then the gain, then half a step where the grid has no zero."""
        levels, name = layer.input, f"{layer.name}.input"
        assert levels is not None
        threshold, step = float(levels.threshold_step[0]), float(levels.level_step[0])
        if _is_sign(levels):
            return [self._quant(source, self.constant(f"{name}.scale", step / 2), levels, "ROUND", target)]
        scale = self.constant(f"{name}.scale", threshold)
        behind = [("Mul", [self.constant(f"{name}.gain", step / threshold)])] if step != threshold else []
        behind += [("Add", [self.constant(f"{name}.half_step", step / 2)])] if levels.centre else []
        quantized = f"{target}.quantized" if behind else target
        node = self._quant(source, scale, levels, "ROUND" if levels.rounds else "FLOOR", quantized)
        return [node, *(self.chain(quantized, target, behind) if behind else [])]

    def _quant(self, source: str, scale: str, levels: Levels, rounding: str, target: str) -> Any:
        zero, bits = self.constant("quant.zero", 0.0), self.constant(f"quant.bits.{levels.bits}", levels.bits)
        signed = int(levels.low < 0)
        narrow = int(levels.bits > 1 and levels.low == 1 - 2 ** (levels.bits - 1))
        return self._node(
            "Quant", [source, scale, zero, bits], target, signed=signed, narrow=narrow, rounding_mode=rounding
        )

    def _node(self, operator: str, inputs: list[str], target: str, **attributes: Any) -> Any:
        return self.onnx.helper.make_node(
            operator, inputs, [target], name=f"{target}_node", domain=_DOMAIN, **attributes
        )


def _is_sign(levels: Levels) -> bool:
    """Whether the levels are two, one on each side of zero."""
    return (levels.low, levels.high, levels.centre) == (-1, 0, 0.5)
