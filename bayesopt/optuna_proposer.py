"""Optuna's Gaussian process as proposer, an extra: its suggestion is repaired, and the repaired point is told.

Every ask builds a fresh study from what is known, with a sampler seeded by the number of the proposal: a study that
lives on would carry a random state that no replay could restore without repeating every fit.
"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np

from bayesopt.acquisition import mutated
from bayesopt.asktell import Proposer
from bayesopt.chebyshev import Scalarisation
from bayesopt.proposals import Suggestion
from bayesopt.ratios import Limits
from search_spaces.errors import InputError

_NEIGHBOURS = 20


class OptunaProposer(Proposer):
    """optuna.samplers.GPSampler (log expected improvement, Matern 5/2); needs ``pip install 'dnas[optuna]'``."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        try:
            self._optuna = importlib.import_module("optuna")
            importlib.import_module("torch")  # GPSampler asks for it only at its first fit
        except ImportError as error:
            raise InputError("the proposer 'optuna' needs Optuna: pip install 'dnas[optuna]'") from error
        super().__init__(*arguments, **options)

    def suggestions(self, number: int, limits: Limits) -> Iterator[Suggestion]:
        """What Optuna's sampler asks for."""
        x = self._suggested(number)
        if self.range:
            amount = self.space.costs(self.space.counts(x))[self.range.cost]
            limits = {self.range.cost: min(max(amount, self.range.lowest), self.range.highest)}
        yield self.suggestion(x, limits, "model")
        for neighbour in mutated(x[None], _NEIGHBOURS, self._random(number)):
            yield self.suggestion(neighbour, limits, "model")

    def _suggested(self, number: int) -> np.ndarray:
        """A point (D,) of the sampler, given all that was told; pending points are believed to be of average loss."""
        points, values = self._observations()
        if self.range:
            costs = [self.space.costs(self._counts(asked))[self.range.cost] for asked in sorted(self._told)]
            known = Scalarisation(values, np.array(costs), self.range.lowest, self.range.highest, self._weight(number))
            values = known.scores
        pending = self._pending()
        points = np.concatenate([points, pending])
        values = np.concatenate([values, np.full(len(pending), np.mean(values))])
        optuna, names = self._optuna, [f"x{column}" for column in range(points.shape[1])]
        kinds = {name: optuna.distributions.FloatDistribution(0.0, 1.0) for name in names}
        verbosity = optuna.logging.get_verbosity()
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # the sampler is marked experimental; a flat fit does not converge
                seed = int(self._random(number).integers(1 << 31))
                study = optuna.create_study(sampler=optuna.samplers.GPSampler(seed=seed, n_startup_trials=1))
                for point, value in zip(points, values, strict=True):
                    params = dict(zip(names, map(float, point), strict=True))
                    study.add_trial(optuna.create_trial(params=params, distributions=kinds, value=float(value)))
                asked = study.ask(kinds).params
        finally:
            optuna.logging.set_verbosity(verbosity)
        return np.array([asked[name] for name in names])
