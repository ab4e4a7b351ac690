"""What each budget's assignment was chosen from: every proposal with what it costs and how it was judged, by round."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

from rich.table import Table

from results.events import Decoded, Event, Judged, Pool
from results.units import amount_text
from search_spaces.assignments import BitAssignment
from search_spaces.metrics import metric_named

OF_THETA = ("theta", "draw-", "search-")
"""How sources begin that are the search's: its likeliest, its draws, other budgets' likeliest. All others are free."""


@dataclass(frozen=True)
class Candidate:
    """One proposal of a pool: all that proposed it, what it costs, and how it was judged in each of its rounds."""

    id: str
    sources: tuple[str, ...]
    costs: Mapping[str, float]
    rounds: tuple[Judged, ...]
    chosen: bool = False

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
        chosen = next((each for each in self.candidates if each.chosen), None)
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


def compared(one: Candidate, other: Candidate) -> tuple[float, float | None] | None:
    """How much lower the loss of ``one`` is in the last round of both, and the standard error over the same images.

    None where they have no round in common, or one of them diverged in it.
    """
    pairs = list(zip(one.rounds, other.rounds, strict=False))
    if not pairs or pairs[-1][0].loss is None or pairs[-1][1].loss is None:
        return None
    first, second = pairs[-1]
    apart = [b - a for a, b in zip(first.losses, second.losses, strict=True)]
    error = stdev(apart) / math.sqrt(len(apart)) if len(apart) > 1 else None
    return (fmean(apart) if apart else 0.0), error


def pools(events: Iterable[Event], assignments: Mapping[str, BitAssignment]) -> list[BudgetPool]:
    """The pools that the events of a run tell of, by the number of their budget."""
    events = list(events)
    judged: dict[str, dict[int, Judged]] = {}
    for event in events:
        if isinstance(event, Judged):
            judged.setdefault(event.proposal, {})[event.round] = event
    made_of = {event.assignment: event.run for event in events if isinstance(event, Decoded)}
    found = {}
    for pool in (event for event in events if isinstance(event, Pool)):
        known = [assignments[name] for name in pool.proposals if name in assignments]
        candidates = [
            Candidate(
                each.id,
                tuple(pool.proposals[each.id]),
                {name: each.cost[name] for name in ("size_bytes", *each.provenance.limits) if name in each.cost},
                tuple(judged.get(each.id, {})[number] for number in sorted(judged.get(each.id, {}))),
                made_of.get(pool.run) == each.id,
            )
            for each in known
        ]
        budget = next((each.provenance.budget for each in known), None) or ""
        found[pool.run] = BudgetPool(pool.run, budget, pool.images, tuple(candidates))
    return sorted(found.values(), key=lambda each: (len(each.search), each.search))


def pool_json(pool: BudgetPool) -> dict[str, Any]:
    """A pool as plain values; ``rounds`` are those that a proposal took part in."""
    return {
        "search": pool.search,
        "budget": pool.budget,
        "images": pool.images,
        "proposals": [
            {
                "id": each.id,
                "from": list(each.sources),
                "costs": dict(each.costs),
                "rounds": [_round_json(judged) for judged in each.rounds],
                "chosen": each.chosen,
            }
            for each in pool.candidates
        ],
    }


def _round_json(judged: Judged) -> dict[str, Any]:
    told = {"round": judged.round, "epochs": judged.epochs, "loss": judged.loss}
    return {**told, "standard_error": judged.standard_error, judged.metric: judged.score}


def render_pool(pool: BudgetPool) -> Table:
    """A terminal table of one pool, those that came furthest first; the loss of each round ± its standard error."""
    count = max((len(each.rounds) for each in pool.candidates), default=0)
    costs = list(dict.fromkeys(name for each in pool.candidates for name in each.costs))
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="underline")
    table.add_column("proposal", no_wrap=True)
    table.add_column("from", overflow="fold")
    for heading in costs:
        table.add_column(heading, justify="right", no_wrap=True)
    for number in range(1, count + 1):
        epochs = next(each.rounds[number - 1].epochs for each in pool.candidates if len(each.rounds) >= number)
        table.add_column(f"loss, {epochs} epoch{'s' if epochs > 1 else ''}", justify="right", no_wrap=True)
    table.add_column("chosen", no_wrap=True)
    for each in sorted(pool.candidates, key=_place):
        told = [judged_text(judged) for judged in each.rounds]
        table.add_row(
            each.id,
            ", ".join(each.sources),
            *(amount_text(name, each.costs[name]) if name in each.costs else "" for name in costs),
            *told,
            *[""] * (count - len(told)),
            "yes" if each.chosen else "",
            style="bold" if each.chosen else None,
        )
    return table


def judged_text(judged: Judged) -> str:
    """The loss with its standard error, and the metric in brackets."""
    if judged.loss is None or judged.score is None:
        return "diverged"
    error = "" if judged.standard_error is None else f" ±{judged.standard_error:.4f}"
    return f"{judged.loss:.4f}{error} ({metric_named(judged.metric).text(judged.score)})"


def _place(each: Candidate) -> tuple[int, float]:
    return -len(each.rounds), each.rounds[-1].rank if each.rounds else 0.0


def told(pool: BudgetPool) -> Sequence[str]:
    """What stands above the table of a pool and below it."""
    count = len(pool.candidates)
    return (
        f"{pool.search}, budget {pool.budget}: {count} proposal{'s' if count != 1 else ''}, judged by the loss on "
        f"{pool.images} training images that none of them is trained on, ± its standard error",
        pool.sentence,
    )
