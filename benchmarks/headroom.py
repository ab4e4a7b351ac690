"""How much is there to win over the integer programs? Choices of bits near theirs, each fine-tuned several times.

Run from the repository root; it goes on where it was stopped::

    OMP_NUM_THREADS=1 python -m benchmarks.headroom JOB RUN [--draws 16] [--spread 0.5] --set KEY=VALUE ...

Every draw is the program of the job's first budget over losses that are a mean of both tables, expected and measured,
of a drawn weight and power, with each decision's scaled by exp(spread · N(0, 1)). All spend the budget as the programs
do. One analysis of variance tells how far the draws' accuracies on validation lie apart beyond what one fine-tuning
of the same bits differs from another (`finetune.seeds` of each): no search among such choices can win more.
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from benchmarks.finetuning import front_of
from dnas.config.file import load_job
from dnas.jobs.context import JobContext
from dnas.jobs.stages.measure import Measurer
from dnas.jobs.stored_nets import stored_float
from dnas.search.controls import Evidence
from results.events import Measured
from results.pareto import FrontPoint
from results.run.folder import Run
from search_spaces.allocation.program import Cells
from search_spaces.allocation.widening import allocate_widest
from search_spaces.assignments import BitAssignment
from search_spaces.provenance import CONTROL, ILP, MEASURED_ILP, Provenance

ALONE = (
    "choice.enabled=false",
    "controls.measured_ilp=true",
    "controls.uniform=[]",
    "finalise.enabled=false",
    "finetune.seeds=3",
)
"""The job without what is not asked here, each net fine-tuned several times."""

_TRIES = 8  # for each draw, of which many may be the same

Scores = dict[str, tuple[float, ...]]
"""Assignment → percent on validation after each fine-tuning."""


def near(evidence: Evidence, generator: np.random.Generator, spread: float) -> np.ndarray:
    """What each cell (D, Kw, Ka) is worth, near what both programs go by."""
    share, power = generator.uniform(0.0, 1.0), generator.uniform(0.5, 1.1)
    expected, measured = (np.maximum(table, 1e-12) for table in (evidence.sensitivities, evidence.measured))
    chance = np.exp(spread * generator.normal(size=(len(expected), 1, 1)))
    return np.asarray(-((expected**share * measured ** (1 - share)) ** power) * chance)


def choices(context: JobContext, draws: int, spread: float) -> list[Cells]:
    """So many choices of bits within the first budget, each once; fewer where there are no more."""
    plan, evidence = context.job.plan, context.sensitivities.evidence
    generator = np.random.default_rng(context.job.config.seed)
    found: list[Cells] = []
    for _ in range(_TRIES * draws):
        cells = allocate_widest(near(evidence, generator, spread), plan.table, plan.budgets[0])
        if len(found) < draws and cells not in found:
            found.append(cells)
    return found


def measured(context: JobContext, draws: int, spread: float) -> Iterator[BitAssignment]:
    """The choices, each fine-tuned and measured from the float network as the job's own controls were; saved."""
    stored_float(context.log.run, context.job.network, context.job.config.pretrain.epochs)  # into the job's own network
    measurer, made = Measurer(context), Provenance(kind=CONTROL, run="near")
    for number, cells in enumerate(choices(context, draws, spread), start=1):
        name = f"near-{spread:g}-{number}"
        assignment = context.log.keep_cells(name, cells, made, context.job.plan.budgets[0])
        measurer.measure(assignment)
        yield assignment


def scores(run: Run) -> Scores:
    """What the run has measured so far."""
    found: dict[str, tuple[float, ...]] = {}
    for event in run.journal.events():
        if isinstance(event, Measured):
            found[event.assignment] = (*found.get(event.assignment, ()), 100 * event.val)
    return found


def deviations(groups: Sequence[Sequence[float]]) -> tuple[float, float]:
    """Standard deviations between groups and within them, by moments; each has as many values, at least two."""
    within = statistics.fmean(statistics.variance(group) for group in groups)
    of_means = statistics.variance([statistics.fmean(group) for group in groups])
    return math.sqrt(max(0.0, of_means - within / len(groups[0]))), math.sqrt(within)


def told(groups: Mapping[str, Sequence[float]], programs: Sequence[FrontPoint]) -> Iterator[str]:
    """The programs, the draws with the accuracies of each, and what lies between them."""
    means = {name: statistics.fmean(values) for name, values in groups.items()}
    between, within = deviations(list(groups.values()))
    middle, best = statistics.fmean(means.values()), max(means, key=lambda name: means[name])
    reliable = between**2 / (between**2 + within**2 / len(groups[best]))
    for point in programs:
        val = point.val
        yield f"{point.assignment}: {100 * val.mean:.2f} ± {100 * val.std:.2f} %, {val.n} fine-tunings"
    yield f"{len(groups)} near them: {middle:.2f} % in the mean, {min(means.values()):.2f} to {means[best]:.2f}"
    yield f"standard deviation between choices {between:.2f} points, between fine-tunings of one choice {within:.2f}"
    yield f"the best, {best}: {middle + reliable * (means[best] - middle):.2f} % expected of it"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("job")
    parser.add_argument("run", type=Path)
    parser.add_argument("--draws", type=int, default=16, help="choices of bits near the programs'")
    parser.add_argument("--spread", type=float, default=0.5, help="how far from the programs' losses")
    parser.add_argument("--set", nargs="*", default=[], help="settings of the job")
    options = parser.parse_args()
    settings = [*ALONE, *options.set]
    if load_job(options.job, settings).finetune.seeds < 2:
        parser.error("finetune.seeds = 1 tells nothing of the spread of fine-tunings; set 2 or more")
    front = front_of(options.job, options.run, settings)
    with Run.open(options.run, write=True) as run:
        context = JobContext(load_job(run.job_file(), []), run, lambda event: None)
        groups: Scores = {}
        for assignment in measured(context, options.draws, options.spread):
            groups[assignment.id] = scores(run)[assignment.id]
            widths = " ".join(str(weight) for weight, _ in context.job.plan.space.pairs_of(assignment.layers))
            print(
                f"{assignment.id}: {widths}: {' '.join(f'{value:.2f}' for value in groups[assignment.id])}", flush=True
            )
        programs = [point for point in front.points if point.assignment in (f"{ILP}-1", f"{MEASURED_ILP}-1")]
        print(*told(groups, programs), sep="\n")


if __name__ == "__main__":
    main()
