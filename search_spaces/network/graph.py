"""Read the layers of an unedited network: shapes, multiply-accumulates, what can be searched and what cannot.

One forward pass runs on a copy whose parameters live on the meta device (no memory, no arithmetic), so even the
largest model is read in moments and the caller's network is never touched. Only where a model cannot run on the
meta device does a real copy run instead.
"""

from __future__ import annotations

import copy
import math
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from search_spaces.errors import InputError
from search_spaces.layers import LayerGraph, LayerSpec
from search_spaces.models.attention import unfold_attention
from search_spaces.network.couplings import example_input, read_couplings

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
LAYER_TYPES = (*CONVOLUTIONS, *TRANSPOSED, nn.Linear)
_OPERATIONS = {
    F.conv1d,
    F.conv2d,
    F.conv3d,
    F.conv_transpose1d,
    F.conv_transpose2d,
    F.conv_transpose3d,
    F.linear,
}


def layer_kind(module: nn.Module) -> str:
    """Name the standard layer that ``module`` is an instance or a subclass of, such as ``"Conv2d"``."""
    return next(kind.__name__ for kind in LAYER_TYPES if isinstance(module, kind))


def read_graph(model: nn.Module, input_shape: tuple[int, ...]) -> LayerGraph:
    """Return the :class:`LayerGraph` of ``model`` for one input of shape ``input_shape`` (no batch dimension).

    Raises :class:`InputError` when the network cannot run on such an input.
    """
    if any(nn.parameter.is_lazy(parameter) for parameter in model.parameters()):
        raise InputError("the network has lazy parameters; run it once on an example before the search")
    with torch.inference_mode(False):  # inference tensors do not tell whether they were changed in place
        twin, records, counted_macs = _observe(model, input_shape)
    specs, unsupported = _describe(twin, records)
    couplings = read_couplings(twin, specs, input_shape)
    return LayerGraph(
        layers=tuple(specs),
        input_shape=tuple(input_shape),
        other_bytes=_other_bytes(twin, specs),
        unsupported=unsupported,
        shared_inputs=_shared_inputs(records, specs),
        residual_ties=couplings.residual_ties,
        branches=couplings.branches,
        channels=couplings.channels,
        uncounted_macs=max(0, counted_macs - sum(spec.macs for spec in specs)),
        couplings_unknown=couplings.unknown,
    )


@dataclass
class _LayerRecord:
    """What one layer did during the observed forward pass."""

    module: nn.Module
    inputs: list[Tensor] = field(default_factory=list)
    outputs: list[Tensor] = field(default_factory=list)
    running: bool = False
    own_weight_calls: int = 0
    other_weight_calls: int = 0
    macs: int = 0
    norm: str | None = None
    first_call: int = -1


def _observe(model: nn.Module, input_shape: tuple[int, ...]) -> tuple[nn.Module, dict[str, _LayerRecord], int]:
    """Run the network once, on the meta device if it can, and record every layer's calls."""
    twin = meta_copy(model)
    unfold_attention(twin)
    try:
        return twin, *_record(twin, example_input(twin, input_shape))
    except Exception:  # a model that builds CPU tensors in its forward pass cannot run on the meta device
        twin = copy.deepcopy(model).cpu()
        unfold_attention(twin)
    try:
        return twin, *_record(twin, example_input(twin, input_shape))
    except Exception as error:
        sentence = str(error).strip().split("\n")[0]
        raise InputError(
            f"the network does not run on an input of shape {tuple(input_shape)}: {sentence}; give the shape of one "
            "input without the batch dimension, such as 3,224,224"
        ) from error


def meta_copy(model: nn.Module) -> nn.Module:
    """Copy ``model`` with every parameter and buffer on the meta device, so that the copy takes no memory."""
    memo: dict[int, Any] = {}
    for parameter in model.parameters():
        memo[id(parameter)] = nn.Parameter(torch.empty_like(parameter, device="meta"), parameter.requires_grad)
    for buffer in model.buffers():
        memo[id(buffer)] = torch.empty_like(buffer, device="meta")
    return copy.deepcopy(model, memo)


def _record(twin: nn.Module, example: Tensor) -> tuple[dict[str, _LayerRecord], int]:
    records = {name: _LayerRecord(module) for name, module in twin.named_modules() if isinstance(module, LAYER_TYPES)}
    twin.eval()
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), _hooks(twin, records), _Operations(records), counter:
        twin(example)
    return records, counter.get_total_flops() // 2


@contextmanager
def _hooks(twin: nn.Module, records: dict[str, _LayerRecord]) -> Iterator[None]:
    """Note each layer's input and output, and the BatchNorm that reads the output."""
    producers: dict[int, tuple[str, int]] = {}
    handles = []

    def note_layer(name: str) -> Any:
        def hook(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            records[name].running = False
            if inputs and isinstance(inputs[0], Tensor) and isinstance(output, Tensor):
                if not records[name].inputs:
                    records[name].first_call = len(producers)
                records[name].inputs.append(inputs[0])
                records[name].outputs.append(output)  # kept, so that no later tensor can take its id
                producers[id(output)] = name, output._version

        return hook

    def note_norm(name: str) -> Any:
        def hook(module: nn.Module, inputs: tuple[Any, ...]) -> None:
            producer, version = producers.get(id(inputs[0]), (None, 0)) if inputs else (None, 0)
            if producer is not None and inputs[0]._version == version:  # else an in-place activation came between
                records[producer].norm = name

        return hook

    for name, module in twin.named_modules():
        if name in records:
            handles.append(module.register_forward_pre_hook(_note_start(records[name])))
            handles.append(module.register_forward_hook(note_layer(name)))
        elif isinstance(module, _BatchNorm):
            handles.append(module.register_forward_pre_hook(note_norm(name)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _note_start(record: _LayerRecord) -> Any:
    def hook(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        record.running = True

    return hook


class _Operations(TorchFunctionMode):
    """Watch convolutions and matrix products, to see whether a layer's own weight is what it multiplies with."""

    def __init__(self, records: dict[str, _LayerRecord]) -> None:
        super().__init__()
        self.owners: dict[int, list[_LayerRecord]] = {}
        for record in records.values():
            weight = record.module._parameters.get("weight")
            if weight is not None:
                self.owners.setdefault(id(weight), []).append(record)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        if func in _OPERATIONS and isinstance(output, Tensor):
            weight = args[1] if len(args) > 1 else (kwargs or {})["weight"]
            elements = args[0].numel() if "transpose" in func.__name__ else output.numel()
            owners = self.owners.get(id(weight), [])
            running = [record for record in owners if record.running]
            for record in running:
                record.own_weight_calls += 1
                record.macs += elements * math.prod(weight.shape[1:])
            for record in owners if not running else ():
                record.other_weight_calls += 1
        return output


def _describe(twin: nn.Module, records: dict[str, _LayerRecord]) -> tuple[list[LayerSpec], dict[str, str]]:
    """Split the layers into those that can be searched, in call order, and those unsupported, with the reason."""
    modules = dict(twin.named_modules())
    uses = Counter(id(p) for m in modules.values() for p in m._parameters.values() if p is not None)
    owners: dict[int, str] = {}
    specs: list[LayerSpec] = []
    unsupported: dict[str, str] = {}
    for name, record in sorted(records.items(), key=lambda item: item[1].first_call):
        reason = _why_unsupported(record, uses, records)
        if reason:
            unsupported[name] = reason
            continue
        weight = record.module._parameters["weight"]
        specs.append(_spec(name, record, owners.get(id(weight)), modules))
        owners.setdefault(id(weight), name)
    for name, module in modules.items():
        if isinstance(module, nn.MultiheadAttention):
            unsupported[f"{name}.in_proj_weight"] = "a parameter of an attention module that no layer holds"
    return specs, unsupported


def _why_unsupported(record: _LayerRecord, uses: Counter[int], records: dict[str, _LayerRecord]) -> str:
    weight = record.module._parameters.get("weight")
    if weight is None:
        return "its weight is computed from other parameters (weight norm or another parametrization)"
    if not record.outputs:
        return "the forward pass never calls it (its parent reads the weight itself, or does not use it)"
    if record.other_weight_calls:
        return "its parent calls it and reads the weight itself as well"
    if record.own_weight_calls == 0:
        return "it transforms its weight before use (such as weight standardization)"
    sharing = sum(other.module._parameters.get("weight") is weight for other in records.values())
    if uses[id(weight)] > sharing:
        return "its weight is shared with a module that is not a layer (such as an embedding)"
    if not weight.is_floating_point():
        return f"its weight is {weight.dtype}"
    return ""


def _spec(name: str, record: _LayerRecord, owner: str | None, modules: dict[str, nn.Module]) -> LayerSpec:
    module: Any = record.module
    norm: Any = modules[record.norm] if record.norm else None
    return LayerSpec(
        name=name,
        kind=layer_kind(module),
        weight_shape=tuple(module.weight.shape),
        input_shape=_one_sample(record.inputs[0]),
        output_shape=_one_sample(record.outputs[0]),
        macs=record.macs,
        out_channels=module.out_features if isinstance(module, nn.Linear) else module.out_channels,
        groups=getattr(module, "groups", 1),
        bias_elements=0 if module.bias is None else module.bias.numel(),
        calls=len(record.outputs),
        norm=record.norm,
        norm_channels=norm.num_features if norm is not None else 0,
        shares_weight_with=owner,
    )


def _one_sample(tensor: Tensor) -> tuple[int, ...]:
    """The shape without the batch dimension; the whole shape where the model folded windows into the batch."""
    return tuple(tensor.shape[1:]) if tensor.shape[0] == 1 else tuple(tensor.shape)


def _shared_inputs(records: dict[str, _LayerRecord], specs: list[LayerSpec]) -> tuple[tuple[str, ...], ...]:
    readers: dict[int, list[str]] = {}
    for spec in specs:
        for tensor in {id(tensor): tensor for tensor in records[spec.name].inputs}.values():
            readers.setdefault(id(tensor), []).append(spec.name)
    return tuple(tuple(names) for names in readers.values() if len(names) > 1)


def _other_bytes(twin: nn.Module, specs: list[LayerSpec]) -> int:
    """Bytes of everything outside the searched layers: parameters in fp32, and BatchNorms folded to scale and shift."""
    layers, norms = {spec.name for spec in specs}, {spec.norm for spec in specs}
    seen: set[int] = set()
    total = 0
    for name, module in twin.named_modules():
        own = {key: p for key, p in module._parameters.items() if p is not None and id(p) not in seen}
        seen.update(map(id, own.values()))
        if name in norms:
            continue
        if name in layers:  # a subclass may hold more than a layer does
            own = {key: p for key, p in own.items() if key not in ("weight", "bias")}
        if isinstance(module, _BatchNorm):
            total += 2 * 4 * module.num_features
        else:
            total += 4 * sum(parameter.numel() for parameter in own.values())
    return total
