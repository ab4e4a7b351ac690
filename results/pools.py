"""What each budget's assignment was chosen from: every proposal, who proposed it, and how it was judged."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from results.events import Decoded, Event, Judged, Pool
from search_spaces.assignments import BitAssignment
from search_spaces.provenance import SEARCH

THETA = "theta"
"""The source whose proposal is the likeliest under θ, projected onto the budget."""
OF_THETA = (THETA, "draw-", "search-", "refined-", "learned-", "supernet-")
"""How sources begin that are the search's: its likeliest, its draws, other budgets' likeliest, what it refined or
learned, and whatever starts from its supernet's weights.

All others are free."""


@dataclass(frozen=True)
class Candidate:
    """One proposal of a pool: all that proposed it, what it costs, and how it was judged in each of its rounds.

    ``became`` is the assignment under whose name it was chosen, if it was. ``supernet_loss`` is its loss in the
    supernet, where that was measured.
    """

    id: str
    sources: tuple[str, ...]
    costs: Mapping[str, float]
    rounds: tuple[Judged, ...]
    became: str | None = None
    supernet_loss: float | None = None

    @property
    def free_source(self) -> str | None:
        """The first that proposed it without any training; None where only the search did."""
        return next((source for source in self.sources if not source.startswith(OF_THETA)), None)


@dataclass(frozen=True)
class BudgetPool:
    """The pool of the assignment ``search`` of a budget; ``images`` judged it."""

    search: str
    budget: str
    images: int
    candidates: tuple[Candidate, ...]

    @property
    def sentence(self) -> str:
        """What was chosen, and what that adds to the best of what was free."""
        chosen = next((each for each in self.candidates if each.became == self.search), None)
        start = f"{self.search}, budget {self.budget}: "
        if chosen is None:
            return f"{start}nothing is chosen yet"
        if chosen.free_source:
            return f"{start}{chosen.id} is chosen, which was free ({chosen.free_source})"
        pairs = [(each, compared(chosen, each)) for each in self.candidates if each.free_source]
        known = [(each, found) for each, found in pairs if found is not None]
        if not known:
            return f"{start}{chosen.id} is chosen; nothing else was free"
        best, (gain, error) = min(known, key=lambda pair: (-len(pair[0].rounds), pair[1][0]))
        spread = "" if error is None else f" ± {error:.4f}"
        below = f"its loss is {gain:.4f}{spread} below that of {best.id}, the best that was free"
        return f"{start}{chosen.id} is chosen; {below}"


def mean_loss(rounds: Sequence[Judged]) -> float:
    """The mean loss over the rounds of one proposal, by which it is ranked; infinite where its net diverged in any."""
    losses = [judged.loss for judged in rounds if judged.loss is not None]
    return fmean(losses) if losses and len(losses) == len(rounds) else math.inf


def compared(one: Candidate, other: Candidate) -> tuple[float, float | None] | None:
    """How much lower the loss of ``one`` is over the rounds of both, and the standard error over the same images.

    None where they have no round in common, one of them diverged in it, or they were judged by different parts.
    """
    pairs = list(zip(one.rounds, other.rounds, strict=False))
    if not pairs or any(judged.loss is None or not judged.losses for pair in pairs for judged in pair):
        return None
    by_split: dict[str, list[list[float]]] = {}
    for first, second in pairs:
        if len(first.losses) != len(second.losses):
            return None
        apart = [b - a for a, b in zip(first.losses, second.losses, strict=True)]
        by_split.setdefault(first.split, []).append(apart)
    gain, variance = 0.0, 0.0
    for rounds in by_split.values():
        if len({len(apart) for apart in rounds}) > 1:
            return None
        weight, apart = len(rounds) / len(pairs), [fmean(part) for part in zip(*rounds, strict=True)]
        gain += weight * fmean(apart)  # rounds on the same images share their error, those on others do not
        variance += weight**2 * stdev(apart) ** 2 / len(apart) if len(apart) > 1 else math.nan
    return gain, None if math.isnan(variance) else math.sqrt(variance)


def proposed_by_theta(events: Iterable[Event]) -> dict[str, str]:
    """Search → the proposal of its pool that is the likeliest under θ; none without a choice."""
    found = (event for event in events if isinstance(event, Pool))
    return {pool.run: name for pool in found for name, sources in pool.proposals.items() if THETA in sources}


def pools(events: Iterable[Event], assignments: Mapping[str, BitAssignment]) -> list[BudgetPool]:
    """The pools that the events of a run tell of, by the number of their budget."""
    events = list(events)
    judged: dict[str, dict[int, Judged]] = {}
    for event in events:
        if isinstance(event, Judged):
            judged.setdefault(event.proposal, {})[event.round] = event
    became = {event.run: event.assignment for event in events if isinstance(event, Decoded) and event.kind == SEARCH}
    found = {}
    for pool in (event for event in events if isinstance(event, Pool)):
        known = [assignments[name] for name in pool.proposals if name in assignments]
        candidates = [
            Candidate(
                each.id,
                tuple(pool.proposals[each.id]),
                {name: each.cost[name] for name in ("size_bytes", *each.provenance.limits) if name in each.cost},
                tuple(judged.get(each.id, {})[number] for number in sorted(judged.get(each.id, {}))),
                became.get(each.id),
                pool.supernet.get(each.id),
            )
            for each in known
        ]
        budget = next((each.provenance.budget for each in known), None) or ""
        found[pool.run] = BudgetPool(pool.run, budget, pool.images, tuple(candidates))
    return sorted(found.values(), key=lambda each: (len(each.search), each.search))
