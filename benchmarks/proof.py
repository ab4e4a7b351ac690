"""Is a search worth more than what is free? One job over several job seeds: every arm at every budget, mean ± std.

Run from the repository root; finished runs are read, others are made or gone on with, so that it may be stopped and
started again. With --read nothing is trained: what is finished is told::

    OMP_NUM_THREADS=1 python -m benchmarks.proof PROOF runs/proof [--seeds 3] [--read] [--all-test] \
        --set 'data.root="FOLDER with train/ and test/"' 'model.checkpoint="resnet20-12fca82f.th"'

The search is what its choice took of the finalists, by all its rounds and their loss on validation; the "better
program" is the better one of both on validation. Uniform widths stand at a budget twice: the widest that meet it, and
the narrowest that cost no less. The best control is the one of the best mean over the seeds among the programs, the
mean of the random draws, and both uniform ones. With --all-test what is finished is measured again, but for the random
draws, on all test images and not on those of the job: half a minute a net.
"Taken" is what a job tells its user to take: whatever within the budget is best on validation.
"""

from __future__ import annotations

import argparse
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from scipy.stats import kendalltau

from benchmarks.finetuning import front_of
from dnas.config.file import load_job
from dnas.jobs.context import JobContext
from dnas.jobs.stages.measure import Measurer
from results.events import Judged
from results.pareto import FLOAT, Estimate, FrontPoint, ParetoFront
from results.pools import pools
from results.run.folder import Run
from results.run.layout import is_run
from results.run.status import run_status
from search_spaces.provenance import ILP, MEASURED_ILP, RANDOM, SEARCH, UNIFORM

JOB = "benchmarks/cifar10_proof.toml"
LONGER = (
    "data.train_limit=12800",
    "data.validation_fraction=0.25",
    "data.test_limit=10000",
    "search.warmup_epochs=3",
    "search.epochs=4",
    "choice.draws=2",
    "choice.learned=2",
    "finetune.epochs=2",
    "controls.random=1",
)
"""Seven times the updates and the images of each net, four times the steps of θ."""
PROOFS: dict[str, tuple[str, ...]] = {
    "weights": (),
    # At the bit operations of uniform 2 and 3 bits.
    "activations": (
        "space.activation_bits=[2,3,4,6,8]",
        "search.budgets=[{bitops=188784640},{bitops=389324800}]",
        "controls.uniform=[2,3]",
    ),
    # The terms of the DNAS paper (arXiv 1812.00090, table 1): inputs, first and last layer in fp32 and not counted. The
    # budgets are 267,264 weights at 32 bits over 11.6, 16.6 and 20, and 34,304 bits for what is not searched.
    # Published: +0.37 points to fp32 at 11.6, -0.35 at 16.6.
    "paper": (
        "space.activation_bits=[32]",
        "space.first_layer=32",
        "space.last_layer=32",
        "search.budgets=[{weight_bits=771583},{weight_bits=549511},{weight_bits=461926}]",
    ),
    "long": (*LONGER, "search.budgets=[{size_bytes='6.6%'},{size_bytes='4.4%'}]", "controls.uniform=[1,2]"),
    "long-activations": (
        *LONGER,
        "space.activation_bits=[2,3,4,6,8]",
        "search.budgets=[{bitops=188784640}]",
        "controls.uniform=[2]",
    ),
    # Another net at one budget; its own checkpoint is to be set.
    "resnet56": ("model.source=zoo:resnet56", "search.budgets=[{size_bytes='6.6%'}]", "controls.uniform=[2]"),
}
WITHIN, ABOVE, TAKEN, PROGRAMS = "uniform within", "uniform above", "taken", "better program"
CONTROLS = (ILP, MEASURED_ILP, PROGRAMS, RANDOM, WITHIN, ABOVE)
ARMS = (SEARCH, TAKEN, *CONTROLS)

Scores = dict[str, list[float]]
"""Arm → percent by seed, of one budget; of several points of one arm and seed the mean."""


def scores(fronts: Sequence[ParetoFront], split: str) -> dict[str, Scores]:
    """Budget → the scores of every arm at it."""
    found: dict[str, Scores] = defaultdict(lambda: defaultdict(list))
    for front in fronts:
        for budget, limits in budgets_of(front).items():
            for arm, points in arms(front, budget, limits).items():
                values = [100 * estimate.mean for point in points if (estimate := getattr(point, split))]
                found[budget][arm].append(sum(values) / len(values))
    return found


def budgets_of(front: ParetoFront) -> dict[str, Mapping[str, float]]:
    """The budgets of the searches, by label."""
    return {point.budget: point.limits for point in front.points if point.kind == SEARCH and point.budget}


def arms(front: ParetoFront, budget: str, limits: Mapping[str, float]) -> dict[str, list[FrontPoint]]:
    """Arm → its points at one budget."""
    found: dict[str, list[FrontPoint]] = defaultdict(list)
    for point in front.points:
        if point.budget == budget and point.kind != UNIFORM:
            found[point.kind].append(point)
    uniform = sorted((point for point in front.points if point.kind == UNIFORM), key=lambda point: point.size_bytes)
    met = [point for point in front.points if all(point.cost(name) <= limit for name, limit in limits.items())]
    programs = [*found.get(ILP, ()), *found.get(MEASURED_ILP, ())]
    for arm, among in {SEARCH: found.get(SEARCH), PROGRAMS: programs, TAKEN: met}.items():
        if among:
            found[arm] = [max(among, key=lambda point: point.gain)]
    within = [point for point in uniform if point in met]
    above = [point for point in uniform if all(point.cost(name) >= limit for name, limit in limits.items())]
    return {**found, **({WITHIN: within[-1:]} if within else {}), **({ABOVE: above[:1]} if above else {})}


def on_all_test_images(run: Run, front: ParetoFront) -> ParetoFront:
    """The front with the test accuracies of its nets on all test images, without the random draws."""
    config = load_job(run.job_file(), [])
    config = config.model_copy(update={"data": config.data.model_copy(update={"test_limit": None})})
    context = JobContext(config, run, lambda event: None)
    measurer, found = Measurer(context), run.assignments()

    def again(point: FrontPoint) -> FrontPoint:
        nets = [measurer.stored(found[point.assignment], seed) for seed in range(point.val.n)]
        scores = [context.job.measured(net, context.job.data.test).score for net in nets]
        return replace(point, test=Estimate.from_values(scores))

    return replace(front, points=tuple(again(point) for point in front.points if point.kind not in (RANDOM, FLOAT)))


def tables(fronts: Sequence[ParetoFront]) -> Iterator[str]:
    """Per split a row for every budget, and what the search adds to each arm, seed by seed."""
    for split in ("val", "test"):
        found = scores(fronts, split)
        yield (
            f"\n| {split}, {len(fronts)} job seeds | "
            + " | ".join(ARMS)
            + " | search - best control | by seed | taken - best control |"
        )
        yield "|---" * (len(ARMS) + 4) + "|"
        for budget, by_arm in found.items():
            means = {arm: Estimate.from_values(by_arm[arm]) for arm in ARMS if by_arm.get(arm)}
            best = max((arm for arm in CONTROLS if arm in means), key=lambda arm: means[arm].mean)
            apart, taken = (
                [mine - theirs for mine, theirs in zip(by_arm[arm], by_arm[best], strict=True)]
                for arm in (SEARCH, TAKEN)
            )
            gain, other = Estimate.from_values(apart), Estimate.from_values(taken)
            cells = [f"{e.mean:.2f} ± {e.std:.2f}" if (e := means.get(arm)) else "" for arm in ARMS]
            told = f"{gain.mean:+.2f} ± {gain.std:.2f} ({best}) | " + " ".join(f"{value:+.2f}" for value in apart)
            told += f" | {other.mean:+.2f} ± {other.std:.2f}"
            yield f"| {budget} | " + " | ".join(cells) + f" | {told} |"


def spent(fronts: Sequence[ParetoFront]) -> Iterator[str]:
    """How much of each budget the searches spent, at least."""
    for budget, limits in budgets_of(fronts[0]).items():
        shares = [
            max(point.cost(name) / limit for name, limit in limits.items())
            for front in fronts
            for point in arms(front, budget, limits)[SEARCH]
        ]
        yield f"{budget}: {min(shares):.1%} spent at least"


def chosen(runs: Sequence[Run]) -> Iterator[str]:
    """Who proposed what was chosen, and what that adds to what was free."""
    count: Counter[str] = Counter()
    for run in runs:
        for pool in pools(run.journal.events(), run.assignments()):
            yield f"{run.name}: {pool.sentence}"
            for each in pool.candidates:
                if each.became == pool.search:
                    count.update(source.rstrip("0123456789-") for source in each.sources)
    yield f"proposed what was chosen: {dict(count)}"


def judging(runs: Sequence[Run]) -> Iterator[str]:
    """Where what each source proposes ranks in the first round, and how far the second round agrees with it."""
    ranks: dict[str, list[float]] = defaultdict(list)
    agreement = []
    for run in runs:
        rounds: dict[str, dict[int, dict[str, float]]] = defaultdict(lambda: defaultdict(dict))
        for event in run.journal.events():
            if isinstance(event, Judged) and event.loss is not None:
                _, pool, source = event.proposal.split("-", 2)
                rounds[pool][event.round][source] = event.loss
        for losses in rounds.values():
            for rank, source in enumerate(sorted(losses[1], key=lambda name: losses[1][name]), start=1):
                ranks[source.rstrip("0123456789-")].append(rank / len(losses[1]))
            both = [(losses[1][source], loss) for source, loss in losses[2].items() if source in losses[1]]
            if len(both) > 2:
                agreement.append(float(kendalltau(*zip(*both, strict=True)).statistic))
    for source, found in sorted(ranks.items(), key=lambda item: sum(item[1]) / len(item[1])):
        yield f"{source}: in the best {sum(found) / len(found):.0%} of a pool in the mean ({len(found)} proposals)"
    if agreement:
        mean = sum(agreement) / len(agreement)
        yield f"tau of both rounds: {mean:.2f} in the mean, {min(agreement):.2f} to {max(agreement):.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("proof", choices=PROOFS)
    parser.add_argument("runs", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--read", action="store_true", help="train nothing; tell of what is finished")
    parser.add_argument("--all-test", action="store_true", help="measure on all test images what is finished")
    parser.add_argument("--set", nargs="*", default=[], help="settings of all seeds")
    options = parser.parse_args()
    fronts, runs = [], []
    for seed in range(options.seeds):
        folder = options.runs / f"{options.proof}-{seed}"
        finished = is_run(folder) and run_status(Run.open(folder)).state == "finished"
        if finished or not options.read:
            settings = [*PROOFS[options.proof], *options.set, f"seed={seed}", f"name={folder.name}"]
            front = front_of(JOB, folder, settings)
            runs.append(Run.open(folder))
            fronts.append(on_all_test_images(runs[-1], front) if options.all_test else front)
            print(*tables(fronts), *spent(fronts), *chosen(runs), *judging(runs), sep="\n", flush=True)


if __name__ == "__main__":
    main()
