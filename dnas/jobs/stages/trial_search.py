"""Searches by trials, such as those of prunings: several take turns, so that their trials may be measured at once.

Each goes on as if it were alone: what it asks for follows from its own trials. The one with the fewest trials is heard
next, whoever is faster, and so the journal is the same whoever measures, and after a kill.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from bayesopt.proposers import Proposal, Proposer
from bayesopt.trials import PruningTrial, TrialCourse
from dnas.jobs.context import JobContext
from dnas.jobs.stages.trial_events import BAYESIAN, known_trials, trial_event
from dnas.training.trainer import Measurement

Measure = Callable[[Sequence[Proposal]], Iterator[Measurement]]
"""Lets proposals be measured, which may begin at once; yields what each of them gave, in order."""


@dataclass(frozen=True)
class TrialPlace:
    """Where trials belong: the stage, the ``label`` and the ``kind`` of their search.

    ``work`` is their kind of work, ``units`` are those of one (see :mod:`dnas.jobs.progress`); there are ``total`` of
    them, ``batch`` asked for at once.
    """

    stage: str
    label: str
    kind: str
    work: str
    units: float
    total: int
    batch: int = 1

    @property
    def name(self) -> str:
        """What users call the search."""
        return self.label if self.kind == BAYESIAN else f"{self.label} ({self.kind})"


class TrialSearch:
    """One search; ``found`` are its trials, those of the journal first."""

    def __init__(self, context: JobContext, place: TrialPlace, proposer: Proposer, measure: Measure) -> None:
        self._context, self._place, self._measure = context, place, measure
        self.found: list[PruningTrial] = known_trials(context.log, place.label, place.kind)
        context.progress.recall({place.work: len(self.found) * place.units})
        self._course = TrialCourse(proposer, total=place.total, batch=place.batch, known=list(self.found))
        self._waiting = 0
        self._measured: Iterator[Measurement] = iter(())

    def ask(self) -> bool:
        """Let the next trials begin, unless some are still to be heard; whether there is one to hear."""
        if not self._waiting:
            asked = self._course.ask()
            self._waiting, self._measured = len(asked), self._measure(asked) if asked else iter(())
            if not asked:
                self._end()
        return self._waiting > 0

    def hear(self) -> None:
        """Take and journal the next trial."""
        context, place = self._context, self._place
        trial = self._course.tell(next(self._measured))
        self._waiting -= 1
        self.found.append(trial)
        context.log.write(trial_event(place.label, place.kind, trial, context.job.task.metric.name))
        context.progress.step(place.work, place.units, **self._facts(trial))
        self._course.check()

    def _end(self) -> None:
        """Say where there were fewer trials than were planned."""
        missing, place = self._place.total - len(self.found), self._place
        if missing > 0:
            self._context.progress.correct(-missing, {place.work: place.units})
            self._context.log.tell_once(
                [f"{place.label}: every configuration within the budgets was tried, {len(self.found)} in all"]
            )

    def _facts(self, last: PruningTrial) -> dict[str, Any]:
        """What the display shows of the last trial."""
        same = [trial for trial in self.found if trial.proposal.budget == last.proposal.budget]
        best = min((trial.loss for trial in same if trial.loss is not None), default=math.nan)
        return {
            "stage": self._place.stage,
            "run": self._place.name,
            "trial": len(self.found),
            "trials": self._place.total,
            "loss": math.nan if last.loss is None else last.loss,
            "best": best,
            "metric": self._context.job.task.metric.name,
            "score": last.score,
            "expected": {name: last.cost[name] for name in last.proposal.limits},
            "budget": dict(last.proposal.limits),
        }


def take_turns(searches: Sequence[TrialSearch]) -> None:
    """Carry all searches on to their ends: each asks before any is heard, and again as soon as it was heard."""
    left = [search for search in searches if search.ask()]
    while left:
        search = min(left, key=lambda each: len(each.found))  # of equal ones the first
        search.hear()
        if not search.ask():
            left.remove(search)
