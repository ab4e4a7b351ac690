"""Trials and their events in the journal."""

from __future__ import annotations

from bayesopt.trials import PruningTrial
from dnas.jobs.log import RunLog
from results.events import Trial, TrialResult

BAYESIAN, RANDOM = "bayesian", "random"


def trial_event(run: str, kind: str, trial: PruningTrial, metric: str) -> Trial:
    """The event of a trial that was made for ``run``; ``metric`` names its score."""
    return Trial(run=run, kind=kind, trial=TrialResult.read({**trial.to_json(), "metric": metric}))


def known_trials(log: RunLog, run: str, kind: str) -> list[PruningTrial]:
    """The journaled trials of a run and kind, in order."""
    found = [event.trial for event in log.events(Trial) if (event.run, event.kind) == (run, kind)]
    return [PruningTrial.from_json({**trial.to_json(), "score": trial.score}) for trial in found]
