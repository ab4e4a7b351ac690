"""The formats of a trained net by name: a new one is a file beside this one and a line here, or the user's own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from dnas.export.aimet import export_aimet
from dnas.export.fixed_layers import ExportedFile
from dnas.export.onnx import export_onnx
from dnas.export.qonnx import export_qonnx
from dnas.export.save import save_packed
from dnas.export.torchao import export_torchao
from dnas.quantization.conversion import QuantizerChoice
from results.preprocessing import Preprocessing
from search_spaces.assignments import BitAssignment
from search_spaces.errors import InputError, one_line
from search_spaces.layers import LayerGraph
from search_spaces.registry import Registry, called, importable_working_directory

PACKED = "packed"
"""The format of :mod:`results.packed.file`, which a whole switchable net has too."""


@dataclass(frozen=True)
class StoredNet:
    """The trained net of an assignment, in eval mode, and what is known of it.

    ``model`` names the network as a job does (``source``, ``arguments``); ``preprocessing`` is None where nobody knows.
    """

    network: nn.Module
    graph: LayerGraph
    assignment: BitAssignment
    choice: QuantizerChoice
    model: Mapping[str, Any]
    preprocessing: Preprocessing | None
    seed: int
    score: float | None
    """The metric on validation; None where it is not known."""


@dataclass(frozen=True)
class NetExporter:
    """Writes a net to a path and says what it wrote.

    ``write`` is given (path, net, normalise). ``trained`` is False for a format that holds nothing of a trained net;
    ``normalises`` is True for one whose files can take pixels and normalise them.
    """

    write: Callable[[Path, StoredNet, bool], ExportedFile]
    trained: bool = True
    normalises: bool = False


def _packed(out: Path, net: StoredNet, normalise: bool) -> ExportedFile:
    packed = save_packed(
        out, net.network, net.graph, net.assignment, net.choice, model=net.model, preprocessing=net.preprocessing
    )
    return ExportedFile(out, PACKED, out.stat().st_size, packed.tensor_bytes, header_bytes=packed.header_bytes)


def _own(source: str, found: Any) -> NetExporter:
    """A user's function (path, net), which writes the file; or a :class:`NetExporter`."""
    if isinstance(found, NetExporter):
        return found
    function = called(source, found, "format")

    def write(out: Path, net: StoredNet, normalise: bool) -> ExportedFile:
        with importable_working_directory():
            try:
                function(out, net)
            except InputError:
                raise
            except (Exception, SystemExit) as error:  # the user's own code may fail in any way
                raise InputError(f"format '{source}' failed for '{net.assignment.id}': {one_line(error)}") from error
        if not out.is_file():
            raise InputError(f"format '{source}' wrote no file '{out}'; it is called as function(path, net)")
        return ExportedFile(out, source, out.stat().st_size, int(net.assignment.cost["size_bytes"]))

    return NetExporter(write)


NET_EXPORTERS = Registry(
    "format",
    {
        PACKED: NetExporter(_packed),
        "onnx": NetExporter(
            lambda out, net, normalise: export_onnx(
                out, net.network, net.graph, net.assignment, preprocessing=net.preprocessing, normalise=normalise
            ),
            normalises=True,
        ),
        "qonnx": NetExporter(
            lambda out, net, normalise: export_qonnx(
                out, net.network, net.graph, net.assignment, preprocessing=net.preprocessing, normalise=normalise
            ),
            normalises=True,
        ),
        "torchao": NetExporter(
            lambda out, net, normalise: export_torchao(out, net.graph, net.assignment, net.preprocessing),
            trained=False,
        ),
        "aimet": NetExporter(
            lambda out, net, normalise: export_aimet(out, net.network, net.assignment, net.preprocessing)
        ),
    },
    _own,
)
