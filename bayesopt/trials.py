"""The loop of ask, evaluate, tell: every trial is given out as soon as it is known, so that it can be journaled."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from bayesopt.proposers import Proposal, Proposer
from bayesopt.ratios import Limits
from search_spaces.errors import InputError, JobError
from search_spaces.metrics import Scored

MOST_FAILURES = 3


class Measured(Protocol):
    """What a trial gives: mean loss, and the figure that is reported beside it."""

    @property
    def loss(self) -> float:
        """Mean loss, not finite for a failed trial."""

    @property
    def score(self) -> float:
        """The deciding metric."""


Evaluate = Callable[[Sequence[Mapping[str, int]]], Iterable[Measured]]
"""Measures configurations, given as kept units per group, in the order asked."""


@dataclass(frozen=True)
class PruningTrial(Scored):
    """One configuration and what it measured; of a failed trial ``failed`` says why, and ``loss`` is None."""

    _names: ClassVar[Mapping[str, str]] = {"{}": "score"}

    proposal: Proposal
    cost: dict[str, float]
    loss: float | None
    score: float | None
    failed: str = ""

    @property
    def counts(self) -> dict[str, int]:
        """Kept units per group."""
        return self.proposal.counts

    def meets(self, limits: Limits) -> bool:
        """Whether no limit is exceeded."""
        return all(self.cost[name] <= limit for name, limit in limits.items())

    def to_json(self) -> dict[str, Any]:
        """As a JSON object; :meth:`from_json` leads back."""
        known = {"cost": self.cost, "loss": self.loss, "score": self.score, "failed": self.failed}
        return {"proposal": self.proposal.to_json(), **known}

    @classmethod
    def from_json(cls, entry: Mapping[str, Any]) -> PruningTrial:
        """Read what :meth:`to_json` wrote; raise :class:`InputError` for anything else."""
        try:
            values = (entry[name] for name in ("cost", "loss", "score", "failed"))
            return cls(Proposal.from_json(entry["proposal"]), *values)
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"a journaled trial is damaged ({error!r})") from error


def run_trials(
    proposer: Proposer, evaluate: Evaluate, *, total: int, batch: int = 1, known: Sequence[PruningTrial] = ()
) -> Iterator[PruningTrial]:
    """Yield each new trial until there are ``total``, or until every configuration within the budgets was tried.

    ``known`` are the trials of an interrupted run with the same proposer, seed and batch: what follows is what would
    have followed. A loss that is not finite fails the trial and the search goes on; :class:`JobError` after three such
    in a row.
    """
    course = TrialCourse(proposer, total=total, batch=batch, known=known)
    while asked := course.ask():
        measured = iter(evaluate([proposal.counts for proposal in asked]))
        for _ in asked:
            yield course.tell(next(measured))
            course.check()


class TrialCourse:
    """The loop of :func:`run_trials` taken apart, for callers who do other things while trials are measured."""

    def __init__(self, proposer: Proposer, *, total: int, batch: int = 1, known: Sequence[PruningTrial] = ()) -> None:
        if batch < 1 or total < 0:
            raise InputError(f"total = {total} trials, {batch} at a time: ask for 0 or more, at least 1 at a time")
        self._proposer, self._total, self._batch = proposer, total, batch
        self._done = len(known) // batch * batch
        proposer.restore((trial.proposal, _told(trial)) for trial in known[: self._done])
        self._begun = list(known[self._done :])
        self._asked: list[Proposal] = []
        self._failures, self._why = _last_failures(known), known[-1].failed if known else ""

    def ask(self) -> list[Proposal]:
        """The proposals to measure next, in order, but for those that were told; none where the search is over."""
        while not self._asked and self._done < self._total:
            self._asked = list(self._proposer.ask(min(self._batch, self._total - self._done)))
            if not self._asked:
                break
            self._done += len(self._asked)
            self._take_up()
        return list(self._asked)

    def tell(self, measured: Measured) -> PruningTrial:
        """The trial of the first proposal that is asked for."""
        trial = _trial(self._proposer, self._asked[0], measured)
        self._failures, self._why = self._failures + 1 if trial.failed else 0, trial.failed
        self._note(trial)
        return trial

    def check(self) -> None:
        """Raise :class:`JobError` after three failures in a row: called once the last trial is safe."""
        if self._failures >= MOST_FAILURES:  # more where a resumed search fails again
            raise JobError(f"{self._failures} trials in a row failed: {self._why}")

    def _take_up(self) -> None:
        """Take what an interrupted run knows of a batch that it had begun."""
        for proposal, trial in zip(self._asked, self._begun, strict=False):
            if proposal != trial.proposal:
                raise JobError(
                    f"trial {trial.proposal.number} of the journal is not what the proposer asks now; "
                    "was the job changed, or are other versions installed?"
                )
        begun, self._begun = self._begun, []
        for trial in begun:
            self._note(trial)

    def _note(self, trial: PruningTrial) -> None:
        self._proposer.tell(self._asked.pop(0), _told(trial))


def _told(trial: PruningTrial) -> float:
    """The loss as a proposer is told it."""
    return math.nan if trial.loss is None else trial.loss


def _trial(proposer: Proposer, proposal: Proposal, measured: Measured) -> PruningTrial:
    cost = proposer.space.costs(tuple(proposal.counts[name] for name in proposer.space.names))
    if math.isfinite(measured.loss):
        return PruningTrial(proposal, cost, measured.loss, measured.score)
    return PruningTrial(proposal, cost, None, None, f"the loss of the pruned network is {measured.loss}")


def _last_failures(trials: Sequence[PruningTrial]) -> int:
    return next((n for n, trial in enumerate(reversed(trials)) if not trial.failed), len(trials))


def best_trials(trials: Sequence[PruningTrial], limits: Limits, count: int) -> list[PruningTrial]:
    """The ``count`` trials of the lowest loss that meet the limits, no configuration twice."""
    found: dict[tuple[tuple[str, int], ...], PruningTrial] = {}
    for trial in sorted((t for t in trials if t.loss is not None and t.meets(limits)), key=_loss):
        found.setdefault(tuple(sorted(trial.counts.items())), trial)
    return list(found.values())[:count]


def front_trials(trials: Sequence[PruningTrial], cost: str) -> list[PruningTrial]:
    """The trials that no other one beats in both ``cost`` and loss, by rising cost."""
    front: list[PruningTrial] = []
    for trial in sorted((t for t in trials if t.loss is not None), key=lambda t: (t.cost[cost], _loss(t))):
        if not front or _loss(trial) < _loss(front[-1]):
            front.append(trial)
    return front


def _loss(trial: PruningTrial) -> float:
    return math.inf if trial.loss is None else trial.loss
