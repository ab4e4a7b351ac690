"""From a fixed net to an ONNX graph with a mark wherever a tensor is quantized, and from the marks to real nodes.

torch.onnx.export sees a copy of the net in which every quantizer is replaced by a mark, an operator that exists in no
runtime and that no optimizer can look into. So nothing is folded into a weight, and each mark is then replaced by the
nodes of the format. The input and the output of every layer are marked too: they are what the check compares.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from dnas.export.calls import Flattened, input_names, output_names, runnable
from dnas.export.fixed_layers import FixedLayer
from dnas.export.onnx_packages import need
from dnas.quantization.branches import SkippedLayer
from dnas.quantization.layers import QuantizedLayer
from search_spaces.errors import InputError
from search_spaces.models.copies import copy_network
from search_spaces.network.calls import first_input, with_first_input
from search_spaces.network.examples import Call, call_of, drawn
from search_spaces.signature import Signature

_DOMAIN = "dnas"
_OPEN = {0: torch.export.Dim.DYNAMIC}
"""Axes of an input whose batch size is left open."""


@dataclass(frozen=True)
class Fold:
    """What a layer's weight took over: its input's gain, and the scale of the BatchNorm ``norm`` along ``axis``."""

    gain: float = 1.0
    norm: str = ""
    scale: np.ndarray | None = None
    axis: int = 0

    def weight_factor(self) -> np.ndarray:
        """What the written weight is times the net's own: one number, or one for each filter."""
        return np.asarray(self.gain if self.scale is None else self.gain * self.scale, dtype=np.float64)


@dataclass
class Tap:
    """The names of one layer call's tensors: its input as it comes and as it is used, its weight, its output.

    They are written as ``fold`` says; ``bias_error`` is by how much a rounded bias may move the output.
    """

    layer: str
    input: str = ""
    used: str = ""
    weight: str = ""
    output: str = ""
    fold: Fold = field(default_factory=Fold)
    bias_error: float = 0.0


class NodeBuilder(Protocol):
    """Makes the nodes that stand for a quantizer, in one format."""

    initializers: dict[str, Any]

    def weight(self, layer: FixedLayer, target: str) -> list[Any]:
        """Nodes that make the weight of ``layer``, as the layer uses it, under the name ``target``."""

    def input(self, layer: FixedLayer, source: str, target: str) -> list[Any]:
        """Nodes that quantize ``source``, an input of ``layer``, to ``target``."""


def trace(
    network: nn.Module,
    names: Iterable[str],
    example: Sequence[int] | Signature,
    opset: int,
    *,
    batch: int | None,
) -> Any:
    """An ONNX model of ``network`` with marks at the layers ``names``; ``batch`` None leaves the batch size open.

    ``example`` is the shape of its one input, or its signature: then a graph takes all tensors by the names that the
    forward pass has for them. Raises :class:`InputError` where PyTorch cannot write the network.
    """
    need("onnx", "onnx", "onnxscript")
    call, plain = drawn(example, batch or 2, network), not isinstance(example, Signature)
    inputs = input_names(network, call, plain)
    open_batch = batch is None and (plain or cast(Signature, example).batched)
    twin, given = _marked(network, names, call)
    try:
        with torch.no_grad(), warnings.catch_warnings():
            # The exporter's own uses of what it deprecates; nothing that a user could do about them.
            warnings.simplefilter("ignore", DeprecationWarning)
            warnings.simplefilter("ignore", FutureWarning)
            program = torch.onnx.export(
                twin if plain else _program(Flattened(twin, call).eval(), tuple(call.tensors), open_batch),
                tuple(call.tensors),
                dynamo=True,
                dynamic_shapes=(_OPEN,) if plain and open_batch else None,
                opset_version=opset,
                verbose=False,
                input_names=inputs,
                output_names=output_names(network, given, inputs),
            )
    except Exception as error:
        reason = (str(error.__cause__ or error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(f"PyTorch cannot write this network as ONNX: {reason}") from error
    model = cast(Any, program).model_proto
    if not plain:
        _name_as_the_network_does(model)
    _forget_where_it_was_made(model)
    return model


def _program(flattened: Flattened, tensors: tuple[Tensor, ...], open_batch: bool) -> torch.export.ExportedProgram:
    """The program of a network that takes these tensors, perhaps with an open batch size."""
    shapes = (tuple(_OPEN for _ in tensors),) if open_batch else None
    return runnable(torch.export.export(flattened, tensors, dynamic_shapes=shapes, strict=False), call_of(tensors))


def mark_of(node: Any) -> tuple[str, str]:
    """The module and the part that a mark stands for; empty for any other node, or None."""
    if node is None or node.domain != _DOMAIN:
        return "", ""
    told = {attribute.name: attribute.s.decode() for attribute in node.attribute}
    return told["layer"], told["part"]


def replace_marks(
    model: Any, layers: Mapping[str, FixedLayer], builder: NodeBuilder, folds: Mapping[str, Fold] | None = None
) -> list[Tap]:
    """Put the nodes of ``builder`` in the place of the marks, in place; the taps come in the order of the calls."""
    graph, rewiring = model.graph, _Rewiring(layers, builder, folds or {})
    results = {output.name for output in graph.output}
    for node in list(graph.node):
        for at, name in enumerate(node.input):
            node.input[at] = rewiring.renamed.get(name, name)
        if node.domain != _DOMAIN:
            rewiring.nodes.append(node)
        else:
            rewiring.replace(node, results)
    del graph.node[:]
    graph.node.extend(rewiring.nodes)
    used = {name for node in rewiring.nodes for name in node.input} | results
    kept = [tensor for tensor in graph.initializer if tensor.name in used]
    del graph.initializer[:]
    graph.initializer.extend([*kept, *builder.initializers.values()])
    imports = [found for found in model.opset_import if found.domain != _DOMAIN]
    del model.opset_import[:]
    model.opset_import.extend(imports)
    return rewiring.taps


class _Rewiring:
    """Collects the nodes of the new graph."""

    def __init__(self, layers: Mapping[str, FixedLayer], builder: NodeBuilder, folds: Mapping[str, Fold]) -> None:
        self.layers, self.builder, self.folds = layers, builder, folds
        self.nodes: list[Any] = []
        self.renamed: dict[str, str] = {}
        self.taps: list[Tap] = []
        self._open: dict[str, Tap] = {}
        self._weights: dict[str, str] = {}
        self._calls: dict[str, int] = {}

    def replace(self, node: Any, results: set[str]) -> None:
        """Put what a mark stands for in its place, and note where its tensors are."""
        (name, part), source, target = mark_of(node), node.input[0], node.output[0]
        layer = self.layers.get(name)
        if part == "weight":
            if layer is None or layer.weight is None:
                self._weights[name] = source
            elif name not in self._weights:
                self._weights[name] = f"{name}.weight.dequantized"
                self.nodes += self.builder.weight(layer, self._weights[name])
            self.renamed[target] = self._weights[name]
        elif part == "input":
            self._calls[name] = self._calls.get(name, 0) + 1
            tap = Tap(name, input=source, used=source, fold=self.folds.get(name, Fold()))
            self._open[name] = tap
            self.taps.append(tap)
            if layer is not None and layer.input is not None:
                again = "" if self._calls[name] == 1 else f".{self._calls[name]}"
                tap.used = f"{name}.input{again}.dequantized"
                self.nodes += self.builder.input(layer, source, tap.used)
            self.renamed[target] = tap.used
        else:
            if part == "output":
                tap = self._open[name]
                tap.output, tap.weight = source, self._weights.get(name, "")
            self.renamed[target] = source
            if target in results:  # the name of a result is fixed, so it needs a node of its own
                self.nodes.append(need("onnx", "onnx")[0].helper.make_node("Identity", [source], [target]))


class _Mark(nn.Module):
    """Stands where a quantizer stood."""

    def __init__(self, layer: str, part: str) -> None:
        super().__init__()
        self._told = {"layer": layer, "part": part}
        self._calls = 0

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x``, marked; calls on one tensor stay apart, for a layer may be told more than its input."""
        self._calls += 1
        told = cast(Any, {**self._told, "call": str(self._calls)})
        return torch.onnx.ops.symbolic(f"{_DOMAIN}::Mark", (x,), told, dtype=x.dtype, shape=x.shape, version=1)


class _Zeros(nn.Module):
    """A skipped layer whose output shapes are known beforehand, for they cannot be found out while tracing."""

    def __init__(self, shapes: dict[tuple[int, ...], tuple[int, ...]]) -> None:
        super().__init__()
        self._shapes = shapes

    def forward(self, x: Tensor) -> Tensor:
        """Return zeros."""
        return x.new_zeros((x.shape[0], *self._shapes[tuple(int(size) for size in x.shape[1:])]))


def _marked(network: nn.Module, names: Iterable[str], call: Call) -> tuple[nn.Module, Any]:
    """A copy of ``network`` for the exporter, in eval mode, with marks for quantizers; and what it gives."""
    twin = copy_network(network).cpu().float().eval()
    skipped, given = _skipped_shapes(twin, call)
    for name, shapes in skipped.items():
        parent, _, key = name.rpartition(".")
        setattr(twin.get_submodule(parent), key, _Zeros(shapes))
    for name in names:
        layer = twin.get_submodule(name)
        if isinstance(layer, _Zeros):
            continue
        if isinstance(layer, QuantizedLayer):
            layer.quantize_input, layer.quantize_weight = (
                cast(Any, _Mark(name, "input")),
                cast(Any, _Mark(name, "weight")),
            )
        else:
            layer.register_forward_pre_hook(_marking_input(_Mark(name, "input")), with_kwargs=True)
        layer.register_forward_hook(_marking_output(_Mark(name, "output")))
    for name, module in twin.named_modules():
        if isinstance(module, _BatchNorm):
            module.register_forward_hook(_marking_output(_Mark(name, "norm")))
    return twin, given


def _marking_input(mark: nn.Module) -> Any:
    def hook(module: nn.Module, inputs: tuple[Any, ...], options: dict[str, Any]) -> Any:
        return with_first_input(module, inputs, options, mark(first_input(module, inputs, options)))

    return hook


def _marking_output(mark: nn.Module) -> Any:
    return lambda module, inputs, output: mark(output)


def _skipped_shapes(twin: nn.Module, call: Call) -> tuple[dict[str, dict[tuple[int, ...], tuple[int, ...]]], Any]:
    """Skipped layer → shape of one input → shape of one output; and what the network gives."""
    found: dict[str, dict[tuple[int, ...], tuple[int, ...]]] = {}
    handles = []

    def noting(shapes: dict[tuple[int, ...], tuple[int, ...]]) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Tensor) -> None:
            shapes[tuple(inputs[0].shape[1:])] = tuple(output.shape[1:])

        return hook

    for name, module in twin.named_modules():
        if isinstance(module, SkippedLayer):
            handles.append(module.register_forward_hook(noting(found.setdefault(name, {}))))
    with torch.no_grad():
        given = call.run(twin)
    for handle in handles:
        handle.remove()
    return found, given


def _name_as_the_network_does(model: Any) -> None:
    """Take the name of the network inside :class:`Flattened` off the parameters."""
    names = {tensor.name: tensor.name.removeprefix("network.") for tensor in model.graph.initializer}
    for tensor in model.graph.initializer:
        tensor.name = names[tensor.name]
    for node in model.graph.node:
        for at, name in enumerate(node.input):
            node.input[at] = names.get(name, name)


def _forget_where_it_was_made(model: Any) -> None:
    """Remove stack traces (paths of this machine) and inferred shapes, and give the open batch size its usual name."""
    graph = model.graph
    del graph.value_info[:], graph.metadata_props[:], model.metadata_props[:]
    for part in (*graph.node, *graph.input, *graph.output, *graph.initializer):
        part.doc_string = ""
        del part.metadata_props[:]
    for value in (*graph.input, *graph.output):
        for dimension in value.type.tensor_type.shape.dim[:1]:
            if dimension.dim_param:
                dimension.dim_param = "N"
