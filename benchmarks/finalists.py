"""What tells the best of the finalists of a choice: ways to choose, by what each would have reached on test.

Run from the repository root on finished runs of jobs with several finalists::

    OMP_NUM_THREADS=1 python -m benchmarks.finalists RUN ...
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from dnas.config.file import load_job
from dnas.jobs.context import JobContext
from dnas.jobs.stages.measure import Measurer
from results.pools import BudgetPool, Candidate, mean_loss, pools
from results.run.folder import Run
from search_spaces.assignments import BitAssignment


@dataclass(frozen=True)
class Finalist:
    """A net that was fine-tuned in full: the losses of its bits before, and its own loss and accuracies in %."""

    id: str
    judged: tuple[float, ...]
    val_loss: float
    val: float
    test: float


WAYS: dict[str, Callable[[Finalist], float]] = {
    "the rounds before": lambda each: fmean(each.judged),
    "validation, accuracy": lambda each: -each.val,
    "validation, loss": lambda each: each.val_loss,
    "all rounds": lambda each: fmean((*each.judged, each.val_loss)),
    "test (what nobody knows)": lambda each: -each.test,
}
"""What each way would choose the least of."""


def finalists(run: Run) -> Iterator[tuple[str, list[Finalist]]]:
    """The finalists of each pool of a run, the best of the rounds before first."""
    context = JobContext(load_job(run.job_file(), []), run, lambda event: None)
    count = context.job.config.choice.finalists
    assignments = run.assignments()
    measured = {_net(each): each for each in assignments.values() if _trained(each)}
    for pool in pools(run.journal.events(), assignments):
        best = sorted((each for each in pool.candidates if each.rounds), key=_place)[:count]
        known = [(each, measured.get(_net(assignments[each.id]))) for each in best]
        yield pool.search, [_finalist(context, pool, each, net) for each, net in known if net]


def _net(assignment: BitAssignment) -> tuple[object, ...]:
    return tuple(sorted(assignment.pairs.items())), assignment.provenance.start


def _trained(assignment: BitAssignment) -> bool:
    return any(name.startswith("val_") for name in assignment.metrics)


def _before(candidate: Candidate) -> tuple[float, ...]:
    return tuple(each.loss for each in candidate.rounds if each.split == "train" and each.loss is not None)


def _place(candidate: Candidate) -> tuple[int, float]:
    return -len(_before(candidate)), mean_loss([each for each in candidate.rounds if each.split == "train"])


def _finalist(context: JobContext, pool: BudgetPool, candidate: Candidate, net: BitAssignment) -> Finalist:
    job, trained = context.job, Measurer(context).stored(net, 0)
    val, test = (job.measured(trained, images) for images in (job.data.val, job.data.test))
    found = Finalist(candidate.id, _before(candidate), val.loss, 100 * val.score, 100 * test.score)
    judged = " ".join(f"{loss:.3f}" for loss in found.judged)
    print(f"{context.log.run.name} {pool.search} {found.id}: judged {judged}, validation {found.val_loss:.3f}", end=" ")
    print(f"({found.val:.2f} %), test {found.test:.2f} %", flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+")
    options = parser.parse_args()
    reached: dict[str, list[float]] = defaultdict(list)
    for folder in options.runs:
        for _, found in finalists(Run.open(folder)):
            for name, worth in WAYS.items():
                reached[name].append(min(found, key=worth).test)
    print("\n| chosen by | test %, mean | pool by pool |\n|---|---|---|")
    for name, values in reached.items():
        print(f"| {name} | {fmean(values):.2f} | {' '.join(f'{value:.1f}' for value in values)} |")


if __name__ == "__main__":
    main()
