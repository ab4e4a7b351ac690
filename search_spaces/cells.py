"""Cells of a space: which candidate each decision takes, by its row (weights) and its column (activations)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from search_spaces.errors import InputError, check_type


def refuse_cells(cells: Any, decisions: Sequence[str], allowed: np.ndarray) -> None:
    """Raise :class:`InputError` unless there is one of the ``allowed`` cells (D, Kw, Ka) for each decision."""
    check_type(cells, (list, tuple, np.ndarray), "the cells of a choice", "give (row, column) for each decision")
    if len(cells) != len(decisions):
        raise InputError(f"there are {len(cells)} cells for {len(decisions)} decisions; give one for each")
    for name, open_cells, cell in zip(decisions, allowed, cells, strict=True):
        if not _is_within(cell, open_cells.shape) or not open_cells[tuple(cell)]:
            raise InputError(
                f"decision '{name}' cannot take the cell {cell!r:.60}; give the row and the column of widths that "
                "its space allows it"
            )


def _is_within(cell: Any, shape: tuple[int, ...]) -> bool:
    if not isinstance(cell, (tuple, list, np.ndarray)) or len(cell) != len(shape):
        return False
    return all(
        isinstance(at, (int, np.integer)) and -count <= at < count for at, count in zip(cell, shape, strict=True)
    )
