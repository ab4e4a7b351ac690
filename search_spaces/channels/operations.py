"""One tensor operation of a run, as the rules on channels see it: named as in ``torch.ops.aten``."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch

from search_spaces.channels.label_tensors import Labels
from search_spaces.channels.running import tensors

_COUNTS = ("int", "Optional[int]", "bool", "Optional[bool]")


@lru_cache
def _counts(function: Any) -> frozenset[str]:
    """The arguments of an operation that are sizes, axes or positions."""
    return frozenset(argument.name for argument in function._schema.arguments if str(argument.type) in _COUNTS)


@dataclass(frozen=True)
class Operation:
    """One call of an operation, with labels in the place of its input tensors, and what it really gave."""

    function: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: Any

    @property
    def name(self) -> str:
        """The plain name: one for an operation, its in-place form and its unsafe form."""
        name: str = self.function.overloadpacket.__name__
        return {"_unsafe_view": "view", "_reshape_alias": "view"}.get(name, name.removesuffix("_"))

    @property
    def title(self) -> str:
        """The name that the user knows it by."""
        plain = self.name.strip("_").removeprefix("native_")
        return {"bmm": "matmul", "mm": "matmul", "addmm": "linear", "safe_softmax": "softmax"}.get(plain, plain)

    @property
    def arguments(self) -> dict[str, Any]:
        """The arguments that were given, by the names of the operation's schema."""
        names = [argument.name for argument in self.function._schema.arguments]
        return dict(zip(names, self.args, strict=False)) | self.kwargs

    @property
    def operands(self) -> list[Labels]:
        """The labels of all input tensors."""
        return tensors((self.args, self.kwargs))

    @property
    def x(self) -> Labels:
        """The labels of the first input."""
        return self.operands[0]

    @property
    def shapes(self) -> list[torch.Size]:
        """The shapes of all that it gave."""
        return [tensor.shape for tensor in tensors(self.output)]

    def numbers(self) -> tuple[str, ...]:
        """The numbers that values are computed with (sizes, axes and positions are not among them)."""
        counts, given = _counts(self.function), self.arguments.items()
        found = [str(float(value)) for name, value in given if isinstance(value, (int, float)) and name not in counts]
        if self.name == "native_group_norm":
            found.append(str(self.x.shape[1] / self.arguments["group"]))
        return tuple(found)
