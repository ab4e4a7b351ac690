"""Which of its inputs a layer multiplies its weight with, where it is called with several.

A layer that is quantized has its first input quantized. One whose own code multiplies the weight with another input, or
with what it makes of several, would run as before there, so it has to be told from the others.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from search_spaces.network.calls import input_name


class Origins:
    """Of every tensor inside one call of a layer: the arguments that it is made of, by name; ``first`` is its input."""

    def __init__(self, module: nn.Module, inputs: Sequence[Any], options: Mapping[str, Any]) -> None:
        given = {**dict(zip(_names(module, len(inputs)), inputs, strict=True)), **options}
        self.first = next(iter(given), "") if inputs else input_name(type(module))
        self._made: dict[int, frozenset[str]] = {}
        self._alive: list[Tensor] = []  # so that no later tensor can take the id of one of these
        for name, value in given.items():
            for tensor in _tensors(value):
                self._note(tensor, frozenset({name}))

    @property
    def several(self) -> bool:
        """Whether the layer was called with tensors in more than one argument."""
        return len(frozenset().union(*self._made.values())) > 1

    def of(self, tensors: Iterable[Tensor]) -> frozenset[str]:
        """The arguments that these tensors are made of."""
        return frozenset().union(*(self._made.get(id(tensor), frozenset()) for tensor in tensors))

    def operation(self, operands: Sequence[Tensor], output: Any, in_place: bool) -> None:
        """Note an operation: its results are made of what its operands are."""
        made = self.of(operands)
        if not made:
            return
        results = _tensors(output)
        for tensor in results:
            self._note(tensor, made)
        if in_place:  # whoever looks at the same memory sees it as well
            places = {tensor.untyped_storage()._cdata for tensor in results}
            for tensor in [each for each in self._alive if each.untyped_storage()._cdata in places]:
                self._note(tensor, made)

    def _note(self, tensor: Tensor, made: frozenset[str]) -> None:
        self._made[id(tensor)] = self._made.get(id(tensor), frozenset()) | made
        self._alive.append(tensor)


def factors_told(first: str, factors: Iterable[str]) -> str:
    """Why a layer with these factors of its weight cannot be quantized; "" where its first input is the only one."""
    others = sorted(set(factors) - {first})
    if not others:
        return ""
    named = " and ".join(f"'{name}'" for name in sorted(factors))
    return (
        f"its own code multiplies its weight with what it makes of {named}, and of a layer the first input ('{first}') "
        "is quantized; let it take what it multiplies as its first input, and do the rest outside"
    )


def _tensors(value: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor)]


def _names(module: nn.Module, count: int) -> list[str]:
    """Names of the arguments that are given by position."""
    try:
        parameters = inspect.signature(module.forward).parameters.values()
    except (AttributeError, TypeError, ValueError):  # of a scripted module
        parameters = {}.values()
    known = [each.name for each in parameters if each.kind in (each.POSITIONAL_ONLY, each.POSITIONAL_OR_KEYWORD)]
    return [known[at] if at < len(known) else f"argument {at + 1}" for at in range(count)]
