"""What an integer program leaves out beside what is over its limits."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np


class Cut(NamedTuple):
    """Leaves out what agrees with ``cells`` in more than ``most_equal`` decisions, or in fewer than ``least_equal``."""

    cells: list[tuple[int, int]]
    most_equal: int
    least_equal: int = 0

    def counted(self, shape: tuple[int, ...]) -> np.ndarray:
        """The cells (D, Kw, Ka) of which a choice is to have at least, and at most, so many."""
        chosen = np.zeros(shape)
        for index, cell in enumerate(self.cells):
            chosen[index, *cell] = 1
        return chosen

    @property
    def bounds(self) -> tuple[float, float]:
        """How many of these, least and most."""
        return self.least_equal, self.most_equal


class Beyond(NamedTuple):
    """Leaves out what has none of ``cells`` (D, Kw, Ka)."""

    cells: np.ndarray

    def counted(self, shape: tuple[int, ...]) -> np.ndarray:
        """These cells."""
        return self.cells.astype(float)

    @property
    def bounds(self) -> tuple[float, float]:
        """At least one."""
        return 1, math.inf
