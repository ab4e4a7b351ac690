"""Which pruning ratios to try next, whatever the engine: ask, evaluate, tell; every proposal meets its budget exactly.

All that a proposer draws or fits is a function of its seed, the number of the proposal and what has been told, never of
a running state. So a replay proposes the same bits, and :meth:`Proposer.restore` takes up a history without one refit.
"""

from __future__ import annotations

import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property

import numpy as np
from scipy.stats import qmc

from bayesopt.acquisition import mutated
from bayesopt.initial import checked_budgets, first_count, ratios_to_try
from bayesopt.proposals import CostRange, Proposal, Suggestion
from bayesopt.ratios import Limits, RatioSpace
from search_spaces.errors import InputError, JobError, kind_of, one_line

_SMALL_SPACE = 2_000  # combinations that are listed one by one when chance finds nothing new
_TRIES, _FEW_TRIES = 200, 20
_FRONT_STARTS = 4
_MOST_SUGGESTIONS = 1_000
"""For one proposal: what was seen before is passed over, and a generator may have nothing else to give."""
_CHANCE, _AMOUNT, _WEIGHT = 1, 2, 3  # what a random stream is for, beside the model's own


class Proposer(ABC):
    """Proposes configurations of a :class:`RatioSpace`, within one budget, several in turn, or along a cost range.

    ``targets`` is a list of limits, or a :class:`CostRange`. The first ``first`` proposals are the uniform ratio at
    each budget, the ratios that follow ``sensitivity`` (group → how much pruning it harms) and a Sobol design; of the
    last by default half as many as there are groups, 4 to 10, or fewer where all would be more than half of ``total``.
    ``notes`` are sentences for the user.
    """

    def __init__(
        self,
        space: RatioSpace,
        targets: Sequence[Limits] | CostRange,
        *,
        seed: int,
        first: int | None = None,
        total: int | None = None,
        sensitivity: Mapping[str, float] | None = None,
    ) -> None:
        if not space.free:
            raise InputError("there is no ratio to search: every channel group is fixed or can have one count only")
        self.space, self.seed = space, seed
        self.range = targets if isinstance(targets, CostRange) else None
        self.budgets = checked_budgets(space, targets)
        self.sensitivity = ratios_to_try(space, sensitivity)
        self.notes: tuple[str, ...] = ()
        self.first = first_count(first, total, len(space.free), len(self._openings))
        self._asked: dict[int, Proposal] = {}
        self._told: dict[int, float] = {}
        self._listed: dict[int, list[tuple[int, ...]]] = {}
        self._seen: list[set[tuple[int, ...]]] = [set() for _ in self.budgets]

    def ask(self, count: int = 1) -> list[Proposal]:
        """Up to ``count`` new proposals; fewer, at last none, once every configuration within the budgets was asked."""
        found: list[Proposal] = []
        while len(found) < count and (proposal := self._next()):
            self._remember(proposal)
            found.append(proposal)
        return found

    def tell(self, proposal: Proposal, value: float) -> None:
        """Report the loss of a proposal; NaN or infinity marks a failed trial, which counts as the worst one so far."""
        known = self._asked.get(proposal.number)
        if known is None or known.counts != proposal.counts:
            raise InputError(f"proposal {proposal.number} was not asked of this proposer; tell what ask returned")
        if proposal.number in self._told:
            raise InputError(f"proposal {proposal.number} has already been told")
        self._told[proposal.number] = float(value)

    def restore(self, history: Iterable[tuple[Proposal, float | None]]) -> None:
        """Take up recorded proposals with their losses (None: not evaluated yet), as if asked and told here."""
        for proposal, value in history:
            ours = proposal.counts.keys() == set(self.space.names) and 0 <= proposal.budget < len(self.budgets)
            if proposal.number != len(self._asked) or not ours:
                raise InputError(
                    f"proposal {proposal.number} does not continue this history; is it from another search?"
                )
            self._remember(proposal)
            if value is not None:
                self.tell(proposal, value)

    def try_engine(self, total: int) -> None:
        """Raise :class:`InputError` where nothing could be suggested in a search of ``total`` trials.

        The first proposals are told made-up losses, and what follows is asked for, even where a small space has nothing
        else; so a proposer that is to be used later is another one.
        """
        for number in range(min(total, self.first)):
            for proposal in self.ask():
                self.tell(proposal, 1 / (1 + number))
        number = len(self._asked)
        if total > self.first:
            for budget in range(len(self.budgets)):
                next(self._from_engine(number, budget, self._limits(number, budget)), None)

    def best(self, budget: int = 0) -> Proposal | None:
        """The most promising proposal told that meets the budget; here the one of the lowest loss."""
        told = [(value, number) for number, value in self._finite().items() if self._within(number, budget)]
        return self._asked[min(told)[1]] if told else None

    @abstractmethod
    def suggestions(self, number: int, limits: Limits) -> Iterator[Suggestion]:
        """Candidates for proposal ``number`` that meet their limits, best first; those seen before are passed over."""

    def _random(self, number: int, *purpose: int) -> np.random.Generator:
        """The random numbers of one proposal, the same however it was reached."""
        return np.random.default_rng([self.seed, number, *purpose])

    def _next(self) -> Proposal | None:
        number = len(self._asked)
        for turn in range(len(self.budgets)):
            budget = (number + turn) % len(self.budgets)
            for suggestion in self._candidates(number, budget):
                if suggestion.counts not in self._seen[budget]:
                    return self._proposal(number, budget, suggestion)
        return None

    def _candidates(self, number: int, budget: int) -> Iterator[Suggestion]:
        limits = self._limits(number, budget)
        if number < len(self._openings):
            yield self._openings[number]
        if number < self.first:
            yield self.suggestion(self._design[number], limits, "initial")
        elif self._finite():
            yield from self._from_engine(number, budget, limits)
        yield from self._chance(number, budget, limits)

    def _from_engine(self, number: int, budget: int, limits: Limits) -> Iterator[Suggestion]:
        """The first of :meth:`suggestions`; :class:`InputError` where one of them is none that can be tried.

        A class of the user's own may fail in any way, and may never come to an end.
        """
        try:
            for suggestion in itertools.islice(self.suggestions(number, limits), _MOST_SUGGESTIONS):
                self._check(suggestion, budget)
                yield suggestion
        except (InputError, JobError):
            raise
        except (Exception, SystemExit) as error:
            if _is_ours(self):
                raise
            raise InputError(
                f"{_named(self)} failed: {one_line(error)}; suggestions(number, limits) yields what "
                "self.suggestion(point, limits, source) makes of points in [0, 1]"
            ) from error

    def _check(self, suggestion: Suggestion, budget: int) -> None:
        """Refuse what is no configuration of the space, or costs more than its limits or the budget."""
        if not isinstance(suggestion, Suggestion):
            raise InputError(
                f"{_named(self)} suggests {kind_of(suggestion)}; yield what "
                "self.suggestion(point, limits, source) returns"
            )
        counts, levels = suggestion.counts, self.space.levels
        if len(counts) != len(levels) or any(one not in known for one, known in zip(counts, levels, strict=True)):
            raise InputError(f"{_named(self)} suggests the counts {counts}, which its space does not have")
        for limits in (suggestion.limits, self.budgets[budget]):
            if not self.space.meets(counts, limits):
                told = ", ".join(f"{name} {limit:.10g}" for name, limit in limits.items())
                raise InputError(f"{_named(self)} suggests the counts {counts}, which exceed {told}")

    def _chance(self, number: int, budget: int, limits: Limits) -> Iterator[Suggestion]:
        """Random configurations, then neighbours of those seen, and every single one where the space is small."""
        random = self._random(number, _CHANCE)
        small = math.prod(len(levels) for levels in self.space.levels) <= _SMALL_SPACE
        tries = _FEW_TRIES if small else _TRIES
        for x in random.random((tries, len(self.space.free))):
            yield self.suggestion(x, limits, "random")
        if small:
            yield from (Suggestion(counts, self.budgets[budget], "random") for counts in self._every(budget))
        elif self._seen[budget]:
            seen = np.array([self.space.point(counts) for counts in sorted(self._seen[budget])])
            for x in mutated(seen, tries, random):
                yield self.suggestion(x, limits, "random")

    def _every(self, budget: int) -> list[tuple[int, ...]]:
        """All counts of a small space that repair can answer with; along a cost range, all that lie in it."""
        if budget not in self._listed:
            found = itertools.product(*self.space.levels)
            if self.range:
                costs = ((counts, self.space.costs(counts)[self.range.cost]) for counts in found)
                listed = [counts for counts, cost in costs if self.range.lowest <= cost <= self.range.highest]
            else:
                listed = [counts for counts in found if self.space.exhausts(counts, self.budgets[budget])]
            self._listed[budget] = listed
        return self._listed[budget]

    def _limits(self, number: int, budget: int) -> Limits:
        if self.range is None:
            return self.budgets[budget]
        amount = self._random(number, _AMOUNT).uniform(self.range.lowest, self.range.highest)
        return {self.range.cost: float(amount)}

    @cached_property
    def _openings(self) -> list[Suggestion]:
        """The uniform ratio at each budget (or along the range), then the ratios that follow the sensitivity."""
        amounts: Sequence[Limits] = self.budgets
        if self.range:
            spread = np.linspace(self.range.lowest, self.range.highest, _FRONT_STARTS)
            amounts = [{self.range.cost: float(amount)} for amount in spread]
        found = [Suggestion(self.space.uniform(limits), limits, "uniform") for limits in amounts]
        if self.sensitivity is not None:
            found += [self.suggestion(self.sensitivity, limits, "sensitivity") for limits in amounts]
        return found

    def _weight(self, number: int) -> float:
        """The weight of the loss against the cost, of one proposal along a cost range; the ends are left out."""
        return float(self._random(number, _WEIGHT).uniform(0.02, 0.98))

    def suggestion(self, x: np.ndarray, limits: Limits, source: str) -> Suggestion:
        """The point ``x`` (D,) in [0, 1], repaired onto the limits; what lies outside is taken to the border."""
        x = np.asarray(x, dtype=np.float64)
        if np.isnan(x).any():
            raise InputError(f"{_named(self)} suggests a point that holds NaN; give coordinates in [0, 1]")
        return Suggestion(self.space.repair(np.clip(x, 0, 1), limits), limits, source)

    @cached_property
    def _design(self) -> np.ndarray:
        design = qmc.Sobol(len(self.space.free), rng=np.random.default_rng(self.seed))
        return design.random_base2(max(1, math.ceil(math.log2(self.first))))

    def _proposal(self, number: int, budget: int, suggestion: Suggestion) -> Proposal:
        return Proposal(
            number,
            budget,
            {name: float(limit) for name, limit in suggestion.limits.items()},
            self.space.named(suggestion.counts),
            tuple(float(coordinate) for coordinate in self.space.point(suggestion.counts)),
            suggestion.source,
            None if suggestion.mean is None else float(suggestion.mean),
            None if suggestion.spread is None else float(suggestion.spread),
        )

    def _remember(self, proposal: Proposal) -> None:
        self._asked[proposal.number] = proposal
        self._seen[proposal.budget].add(self._counts(proposal.number))

    def _counts(self, number: int) -> tuple[int, ...]:
        return tuple(self._asked[number].counts[name] for name in self.space.names)

    def _within(self, number: int, budget: int) -> bool:
        return self.space.meets(self._counts(number), self.budgets[budget])

    def _finite(self) -> dict[int, float]:
        return {number: self._told[number] for number in sorted(self._told) if math.isfinite(self._told[number])}

    def _observations(self) -> tuple[np.ndarray, np.ndarray]:
        """Points (N, D) and values (N,) by number: told ones, failed ones as the worst; pending ones are left out."""
        worst = max(self._finite().values())
        numbers = sorted(self._told)
        points = np.array([self._asked[number].x for number in numbers]).reshape(len(numbers), -1)
        return points, np.array([v if math.isfinite(v := self._told[number]) else worst for number in numbers])

    def _pending(self) -> np.ndarray:
        """Points (P, D) asked and not told."""
        rows = [self._asked[number].x for number in sorted(self._asked) if number not in self._told]
        return np.array(rows).reshape(len(rows), len(self.space.free))


def _named(proposer: Proposer) -> str:
    """How a sentence names a proposer: as a job does."""
    return f"proposer '{type(proposer).__module__}:{type(proposer).__qualname__}'"


def _is_ours(proposer: Proposer) -> bool:
    return type(proposer).__module__.partition(".")[0] == __name__.partition(".")[0]
