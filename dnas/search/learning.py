"""What short fine-tunings of some choices of bits tell of others: a Gaussian process that the exact program can search.

The logarithm of the loss of a choice is taken as a sum: what the training-free tables say of it, to an unknown scale,
and for every decision an unknown deviation of each cell, alike for widths that are near (ours). Such a sum has an
exact posterior, and what is best by a sample of it within a budget is a program (Thompson sampling). So what is
proposed lies where losses and tables agree that it is good, or where little is known yet. The variances are those of a
grid that make the losses likeliest (Rasmussen and Williams 2006, eq. 5.8).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from scipy.linalg import cho_factor, cho_solve

from search_spaces.allocation.program import Cells
from search_spaces.spaces import PrecisionSpace

LEAST = 4
"""Fewer choices tell nothing."""
_MEAN = 10.0  # variance of the mean of a group, in units of that of the losses
_GRID = tuple(itertools.product((0.1, 0.5, 1.0), (0.1, 0.3, 1.0), (0.05, 0.2, 0.5)))
"""Variances of a table's scale, of all deviations together, and of noise, to choose from."""


@dataclass(frozen=True)
class Seen:
    """A choice of bits, the ``group`` whose losses it is compared with (those of one budget), and its loss above 0."""

    cells: Cells
    group: str
    loss: float


@dataclass(frozen=True)
class Learned:
    """What ``seen`` tells of other choices; ``tables`` (D, Kw, Ka) are losses that were expected of each cell."""

    space: PrecisionSpace
    seen: Sequence[Seen]
    tables: Sequence[np.ndarray] = field(default=())

    @property
    def is_enough(self) -> bool:
        """Whether there are enough choices, and their losses differ."""
        return len(self.seen) >= LEAST and bool(np.ptp(self._deviations) > 0)

    def worth(self, group: str, generator: np.random.Generator | None = None) -> np.ndarray:
        """What each cell (D, Kw, Ka) adds to a choice of a group: the posterior mean, or with a generator a sample."""
        table_variance, cell_variance, noise = self._variances
        decisions, cells = len(self.space.decisions), self._alike.shape[0]
        scales, deviations = np.zeros(len(self.tables)), np.zeros((decisions, cells))
        rest = self._losses
        if generator is not None:  # Matheron's rule: a sample of the prior, corrected by what it leaves unexplained
            scales = generator.normal(size=len(self.tables)) * math.sqrt(table_variance)
            root = np.linalg.cholesky(self._alike + 1e-9 * np.eye(cells)) * math.sqrt(cell_variance / decisions)
            deviations = generator.normal(size=deviations.shape) @ root.T
            means = dict(zip(self._groups, generator.normal(size=len(self._groups)) * math.sqrt(_MEAN), strict=True))
            own = deviations[np.arange(decisions), self._places].sum(1) + np.array([means[s.group] for s in self.seen])
            rest = rest - self._told @ scales - own - generator.normal(size=len(rest)) * math.sqrt(noise)
        weights = cho_solve(cho_factor(self._covariance(self._variances)), rest)
        scales = scales + table_variance * self._told.T @ weights
        near = self._alike[:, self._places]  # (cells, seen, decisions)
        deviations = deviations + cell_variance / decisions * np.einsum("csd,s->dc", near, weights)
        spreads = self._spreads.get(group, np.zeros(len(self.tables)))  # in a group that nothing was seen of, no scale
        expected = sum(
            scale / spread * table
            for scale, spread, table in zip(scales, spreads, self.tables, strict=True)
            if spread > 0
        )
        return np.asarray(-(deviations.reshape(self.space.allowed.shape) + expected))

    @cached_property
    def _groups(self) -> list[str]:
        return list(dict.fromkeys(each.group for each in self.seen))

    @cached_property
    def _places(self) -> np.ndarray:
        """The place of each decision's cell in the flat grid, (seen, D)."""
        columns = len(self.space.activation_bits)
        return np.array([[row * columns + column for row, column in each.cells] for each in self.seen])

    @cached_property
    def _alike(self) -> np.ndarray:
        """Correlation of the deviations of two cells: falls with |log₂| of the ratios of their widths."""
        grid = itertools.product(self.space.weight_bits, self.space.activation_bits)
        logs = np.log2(np.maximum(np.array(list(grid), dtype=np.float64), 0.5))
        return np.asarray(np.exp(-np.abs(logs[:, None] - logs[None]).sum(2)))

    @cached_property
    def _deviations(self) -> np.ndarray:
        """Logarithms of the losses, less the mean of their group."""
        return self._centred(np.log([max(each.loss, 1e-12) for each in self.seen]))

    @cached_property
    def _losses(self) -> np.ndarray:
        return self._deviations / self._deviations.std()

    @cached_property
    def _sums(self) -> np.ndarray:
        """What each table says of each choice, (seen, tables)."""
        numbers = np.arange(len(self.space.decisions))
        flat = [table.reshape(len(numbers), -1) for table in self.tables]
        return np.array([[each[numbers, places].sum() for each in flat] for places in self._places]).reshape(
            len(self.seen), len(flat)
        )

    @cached_property
    def _spreads(self) -> dict[str, np.ndarray]:
        """The standard deviation of what each table says, by group."""
        return {group: self._sums[self._of(group)].std(0) for group in self._groups}

    @cached_property
    def _told(self) -> np.ndarray:
        """What each table says of each choice, in standard deviations of its group, (seen, tables)."""
        centred = np.stack([self._centred(column) for column in self._sums.T], 1) if self.tables else self._sums
        spreads = np.array([self._spreads[each.group] for each in self.seen])
        return np.divide(centred, spreads, out=np.zeros_like(centred), where=spreads > 0)

    @cached_property
    def _variances(self) -> tuple[float, float, float]:
        """Of the grid, those under which the losses are likeliest."""
        return max(_GRID, key=self._likelihood)

    def _likelihood(self, variances: tuple[float, float, float]) -> float:
        factor, lower = cho_factor(self._covariance(variances))
        fit = self._losses @ cho_solve((factor, lower), self._losses)
        return float(-0.5 * fit - np.log(np.diag(factor)).sum())

    def _covariance(self, variances: tuple[float, float, float]) -> np.ndarray:
        """Covariance of the losses, (seen, seen)."""
        table_variance, cell_variance, noise = variances
        cells = self._alike[self._places[:, None], self._places[None]].mean(2)
        same = np.array([[_MEAN * (a.group == b.group) for b in self.seen] for a in self.seen])
        told = table_variance * self._told @ self._told.T
        return np.asarray(told + cell_variance * cells + same + noise * np.eye(len(self.seen)))

    def _of(self, group: str) -> np.ndarray:
        return np.array([each.group == group for each in self.seen])

    def _centred(self, values: np.ndarray) -> np.ndarray:
        means = {group: values[self._of(group)].mean() for group in self._groups}
        return np.asarray(values - np.array([means[each.group] for each in self.seen]))
