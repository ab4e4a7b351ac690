"""Tensors that a network reads and does not register: attributes of modules, and what functions keep.

A file does not hold them. Attributes and constants are the same in every network that the code makes, or they are not:
the file tells what they were. A parameter that no module of the network holds is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import keystr, tree_flatten_with_path, tree_leaves

from dnas.export.buffers import differ, fingerprint
from dnas.quantization.proof import outputs_on_noise
from search_spaces.errors import InputError
from search_spaces.layers import LayerGraph
from search_spaces.models.copies import copy_network
from search_spaces.models.multiplied import memory


class _Reading(TorchDispatchMode):
    """Collects the tensors that are read and that nothing made in its time, in the order of reading."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.known = {memory(tensor) for tensor in (*network.parameters(), *network.buffers())}
        self.read: dict[int, tuple[Tensor, int]] = {}  # with how often it had been written to
        self._alive: list[Any] = []  # so that no later tensor takes the memory of an earlier one

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run one operation, and note what it reads."""
        made_here = func is torch.ops.aten.lift_fresh.default  # torch.tensor(...) in the code
        for tensor in _tensors((args, kwargs)):
            if memory(tensor) not in self.known and not made_here and not tensor.is_meta:
                self.read.setdefault(id(tensor), (tensor, tensor._version))
        output = func(*args, **(kwargs or {}))
        self._alive.append(output)
        self.known |= {memory(tensor) for tensor in _tensors(output) if id(tensor) not in self.read}
        return output


def _tensors(values: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]


def constants_of(network: nn.Module, graph: LayerGraph) -> dict[str, list[float]]:
    """Name → fingerprint of every tensor that ``network`` reads in eval mode and does not register.

    Those of attributes go by their names, others by their order. Nothing is found where the network does not run on
    one random input. The network stays as it is. Raises :class:`InputError` for a parameter that is not the network's.
    """
    return _constants_and_made(network, graph)[0]


def check_constants(told: Mapping[str, Any], network: nn.Module, graph: LayerGraph) -> None:
    """Raise :class:`InputError` that names a constant with another value than ``told``.

    An attribute that only the exported network had is made when a network runs first; it must be the same whatever it
    runs on. What else only one of both has is made each time.
    """
    if not told:
        return
    constants, made = _constants_and_made(network, graph)
    own = made | constants
    for name in sorted(told.keys() & own.keys()):
        if differ(own[name], cast(list[float], told[name])):
            raise InputError(
                f"'{name}' is a tensor that the network reads and does not register, so the file does not hold it, and "
                "this network has another value there than the exported one; make it a buffer (register_buffer) and "
                "export again, or give a network with this value"
            )


def _constants_and_made(network: nn.Module, graph: LayerGraph) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """The constants, and the attributes that a copy of ``network`` has when it has run; name → fingerprint."""
    twin = copy_network(network).eval()  # a network may note something whenever it runs
    names, reading = _attribute_names(twin), _Reading(twin)
    with reading:
        ran = outputs_on_noise(twin, graph.example) is not None
    found: dict[str, list[float]] = {}
    for tensor, version in reading.read.values() if ran else ():
        if isinstance(tensor, nn.Parameter):
            raise _foreign(graph, tensor)
        if tensor._version == version and _is_told(tensor):
            found[names.get(id(tensor), (f"constant {len(found)}", tensor))[0]] = fingerprint(tensor)
    later = _attribute_names(twin).values() if ran else ()
    return found, {name: fingerprint(tensor) for name, tensor in later if _is_told(tensor)}


def _is_told(tensor: Tensor) -> bool:
    return tensor.layout == torch.strided and not tensor.is_quantized and not tensor.is_meta


def _attribute_names(network: nn.Module) -> dict[int, tuple[str, Tensor]]:
    """Id → name and tensor, for those in plain attributes of modules, in lists and dictionaries there too."""
    found: dict[int, tuple[str, Tensor]] = {}
    for name, module in network.named_modules():
        for key, value in vars(module).items():
            leaves = () if key in _REGISTERED else tree_flatten_with_path(value)[0]
            for path, leaf in leaves:
                if isinstance(leaf, Tensor):
                    found.setdefault(id(leaf), (f"{name}.{key}{keystr(path)}".removeprefix("."), leaf))
    return found


_REGISTERED = vars(nn.Module()).keys()


def _foreign(graph: LayerGraph, parameter: Tensor) -> InputError:
    reading = (name for name, why in graph.unsupported.items() if "reads the weight itself" in why)
    whose = next((f" (perhaps that of '{name}')" for name in reading), "")
    return InputError(
        f"the network reads a parameter of shape {tuple(parameter.shape)} that none of its modules holds{whose}: a "
        "function, a plain list or another object keeps it, which a file cannot hold; register it (a list as "
        "nn.ModuleList), and let a function find it by a module of the network"
    )
