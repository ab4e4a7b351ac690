"""What a weight scheme does with tensors: the modules that make, store and export weights of no single grid.

A scheme names its module (:mod:`search_spaces.schemes`), so that nothing here knows any of them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, NoReturn, cast

import numpy as np
import torch
from torch import Tensor, nn

from dnas.quantization.samples import TensorSample
from search_spaces.assignments import LayerBits
from search_spaces.errors import InputError
from search_spaces.registry import loaded
from search_spaces.schemes import WeightScheme

Add = Callable[[str, Tensor | np.ndarray], str]
"""Keeps a tensor of a packed file under a name like the one given, and returns the name."""


@dataclass(frozen=True)
class GappedWeight:
    """Codes (int64, of the weight's shape) of which 0 is zero and ±m is ±(start + (m - 1) step)."""

    words: str
    codes: np.ndarray
    start: float
    step: float


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, value: Tensor, passes: Tensor | None) -> Tensor:
        ctx.passes = passes
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        return grads[0] if ctx.passes is None else grads[0] * ctx.passes, None, None


def straight_through(weight: Tensor, value: Tensor, passes: Tensor | None = None) -> Tensor:
    """``value``, whose gradient, times ``passes`` where there is one, goes to ``weight``; all of one shape."""
    return cast(Tensor, _StraightThrough.apply(weight, value, passes))


class SchemeQuantizer(nn.Module, ABC):
    """The weight quantizer of a layer with a weight scheme: it is made anew from the weights, and never mixed."""

    widths: tuple[int, ...] = ()  # nothing to calibrate

    def __init__(self, bits: int, scheme: WeightScheme) -> None:
        super().__init__()
        self.bits, self.words = (bits,), scheme.words
        self.observed: list[TensorSample] | None = None

    def forward(self, weight: Tensor) -> Tensor:
        """The weights that the layer uses, of the same shape; ``weight`` itself while observing."""
        return weight if self.observed is not None else self.represented(weight)

    @abstractmethod
    def represented(self, weight: Tensor) -> Tensor:
        """The values that ``weight`` is represented by, with a gradient that reaches it."""

    @abstractmethod
    def stored(self, weight: Tensor, scheme: Any) -> WeightScheme:
        """The scheme with what ``weight`` takes; what this module knows itself takes the place of the scheme's."""

    @abstractmethod
    def pack(self, name: str, weight: Tensor, scheme: Any, add: Add) -> tuple[dict[str, Any], dict[str, Any]]:
        """How a packed file stores the weight of layer ``name``, and how a profile makes values of it.

        The first has a ``storage`` that the scheme reads; tensors go by the names that ``add`` returns. Raises
        :class:`InputError` for a weight that is not ready.
        """

    def gapped(self, name: str, weight: Tensor) -> GappedWeight:
        """The weight of layer ``name`` as exports read it; :class:`InputError` where it has no such codes."""
        raise InputError(f"layer '{name}' has {self.words}, which this format cannot hold; export it as packed")

    def hold(self, weight: Tensor) -> None:
        """Refuse to let filters be removed: what stays must not depend on what goes."""
        self.keep_rows(None)

    def keep_rows(self, rows: Tensor | None) -> NoReturn:
        """Refuse to let filters be removed."""
        raise InputError(f"{self.words} cannot lose filters: how they are represented is that of the whole layer")


def module_of(scheme: WeightScheme) -> type[SchemeQuantizer]:
    """The module that a scheme names."""
    return cast(type[SchemeQuantizer], loaded(scheme.module, "the module of a weight scheme"))


def as_stored(network: nn.Module, layers: Mapping[str, LayerBits]) -> dict[str, LayerBits]:
    """The layers of a fixed net with what their weights take, where they have a scheme."""
    found = dict(layers)
    for name, bits in layers.items():
        layer: Any = network.get_submodule(name)
        quantizer = getattr(layer, "quantize_weight", None)
        if bits.scheme is not None and isinstance(quantizer, module_of(bits.scheme)):
            found[name] = replace(bits, scheme=quantizer.stored(layer.float_weight(), bits.scheme))
    return found
