"""The default proposer: scikit-optimize's Gaussian process, asked on the budgets' own manifold.

A plain ``skopt.Optimizer`` searches the whole cube for its next point, which repair then moves to where the model was
never asked. Here every candidate is brought near its budget first, repaired exactly last, and the model decides among
repaired points only. benchmarks/proposers.py compares the two.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from bayesopt.acquisition import log_expected_improvement, mutated, search
from bayesopt.asktell import Proposer
from bayesopt.chebyshev import Scalarisation
from bayesopt.clusters import Clusters
from bayesopt.proposals import Proposal, Suggestion
from bayesopt.ratios import Limits
from bayesopt.screening import QuadraticCost, projected
from bayesopt.surrogates import Surrogate

_EXACT = 8  # candidates that are compared once they are repaired exactly, each for tens of cost calls
_NEARBY, _MOST_REPAIRS = 64, 60  # where the best were all asked before: more of them, then neighbours of the best told
_STARTS = 8
_ELSEWHERE = 0.25  # share of candidates along a cost range that move to another cost


Threshold = Callable[[np.ndarray], np.ndarray]


class ModelProposer(Proposer):
    """Expected improvement under one surrogate shared by all budgets; ParEGO's weights along a cost range.

    More than ``most_groups`` groups are searched as ``clusters`` runs of neighbours that share a ratio.
    """

    most_groups, clusters = 60, 20
    _fitted: tuple[tuple[float, ...], Surrogate] | None = None

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        groups = len(self.space.free)
        self._clusters = Clusters(groups, groups if groups <= self.most_groups else self.clusters)
        if self._clusters.count < groups:
            self.notes += (
                f"{groups} channel groups are more than the Gaussian process can tell apart in a few hundred trials: "
                f"neighbouring groups share one of {self.clusters} ratios.",
            )

    def suggestions(self, number: int, limits: Limits) -> Iterator[Suggestion]:
        """Where the surrogate expects the largest improvement, on the budget's manifold."""
        surrogate, random = self._surrogate(), self._random(number)
        starts, to_beat = self._standing(number, limits, surrogate)

        def score(points: np.ndarray) -> np.ndarray:
            return log_expected_improvement(*surrogate.predict(points), to_beat(points))

        def project(points: np.ndarray) -> np.ndarray:
            points = self._reach(points, starts)
            amounts = self._amounts(points, limits, random)
            return projected(points, [(self._screens[name], amount) for name, amount in amounts.items()])

        nearby = project(mutated(starts, _NEARBY, random))
        ranked = [*search(score, project, starts, random), *nearby[np.argsort(-score(nearby), kind="stable")]]
        kept = self._repaired_anew(ranked[:_MOST_REPAIRS], limits)
        if not kept:
            return
        points = self._clusters.shared(np.array([self.space.point(counts) for counts in kept]))
        means, spreads = surrogate.predict(points)
        found = list(kept.items())
        for row in np.argsort(-score(points), kind="stable"):
            counts, own = found[row]
            yield Suggestion(counts, own, "model", float(means[row]), float(spreads[row]))

    def _repaired_anew(self, ranked: Sequence[np.ndarray], limits: Limits) -> dict[tuple[int, ...], Limits]:
        """Counts with their limits: the first few of the ranked points that lead to what was not asked yet."""
        seen = self._seen[0 if self.range else self.budgets.index(dict(limits))]
        kept: dict[tuple[int, ...], Limits] = {}
        for row in ranked:
            own = {name: float(amount[0]) for name, amount in self._amounts(row[None], limits).items()}
            counts = self.space.repair(self._clusters.spread(row), own)
            if counts not in seen:
                kept[counts] = own
            if len(kept) == _EXACT:
                break
        return kept

    def _standing(self, number: int, limits: Limits, surrogate: Surrogate) -> tuple[np.ndarray, Threshold]:
        """The told points (S, D) to start from, and the loss that any other point has to beat."""
        told = self._clusters.shared(self._observations()[0])
        means = surrogate.predict(told)[0]
        costs = [self.space.costs(self._counts(asked)) for asked in sorted(self._told)]
        if self.range:
            name, amounts = self.range.cost, np.array([cost[self.range.cost] for cost in costs])
            weighed = Scalarisation(means, amounts, self.range.lowest, self.range.highest, self._weight(number))
            starts = told[np.argsort(weighed.scores, kind="stable")[:_STARTS]]
            return starts, lambda points: weighed.loss_to_beat(self._screens[name](points))
        inside = np.array([all(cost[name] <= limit for name, limit in limits.items()) for cost in costs])
        best = float(np.min(means[inside])) if inside.any() else float(np.median(means))
        starts = told[np.argsort(np.where(inside, means, np.inf), kind="stable")[:_STARTS]]
        return starts, lambda points: np.full(len(points), best)

    def _reach(self, points: np.ndarray, starts: np.ndarray) -> np.ndarray:
        """Candidates moved to where the search may look: everywhere. A trust region would keep near ``starts[0]``."""
        return points

    def best(self, budget: int = 0) -> Proposal | None:
        """The told proposal within the budget that the model predicts to be best: a lucky measurement does not win."""
        told = [number for number in self._finite() if self._within(number, budget)]
        if not told:
            return None
        means, _ = self._surrogate(pending=False).predict(
            self._clusters.shared(np.array([self._asked[number].x for number in told]))
        )
        return self._asked[told[int(np.argmin(means))]]

    @cached_property
    def _screens(self) -> dict[str, QuadraticCost]:
        return {name: self._screen(name) for name in sorted({name for limits in self.budgets for name in limits})}

    def _screen(self, name: str) -> QuadraticCost:
        def exact(shared: np.ndarray) -> float:
            return self.space.costs(self.space.counts(self._clusters.spread(shared)))[name]

        return QuadraticCost(exact, self._clusters.count)

    def _surrogate(self, pending: bool = True) -> Surrogate:
        """The fit to what was told; pending points are believed to turn out as predicted."""
        points, values = self._observations()
        points = self._clusters.shared(points)
        key = (float(len(values)), *values, *points.ravel())
        if self._fitted is None or self._fitted[0] != key:
            self._fitted = (key, Surrogate(points, values, self.seed))
        waiting = self._clusters.shared(self._pending())
        return self._fitted[1].believing(waiting) if pending and len(waiting) else self._fitted[1]

    def _amounts(
        self, points: np.ndarray, limits: Limits, random: np.random.Generator | None = None
    ) -> dict[str, np.ndarray]:
        """The limits (N,) of each point: the budget's, or along a cost range its own cost, some of them moved."""
        if self.range is None:
            return {name: np.full(len(points), limit) for name, limit in limits.items()}
        own = np.clip(self._screens[self.range.cost](points), self.range.lowest, self.range.highest)
        if random:
            other = random.uniform(self.range.lowest, self.range.highest, len(points))
            own = np.where(random.random(len(points)) < _ELSEWHERE, other, own)
        return {self.range.cost: own}
