"""The pool that the bits of one budget are chosen from: all that proposes, within the budget, each choice once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from dnas.search.controls import Evidence
from search_spaces.allocation.program import Cells
from search_spaces.allocation.proposals import allocate_several, distance, nearest_within
from search_spaces.costs.budgets import Budget
from search_spaces.costs.table import CostTable
from search_spaces.fields import Pair
from search_spaces.provenance import ILP, MEASURED_ILP, UNIFORM

_UNIFORM = 2

Widths = Sequence[Pair]
"""(weight bits, activation bits) of every decision."""


@dataclass(frozen=True)
class Proposal:
    """One choice of bits, and all that proposed it, the first one first; its ``loss`` in the supernet, if measured."""

    widths: tuple[Pair, ...]
    sources: tuple[str, ...]
    loss: float | None = None


def joined(proposals: Iterable[Proposal]) -> list[Proposal]:
    """The same proposals, equal ones as one that has the sources of all."""
    found: dict[tuple[Pair, ...], dict[str, None]] = {}
    losses: dict[tuple[Pair, ...], float | None] = {}
    for proposal in proposals:
        found.setdefault(proposal.widths, {}).update(dict.fromkeys(proposal.sources))
        losses.setdefault(proposal.widths, proposal.loss)
    return [Proposal(widths, tuple(sources), losses[widths]) for widths, sources in found.items()]


@dataclass(frozen=True)
class Proposers:
    """What proposes for the budget of a ``number``, from 1.

    ``within`` are choices that meet it, ``elsewhere`` those of other budgets, both by the name of their source; of each
    integer program there are ``programs``. Nothing is wider than ``bound``: what is gets narrowed, and is called so.
    """

    evidence: Evidence
    budget: Budget
    number: int
    within: Mapping[str, Widths]
    elsewhere: Mapping[str, Widths]
    programs: int
    bound: Widths | None = None

    def pool(self) -> list[Proposal]:
        """Every proposal, in the order of its first source."""
        return joined(Proposal(tuple(widths), (source,)) for source, widths in self._all())

    def _all(self) -> Iterator[tuple[str, Widths]]:
        for source, widths in self.within.items():
            if self._is_inside(widths):
                yield source, widths
            else:
                yield f"{source}-narrowed", self._repaired(widths)
        losses = {ILP: lambda: self.evidence.sensitivities, MEASURED_ILP: lambda: self.evidence.measured}
        for kind, worked_out in losses.items() if self.programs else ():
            found = allocate_several(-worked_out(), self._table, self.budget, self.programs, self.bound)
            for place, cells in enumerate(found, start=1):
                yield f"{kind}-{self.number}" + (f"-{place}" if place > 1 else ""), self._widths(cells)
        for source, widths in self.elsewhere.items():
            yield source, self._repaired(widths)
        yield from self._uniform()

    def _uniform(self) -> Iterator[tuple[str, Widths]]:
        """The uniform widths that are nearest to the budget, brought to it."""
        space = self._table.space
        found = []
        for bits in filter(None, space.weight_bits):
            layers = space.uniform(bits)
            wanted = space.pairs_of(layers)
            widths = self._repaired(wanted)
            found.append((distance(widths, wanted), bits, widths))
        for _, bits, widths in sorted(found)[:_UNIFORM]:
            yield f"{UNIFORM}-{bits}", widths

    @property
    def _table(self) -> CostTable:
        return self.evidence.table

    def _is_inside(self, widths: Widths) -> bool:
        return self.bound is None or bool((np.asarray(widths) <= np.asarray(self.bound)).all())

    def _repaired(self, widths: Widths) -> list[Pair]:
        return self._widths(nearest_within(widths, self._table, self.budget, self.bound))

    def _widths(self, cells: Cells) -> list[Pair]:
        return [self._table.space.pair(*cell) for cell in cells]
