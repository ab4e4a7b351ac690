"""Formats that are ONNX graphs: one way from a fixed net to a file that computes the same, whatever the format."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn

from dnas.export.calls import call_on, feeds_of
from dnas.export.detectors import before_boxes
from dnas.export.fixed_layers import (
    ExportedFile,
    FixedLayer,
    StoredLayer,
    fixed_layers,
    ideal_bytes,
)
from dnas.export.onnx_check import check_same, tensor_names
from dnas.export.onnx_normalisation import image_among, known, pixels_of, take_pixels
from dnas.export.onnx_packages import need
from dnas.export.onnx_tracing import Tap, trace
from dnas.export.parts import deployed_copy
from dnas.export.stored import StoredNet
from results.files import encode_json, refuse_special, write_bytes

ASSIGNMENT_KEY, PREPROCESSING_KEY = "dnas.assignment", "dnas.preprocessing"
Feeds = Mapping[str, np.ndarray]
_SAMPLES = 3


class WrittenGraph(Protocol):
    """The graph of one net in one format."""

    @property
    def model(self) -> Any:
        """The ONNX model."""

    @property
    def taps(self) -> Sequence[Tap]:
        """The tensors of every layer call."""

    def run(self, feeds: Feeds, names: list[str]) -> Mapping[str, np.ndarray]:
        """The graph's outputs, its inputs and the tensors ``names`` for inputs (N, ...) by name."""

    def finish(self, feeds: Feeds) -> tuple[Mapping[str, StoredLayer], Sequence[str]]:
        """Change what leaves the values for ``feeds`` as they are, or was asked for: how layers are stored, notes."""


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
    refuse_special(path)  # tracing a large network takes minutes
    if normalise:
        known(net.preprocessing)
    network, example = before_boxes(deployed_copy(net.network), net.graph.input_shape), net.graph.example
    layers = fixed_layers(network)
    model = trace(network, [spec.name for spec in net.graph.layers], example, format.opset, batch=format.batch)
    call = call_on(net.graph, network, net.images, _SAMPLES)
    feeds = feeds_of([entry.name for entry in model.graph.input], call)
    if normalise:
        image = image_among(feeds, net.preprocessing)
        take_pixels(model, net.preprocessing, image)
        feeds[image] = pixels_of(torch.from_numpy(feeds[image]), net.preprocessing).numpy()
    written = format.write(model, network, layers)
    describe(written.model, net, normalise)
    found = written.run(feeds, tensor_names(written.taps))
    results = {output.name: found[output.name] for output in written.model.graph.output}
    check_same(network, layers, written.taps, found, call, results)
    stored, notes = written.finish(feeds)
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
