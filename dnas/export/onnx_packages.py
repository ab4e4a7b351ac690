"""The packages of the extras ``onnx`` and ``openvino``, imported only when a format or a runtime needs them."""

from __future__ import annotations

import importlib
from typing import Any

from search_spaces.errors import InputError


def need(format: str, *names: str, extra: str = "onnx") -> tuple[Any, ...]:
    """Import these modules; :class:`InputError` with the install command where one is missing."""
    found = []
    for name in names:
        try:
            found.append(importlib.import_module(name))
        except ImportError as error:
            package = name.split(".")[0]
            raise InputError(
                f"the format '{format}' needs the package {package}: pip install 'dnas[{extra}]'"
            ) from error
    return tuple(found)
