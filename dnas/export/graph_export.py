"""Formats that are ONNX graphs: one way from a fixed net to a file that computes the same, whatever the format."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from torch import nn

from dnas.export.detectors import before_boxes
from dnas.export.fixed_layers import (
    ExportedFile,
    FixedLayer,
    StoredLayer,
    fixed_layers,
    ideal_bytes,
    input_shape_of,
)
from dnas.export.onnx_check import check_inputs, check_same, tensor_names
from dnas.export.onnx_normalisation import normalised, pixels_of, take_pixels
from dnas.export.onnx_packages import need
from dnas.export.onnx_tracing import Tap, trace
from dnas.export.parts import deployed_copy
from dnas.export.stored import StoredNet
from results.files import encode_json, write_bytes

ASSIGNMENT_KEY, PREPROCESSING_KEY = "dnas.assignment", "dnas.preprocessing"


class WrittenGraph(Protocol):
    """The graph of one net in one format."""

    @property
    def model(self) -> Any:
        """The ONNX model."""

    @property
    def taps(self) -> Sequence[Tap]:
        """The tensors of every layer call."""

    def run(self, x: np.ndarray, names: list[str]) -> Mapping[str, np.ndarray]:
        """The graph's outputs, its input and the tensors ``names`` for ``x`` (N, ...)."""

    def finish(self, x: np.ndarray) -> tuple[Mapping[str, StoredLayer], Sequence[str]]:
        """Change what leaves the values of ``x`` as they are, or was asked for: how layers are stored, and notes."""


class GraphFormat(Protocol):
    """A format whose files are ONNX graphs."""

    @property
    def name(self) -> str:
        """What a user calls it."""

    @property
    def packages(self) -> tuple[str, ...]:
        """The modules that it needs."""

    @property
    def opset(self) -> int:
        """The version of ONNX's operators."""

    @property
    def batch(self) -> int | None:
        """The size of the batch; None leaves it open."""

    def write(self, model: Any, network: nn.Module, layers: Mapping[str, FixedLayer]) -> WrittenGraph:
        """Make the marked ``model`` one of this format; :class:`InputError` for a layer that it has no words for."""


def export_graph(path: Path, format: GraphFormat, net: StoredNet, *, normalise: bool = False) -> ExportedFile:
    """Write ``net`` to ``path``.

    The file and PyTorch are compared layer by layer on ``net.images``, or on seeded noise. The metadata tell how to
    normalise; with ``normalise`` the file begins with it and takes pixels in [0, 1]. Raises :class:`InputError` for a
    net that the format cannot hold, :class:`JobError` naming the first layer that differs; nothing is written then.
    """
    need(format.name, *format.packages)
    shape = input_shape_of(net.assignment)
    network = before_boxes(deployed_copy(net.network), shape)
    layers = fixed_layers(network)
    model = trace(network, [spec.name for spec in net.graph.layers], shape, format.opset, batch=format.batch)
    if normalise:
        take_pixels(model, net.preprocessing)
    written = format.write(model, network, layers)
    describe(written.model, net, normalise)
    x = check_inputs(shape) if net.images is None else net.images.cpu().float()
    x = pixels_of(x, net.preprocessing) if normalise and net.images is not None else x
    found = written.run(x.numpy(), tensor_names(written.taps))
    results = {output.name: found[output.name] for output in written.model.graph.output}
    given = normalised(x, net.preprocessing) if normalise else x
    check_same(network, layers, written.taps, found, given, results)
    stored, notes = written.finish(x.numpy())
    size = write_model(path, written.model)
    return ExportedFile(path, format.name, size, ideal_bytes(net.assignment), layers=stored, notes=notes)


def describe(model: Any, net: StoredNet, normalise: bool) -> None:
    """Put the assignment, how to normalise, and the producer into the model."""
    told = {ASSIGNMENT_KEY: net.assignment.to_json()}
    if net.preprocessing is not None:
        told[PREPROCESSING_KEY] = net.preprocessing.to_json(in_file=normalise)
    for key, value in told.items():
        entry = model.metadata_props.add()
        entry.key, entry.value = key, encode_json(value, what=key)
    model.producer_name, model.producer_version, model.graph.name = "dnas", "", net.assignment.id


def write_model(path: Path, model: Any) -> int:
    """Check the model against the standard and write it in one step; its bytes."""
    (onnx,) = need("onnx", "onnx")
    data = model.SerializeToString(deterministic=True)
    onnx.checker.check_model(data)
    write_bytes(path, data)
    return len(data)
