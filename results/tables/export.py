"""Assignments written for other tools: one function per format, registered by name."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping
from pathlib import Path

from results.files import indented_json, write_text
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
            f"unknown format '{format}'; choose one of {', '.join(EXPORTERS)}, or write the trained net with "
            f"dnas export{nearest(format, EXPORTERS)}"
        )
    EXPORTERS[format](assignment, path)


def assignment_text(assignment: BitAssignment, format: str) -> str:
    """What :func:`export_assignment` writes in one of our own formats."""
    return TEXTS[format](assignment)


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


def assignment_json(assignment: BitAssignment) -> str:
    """Return the assignment as indented JSON."""
    return indented_json(assignment.to_json(), what=f"assignment '{assignment.id}'")


TEXTS: Mapping[str, Callable[[BitAssignment], str]] = {"json": assignment_json, "csv": assignment_csv}


def _writer(text: Callable[[BitAssignment], str]) -> Exporter:
    return lambda assignment, path: write_text(path, text(assignment))


EXPORTERS: dict[str, Exporter] = {format: _writer(text) for format, text in TEXTS.items()}
