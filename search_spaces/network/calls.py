"""How a layer is called: which argument is its input, given by position or by keyword."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from torch import nn


def input_name(kind: type[nn.Module]) -> str:
    """The name of the first argument of ``kind``'s forward.

    >>> input_name(nn.Conv2d)
    'input'
    """
    told = getattr(kind, "_first_argument", None)  # of a class whose forward takes whatever another one takes
    if told is not None:
        return str(told)
    try:
        parameters = inspect.signature(kind.forward).parameters
    except (AttributeError, TypeError, ValueError):  # of a scripted module, which has no forward of its own class
        return "input"
    return next((name for name in parameters if name != "self"), "input")


def first_input(module: nn.Module, inputs: tuple[Any, ...], options: Mapping[str, Any]) -> Any:
    """What ``module`` is called on; None where it is called without."""
    return inputs[0] if inputs else options.get(input_name(type(module)))


def with_first_input(
    module: nn.Module, inputs: tuple[Any, ...], options: Mapping[str, Any], x: Any
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The same arguments with ``x`` in the place of the first."""
    if inputs:
        return (x, *inputs[1:]), dict(options)
    return (), {**options, input_name(type(module)): x}
