"""Read the layers of an unedited network: shapes, multiply-accumulates, what can be searched and what cannot.

One forward pass runs on a copy whose parameters live on the meta device (no memory, no arithmetic), so even the
largest model is read in moments and the caller's network is never touched. Only where a model cannot run on the
meta device does a real copy run instead.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from search_spaces.errors import InputError, kind_of
from search_spaces.layers import LayerGraph, LayerSpec
from search_spaces.models.attention import unfold_attention
from search_spaces.models.computed import computed_names, sources_of
from search_spaces.models.copies import copy_network
from search_spaces.models.load import check_known_shapes
from search_spaces.models.multiplied import is_standard, memory
from search_spaces.network.couplings import Couplings, read_couplings, unknown_couplings
from search_spaces.network.dense_part import dense_part, entering
from search_spaces.network.examples import Call, Example, drawn, read_example, signature_of
from search_spaces.network.makings import Making, read_makings, varying_weights
from search_spaces.network.observation import LayerRecord, Observation, observe
from search_spaces.network.origins import ELSEWHERE, making_told
from search_spaces.network.parameters import account, other_bytes, unused_names
from search_spaces.signature import Signature

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_DEPENDS = "its code asks for values of tensors, so another input may take another path"
_BEHIND = "it reads boxes that are chosen by the values of tensors"
_PREPARED = ("torch.ao.quantization.fake_quantize", "torch.ao.quantization.observer")
LAYER_TYPES = (*CONVOLUTIONS, *TRANSPOSED, nn.Linear)


def layer_kind(module: nn.Module) -> str:
    """Name the standard layer that ``module`` is an instance or a subclass of, such as ``"Conv2d"``."""
    return next(kind.__name__ for kind in LAYER_TYPES if isinstance(module, kind))


def read_graph(model: nn.Module, example: Example) -> LayerGraph:
    """Return the :class:`LayerGraph` of ``model`` for one sample.

    ``example`` is the shape of one input (no batch dimension), or what the network is called with: a tensor, a tuple
    or list of positional arguments, or a dict of keyword arguments, tensors with their batch dimension first. Of a
    batch the first sample is taken. A network that is called with one dict or one list gets it as ``(that,)``.

    >>> network = nn.Sequential(nn.Linear(3, 2))
    >>> read_graph(network, (3,)) == read_graph(network, {"input": torch.rand(8, 3)})
    True

    Raises :class:`InputError` when the network cannot run on such an input.
    """
    _check_network(model)
    with torch.inference_mode(False):
        given = read_example(example, model)
        signature = example if isinstance(example, Signature) else signature_of(given, model)
        twin, call, seen = _observe(model, given.first_sample())
    _check_whole(twin, seen)
    for name in varying_weights(twin, seen, _data_like(call, model)):
        seen.layers[name].odd_weight = making_told({ELSEWHERE})
    making = read_makings(model, seen)
    specs, unsupported = _describe(twin, seen, making)
    serving = {spec.name: _serving(twin, spec, making) for spec in specs}
    parameters = account(twin, specs, unsupported, seen, serving)
    loose = {spec.owner: spec.reason for spec in parameters if spec.reason and spec.owner == spec.name}
    matrices = {name for name, parameter in twin.named_parameters() if sum(side > 1 for side in parameter.shape) > 1}
    unused = unused_names(twin, specs, parameters, seen, serving)
    outside = other_bytes(twin, specs, parameters, unused)
    _take_for_constants(twin, seen.registered)
    couplings = _couplings_of_part(twin, specs, call) if seen.depends_on_data else read_couplings(twin, specs, call)
    return LayerGraph(
        layers=tuple(specs),
        input_shape=call.input_shape,
        other_bytes=outside,
        unsupported={**unsupported, **{name: why for name, why in loose.items() if name in matrices}},
        shared_inputs=_shared_inputs(seen.layers, specs),
        residual_ties=couplings.residual_ties,
        branches=couplings.branches,
        channels=couplings.channels,
        uncounted_macs=max(0, seen.macs - sum(spec.macs for spec in specs)),
        flows=couplings.flows,
        couplings_unknown=couplings.unknown,
        parameters=parameters,
        unused=unused,
        signature=signature,
    )


def _take_for_constants(twin: nn.Module, names: Iterable[str]) -> None:
    """Let buffers that came by the run be plain attributes: every copy makes them anew, in full length."""
    for name in names:
        path, _, key = name.rpartition(".")
        module = twin.get_submodule(path)
        if key in module._buffers:  # which may have several names
            vars(module)[key] = module._buffers.pop(key)


def _couplings_of_part(twin: nn.Module, specs: Sequence[LayerSpec], call: Call) -> Couplings:
    """The couplings of what of the network runs the same on every input; unknown where there is no such part."""
    part = dense_part(twin)
    if part is None or len(call.tensors) != 1:
        return unknown_couplings(_DEPENDS)
    held, meta = dict(part.named_modules()), torch.device("meta")
    images = Call((entering(twin, call),)).on(meta)
    found = read_couplings(frozen_copy(part, meta), [spec for spec in specs if spec.name in held], images)
    behind = {spec.name: _BEHIND for spec in specs if spec.name not in held}
    channels = replace(found.channels, frozen={**found.channels.frozen, **behind})
    return replace(found, channels=channels)


def _check_network(model: Any) -> None:
    if not isinstance(model, nn.Module):
        hint = "; give its .module" if isinstance(getattr(model, "module", None), nn.Module) else ""
        raise InputError(f"{kind_of(model)} is no network (torch.nn.Module){hint}")
    check_known_shapes(model)
    if isinstance(model, (*LAYER_TYPES, nn.MultiheadAttention)):
        kind = type(model).__name__
        raise InputError(f"the network is itself one layer ({kind}); put it into another module, as nn.Sequential does")
    for name, module in model.named_modules():
        if any(kind.__module__ in _PREPARED for kind in type(module).__mro__):
            raise InputError(
                f"module '{name}' ({type(module).__name__}) is of PyTorch's own quantization and changes its ranges "
                "whenever the network runs; give the network as it was before it was prepared"
            )


def _check_whole(twin: nn.Module, seen: Observation) -> None:
    """Refuse a network that gets parameters, or buffers that depend on its input, when it runs first."""
    for name, tensor in seen.registered.items():
        if isinstance(tensor, nn.Parameter) or memory(tensor) in seen.computed:
            what = "parameter" if isinstance(tensor, nn.Parameter) else "buffer"
            raise InputError(
                f"the network makes its {what} '{name}' when it runs first, so every copy of it has another one; run "
                "it once on data that it is meant for, and give it then"
            )


def _data_like(call: Call, model: nn.Module) -> Iterator[Call]:
    """A call and others on data of the same shapes and types: its floats turned about, then drawn."""
    yield call
    yield call.mapped(lambda tensor: 1 - 2 * tensor if tensor.is_floating_point() else tensor)
    signature = signature_of(call, model)
    yield drawn(call.input_shape if signature is None else signature, len(call.tensors[0]), model)


def _observe(model: nn.Module, call: Call) -> tuple[nn.Module, Call, Observation]:
    """Run a copy of the network once, on the meta device if it can; give the copy and what it ran on, too."""
    for device in (torch.device("meta"), torch.device("cpu")):
        twin, here = frozen_copy(model, device), call.on(device)
        unfold_attention(twin)
        try:
            return twin, here, observe(twin, here, LAYER_TYPES, model)
        except (
            Exception,
            SystemExit,
        ) as error:  # code that builds CPU tensors or asks for values cannot run on the meta device
            failure = error
    raise InputError(
        f"the network does not run on {_told(call)}: {_reason(failure)}; give data that it takes, or the shape of one "
        "input without the batch dimension, such as 3,224,224, or an example of what it is called with"
    ) from failure


def _reason(failure: BaseException) -> str:
    """What the network's code raised, of PyTorch's pages the first line."""
    first, *_ = str(failure).strip().splitlines() or [""]
    return f"{type(failure).__name__}: {first}" if first else type(failure).__name__


def _told(call: Call) -> str:
    shapes = [tuple(tensor.shape[1:]) for tensor in call.tensors]
    return f"an input of shape {shapes[0]}" if len(shapes) == 1 else f"inputs of shapes {', '.join(map(str, shapes))}"


def frozen_copy(model: nn.Module, device: torch.device) -> nn.Module:
    """Copy ``model``, frozen, to ``device``; on the meta device the copy has no values and takes no memory.

    Tensors that share memory, be they parameters, buffers or plain attributes, go on sharing it.
    """
    places: dict[int, torch.UntypedStorage] = {}

    def twin_of(tensor: Tensor) -> Tensor:
        if not memory(tensor):
            return torch.empty_like(tensor, device=device) if device.type == "meta" else tensor.detach().to(device)
        if memory(tensor) not in places:
            own = tensor.untyped_storage()
            place = torch.UntypedStorage(own.nbytes(), device=device)
            places[memory(tensor)] = place if device.type == "meta" else place.copy_(own, False)
        empty = torch.empty(0, dtype=tensor.dtype, device=device)
        return empty.set_(places[memory(tensor)], tensor.storage_offset(), tensor.shape, tensor.stride())

    memo: dict[int, Any] = {id(p): nn.Parameter(twin_of(p.detach()), requires_grad=False) for p in model.parameters()}
    attributes = (value for module in model.modules() for value in vars(module).values())
    for tensor in (*model.buffers(), *(value for value in attributes if type(value) is Tensor)):
        memo[id(tensor)] = twin_of(tensor.detach())
    return copy_network(model, memo)


def _describe(
    twin: nn.Module, seen: Observation, making: Mapping[str, Making]
) -> tuple[list[LayerSpec], dict[str, str]]:
    """Split the layers into those that can be searched, in call order, and those unsupported, with the reason."""
    modules = dict(twin.named_modules())
    uses = Counter(id(p) for m in modules.values() for p in m._parameters.values() if p is not None)
    owners: dict[int, str] = {}
    specs: list[LayerSpec] = []
    unsupported: dict[str, str] = {}
    for name, record in sorted(seen.layers.items(), key=lambda item: item[1].first_call):
        reason = _why_unsupported(name, record, uses, seen, making.get(name))
        if reason:
            unsupported[name] = reason
            continue
        weight = record.module._parameters.get("weight")
        owner = None if weight is None else owners.get(id(weight))
        specs.append(_spec(name, record, owner, seen.folded_norm(record), modules, name in making))
        if weight is not None:
            owners.setdefault(id(weight), name)
    return specs, unsupported


def _serving(twin: nn.Module, spec: LayerSpec, making: Mapping[str, Making]) -> frozenset[str]:
    """What of a layer only serves to compute its weight and bias."""
    made = making[spec.name].serving if spec.name in making else frozenset()
    return made | {*sources_of(twin.get_submodule(spec.name), ("weight", "bias"))}


def _why_unsupported(
    name: str, record: LayerRecord, uses: Counter[int], seen: Observation, making: Making | None
) -> str:
    reason = _why_not_held(name, record.module)
    if reason:
        return reason
    if record.odd_call:
        return record.odd_call
    if not record.outputs:
        return _why_not_called(record, seen)
    weight = record.module._parameters.get("weight")
    sharing = sum(other.module._parameters.get("weight") is weight for other in seen.layers.values())
    if uses[id(weight)] > sharing:
        return "its weight is shared with a module that is not a layer (such as an embedding)"
    if record.reads_outside:
        return "its parent calls it and reads the weight itself as well"
    if record.odd_weight:
        return record.odd_weight
    if making is not None or weight is None:
        return _why_not_made(record.module, uses, making)
    if record.products == 0:
        return "it multiplies with something else than its weight, or by other means than PyTorch's layers"
    if not weight.is_floating_point():
        return f"its weight is {weight.dtype}"
    if not weight.numel():
        return "its weight is empty"
    return ""


def _why_not_held(name: str, layer: nn.Module) -> str:
    """Why the weight and the bias cannot be read of the layer; "" where they can."""
    if ".parametrizations." in name:
        return f"it computes a tensor of layer '{name.partition('.parametrizations.')[0]}'"
    computed = computed_names(layer)
    for key in ("weight", "bias"):
        if key not in layer._parameters and key not in computed:
            return f"its {key} is computed by other means than those of torch.nn.utils"
    other = next((key for key in computed if not key.startswith(("weight", "bias"))), None)
    return "" if other is None else f"its '{other}' is computed of others, beside weight and bias"


def _why_not_made(layer: nn.Module, uses: Counter[int], making: Making | None) -> str:
    """Why a weight that is computed, or that the layer's own code makes, cannot be quantized; "" where it can."""
    if making is not None and making.reason:
        return making.reason
    if making is None and not is_standard(layer):
        return (
            "its weight is computed of others, and its own code multiplies with it by other means than PyTorch's layers"
        )
    parts = [layer._parameters.get("weight"), *sources_of(layer, ("weight", "bias")).values()]
    if any(uses[id(part)] > 1 for part in parts):
        return "what its weight is made of is shared with another module"
    return ""


def _why_not_called(record: LayerRecord, seen: Observation) -> str:
    if record.reads_outside:
        return "its parent reads the weight itself and never calls it"
    if seen.depends_on_data:
        return (
            "the example does not reach it, and which layers are called depends on the values of the input: read the "
            "network on an example that reaches it"
        )
    return "the forward pass never calls it in eval mode"


def _spec(
    name: str, record: LayerRecord, owner: str | None, norm: str | None, modules: Mapping[str, Any], made: bool
) -> LayerSpec:
    module: Any = record.module
    weight, computed = module.weight, "weight" not in module._parameters
    return LayerSpec(
        name=name,
        kind=layer_kind(module),
        weight_shape=tuple(weight.shape),
        input_shape=_one_sample(record.inputs[0]),
        output_shape=_one_sample(record.outputs[0]),
        macs=_macs(record, weight) if made or computed else record.macs,
        out_channels=module.out_features if isinstance(module, nn.Linear) else module.out_channels,
        groups=getattr(module, "groups", 1),
        bias_elements=0 if module.bias is None else module.bias.numel(),
        calls=len(record.outputs),
        norm=norm,
        norm_channels=modules[norm].num_features if norm else 0,
        shares_weight_with=owner,
        weight_from="made" if made else "computed" if computed else "parameter",
    )


def _macs(record: LayerRecord, weight: Tensor) -> int:
    """Multiply-accumulates of products with ``weight``: each of its entries is read once for every position."""
    spatial = max(0, weight.dim() - 2)
    sides = zip(record.inputs, record.outputs, strict=True)
    transposed = isinstance(record.module, TRANSPOSED)
    positions = (given if transposed else output for given, output in sides)
    return sum(weight.numel() * _positions(tensor, spatial) for tensor in positions)


def _positions(tensor: Tensor, spatial: int) -> int:
    """At how many places of a tensor, over all samples, a layer's channels stand."""
    channels = tensor.shape[tensor.dim() - 1 - spatial]
    return tensor.numel() // max(1, channels)


def _one_sample(tensor: Tensor) -> tuple[int, ...]:
    """The shape without the batch dimension; the whole shape where the model folded windows into the batch."""
    return tuple(tensor.shape[1:]) if tensor.shape[0] == 1 else tuple(tensor.shape)


def _shared_inputs(records: Mapping[str, LayerRecord], specs: list[LayerSpec]) -> tuple[tuple[str, ...], ...]:
    readers: dict[int, list[str]] = {}
    for spec in specs:
        for tensor in {id(tensor): tensor for tensor in records[spec.name].inputs}.values():
            readers.setdefault(id(tensor), []).append(spec.name)
    return tuple(tuple(names) for names in readers.values() if len(names) > 1)
