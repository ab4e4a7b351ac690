"""Assignments written for other tools: one function per format, registered by name."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from pathlib import Path

from results.files import write_json, write_text
from search_spaces.assignments import BitAssignment
from search_spaces.errors import InputError, nearest

Exporter = Callable[[BitAssignment, Path], None]

CSV_COLUMNS = ("layer", "weight_bits", "activation_bits", "out_channels", "kept_channels")


def export_assignment(assignment: BitAssignment, format: str, path: Path) -> None:
    """Write ``assignment`` to ``path`` in a registered format.

    Raises :class:`InputError` for an unknown format, :class:`JobError` where the disk refuses.
    The JSON is that of ``assignments/ID.json``; the CSV has one line per layer, with its filters after
    pruning and the numbers of those kept, apart by spaces; empty where all are kept.
    """
    if format not in EXPORTERS:
        raise InputError(
            f"unknown format '{format}'{nearest(format, EXPORTERS)}; choose one of "
            f"{', '.join(EXPORTERS)}, or write the trained net with dnas export"
        )
    EXPORTERS[format](assignment, path)


def assignment_csv(assignment: BitAssignment) -> str:
    """Return the assignment as CSV text, layers in their own order."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(CSV_COLUMNS)
    for name, bits in assignment.layers.items():
        channels = "" if bits.out_channels is None else bits.out_channels
        kept = "" if bits.kept_channels is None else " ".join(map(str, bits.kept_channels))
        writer.writerow([name, bits.weight_bits, bits.activation_bits, channels, kept])
    return out.getvalue()


def _export_json(assignment: BitAssignment, path: Path) -> None:
    write_json(path, assignment.to_json())


def _export_csv(assignment: BitAssignment, path: Path) -> None:
    write_text(path, assignment_csv(assignment))


EXPORTERS: dict[str, Exporter] = {"json": _export_json, "csv": _export_csv}
