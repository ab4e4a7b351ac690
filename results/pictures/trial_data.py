"""How the trials of pruning went, read from the journal before anything is drawn."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from results.events import Event, Trial
from results.pareto import hypervolume
from results.scored import TrialResult
from results.units import amount_text, scaled_unit

BAYESIAN, RANDOM = "bayesian", "random"
Losses = tuple[float | None, ...]


@dataclass(frozen=True)
class TrialCurve:
    """The trials of one proposer, numbered from 1: their losses (None: failed) and the best value up to each."""

    kind: str
    losses: Losses
    best: Losses


@dataclass(frozen=True)
class Forecast:
    """What the surrogate foretold: trial numbers, |prediction - loss|, its own standard deviation, rank correlation."""

    trials: tuple[int, ...]
    errors: tuple[float, ...]
    stds: tuple[float, ...]
    rank_correlation: float | None


@dataclass(frozen=True)
class BudgetTrials:
    """The trials of one prune run at one budget; ``uniform`` is the value of the uniform ratio.

    ``value_label`` says what ``best`` is: the lowest loss; without a budget, where losses at different costs cannot be
    compared, the share of the rectangle of costs and losses that the trials dominate (then ``rises``).
    """

    run: str
    title: str
    value_label: str
    rises: bool
    curves: tuple[TrialCurve, ...]
    uniform: float | None
    forecast: Forecast


def prune_trials(events: Iterable[Event]) -> dict[str, list[BudgetTrials]]:
    """Return the trials of each prune run in the journal, budget by budget; a trial written twice counts once."""
    found: dict[str, dict[tuple[str, int], TrialResult]] = {}
    for event in events:
        if isinstance(event, Trial):
            found.setdefault(event.run, {})[event.kind, event.trial.proposal.number] = event.trial
    return {run: _budgets(run, trials) for run, trials in found.items()}


def _budgets(run: str, trials: Mapping[tuple[str, int], TrialResult]) -> list[BudgetTrials]:
    budgets = sorted({trial.proposal.budget for trial in trials.values()})
    result = []
    for budget in budgets:
        own: dict[str, list[TrialResult]] = {}
        for (kind, _), trial in sorted(trials.items(), key=lambda entry: entry[0]):
            if trial.proposal.budget == budget:
                own.setdefault(kind, []).append(trial)
        result.append(_budget_trials(run, own))
    return result


def _budget_trials(run: str, own: Mapping[str, Sequence[TrialResult]]) -> BudgetTrials:
    trials = [trial for found in own.values() for trial in found]
    limits = {tuple(trial.proposal.limits.items()) for trial in trials}
    whole_front = len(limits) > 1
    worst = _corner(trials) if whole_front else None
    curves = tuple(
        TrialCurve(kind, tuple(trial.loss for trial in found), _dominated(found, *worst) if worst else _best(found))
        for kind, found in sorted(own.items())
    )
    uniform = [t.loss for t in trials if t.proposal.source == "uniform" and t.loss is not None]
    return BudgetTrials(
        run=run,
        title="the whole front" if whole_front else _limits_text(trials[0].proposal.limits),
        value_label="share of the area dominated so far" if worst else "lowest loss so far",
        rises=worst is not None,
        curves=curves,
        uniform=None if whole_front or not uniform else uniform[0],
        forecast=_forecast(own.get(BAYESIAN, ())),
    )


def _limits_text(limits: Mapping[str, float]) -> str:
    return ", ".join(
        f"{scaled_unit(name, limit).quantity} ≤ {amount_text(name, limit)}" for name, limit in limits.items()
    )


def _best(trials: Sequence[TrialResult]) -> Losses:
    best: list[float | None] = []
    for trial in trials:
        known = [value for value in (trial.loss, *best[-1:]) if value is not None]
        best.append(min(known, default=None))
    return tuple(best)


def _corner(trials: Sequence[TrialResult]) -> tuple[str, float, float] | None:
    """The cost that is traded, its largest value and the largest loss of all trials; None where that is not known."""
    names = [name for name in trials[0].proposal.limits if all(name in trial.cost for trial in trials)]
    losses = [trial.loss for trial in trials if trial.loss is not None]
    return (names[0], max(trial.cost[names[0]] for trial in trials), max(losses)) if names and losses else None


def _dominated(trials: Sequence[TrialResult], name: str, cost: float, loss: float) -> Losses:
    """The area up to the corner that trials dominate, as a share of all there is down to zero cost and loss."""
    points: list[tuple[float, float]] = []
    shares = []
    for trial in trials:
        points += [] if trial.loss is None else [(-trial.cost[name], -trial.loss)]
        shares.append(hypervolume(points, (-cost, -loss)) / (cost * loss or 1.0))
    return tuple(shares)


def _forecast(trials: Sequence[TrialResult]) -> Forecast:
    foretold = [
        (number, trial.proposal.predicted_mean, trial.proposal.predicted_std or 0.0, trial.loss)
        for number, trial in enumerate(trials, start=1)
        if trial.proposal.predicted_mean is not None and trial.loss is not None
    ]
    return Forecast(
        tuple(number for number, *_ in foretold),
        tuple(abs(mean - loss) for _, mean, _, loss in foretold),
        tuple(std for _, _, std, _ in foretold),
        rank_correlation([mean for _, mean, _, _ in foretold], [loss for *_, loss in foretold]),
    )


def rank_correlation(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Spearman's rank correlation; None for fewer than three pairs, or where one side is constant.

    >>> rank_correlation([1, 2, 3], [10, 30, 20])
    0.5
    """
    if min(len(set(first)), len(set(second))) < 2 or len(first) < 3:
        return None
    return round(float(np.corrcoef(_ranks(first), _ranks(second))[0, 1]), 12)


def _ranks(values: Sequence[float]) -> np.ndarray:
    """The rank of each value, equal ones sharing theirs; scipy.stats, which has it too, takes a second to import."""
    _, place, count = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(count) - (count - 1) / 2)[place]
