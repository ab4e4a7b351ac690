"""The quantizers by name: a new one is a grid (or a module) and a line here, or the user's own by its import path."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

import torch

from dnas.quantization.logarithmic import LogarithmicQuantizer
from dnas.quantization.quantizers import (
    Quantizer,
    binary_grid,
    even_grid,
    integer_grid,
    nested_grid,
    symmetric_grid,
)
from search_spaces.errors import InputError, kind_of
from search_spaces.registry import Registry


def _own(source: str, found: Any) -> Quantizer:
    if not isinstance(found, Quantizer):
        raise InputError(
            f"quantizer '{source}' is {kind_of(found)}; it must be a dnas.Quantizer, such as Quantizer('mine', grid)"
        )
    return replace(found, name=source)


def _by_name(*quantizers: Quantizer) -> dict[str, Quantizer]:
    return {quantizer.name: quantizer for quantizer in quantizers}


_LOGARITHMIC = Quantizer("logarithmic", clip="data", module=LogarithmicQuantizer)

WEIGHT_QUANTIZERS = Registry(
    "weight quantizer",
    _by_name(
        Quantizer("lsq", integer_grid),
        Quantizer("nested", nested_grid, nests=True),
        Quantizer("dorefa", even_grid, clip="data", transform=torch.tanh),
        Quantizer("binary", binary_grid, clip="data", widths=(1,)),
        _LOGARITHMIC,
    ),
    _own,
)
ACTIVATION_QUANTIZERS = Registry(
    "activation quantizer",
    _by_name(
        Quantizer("pact", symmetric_grid, clip_gradient="saturated"),
        Quantizer("lsq", integer_grid),
        Quantizer("nested", nested_grid, nests=True),
        Quantizer("dorefa", even_grid, clip="one"),
        Quantizer("binary", binary_grid, widths=(1,)),
        Quantizer("tanh", even_grid, clip="data", transform=torch.tanh),
        _LOGARITHMIC,
    ),
    _own,
)


def find_quantizer(kind: Literal["weights", "activations"], name: str) -> Quantizer:
    """The quantizer of that name, or the user's ``package.module:name``; :class:`InputError` otherwise."""
    return (WEIGHT_QUANTIZERS if kind == "weights" else ACTIVATION_QUANTIZERS).find(name)
