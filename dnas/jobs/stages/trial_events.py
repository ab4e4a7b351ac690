"""Trials and their events in the journal."""

from __future__ import annotations

from dataclasses import replace

from bayesopt.trials import PruningTrial
from dnas.jobs.log import RunLog
from dnas.training.trainer import Measurement
from results.events import Trial
from results.scored import TrialResult

BAYESIAN, RANDOM = "bayesian", "random"
_DIGITS = 6


def as_told(measured: Measurement) -> Measurement:
    """What a proposer is told: the loss rounded, so that what threads add in another order leads it no other way."""
    return replace(measured, loss=float(f"{measured.loss:.{_DIGITS}g}"))


def trial_event(run: str, kind: str, trial: PruningTrial, metric: str) -> Trial:
    """The event of a trial that was made for ``run``; ``metric`` names its score."""
    return Trial(run=run, kind=kind, trial=TrialResult.read({**trial.to_json(), "metric": metric}))


def known_trials(log: RunLog, run: str, kind: str) -> list[PruningTrial]:
    """The journaled trials of a run and kind, in order."""
    found = [event.trial for event in log.events(Trial) if (event.run, event.kind) == (run, kind)]
    return [PruningTrial.from_json({**trial.to_json(), "score": trial.score}) for trial in found]
