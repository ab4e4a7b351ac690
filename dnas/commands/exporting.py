"""The command ``export``: an assignment, or its trained net, for other tools."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from dnas.commands.terminal import show, show_json
from dnas.config.file import load_job
from dnas.export.aimet import export_aimet
from dnas.export.fixed_layers import ExportedFile
from dnas.export.onnx import export_onnx
from dnas.export.qonnx import export_qonnx
from dnas.export.save import save_packed
from dnas.export.torchao import export_torchao
from dnas.jobs.context import load_network
from dnas.jobs.stored_nets import stored_net, stored_switchable
from dnas.quantization.conversion import QuantizerChoice
from results.packed.file import PackedFile
from results.run.folder import JOB, Run
from results.tables.export import FORMATS, NET_FORMATS, PACKED, export_assignment
from search_spaces.assignments import BitAssignment, check_fits
from search_spaces.errors import InputError, nearest
from search_spaces.layers import LayerGraph
from search_spaces.network.graph import read_graph
from search_spaces.provenance import Profile


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


def export(folder: Path, name: str | None, format: str, out: Path, as_json: bool) -> None:
    """Write an assignment in a format that other tools read, or its trained net; or a whole switchable net.

    Without ``name`` that is the last switchable net of the run, a measured one where there is one.
    """
    run = Run.open(folder)
    assignments = run.assignments()
    nets = switchable_nets(assignments)
    measured = switchable_nets({name: item for name, item in assignments.items() if "val_top1" in item.metrics})
    if name is None and not nets:
        raise InputError(
            f"{folder} has no switchable net; name an assignment, or make one with: dnas finalise {folder}"
        )
    written = _export_net(run, name or (measured or nets)[-1], format, out) if name is None or name in nets else None
    written = written or [_export_one(run, run.assignment(run.complete_id(str(name))), format, out)]
    if as_json:
        show_json(written[0].told if len(written) == 1 else [file.told for file in written])
    else:
        show(*(f"written: {file.told['file']}{file.words}" for file in written))


@dataclass(frozen=True)
class _Written:
    """What is told of a file, as JSON and in words."""

    told: Mapping[str, Any]
    words: str


def switchable_nets(assignments: Mapping[str, BitAssignment]) -> list[str]:
    """The switchable nets that these assignments are profiles of, by number."""
    nets = {item.provenance.net for item in assignments.values() if item.provenance.net}
    return sorted(nets, key=lambda net: int(net.rpartition("-")[2]))


def _export_net(run: Run, name: str, format: str, out: Path) -> list[_Written]:
    """A switchable net: one packed file of all profiles, or a file for each."""
    profiles = {
        item.provenance.profile: item
        for item in run.assignments().values()
        if isinstance(item.provenance, Profile) and item.provenance.net == name
    }
    some = next(iter(profiles.values()))
    if format == PACKED:
        return [_packed_net(run, name, some, out)]
    if format not in FORMATS:
        raise InputError(f"unknown format '{format}'{nearest(format, FORMATS)}; choose one of {', '.join(FORMATS)}")
    if format not in NET_FORMATS:
        raise InputError(f"'{name}' is a net of several assignments; name one of them, such as {some.id}")
    return [_export_one(run, item, format, out.with_stem(f"{out.stem}-{key}")) for key, item in profiles.items()]


def _packed_net(run: Run, name: str, profile: BitAssignment, out: Path) -> _Written:
    config = load_job(str(run.folder / JOB))
    network = load_network(config).module
    net = stored_switchable(run, network, read_graph(network, profile.model.input_shape), name)
    model = {"source": config.model.source, "arguments": config.model.arguments}
    packed = save_packed(out, net, model=model)
    largest = max(item.cost("size_bytes") for item in net.profiles.values())
    sizes = {"tensor_bytes": packed.tensor_bytes, "header_bytes": packed.header_bytes}
    told = {"net": name, "profiles": list(net.profiles), "format": PACKED, "file": str(out), **sizes}
    words = (
        f" ({packed.tensor_bytes:,} bytes of tensors for {len(net.profiles)} profiles, "
        f"{packed.tensor_bytes / largest:.2f}x the largest alone; {packed.header_bytes:,} of header)"
    )
    return _Written(told, words)


def _export_one(run: Run, assignment: BitAssignment, format: str, out: Path) -> _Written:
    told = {"assignment": assignment.id, "format": format, "file": str(out)}
    if format == PACKED:
        packed = export_packed(run, assignment, out)
        sizes = {"tensor_bytes": packed.tensor_bytes, "header_bytes": packed.header_bytes}
        expected = int(assignment.cost["size_bytes"])
        other = "" if packed.tensor_bytes == expected else f" of its largest net: {expected:,}"  # of sparse nets
        words = f" ({packed.tensor_bytes:,} bytes of tensors, size_bytes{other}; {packed.header_bytes:,} of header)"
        return _Written({**told, **sizes}, words)
    if format in NET_FORMATS:
        file = NET_EXPORTERS[format](out, load_stored(run, assignment))
        ideal = "" if file.ideal_bytes is None else f"; size_bytes is {file.ideal_bytes:,}"
        found = {"file_bytes": file.file_bytes, "size_bytes": file.ideal_bytes, "left_out": dict(file.left_out)}
        left_out = "".join(f"\n  not in the file: {name}: {why}" for name, why in file.left_out.items())
        return _Written({**told, **found}, f" ({file.file_bytes:,} bytes{ideal}){left_out}")
    export_assignment(assignment, format, out)
    return _Written(told, "")


def export_packed(run: Run, assignment: BitAssignment, out: Path) -> PackedFile:
    """Write the net of the first seed that was measured for ``assignment``."""
    net, model = load_stored(run, assignment), load_job(str(run.folder / JOB)).model
    source = {"source": model.source, "arguments": model.arguments}
    return save_packed(out, net.network, net.graph, assignment, net.choice, model=source)


def load_stored(run: Run, assignment: BitAssignment) -> StoredNet:
    """The net of the first seed that was measured for ``assignment``."""
    config = load_job(str(run.folder / JOB))
    network, section = load_network(config).module, config.quantizer
    choice = QuantizerChoice(section.weights, section.activations, section.per_channel)
    if assignment.provenance.net:  # a profile of a switchable net, which has quantizers of its own
        choice = QuantizerChoice.of(assignment)
    graph = read_graph(network, assignment.model.input_shape)
    check_fits(assignment, graph)
    return StoredNet(stored_net(run, network, graph, assignment, choice, 0), graph, assignment, choice)
