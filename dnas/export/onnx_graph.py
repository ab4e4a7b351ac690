"""An ONNX graph as the passes over it read it: who makes a tensor, who reads it, and which are constants."""

from __future__ import annotations

from typing import Any, cast

import numpy as np

from dnas.export.onnx_packages import need


class GraphView:
    """Look-ups in the graph of ``model`` as it is now; made anew when nodes have changed."""

    def __init__(self, model: Any) -> None:
        self.graph = model.graph
        self.producers = {name: node for node in self.graph.node for name in node.output}
        self.readers: dict[str, list[Any]] = {}
        for node in self.graph.node:
            for name in node.input:
                self.readers.setdefault(name, []).append(node)
        self.results = {output.name for output in self.graph.output}
        self._constants = {tensor.name: tensor for tensor in self.graph.initializer}

    def only_reader(self, name: str) -> Any | None:
        """The one node that reads a tensor; None where there are several, none, or it is a result."""
        readers = self.readers.get(name, [])
        return readers[0] if len(readers) == 1 and name not in self.results else None

    def constant(self, name: str) -> np.ndarray | None:
        """The values of a constant, or None."""
        if name in self._constants:
            return cast(np.ndarray, _to_array(self._constants[name]))
        node = self.producers.get(name)
        if node is None or node.op_type != "Constant":
            return None
        return next((_to_array(found.t) for found in node.attribute if found.name == "value"), None)


def attribute(node: Any, name: str, default: Any = None) -> Any:
    """The value of an attribute of a node."""
    (onnx,) = need("onnx", "onnx")
    return next((onnx.helper.get_attribute_value(found) for found in node.attribute if found.name == name), default)


def replace_nodes(model: Any, nodes: list[Any]) -> None:
    """Make ``nodes`` those of the graph, and forget the constants that none of them reads."""
    graph = model.graph
    del graph.node[:]
    graph.node.extend(nodes)
    read = {name for node in nodes for name in node.input} | {output.name for output in graph.output}
    kept = [tensor for tensor in graph.initializer if tensor.name in read]
    del graph.initializer[:]
    graph.initializer.extend(kept)


def _to_array(tensor: Any) -> Any:
    (numpy_helper,) = need("onnx", "onnx.numpy_helper")
    return numpy_helper.to_array(tensor)
