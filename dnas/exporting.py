"""The command ``export``: an assignment, or its trained net, for other tools."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from dnas.aimet_export import export_aimet
from dnas.context import load_network
from dnas.conversion import QuantizerChoice
from dnas.fixed_layers import ExportedFile
from dnas.jobfile import load_job
from dnas.onnx_export import export_onnx
from dnas.packing import save_packed
from dnas.qonnx_export import export_qonnx
from dnas.stored_nets import stored_net
from dnas.terminal import show, show_json
from dnas.torchao_export import export_torchao
from results.export import NET_FORMATS, PACKED, export_assignment
from results.packed import PackedFile
from results.runs import JOB, Run
from search_spaces.assignments import BitAssignment, check_fits
from search_spaces.graph import read_graph
from search_spaces.layers import LayerGraph


@dataclass(frozen=True)
class StoredNet:
    """The trained net of an assignment, and what it was made of."""

    network: nn.Module
    graph: LayerGraph
    assignment: BitAssignment
    choice: QuantizerChoice


NetExporter = Callable[[Path, StoredNet], ExportedFile]
NET_EXPORTERS: Mapping[str, NetExporter] = {
    "onnx": lambda out, net: export_onnx(out, net.network, net.graph, net.assignment),
    "qonnx": lambda out, net: export_qonnx(out, net.network, net.graph, net.assignment),
    "torchao": lambda out, net: export_torchao(out, net.graph, net.assignment),
    "aimet": lambda out, net: export_aimet(out, net.network, net.assignment),
}


def export(folder: Path, name: str, format: str, out: Path, as_json: bool) -> None:
    """Write an assignment in a format that other tools read, or its trained net."""
    run = Run.open(folder)
    assignment = run.assignment(name)
    told = {"assignment": assignment.id, "format": format, "file": str(out)}
    sizes: dict[str, Any] = {}
    words = ""
    if format == PACKED:
        packed = export_packed(run, assignment, out)
        sizes = {"tensor_bytes": packed.tensor_bytes, "header_bytes": packed.header_bytes}
        expected = int(assignment.cost["size_bytes"])
        other = "" if packed.tensor_bytes == expected else f" of its largest net: {expected:,}"  # of sparse nets
        words = f" ({packed.tensor_bytes:,} bytes of tensors, size_bytes{other}; {packed.header_bytes:,} of header)"
    elif format in NET_FORMATS:
        file = NET_EXPORTERS[format](out, load_stored(run, assignment))
        sizes = {"file_bytes": file.file_bytes, "size_bytes": file.ideal_bytes}
        ideal = "" if file.ideal_bytes is None else f"; size_bytes is {file.ideal_bytes:,}"
        words = f" ({file.file_bytes:,} bytes{ideal})"
    else:
        export_assignment(assignment, format, out)
    if as_json:
        show_json({**told, **sizes})
    else:
        show(f"written: {out}{words}")


def export_packed(run: Run, assignment: BitAssignment, out: Path) -> PackedFile:
    """Write the net of the first seed that was measured for ``assignment``."""
    net = load_stored(run, assignment)
    return save_packed(out, net.network, net.graph, assignment, net.choice)


def load_stored(run: Run, assignment: BitAssignment) -> StoredNet:
    """The net of the first seed that was measured for ``assignment``."""
    config = load_job(str(run.folder / JOB))
    network, section = load_network(config).module, config.quantizer
    choice = QuantizerChoice(section.weights, section.activations, section.per_channel)
    graph = read_graph(network, assignment.model.input_shape)
    check_fits(assignment, graph)
    return StoredNet(stored_net(run, network, graph, assignment, choice, 0), graph, assignment, choice)
