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
    if batch < 1 or total < 0:
        raise InputError(f"total = {total} trials, {batch} at a time: ask for 0 or more, at least 1 at a time")
    whole = len(known) // batch * batch
    proposer.restore((trial.proposal, math.nan if trial.loss is None else trial.loss) for trial in known[:whole])
    begun, done = list(known[whole:]), whole
    failures = _last_failures(known)
    while done < total and (asked := proposer.ask(min(batch, total - done))):
        for proposal, trial in zip(asked, begun, strict=False):
            if proposal != trial.proposal:
                raise JobError(
                    f"trial {trial.proposal.number} of the journal is not what the proposer asks now; "
                    "was the job changed, or are other versions installed?"
                )
        measured = iter(evaluate([proposal.counts for proposal in asked[len(begun) :]]))
        for proposal in asked:
            if begun:
                trial = begun.pop(0)
            else:
                trial = _trial(proposer, proposal, next(measured))
                yield trial
                failures = failures + 1 if trial.failed else 0
                if failures >= MOST_FAILURES:  # more where a resumed search fails again
                    raise JobError(f"{failures} trials in a row failed: {trial.failed}")
            proposer.tell(proposal, math.nan if trial.loss is None else trial.loss)
        done += len(asked)


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
