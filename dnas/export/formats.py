"""The formats of a trained net by name: a new one is a file beside this one and a line here, or the user's own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dnas.export.aimet import export_aimet
from dnas.export.fixed_layers import ExportedFile
from dnas.export.graph_export import export_graph
from dnas.export.onnx import OnnxFormat
from dnas.export.onnx_residuals import RESIDUAL_BITS
from dnas.export.pt2e import export_pt2e
from dnas.export.qonnx import QonnxFormat
from dnas.export.save import save_packed
from dnas.export.stored import StoredNet
from dnas.export.suffixes import SUFFIXES
from dnas.export.targets import DEFAULT_TARGET, find_target
from dnas.export.torchao import export_torchao
from results.files import refuse_special, wholly_written
from search_spaces.errors import InputError, told_as
from search_spaces.registry import Registry, called, importable_working_directory

PACKED = "packed"
"""The format of :mod:`results.packed.file`, which a whole switchable net has too."""


@dataclass(frozen=True)
class ExportOptions:
    """What a user may ask of a file.

    That it takes pixels and normalises them; for which runtime it is; that sums that nothing quantizes have 8 bits.
    """

    normalise: bool = False
    target: str | None = None
    residual_bits: int | None = None

    @property
    def given(self) -> list[str]:
        """The names of those that were asked for."""
        return [name for name, value in asdict(self).items() if value not in (None, False)]


@dataclass(frozen=True)
class NetExporter:
    """Writes a net to a path and says what it wrote.

    ``write`` is given (path, net, options), and of the options only those in ``takes``. ``trained`` is False for a
    format that holds nothing of a trained net. ``suffixes`` are what its files' names end in; none where any will do.
    """

    write: Callable[[Path, StoredNet, ExportOptions], ExportedFile]
    trained: bool = True
    takes: frozenset[str] = frozenset()
    suffixes: tuple[str, ...] = ()


def _packed(out: Path, net: StoredNet, options: ExportOptions) -> ExportedFile:
    packed = save_packed(
        out, net.network, net.graph, net.assignment, net.choice, model=net.model, preprocessing=net.preprocessing
    )
    return ExportedFile(out, PACKED, out.stat().st_size, packed.tensor_bytes, header_bytes=packed.header_bytes)


def _own(source: str, found: Any) -> NetExporter:
    """A user's function (path, net), which writes the file; or a :class:`NetExporter`."""
    if isinstance(found, NetExporter):
        return found
    function = called(source, found, "format")

    def write(out: Path, net: StoredNet, options: ExportOptions) -> ExportedFile:
        refuse_special(out)
        with importable_working_directory(), wholly_written(out) as path:
            with told_as(lambda reason: f"format '{source}' failed for '{net.assignment.id}': {reason}"):
                function(path, net)
            if not path.is_file():
                raise InputError(
                    f"format '{source}' wrote no file {path.name} where it was told to; it is called as "
                    "function(path, net), and writes to that path"
                )
        return ExportedFile(out, source, out.stat().st_size, int(net.assignment.cost["size_bytes"]))

    return NetExporter(write)


def _check_residual_bits(options: ExportOptions) -> None:
    if options.residual_bits not in (None, RESIDUAL_BITS):
        raise InputError(f"--residual-bits is {RESIDUAL_BITS} or left out, and not {options.residual_bits}")


def _onnx(out: Path, net: StoredNet, options: ExportOptions) -> ExportedFile:
    _check_residual_bits(options)
    format = OnnxFormat(find_target(options.target or DEFAULT_TARGET), options.residual_bits)
    return export_graph(out, format, net, normalise=options.normalise)


def _pt2e(out: Path, net: StoredNet, options: ExportOptions) -> ExportedFile:
    _check_residual_bits(options)
    return export_pt2e(out, net, residuals=options.residual_bits is not None)


NET_EXPORTERS = Registry(
    "format",
    {
        PACKED: NetExporter(_packed, suffixes=SUFFIXES[PACKED]),
        "onnx": NetExporter(
            _onnx, takes=frozenset({"normalise", "target", "residual_bits"}), suffixes=SUFFIXES["onnx"]
        ),
        "qonnx": NetExporter(
            lambda out, net, options: export_graph(out, QonnxFormat(), net, normalise=options.normalise),
            takes=frozenset({"normalise"}),
            suffixes=SUFFIXES["qonnx"],
        ),
        "pt2e": NetExporter(_pt2e, takes=frozenset({"residual_bits"}), suffixes=SUFFIXES["pt2e"]),
        "torchao": NetExporter(
            lambda out, net, options: export_torchao(out, net.network, net.graph, net.assignment, net.preprocessing),
            trained=False,
            suffixes=SUFFIXES["torchao"],
        ),
        "aimet": NetExporter(
            lambda out, net, options: export_aimet(out, net.network, net.assignment, net.preprocessing),
            suffixes=SUFFIXES["aimet"],
        ),
    },
    _own,
)
