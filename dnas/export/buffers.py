"""Buffers of a net in a packed file: those it is saved with, and a check of those that its code brings along."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from dnas.export.parts import OURS, array_of
from results.packed.file import PackedFile
from search_spaces.errors import InputError
from search_spaces.layers import LayerGraph
from search_spaces.models.buffers import each_buffer

_TYPES = ("bool", "uint8", "int8", "int16", "int32", "int64", "float64", "complex64", "complex128")
"""Stored byte by byte, as an array of numpy has them; float32 is a type of the file itself."""
_TOLERANCE = 1e-6
"""Of what code computes anew, such as a table of sines, that may differ by rounding from one machine to the next."""


def buffers_of(network: nn.Module, graph: LayerGraph) -> dict[str, Tensor]:
    """Every buffer that the file holds, by name."""
    return {name: buffer for name, buffer in each_buffer(network, without=OURS) if name not in graph.unused}


def described_buffers(network: nn.Module, graph: LayerGraph, add: Callable[[str, np.ndarray], str]) -> dict[str, Any]:
    """Give the buffers to ``add``, which keeps a tensor under a name and tells it, and return what the header says."""
    check_extra_state(network)
    return {name: _described(name, buffer, add) for name, buffer in buffers_of(network, graph).items()}


def _described(name: str, buffer: Tensor, add: Callable[[str, np.ndarray], str]) -> dict[str, Any]:
    if buffer.layout != torch.strided or buffer.is_quantized:
        raise InputError(f"the buffer '{name}' is {buffer.layout} of {buffer.dtype}, which a packed file cannot hold")
    if buffer.is_floating_point() and buffer.dtype != torch.float64:
        values = array_of(buffer)
        return {"tensor": add(name, values), "dtype": "float32", "shape": list(values.shape)}
    if str(buffer.dtype).removeprefix("torch.") not in _TYPES:
        raise InputError(f"the buffer '{name}' is of {buffer.dtype}, which a packed file cannot hold")
    values = np.ascontiguousarray(buffer.detach().cpu().resolve_conj().numpy())
    data = np.frombuffer(values.astype(values.dtype.newbyteorder("<")).tobytes(), dtype=np.uint8)
    return {"tensor": add(name, data), "dtype": str(values.dtype), "shape": list(buffer.shape)}


def unread_buffers(network: nn.Module, graph: LayerGraph) -> list[str]:
    """Buffers that nothing reads in eval mode, by name: the file lacks them."""
    return [name for name, _ in each_buffer(network, without=OURS) if name in graph.unused]


def check_extra_state(network: nn.Module) -> None:
    """Refuse state that is no tensor: the file has no place for it."""
    for name, module in network.named_modules():
        try:
            state = module.get_extra_state()
        except RuntimeError:  # PyTorch's own, which says that there is none
            continue
        if state is not None:
            whose = f"'{name}'" if name else "the network"
            raise InputError(f"{whose} keeps state beside its tensors (get_extra_state), which a packed file lacks")


def fingerprints(network: nn.Module) -> dict[str, list[float]]:
    """For every buffer that is not persistent: its fingerprint."""
    return {name: fingerprint(buffer) for name, buffer in each_buffer(network, _unsaved, without=OURS)}


def fingerprint(tensor: Tensor) -> list[float]:
    """A tensor's count of values, and two numbers that follow from these in order."""
    values = torch.nan_to_num(_real(tensor.detach().cpu()).double().flatten(), nan=2.0, posinf=1.0, neginf=-1.0)
    weights = torch.cos(torch.arange(1, len(values) + 1, dtype=torch.float64))
    return [len(values), float(values.norm()), float(values @ weights)]


def differ(one: list[float], other: list[float]) -> bool:
    """Whether two fingerprints are those of other values; of another count they are of something else."""
    (count, *numbers), (other_count, *other_numbers) = one, other
    off = max(abs(a - b) for a, b in zip(numbers, other_numbers, strict=True))
    return count == other_count and off > _TOLERANCE * max(numbers[0], other_numbers[0])


def _real(values: Tensor) -> Tensor:
    return torch.view_as_real(values.resolve_conj()) if values.is_complex() else values


def _unsaved(module: nn.Module) -> dict[str, Tensor]:
    own = module._non_persistent_buffers_set
    return {key: buffer for key, buffer in module._buffers.items() if buffer is not None and key in own}


def fill_buffers(packed: PackedFile, network: nn.Module, graph: LayerGraph) -> None:
    """Give ``network`` the file's buffers; :class:`InputError` where it has others.

    A file from before buffers were stored has none, and those of the network stay.
    """
    told = packed.description.get("buffers")
    if told is None:
        return
    own = buffers_of(network, graph)
    for name in sorted(set(own) - set(told) - set(packed.description.get("unread_buffers", ()))):
        raise InputError(f"the buffers are those of another network (only this network has '{name}')")
    for name, entry in told.items():
        _fill(network, name, own.get(name), _values(packed, entry))
    _check_fingerprints(network, packed.description.get("fingerprints", {}))


def _values(packed: PackedFile, entry: Mapping[str, Any]) -> Tensor:
    stored, dtype, shape = packed.tensors[entry["tensor"]], entry["dtype"], entry["shape"]
    if dtype != "float32":
        if dtype not in _TYPES or stored.dtype != np.uint8:
            raise ValueError(f"a buffer of {dtype}")
        stored = np.frombuffer(stored.tobytes(), dtype=np.dtype(dtype).newbyteorder("<")).astype(dtype)
    if math.prod(shape) != stored.size:
        raise ValueError(f"a buffer of shape {shape} has {stored.size} values")
    return torch.from_numpy(np.array(stored).reshape(shape))


def _fill(network: nn.Module, name: str, own: Tensor | None, values: Tensor) -> None:
    owner, _, key = name.rpartition(".")
    try:
        module = network.get_submodule(owner)
    except AttributeError:
        module = None
    if module is None or key not in module._buffers:
        raise InputError(f"the buffers are those of another network (only the file has '{name}')")
    if own is None:  # registered as None, and set later
        module._buffers[key] = values
        return
    same = own.dtype == values.dtype or (own.is_floating_point() and values.dtype == torch.float32)
    if own.shape != values.shape or not same:
        raise InputError(
            f"the buffer '{name}' has the shape {tuple(values.shape)} and {values.dtype} in the file, and "
            f"{tuple(own.shape)} and {own.dtype} in this network"
        )
    if any(step == 0 and size > 1 for step, size in zip(own.stride(), own.shape, strict=True)):
        _replace(network, own, values.to(own.dtype))  # its entries are one number, as expand() makes them
    else:
        own.copy_(values)


def _replace(network: nn.Module, old: Tensor, new: Tensor) -> None:
    for module in network.modules():
        for key, buffer in module._buffers.items():
            if buffer is old:
                module._buffers[key] = new


def _check_fingerprints(network: nn.Module, told: Mapping[str, Any]) -> None:
    own = fingerprints(network)
    for name in sorted(set(own) & set(told)):  # what only one of them has is made while the network runs
        if differ(own[name], cast(list[float], told[name])):
            raise InputError(
                f"the buffer '{name}' is not persistent, so the file does not hold it, and this network has other "
                "values there than the exported one; make it persistent and export again, or give a network with "
                "these values"
            )
