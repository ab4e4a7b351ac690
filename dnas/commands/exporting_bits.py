"""The command ``export`` for formats that hold an assignment and no trained net: nothing here waits for torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from dnas.commands.options import PAGES
from dnas.commands.terminal import show, show_json
from dnas.export.suffixes import SUFFIXES
from results.run.folder import Run
from results.tables.export import EXPORTERS, export_assignment
from search_spaces.assignments import BitAssignment
from search_spaces.errors import InputError
from search_spaces.metrics import validation_of
from search_spaces.provenance import in_order

NETLESS = (*EXPORTERS, "torchao")
"""The formats that hold nothing of a trained net."""


def export(folder: Path, name: str, format: str, out: Path, as_json: bool) -> None:
    """Write the bits of an assignment and tell of the file."""
    written = export_bits(Run.open(folder), name, format, out)
    if as_json:
        show_json(written)
    else:
        show(f"written: {out}")


def export_bits(run: Run, name: str, format: str, out: Path) -> Mapping[str, str]:
    """Write the assignment of this id, or of one that begins so, and return what is told of the file.

    Raises :class:`InputError` for a switchable net, which is several assignments.
    """
    assignments = run.assignments()
    profiles = [found.id for found in assignments.values() if found.provenance.net == name]
    if profiles:
        raise InputError(f"'{name}' is a net of several assignments; name one of them, such as {profiles[0]}")
    assignment = run.assignment(run.complete_id(name))
    export_assignment(assignment, format, out)
    return {"assignment": assignment.id, "format": format, "file": str(out)}


def switchable_nets(assignments: Mapping[str, BitAssignment]) -> list[str]:
    """The switchable nets that these assignments are profiles of, by number."""
    return in_order({item.provenance.net for item in assignments.values() if item.provenance.net})


def check_seed(assignment: BitAssignment, seed: int) -> None:
    """Refuse a seed that no net of the assignment was trained with, where that is known."""
    measured = validation_of(assignment.metrics)
    count = None if measured is None else int(measured["n"])
    if count is not None and not 0 <= seed < count:
        known = ", ".join(map(str, range(count)))
        raise InputError(f"'{assignment.id}' has no net of seed {seed}; the seeds of its nets are {known}")


def check_format(path: Path, format: str, own: tuple[str, ...] = ()) -> None:
    """Refuse a name that says of a file that it is of another format than it will be; one that says nothing is fine.

    ``own`` are the suffixes of a format that is not one of ours, where it has some.
    """
    known = {**{name: (f".{name}",) for name in EXPORTERS}, **SUFFIXES}
    suffix, own = path.suffix.lower(), known.get(format, own)
    fitting = [name for name, suffixes in known.items() if suffix in suffixes]
    if suffix in own or not own or not (fitting or suffix in _OF_NO_FORMAT):
        return
    other = f", or give --format {' or '.join(fitting)}" if fitting else ""
    raise InputError(f"{path} is no name for a file of the format '{format}'; end it in {' or '.join(own)}{other}")


_OF_NO_FORMAT = (*PAGES, ".png", ".svg", ".pdf")
