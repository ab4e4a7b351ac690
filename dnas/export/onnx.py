"""A fixed quantized net as ONNX: integer weights, QuantizeLinear and DequantizeLinear (docs/export-formats.md).

What each grid becomes, with the words of :mod:`dnas.export.fixed_layers`:

* weights: integers q in the smallest type that holds them, times ``level_step``. Where levels stand around zero, the
  odd integers 2q + 1 times half a step if the same type holds them, or else q with half a step added;
* inputs that round: Clip where the type is wider than the grid, QuantizeLinear by ``threshold_step``,
  DequantizeLinear by ``level_step`` (the gain is between them);
* inputs whose thresholds are at multiples of the step: Div, Floor, Clip, Add, Mul in fp32. Zero is a threshold there
  and frequent, and QuantizeLinear, which rounds half to even, would give zeros either of two levels;
* inputs of layers whose weight stays fp32, and biases, are kept away from what a runtime takes for a layer to be run in
  integers: ONNX Runtime rounds an fp32 weight to 8 bits there, and a bias to multiples of the product of both steps,
  which is far off at few bits. So these inputs are arithmetic too, and biases are added behind their layer.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

from dnas.export.fixed_layers import (
    ExportedFile,
    FixedLayer,
    fixed_layers,
    ideal_bytes,
    input_shape_of,
)
from dnas.export.onnx_check import check_inputs, check_same, tensor_names
from dnas.export.onnx_normalisation import normalised, take_pixels
from dnas.export.onnx_packages import need
from dnas.export.onnx_tracing import INPUT, replace_marks, trace
from dnas.export.onnx_types import INPUT_WIDTHS, holds, integer_type, packed, type_range
from dnas.export.parts import deployed_copy
from dnas.quantization.schemes import GappedWeight
from results.files import encode_json, write_bytes
from results.preprocessing import Preprocessing
from search_spaces.assignments import BitAssignment
from search_spaces.errors import InputError
from search_spaces.layers import LayerGraph

FORMAT = "onnx"
ASSIGNMENT_KEY, PREPROCESSING_KEY = "dnas.assignment", "dnas.preprocessing"
_OPSET, _IR_VERSION = 21, 10
"""The first with integers of 4 bits."""
_OPSET_2_BITS, _IR_VERSION_2_BITS = 25, 13
"""The first with integers of 2 bits."""


def export_onnx(
    path: Path,
    network: nn.Module,
    graph: LayerGraph,
    assignment: BitAssignment,
    inputs: Tensor | None = None,
    *,
    preprocessing: Preprocessing | None = None,
    normalise: bool = False,
) -> ExportedFile:
    """Write the fixed net ``network``, made of ``assignment`` by :func:`quantize_fixed` and trained, to ``path``.

    ``graph`` is that of the float network; ``inputs`` (N, C, H, W) are what ONNX Runtime and PyTorch are compared on
    (seeded noise otherwise). The metadata tell ``preprocessing``; with ``normalise`` the file begins with it and takes
    pixels in [0, 1]. Raises :class:`InputError` for a net that ONNX cannot hold, :class:`JobError` naming the first
    layer that differs; nothing is written then.
    """
    need(FORMAT, "onnx", "onnxruntime", "onnxscript")
    network = deployed_copy(network)
    layers = fixed_layers(network)
    builder = OnnxBuilder()
    opset, ir_version = (_OPSET_2_BITS, _IR_VERSION_2_BITS) if _has_2_bits(layers) else (_OPSET, _IR_VERSION)
    model = trace(network, [spec.name for spec in graph.layers], input_shape_of(assignment), opset, batch=None)
    if normalise:
        take_pixels(model, preprocessing)
    taps = replace_marks(model, layers, builder)
    _add_biases_behind(model, {tap.used for tap in taps})
    model.ir_version = ir_version
    describe(model, assignment, preprocessing, normalise)
    x = check_inputs(input_shape_of(assignment)) if inputs is None else inputs.cpu().float()
    found = run_graph(model, x.numpy(), tensor_names(taps))
    run_graph(model, x[:1].numpy(), [], optimized=True)  # as a user would: another batch size, every optimization
    results = {output.name: found[output.name] for output in model.graph.output}
    given = normalised(x, preprocessing) if normalise else x
    check_same(network, layers, taps, found, given, results)
    return write_model(path, FORMAT, model, assignment)


def describe(model: Any, assignment: BitAssignment, preprocessing: Preprocessing | None, normalise: bool) -> None:
    """Put the assignment, how to normalise, and the producer into the model."""
    told = {ASSIGNMENT_KEY: assignment.to_json()}
    if preprocessing is not None:
        told[PREPROCESSING_KEY] = preprocessing.to_json(in_file=normalise)
    for key, value in told.items():
        entry = model.metadata_props.add()
        entry.key, entry.value = key, encode_json(value, what=key)
    model.producer_name, model.producer_version, model.graph.name = "dnas", "", assignment.id


def write_model(path: Path, format: str, model: Any, assignment: BitAssignment) -> ExportedFile:
    """Check the model against the standard and write it in one step."""
    (onnx,) = need(format, "onnx")
    data = model.SerializeToString(deterministic=True)
    onnx.checker.check_model(data)
    write_bytes(path, data)
    return ExportedFile(path, format, len(data), ideal_bytes(assignment))


def read_assignment(path: Path) -> BitAssignment:
    """The assignment that an ONNX or QONNX file of :func:`export_onnx` was made of."""
    (onnx,) = need(FORMAT, "onnx")
    for entry in onnx.load(path).metadata_props:
        if entry.key == ASSIGNMENT_KEY:
            return BitAssignment.from_json(json.loads(entry.value))
    raise InputError(f"{path} holds no assignment")


def run_graph(model: Any, x: np.ndarray, names: list[str], *, optimized: bool = False) -> dict[str, np.ndarray]:
    """Run ``model`` on ``x`` in ONNX Runtime: its outputs, its input, and the tensors ``names``."""
    onnx, runtime = need(FORMAT, "onnx", "onnxruntime")
    seen = copy.deepcopy(model)
    made = {name for node in seen.graph.node for name in node.output} - {output.name for output in seen.graph.output}
    for name in names:
        if name in made:
            seen.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
    options = runtime.SessionOptions()
    if not optimized:
        options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    try:
        session = runtime.InferenceSession(seen.SerializeToString(), options, providers=["CPUExecutionProvider"])
        outputs = [output.name for output in session.get_outputs()]
        found = dict(zip(outputs, session.run(outputs, {INPUT: x}), strict=True))
    except Exception as error:
        raise InputError(f"ONNX Runtime cannot run this network: {str(error).strip().splitlines()[0]}") from error
    return {INPUT: x, **found}


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
    """Quantizers as ONNX's own operators."""

    def __init__(self) -> None:
        super().__init__(FORMAT)

    def weight(self, layer: FixedLayer, target: str) -> list[Any]:
        """DequantizeLinear of integers."""
        if isinstance(layer.weight, GappedWeight):
            return self._gapped(layer.name, layer.weight, target)
        found = layer.weight
        assert found is not None
        levels, codes, step, half = found.levels, found.codes, found.levels.level_step, None
        kind = integer_type(levels.low, levels.high)
        if levels.centre and holds(kind, 2 * levels.low + 1, 2 * levels.high + 1):
            codes, step = 2 * codes + 1, step / 2
        elif levels.centre:
            half = self.constant(f"{layer.name}.weight.half_step", found.along_axis(step / 2))
        stored = self.constant(f"{layer.name}.weight.codes", codes, kind)
        scale = self.constant(f"{layer.name}.weight.scale", step.reshape(()) if found.axis is None else step)
        axis = {} if found.axis is None else {"DequantizeLinear": {"axis": found.axis}}
        steps = [("DequantizeLinear", [scale]), *([("Add", [half])] if half else [])]
        return self.chain(stored, target, steps, **axis)

    def _gapped(self, name: str, weight: GappedWeight, target: str) -> list[Any]:
        """Multiples of the step, and by the sign what is missing: m stands for start + (m - 1) step."""
        kind = integer_type(*_gapped_range(weight))
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

    def input(self, layer: FixedLayer, source: str, target: str) -> list[Any]:
        """QuantizeLinear and DequantizeLinear, or arithmetic."""
        assert layer.input is not None
        levels, name = layer.input, f"{layer.name}.input"
        threshold, step = float(levels.threshold_step[0]), float(levels.level_step[0])
        apart = self.constant(f"{name}.threshold_step", threshold)
        if not levels.rounds or layer.weight is None:
            low, high = (self.constant(f"{name}.{end}", getattr(levels, end)) for end in ("low", "high"))
            centre, scale = self.constant("half", 0.5), self.constant(f"{name}.scale", step)
            half = [("Add", [centre])] if levels.rounds else []
            middle = [("Add", [centre])] if levels.centre else []
            steps = [("Div", [apart]), *half, ("Floor", []), ("Clip", [low, high]), *middle, ("Mul", [scale])]
            return self.chain(source, target, steps)
        kind = integer_type(levels.low, levels.high, INPUT_WIDTHS)
        zero = self.constant(f"zero.{kind.lower()}", 0, kind)
        scale = self.constant(f"{name}.scale", step)
        ends = [self.constant(f"{name}.{end}", threshold * getattr(levels, end)) for end in ("low", "high")]
        clip = [] if (levels.low, levels.high) == type_range(kind) else [("Clip", ends)]
        return self.chain(
            source, target, [*clip, ("QuantizeLinear", [apart, zero]), ("DequantizeLinear", [scale, zero])]
        )


def _add_biases_behind(model: Any, used: set[str]) -> None:
    """Take the bias out of every layer with a quantized input, and add it to what the layer gives."""
    onnx, numpy_helper = need(FORMAT, "onnx", "onnx.numpy_helper")
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    nodes = []
    for node in model.graph.node:
        nodes.append(node)
        named = len(node.input) == 3 and node.input[0] in used and node.input[2] in constants
        if not named or node.op_type not in ("Conv", "ConvTranspose", "Gemm"):
            continue
        bias = numpy_helper.to_array(constants[node.input[2]])
        spatial = max((len(attribute.ints) for attribute in node.attribute if attribute.name == "strides"), default=0)
        output = node.output[0]
        shaped = numpy_helper.from_array(
            bias.reshape(-1, *[1] * spatial), f"{output}.added_bias"
        )  # Gemm has no strides
        model.graph.initializer.append(shaped)
        del node.input[2:]
        node.output[0] = f"{output}.without_bias"
        nodes.append(onnx.helper.make_node("Add", [node.output[0], shaped.name], [output], name=f"{output}.add"))
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    read = {name for node in nodes for name in node.input}
    kept = [tensor for tensor in model.graph.initializer if tensor.name in read]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)


def _gapped_range(weight: GappedWeight) -> tuple[int, int]:
    """Least and greatest code; below zero at least by one, as weights are signed."""
    return min(-1, int(weight.codes.min())), int(weight.codes.max())


def _has_2_bits(layers: Mapping[str, FixedLayer]) -> bool:
    """Whether a weight is stored in a type of 2 bits."""
    weights = [layer.weight for layer in layers.values() if layer.weight is not None]
    ends = [_gapped_range(w) if isinstance(w, GappedWeight) else (w.levels.low, w.levels.high) for w in weights]
    return any(integer_type(*pair).endswith("INT2") for pair in ends)
