"""Which assignment of a run a name means, and what is said of a name that none has."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from results.pareto import FLOAT
from search_spaces.errors import InputError, nearest, quoted

_MOST_LISTED = 12


def completed(beginning: str, ids: Sequence[str], folder: Path) -> str:
    """The id that a person meant: this one, or the only one that begins so; an unknown one is returned as it is.

    Raises :class:`InputError` where several begin so.
    """
    found = [id for id in ids if beginning and id.startswith(beginning)]
    if beginning in ids or not found:
        return beginning
    if len(found) > 1:
        raise InputError(f"'{beginning}' could be any of {', '.join(found)} in {folder}; give more of the name")
    return found[0]


def told_unknown(id: str, ids: Sequence[str], folder: Path) -> str:
    """What is said of an id that is none of the run's."""
    if id == FLOAT:
        return (
            f"'{FLOAT}' is the float network of {folder}, which dnas show and dnas evaluate take but which is no "
            f"assignment; it becomes one at 32 bits: dnas prune {quoted(folder)} --bits 32, or "
            f"dnas finalise {quoted(folder)} --profiles w32a32"
        )
    if not ids:
        listed = f"; it has none yet, go on with: dnas resume {quoted(folder)}"
    elif len(ids) <= _MOST_LISTED:
        listed = f"; it has {', '.join(ids)}"
    else:
        listed = f"; see all {len(ids)} with: dnas show {quoted(folder)}"
    return f"{folder} has no assignment '{id}'{listed}{nearest(id, ids)}"
