"""How good the proposers of pruning ratios are, on a synthetic network whose optimum is known, and what they cost.

Run from the repository root::

    OMP_NUM_THREADS=1 python -m benchmarks.proposers [--seeds 5] [--evaluations 100] [--groups 20] [--engines NAME ...]
    OMP_NUM_THREADS=1 python -m benchmarks.proposers --times

The network is a chain of groups with the channel counts of a ResNet; its loss is convex in each group's ratio. Shown is
the true loss of the recommended configuration: 0 at the optimum, 0.384 at the uniform ratio of the budget.
"""

from __future__ import annotations

import argparse
import math
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from scipy.optimize import minimize
from skopt import Optimizer

from bayesopt.asktell import Proposer
from bayesopt.model_proposer import ModelProposer
from bayesopt.proposals import Suggestion
from bayesopt.proposers import PROPOSERS
from bayesopt.ratios import Limits, RatioSpace

UNIFORM_LOSS = 0.384


class SyntheticNetwork:
    """A chain of ``dimensions`` convolutions: exact size and bitops, and a noisy loss over the kept counts.

    The loss is the sum over groups of sensitivity · ratio^power, sensitivities log-normal (σ = 1), powers 1.3 to 3, and
    products of neighbouring ratios; shifted and scaled so that 0 is the optimum at the budget and uniform is 0.384.
    """

    def __init__(self, dimensions: int = 20, seed: int = 0, noise: float = 0.01, budget: float = 0.45) -> None:
        random = np.random.default_rng(seed)
        stage = np.arange(dimensions) * 4 // dimensions
        self.units = np.array([64, 128, 256, 512])[stage]
        self.pixels = np.array([1024, 256, 64, 16])[stage]
        self.bits = random.choice([2, 4, 8], size=dimensions)
        self.sensitivity = random.lognormal(0.0, 1.0, dimensions)
        self.power = random.uniform(1.3, 3.0, dimensions)
        self.pairs = 0.5 * random.lognormal(-0.5, 0.7, dimensions - 1) * (random.random(dimensions - 1) < 0.5)
        self.names = tuple(f"layer{row}" for row in range(dimensions))
        self.noise = noise
        self.space = RatioSpace(self.names, tuple(map(int, self.units)), self.cost, 0.9, min_keep=4, round_to=4)
        self.limits = {"size_bytes": budget * self.space.costs(self.space.most())["size_bytes"]}
        self.offset, self.scale = 0.0, 1.0
        uniform = self.loss(self.space.uniform(self.limits))
        self.offset = self._optimum()
        self.scale = UNIFORM_LOSS / (uniform - self.offset)

    def cost(self, kept: Mapping[str, int]) -> dict[str, float]:
        counts = np.array([kept[name] for name in self.names])
        inputs = np.concatenate([[3], counts[:-1]])
        weights = 9 * inputs * counts
        return {
            "size_bytes": float(np.sum(-(-weights // 8) * self.bits + 8 * counts)),
            "bitops": float(np.sum(weights * self.pixels * self.bits * 8)),
        }

    def loss(self, counts: Sequence[int]) -> float:
        """The true loss, without noise."""
        return self._scaled(1 - np.array(counts) / self.units)

    def measured(self, counts: Mapping[str, int], random: np.random.Generator) -> float:
        """The loss as an evaluation would find it."""
        return self.loss([counts[name] for name in self.names]) + self.noise * random.standard_normal()

    def _scaled(self, ratios: np.ndarray) -> float:
        harm = np.sum(self.sensitivity * ratios**self.power) + np.sum(self.pairs * ratios[1:] * ratios[:-1])
        return float((harm - self.offset) * self.scale)

    def _optimum(self) -> float:
        """The lowest loss on the budget: from twenty starts, ratios by sequential quadratic programming."""
        random = np.random.default_rng(1)
        limit = self.limits["size_bytes"]

        def size(ratios: np.ndarray) -> float:
            counts = self.units * (1 - ratios)
            weights = 9 * np.concatenate([[3], counts[:-1]]) * counts
            return float(np.sum(weights / 8 * self.bits + 8 * counts))

        constraint = {"type": "ineq", "fun": lambda ratios: 1 - size(ratios) / limit}
        found = [
            minimize(
                self._scaled,
                random.uniform(0.05, 0.85, len(self.units)),
                method="SLSQP",
                bounds=[(1e-6, 0.9)] * len(self.units),
                constraints=constraint,
                options={"maxiter": 500},
            )
            for _ in range(20)
        ]
        return min((one.fun for one in found if one.success), default=math.inf)


class PlainOptimizer(Proposer):
    """The control: ``skopt.Optimizer`` asked over the whole cube (gp_hedge), then repair; not replayable."""

    def __init__(self, *arguments, **options) -> None:
        super().__init__(*arguments, **options)
        dimensions = [(0.0, 1.0)] * len(self.space.free)
        self.optimizer = Optimizer(dimensions, "GP", n_initial_points=10, random_state=self.seed, model_queue_size=1)

    def tell(self, proposal, value: float) -> None:
        super().tell(proposal, value)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.optimizer.tell(list(proposal.x), value)

    def _candidates(self, number: int, budget: int) -> Iterator[Suggestion]:
        if number == 0:
            yield self._openings[0]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield self.suggestion(np.array(self.optimizer.ask()), self.budgets[budget], "model")
        yield from self._chance(number, budget, self.budgets[budget])

    def suggestions(self, number: int, limits: Limits) -> Iterator[Suggestion]:
        return iter(())


class Unclustered(ModelProposer):
    """The model over all groups, however many."""

    most_groups = 1000


class TrustRegion(Unclustered):
    """The other way with many groups: all of them, but only near the best point (after TuRBO, arXiv 1910.01739)."""

    def _reach(self, points: np.ndarray, starts: np.ndarray) -> np.ndarray:
        side, best, successes, failures = 0.4, math.inf, 0, 0
        for number, value in sorted(self._told.items()):
            better = value < best
            best = min(best, value)
            if number >= self.first:
                successes, failures = (successes + 1, 0) if better else (0, failures + 1)
            if successes == 3:
                side, successes = min(2 * side, 0.8), 0
            if failures == 10:
                side, failures = max(side / 2, 0.01), 0
        return np.clip(points, starts[0] - side / 2, starts[0] + side / 2)


ENGINES: dict[str, type[Proposer]] = {
    "random": PROPOSERS["random"],
    "skopt-plain": PlainOptimizer,
    "scikit-optimize": ModelProposer,
    "optuna": PROPOSERS["optuna"],
    "unclustered": Unclustered,
    "trust-region": TrustRegion,
}


def compare(names: Sequence[str], groups: int, seeds: int, evaluations: int) -> None:
    """Print one row per engine: the true loss of what it recommends."""
    network = SyntheticNetwork(groups)
    uniform = network.loss(network.space.uniform(network.limits))
    print(f"| engine, {groups} groups | loss after {evaluations} | over {seeds} seeds | seconds |\n|---|---|---|---|")
    print(f"| uniform | {uniform:.3f} | | |")
    for name in names:
        losses, begin = [], time.perf_counter()
        for seed in range(seeds):
            proposer = ENGINES[name](network.space, [network.limits], seed=seed, total=evaluations)
            random = np.random.default_rng(1000 + seed)
            for _ in range(evaluations):
                (proposal,) = proposer.ask()
                proposer.tell(proposal, network.measured(proposal.counts, random))
            best = proposer.best()
            losses.append(network.loss(list(best.counts.values())))
        seconds = (time.perf_counter() - begin) / seeds
        shown = " ".join(f"{loss:.3f}" for loss in losses)
        print(f"| {name} | {np.mean(losses):.3f} ± {np.std(losses):.3f} | {shown} | {seconds:.0f} |", flush=True)


def time_asks(points: Sequence[int]) -> None:
    """Print the seconds of one ask (which refits) and of one tell, by the number of points known."""
    print("| groups | points | seconds per ask | per tell |\n|---|---|---|---|")
    for groups in (20, 60):
        network = SyntheticNetwork(groups)
        source = ENGINES["random"](network.space, [network.limits], seed=0)
        history = [(p, network.loss(list(p.counts.values()))) for p in source.ask(max(points) + 1)]
        for count in points:
            proposer = ModelProposer(network.space, [network.limits], seed=0, first=10)
            proposer.restore(history[:count])
            assert proposer._screens  # priced once per search, not per ask
            begin = time.perf_counter()
            (proposal,) = proposer.ask()
            asked = time.perf_counter()
            proposer.tell(proposal, 1.0)
            print(f"| {groups} | {count} | {asked - begin:.2f} | {time.perf_counter() - asked:.4f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--evaluations", type=int, default=100)
    parser.add_argument("--groups", type=int, default=20)
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=list(ENGINES)[:4])
    parser.add_argument("--times", action="store_true", help="seconds per ask and tell instead")
    options = parser.parse_args()
    if options.times:
        time_asks((50, 100, 200, 300))
    else:
        compare(options.engines, options.groups, options.seeds, options.evaluations)


if __name__ == "__main__":
    main()
