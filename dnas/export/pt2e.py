"""A fixed net as a program of torch.export with the quantization operators that PT2E backends match.

The operators are those of ``torch.ops.quantized_decomposed``: inputs are quantized and dequantized with one scale,
weights are integers and dequantized, and BatchNorm that alone reads a layer is folded. Backends such as ExecuTorch's
XNNPACK find a layer by these neighbours. ``torch.export.load`` reads the file; it knows the operators once
``torch.ao.quantization.fx._decomposed`` is imported.
"""

from __future__ import annotations

import inspect
import io
import warnings
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.ao.quantization.fx import _decomposed  # registers the operators
from torch.nn import functional as F
from torch.utils._pytree import tree_map

from dnas.export.calls import call_on, plain, runnable, tensors_of
from dnas.export.detectors import before_boxes
from dnas.export.fixed_layers import (
    DenseWeight,
    ExportedFile,
    FixedLayer,
    Levels,
    fixed_layers,
    ideal_bytes,
)
from dnas.export.onnx_check import same_steps
from dnas.export.parts import deployed_copy
from dnas.export.pt2e_norms import fold_norms
from dnas.export.pt2e_outputs import join_limits, quantize_outputs
from dnas.export.stored import StoredNet
from dnas.quantization.layers import QuantizedLayer
from dnas.quantization.schemes import GappedWeight
from results.files import encode_json, refuse_special, write_bytes
from search_spaces.errors import InputError, JobError, one_line
from search_spaces.network.examples import Call

FORMAT = "pt2e"
_OPERATORS = torch.ops.quantized_decomposed
_SAME = 0.01
_SAMPLES = 4
_OF_THE_MAKER = ("stack_trace", "from_node")
"""What PyTorch notes of each node: lines of source with the paths of this machine, which no reader needs."""
__all__ = ["FORMAT", "export_pt2e", "_decomposed"]


def export_pt2e(path: Path, net: StoredNet, *, residuals: bool = False) -> ExportedFile:
    """Write ``net`` as a ``.pt2`` program with an open batch size, its assignment and preprocessing among extra files.

    With ``residuals`` what layers and sums give is quantized too, by its range on ``net.images``. Raises
    :class:`InputError` for a net that has no such operators, :class:`JobError` where the program computes something
    else; nothing is written then.
    """
    refuse_special(path)  # exporting a large network takes minutes
    network = before_boxes(deployed_copy(net.network), net.graph.input_shape)
    call = call_on(net.graph, network, net.images, _SAMPLES)
    batched = net.graph.signature is None or net.graph.signature.batched
    twin = _twin(network, call)
    twin.register_forward_hook(lambda module, inputs, output: plain(output))
    program = _exported(twin, call, batched)
    module = program.module()
    fold_norms(module)
    join_limits(module)
    folded = _exported(module, call, batched)
    _check_results(folded, network, call)
    notes = []
    if residuals:
        module = folded.module()
        count = quantize_outputs(module, call)
        before, folded = folded, _exported(module, call, batched)
        notes.append(_change(before, folded, call, count))
    for node in folded.graph.nodes:
        for key in _OF_THE_MAKER:
            node.meta.pop(key, None)
    told = {"assignment": net.assignment.to_json()}
    if net.preprocessing is not None:
        told["preprocessing"] = net.preprocessing.to_json()
    extra = {f"dnas.{key}": encode_json(value, what=key) for key, value in told.items()}
    data = _serialized(folded, extra)
    write_bytes(path, data)
    return ExportedFile(path, FORMAT, len(data), ideal_bytes(net.assignment), notes=notes)


def _change(before: torch.export.ExportedProgram, after: torch.export.ExportedProgram, call: Call, count: int) -> str:
    """What ``count`` more quantized tensors do to the results, in words."""
    with torch.no_grad():
        known, found = (tensors_of(call.run(each.module())) for each in (before, after))
    off = max(float((a - b).abs().max()) for a, b in zip(known, found, strict=True))
    most = max(float(each.abs().max()) for each in known)
    return f"{count} sums and outputs in 8 bits move results by up to {off:.3g} where {most:.3g} is most"


class _DequantizedWeight(nn.Module):
    """Integers and their scales, in the place of a quantizer of weights."""

    codes: Tensor
    scales: Tensor
    zeros: Tensor

    def __init__(self, weight: DenseWeight) -> None:
        super().__init__()
        low, high, codes, step = weight.levels.low, weight.levels.high, weight.codes, weight.levels.level_step
        self.added_half = 0.5 if weight.levels.centre else 0.0
        if weight.levels.centre and weight.levels.bits < 8:
            low, high, codes, step, self.added_half = 2 * low + 1, 2 * high + 1, 2 * codes + 1, step / 2, 0.0
        self.limits, self.axis = (low, high), weight.axis or 0
        rows = codes.shape[self.axis]  # one scale is written for each row, so that BatchNorm can be folded into them
        dtype = torch.int8 if -128 <= low and high <= 127 else torch.int16
        self.register_buffer("codes", torch.from_numpy(codes).to(dtype))
        self.register_buffer("scales", torch.from_numpy(np.array(np.broadcast_to(step, rows))).float())
        self.register_buffer("zeros", torch.zeros(rows, dtype=torch.int64))

    def forward(self, weight: Tensor) -> Tensor:
        """The weight; the given one is not looked at."""
        found = _OPERATORS.dequantize_per_channel.default(
            self.codes, self.scales, self.zeros, self.axis, *self.limits, self.codes.dtype
        )
        if not self.added_half:
            return cast(Tensor, found)
        shape = [-1 if axis == self.axis else 1 for axis in range(self.codes.ndim)]
        return cast(Tensor, found + self.added_half * self.scales.reshape(shape))


class _RequantizedInput(nn.Module):
    """Quantize and dequantize with one scale, in the place of a quantizer of inputs; or arithmetic for other grids."""

    def __init__(self, levels: Levels, gain: float) -> None:
        super().__init__()
        self.levels, self.gain = levels, gain
        self.step = float(levels.threshold_step[0])
        # XNNPACK takes bytes for signed ones whatever their type says, so that codes from 0 on begin at -128.
        self.zero = -128 if levels.low >= 0 and 128 <= levels.high <= 255 else 0
        fits = -128 <= levels.low + self.zero and levels.high + self.zero <= 127
        self.dtype = torch.int8 if fits else torch.int32

    def forward(self, x: Tensor) -> Tensor:
        """Quantize ``x`` (any shape); the gain, if any, is elsewhere."""
        low, high = self.levels.low, self.levels.high
        if not self.levels.rounds:
            value = torch.floor(x / self.step).clamp(low, high) + self.levels.centre
            return value * float(self.levels.level_step[0])
        told = (self.step, self.zero, low + self.zero, high + self.zero, self.dtype)
        if self.dtype == torch.int8 and told[2:4] != (-128, 127):  # XNNPACK knows no limits but those of the type
            x = F.hardtanh(x, low * self.step, high * self.step)
        codes = _OPERATORS.quantize_per_tensor.default(x, *told)
        found = _OPERATORS.dequantize_per_tensor.default(codes, *told)
        return found * self.gain if self.gain != 1 else found


def _twin(network: nn.Module, call: Call) -> nn.Module:
    """A copy of ``network`` whose quantizers are those operators, compared with the net's own one by one."""
    twin, layers = deployed_copy(network), fixed_layers(network)
    seen = _inputs_of(network, call)
    for name, layer in layers.items():
        own, made = network.get_submodule(name), twin.get_submodule(name)
        assert isinstance(own, QuantizedLayer)
        assert isinstance(made, QuantizedLayer)
        if isinstance(layer.weight, GappedWeight):
            raise InputError(
                f"layer '{name}' has {layer.weight.words}, for which there is no operator; export it as onnx or packed"
            )
        _replace(made, layer)
        if name in seen:
            _check_quantizers(name, layer, own, made, seen[name])
    return twin


def _replace(layer: QuantizedLayer, found: FixedLayer) -> None:
    """Put operators where the quantizers of ``layer`` are; a gain goes into the weight where it has integers."""
    gain = 1.0
    if found.input is not None:
        gain = float(found.input.level_step[0] / found.input.threshold_step[0]) if found.input.rounds else 1.0
        folded = isinstance(found.weight, DenseWeight)
        layer.quantize_input = _RequantizedInput(found.input, 1.0 if folded else gain)  # type: ignore[assignment]
    if isinstance(found.weight, DenseWeight):
        layer.quantize_weight = _DequantizedWeight(found.weight.times(gain))  # type: ignore[assignment]
        layer.weight = nn.Parameter(layer.weight.detach().new_zeros(()), requires_grad=False)


def _check_quantizers(name: str, layer: FixedLayer, own: QuantizedLayer, made: QuantizedLayer, x: Tensor) -> None:
    """Raise :class:`JobError` where a quantizer of the twin gives other values, but for ties."""
    gain = 1.0
    with torch.no_grad():
        if layer.input is not None and layer.input.rounds and isinstance(layer.weight, DenseWeight):
            gain = float(layer.input.level_step[0] / layer.input.threshold_step[0])
        if layer.input is not None:
            found, wanted = (module.quantize_input(x).double().numpy() for module in (made, own))
            what = f"the quantized input of layer '{name}'"
            same_steps(found * gain, wanted, layer.input, what, x.double().numpy())
        if isinstance(layer.weight, DenseWeight):
            found, wanted = made.quantize_weight(x).double().numpy() / gain, own.quantized_weight().double().numpy()
            same_steps(found, wanted, layer.weight.levels, f"the weight of layer '{name}'", None, layer.weight)


def _exported(module: nn.Module, call: Call, batched: bool) -> torch.export.ExportedProgram:
    """The program of ``module``, of ``batched`` inputs with an open batch size.

    Raises :class:`InputError` where PyTorch cannot trace it.
    """
    axes = {0: torch.export.Dim.AUTO} if batched else None
    some = call.mapped(lambda tensor: tensor[:2]) if batched else call
    try:
        arguments = inspect.signature(module.forward).bind(*some.args, **some.kwargs).arguments
        shapes = tree_map(lambda leaf: axes if isinstance(leaf, Tensor) else None, dict(arguments))
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the tracer's own; nothing that a user could do about them
            program = torch.export.export(module, some.args, dict(some.kwargs), dynamic_shapes=shapes, strict=False)
            return runnable(program, some)
    except Exception as error:
        raise InputError(f"PyTorch cannot export this network as a program: {one_line(error)}") from error


def _serialized(program: torch.export.ExportedProgram, extra: dict[str, Any]) -> bytes:
    """The bytes of a file; :class:`InputError` for a structure that PyTorch writes none of, such as a named tuple."""
    stream = io.BytesIO()
    try:
        torch.export.save(program, stream, extra_files=extra)
    except NotImplementedError as error:
        raise InputError(
            f"a .pt2 file cannot hold what this network is called with: {one_line(error)}; let it take tuples, lists "
            "or dicts"
        ) from error
    return stream.getvalue()


def _check_results(program: torch.export.ExportedProgram, network: nn.Module, call: Call) -> None:
    """Raise :class:`JobError` where most results differ; a value at a threshold may move some behind it."""
    with torch.no_grad():
        results = [tensors_of(call.run(each)) for each in (program.module(), network)]
    for found, wanted in zip(*([tensor.double() for tensor in tensors] for tensors in results), strict=True):
        if float((found - wanted).abs().median()) > _SAME * float(wanted.abs().max()):
            raise JobError("the exported program would not compute what the net does; nothing is written")


def _inputs_of(network: nn.Module, call: Call) -> dict[str, Tensor]:
    """What each quantized layer gets when ``network`` runs on ``call``."""
    seen: dict[str, Tensor] = {}
    layers = {name: module for name, module in network.named_modules() if isinstance(module, QuantizedLayer)}

    def seeing(name: str) -> Any:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            seen.setdefault(name, inputs[0])

        return hook

    handles = [layer.quantize_input.register_forward_pre_hook(seeing(name)) for name, layer in layers.items()]
    with torch.no_grad():
        call.run(network)
    for handle in handles:
        handle.remove()
    return seen
