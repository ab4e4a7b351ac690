"""Trials and their events in the journal."""

from __future__ import annotations

from bayesopt.trials import PruningTrial
from dnas.jobs.context import JobContext
from results.events import Trial, TrialResult

BAYESIAN, RANDOM = "bayesian", "random"


def trial_event(run: str, kind: str, trial: PruningTrial) -> Trial:
    """The event of a trial that was made for ``run``."""
    return Trial(run=run, kind=kind, trial=TrialResult.read(trial.to_json()))


def known_trials(context: JobContext, run: str, kind: str) -> list[PruningTrial]:
    """The journaled trials of a run and kind, in order."""
    found = [event.trial for event in context.events(Trial) if (event.run, event.kind) == (run, kind)]
    return [PruningTrial.from_json(trial.to_json()) for trial in found]
