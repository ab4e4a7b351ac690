"""A network that takes or gives any structure of tensors, as a graph has it: tensors by name, in order."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from search_spaces.errors import InputError
from search_spaces.layers import LayerGraph
from search_spaces.network.examples import Call, call_of, drawn

INPUT, OUTPUT = "input", "output"


def call_on(graph: LayerGraph, network: nn.Module, images: Any, count: int) -> Call:
    """What a graph of ``network`` is compared on: the given inputs, in fp32 on the CPU, or ``count`` drawn samples."""
    if images is None:
        return drawn(graph.example, count, network)
    call = call_of(images).on(torch.device("cpu"))
    return call.mapped(lambda tensor: tensor.float() if tensor.is_floating_point() else tensor)


def input_names(network: nn.Module, call: Call, plain: bool) -> list[str]:
    """The name of each tensor of a call, in order: ``input`` of a ``plain`` one, else as the forward pass has it."""
    if plain:
        return [INPUT]
    parameters = inspect.signature(type(network).forward).parameters.values()
    several = next((each.name for each in parameters if each.kind is each.VAR_POSITIONAL), INPUT)
    single = [each.name for each in parameters if each.kind in (each.POSITIONAL_ONLY, each.POSITIONAL_OR_KEYWORD)][1:]
    names = [single[at] if at < len(single) else f"{several}.{at}" for at in range(len(call.args))]
    given = {**dict(zip(names, call.args, strict=True)), **call.kwargs}
    return _distinct([name for name, _ in _named(given, "")], {*network.state_dict()})


def output_names(network: nn.Module, given: Any, inputs: Sequence[str]) -> list[str]:
    """The name of each tensor that a network gave, in order: ``output`` of one alone, else the keys or numbers.

    With a mark behind it where the ``inputs`` or a parameter has that name.
    """
    own = getattr(network, "output_names", None)
    names = [OUTPUT if name.isdecimal() or not name else name for name, _ in _named(given, "")]
    names = [f"{OUTPUT}.{at}" if name == OUTPUT and len(names) > 1 else name for at, name in enumerate(names)]
    return _distinct(list(own) if own is not None else names, {*inputs, *network.state_dict()})


def tensors_of(given: Any) -> list[Tensor]:
    """All tensors of a structure, in order."""
    return [tensor for _, tensor in _named(given, "")]


def plain(given: Any) -> Any:
    """The structure with dicts and tuples for classes that are like them, which a file could not tell."""
    if not isinstance(given, tuple):
        given = _as_dict(given)
    if isinstance(given, Mapping):
        return {key: plain(each) for key, each in given.items()}
    if isinstance(given, tuple | list):
        return [plain(each) for each in given] if isinstance(given, list) else tuple(plain(each) for each in given)
    return given


def _as_dict(value: Any) -> Any:
    """The fields of a named tuple or of a dataclass that is no dict itself, by name; anything else as it is."""
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        return value._asdict()
    if isinstance(value, Mapping | type) or not is_dataclass(value):
        return value
    return {each.name: getattr(value, each.name) for each in fields(value)}


def _named(value: Any, name: str) -> Iterator[tuple[str, Tensor]]:
    value = _as_dict(value)
    if isinstance(value, Tensor):
        yield name, value
    elif isinstance(value, Mapping | tuple | list):
        pairs = value.items() if isinstance(value, Mapping) else enumerate(value)
        for key, each in pairs:
            yield from _named(each, f"{name}.{key}" if name else str(key))


def _distinct(names: list[str], taken: set[str]) -> list[str]:
    """The names, with marks behind those that are taken."""
    found: list[str] = []
    for name in names:
        while name in taken or name in found:
            name += "_"
        found.append(name)
    return found


def feeds_of(names: list[str], call: Call) -> dict[str, np.ndarray]:
    """The tensors of a call by name, for a runtime."""
    return {name: tensor.numpy() for name, tensor in zip(names, call.tensors, strict=True)}


def rows_of(feeds: Mapping[str, np.ndarray]) -> list[dict[str, np.ndarray]]:
    """The samples, each a batch of one; all as one where the tensors have no axis of samples in common."""
    counts = {len(values) if values.ndim else 0 for values in feeds.values()}
    if len(counts) != 1 or 0 in counts:
        return [dict(feeds)]
    return [{name: values[at : at + 1] for name, values in feeds.items()} for at in range(counts.pop())]


def runnable(program: torch.export.ExportedProgram, call: Call) -> torch.export.ExportedProgram:
    """The program, which PyTorch made of what ``call`` gives, without a check of its own that cannot run.

    PyTorch 2.9 compares the batch sizes of several inputs by names that are not there when the program runs.
    """
    if len(call.tensors) > 1:
        try:
            with torch.no_grad():
                call.run(program.module())
        except NameError:
            program._guards_code.clear()
    return program


class Flattened(nn.Module):
    """A network as a function of tensors alone that gives tensors alone; whatever else it is called with is fixed."""

    def __init__(self, network: nn.Module, call: Call) -> None:
        super().__init__()
        self.network = network
        leaves, self._structure = tree_flatten((call.args, dict(call.kwargs)))
        self._leaves = [None if isinstance(leaf, Tensor) else (leaf,) for leaf in leaves]

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """The tensors that the network gives, in order."""
        following = iter(tensors)
        leaves = [next(following) if held is None else held[0] for held in self._leaves]
        args, kwargs = tree_unflatten(leaves, self._structure)
        found = tensors_of(self.network(*args, **kwargs))
        if not found:
            raise InputError("the network gives no tensor")
        same = {id(tensor) for tensor in tensors}
        return tuple(tensor.clone() if id(tensor) in same else tensor for tensor in found)
