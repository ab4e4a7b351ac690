"""Account for every parameter of a network: which layer holds it, or why none does, and what is never deployed."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from search_spaces.layers import LayerSpec, ParameterSpec
from search_spaces.models.buffers import FOLDED, buffer_bytes, each_buffer
from search_spaces.models.multiplied import memory
from search_spaces.network.observation import Observation


def account(
    twin: nn.Module,
    specs: Sequence[LayerSpec],
    unsupported: Mapping[str, str],
    seen: Observation,
    serving: Mapping[str, Collection[str]],
) -> tuple[ParameterSpec, ...]:
    """Every parameter once, under its first name; ``serving`` are those of which a layer's weight is made."""
    modules = dict(twin.named_modules())
    held: dict[int, str] = {}
    for spec in specs:
        layer = modules[spec.name]
        own = [layer._parameters.get(key) for key in ("weight", "bias")]
        own += [parameter for key, parameter in layer.named_parameters() if key in serving[spec.name]]
        own += [modules[spec.norm]._parameters.get(key) for key in FOLDED] if spec.norm else []
        for parameter in own:
            if parameter is not None:
                held.setdefault(id(parameter), spec.name)
    found = []
    for name, parameter in twin.named_parameters():
        if id(parameter) in held:
            found.append(ParameterSpec(name, parameter.numel(), held[id(parameter)]))
            continue
        layer = _unsupported_layer(name, unsupported)
        reason = _why_outside(name, parameter, modules, seen) if layer is None else unsupported[layer]
        owner = name if layer is None else layer
        found.append(ParameterSpec(name, parameter.numel(), owner, reason, _is_read(parameter, seen)))
    return tuple(found)


def _unsupported_layer(parameter: str, unsupported: Mapping[str, str]) -> str | None:
    """The innermost unsupported layer that a parameter is inside of."""
    inside = (parameter[:end] for end in range(len(parameter) - 1, 0, -1) if parameter[end] == ".")
    return next((parent for parent in (*inside, "") if parent in unsupported), None)


def _why_outside(name: str, parameter: Tensor, modules: Mapping[str, nn.Module], seen: Observation) -> str:
    parent = name.rpartition(".")[0]
    while isinstance(modules[parent], (nn.ParameterList, nn.ParameterDict)):
        parent = parent.rpartition(".")[0]
    module = modules[parent]
    kind = type(module).__name__
    if not _is_read(parameter, seen):
        return "nothing reads it in eval mode"
    if parent in seen.layers:
        return f"it is held by layer '{parent}' beside weight and bias"
    if isinstance(module, nn.MultiheadAttention):
        return "a parameter of an attention module that no layer holds"
    if type(module).__module__.startswith("torch.nn."):
        return f"{kind} is no convolution and no linear layer"
    if memory(parameter) in seen.multiplied:
        return f"{kind} multiplies with it itself; only layers are quantized"
    return f"{kind} reads it itself; only layers are quantized"


def _is_read(tensor: Tensor, seen: Observation) -> bool:
    """Whether the eval pass reads a tensor, as far as is known; where the input decides, another one may."""
    return seen.depends_on_data or memory(tensor) in seen.read


def _other_norms(twin: nn.Module, specs: Iterable[LayerSpec]) -> Iterator[tuple[str, _BatchNorm]]:
    folded = {spec.norm for spec in specs}
    for name, module in twin.named_modules():
        if isinstance(module, _BatchNorm) and name not in folded:
            yield name, module


def _is_deployed(norm: _BatchNorm, seen: Observation) -> bool:
    held = [tensor for tensor in (*norm._parameters.values(), *norm._buffers.values()) if tensor is not None]
    return any(_is_read(tensor, seen) for tensor in held)


def unused_names(
    twin: nn.Module,
    specs: Sequence[LayerSpec],
    parameters: Iterable[ParameterSpec],
    seen: Observation,
    serving: Mapping[str, Collection[str]],
) -> frozenset[str]:
    """Parameters, buffers and BatchNorms that are never read in eval mode, or only to make the weight of a layer."""
    norms = {name for name, norm in _other_norms(twin, specs) if not _is_deployed(norm, seen)}
    buffers = {name for name, buffer in each_buffer(twin) if not _is_read(buffer, seen)}
    made = {f"{layer}.{key}" if layer else key for layer, keys in serving.items() for key in keys}
    return frozenset(norms | buffers | made | {parameter.name for parameter in parameters if not parameter.deployed})


def other_bytes(
    twin: nn.Module, specs: Sequence[LayerSpec], parameters: Iterable[ParameterSpec], unused: frozenset[str]
) -> int:
    """Bytes of all that is deployed outside the layers: parameters in fp32, BatchNorms as scale and shift, buffers."""
    norms = dict(_other_norms(twin, specs))
    inside = {f"{name}.{key}" for name in norms for key in FOLDED}
    outside = (spec for spec in parameters if spec.reason and spec.name not in inside | unused)
    channels = sum(norm.num_features for name, norm in norms.items() if name not in unused)
    buffers = sum(buffer_bytes(buffer) for name, buffer in each_buffer(twin) if name not in unused)
    return 4 * sum(spec.elements for spec in outside) + 2 * 4 * channels + buffers
