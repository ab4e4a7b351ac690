"""Note the shape and type that every node of a traced network gives, as ``ShapeProp`` does, but without a word.

``torch.fx.passes.shape_prop`` prints a traceback before it raises, on the user's stream; what fails here is tried on
purpose, and told in a sentence.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.node import map_aggregate
from torch.fx.passes.shape_prop import _extract_tensor_metadata


class _ShapeNotes(fx.Interpreter):
    """Runs a traced network and leaves ``meta["tensor_meta"]`` on every node that gives tensors."""

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        n.meta.pop("tensor_meta", None)
        found = []

        def note(value: Any) -> Any:
            if not isinstance(value, Tensor):
                return value
            found.append(value)
            return _extract_tensor_metadata(value)

        noted = map_aggregate(result, note)
        if found:
            n.meta["tensor_meta"] = noted
        return result


def note_shapes(module: fx.GraphModule, *inputs: Any) -> None:
    """Run ``module`` once on ``inputs`` without gradients; every node then carries the metadata of what it gives."""
    with torch.no_grad():
        _ShapeNotes(module).run(*inputs)
