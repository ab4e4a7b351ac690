"""What a layer multiplies its weight with, where that is not its first input alone.

A layer that is quantized has its first input quantized. One whose own code multiplies the weight with another input, or
with what others left with it as the network ran, would run as before there, so it has to be told from the others. So
has one whose weight is made of the latter: it is another weight each time, and no file holds it.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from search_spaces.models.multiplied import memory
from search_spaces.network.calls import input_name

ELSEWHERE = ""
"""Stands, among names of arguments, for what others computed before the call and the layer finds by itself."""


CHANCE = "?"
"""Stands, among names of arguments, for numbers that are drawn."""


class Origins:
    """Of every tensor inside one call of a layer: the arguments that it is made of, by name; ``first`` is its input.

    ``computed`` tells of any tensor whether it was computed as the network ran: found inside the call, it is from
    :data:`ELSEWHERE`.
    """

    def __init__(
        self,
        module: nn.Module,
        inputs: Sequence[Any],
        options: Mapping[str, Any],
        computed: Callable[[Tensor], bool] = lambda _: False,
    ) -> None:
        self._computed = computed
        given = {**dict(zip(_names(module, len(inputs)), inputs, strict=True)), **options}
        self.first = next(iter(given), "") if inputs else input_name(type(module))
        self._made: dict[int, frozenset[str]] = {}
        self._alive: list[Tensor] = []  # so that no later tensor can take the id of one of these
        for name, value in given.items():
            for tensor in _tensors(value):
                self._note(tensor, frozenset({name}))

    def of(self, tensors: Iterable[Tensor]) -> frozenset[str]:
        """The arguments that these tensors are made of."""
        return frozenset().union(*map(self._of, tensors))

    def _of(self, tensor: Tensor) -> frozenset[str]:
        known = self._made.get(id(tensor))
        if known is None:
            return frozenset({ELSEWHERE} if self._computed(tensor) else ())
        return known

    def operation(self, operands: Sequence[Tensor], output: Any, in_place: bool, drawn: bool = False) -> None:
        """Note an operation: its results are made of what its operands are, and of chance where they are ``drawn``."""
        made, results = self.of(operands) | ({CHANCE} if drawn else frozenset()), _tensors(output)
        for tensor in results:  # what is made of nothing, too: it was not computed elsewhere
            self._note(tensor, made)
        if in_place and made:  # whoever looks at the same memory sees it as well
            places = {memory(tensor) for tensor in results}
            for tensor in [each for each in self._alive if memory(each) in places]:
                self._note(tensor, made)

    def _note(self, tensor: Tensor, made: frozenset[str]) -> None:
        self._made[id(tensor)] = self._made.get(id(tensor), frozenset()) | made
        self._alive.append(tensor)


def factors_told(first: str, factors: Iterable[str]) -> str:
    """Why a layer with these factors of its weight cannot be quantized; "" where its first input is the only one."""
    factors = set(factors) - {CHANCE}
    if factors <= {first}:
        return ""
    named = [
        _LEFT if name == ELSEWHERE else f"'{name}'"
        for name in sorted(factors, key=lambda name: (name == ELSEWHERE, name))
    ]
    return (
        f"its own code multiplies its weight with what it makes of {' and '.join(named)}, and of a layer the first "
        f"input ('{first}') is quantized; let it take what it multiplies as its first input, and do the rest outside"
    )


_LEFT = "what others computed and left with it as an attribute"


def making_told(sources: Iterable[str]) -> str:
    """Why a layer whose weight is made of these sources cannot be quantized; "" where nothing speaks against it."""
    sources = set(sources)
    if CHANCE in sources:
        return "its weight is drawn by chance each time the network runs; let it draw in training alone"
    if ELSEWHERE not in sources:
        return ""
    return (
        f"its weight is made of {_LEFT}, so that it is another one each time the network runs; let it multiply its "
        "output by that, or give it as an argument of the forward pass"
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
