"""What tells the best of the finalists of a choice: ways to choose, by what each would have reached on test.

Run from the repository root on finished runs of jobs with several finalists::

    OMP_NUM_THREADS=1 python -m benchmarks.finalists [--unseen 6000] RUN ...

With --unseen they are judged by so many of the test images that the job left out, too.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import cast

import torch

from dnas.config.file import load_job
from dnas.data.image_sets import ImageSet, MemoryImages
from dnas.data.load import load_data
from dnas.jobs.context import JobContext
from dnas.jobs.job import Job
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
    unseen_loss: float | None = None
    unseen: float | None = None


WAYS: dict[str, Callable[[Finalist], float]] = {
    "the rounds before": lambda each: fmean(each.judged),
    "validation, accuracy": lambda each: -each.val,
    "validation, loss": lambda each: each.val_loss,
    "all rounds": lambda each: fmean((*each.judged, each.val_loss)),
    "test (what nobody knows)": lambda each: -each.test,
    "unseen images, loss": lambda each: each.unseen_loss or 0.0,
    "unseen images, accuracy": lambda each: -(each.unseen or 0.0),
}
"""What each way would choose the least of."""


def finalists(run: Run, unseen: int = 0) -> Iterator[tuple[str, list[Finalist]]]:
    """The finalists of each pool of a run, the best of the rounds before first; judged by ``unseen`` more images."""
    context = JobContext(load_job(run.job_file(), []), run, lambda event: None)
    count = context.job.config.choice.finalists
    others = unseen_images(context.job, unseen) if unseen else None
    assignments = run.assignments()
    measured = {_net(each): each for each in assignments.values() if _trained(each)}
    for pool in pools(run.journal.events(), assignments):
        best = sorted((each for each in pool.candidates if each.rounds), key=_place)[:count]
        known = [(each, measured.get(_net(assignments[each.id]))) for each in best]
        yield pool.search, [_finalist(context, pool, each, net, others) for each, net in known if net]


def unseen_images(job: Job, count: int) -> ImageSet:
    """Some of the test images that the job left out, normalised as its own are."""
    section, own = job.config.data, cast(MemoryImages, job.data.test)
    every = cast(MemoryImages, load_data(section.source, root=section.root, train_limit=section.train_limit).test)
    known = {image.numpy().tobytes() for image in own.images}
    left = [number for number, image in enumerate(every.images) if image.numpy().tobytes() not in known]
    drawn = torch.tensor(left)[torch.randperm(len(left), generator=torch.Generator().manual_seed(0))[:count]]
    return MemoryImages(every.images[drawn], every.labels[drawn], own.mean, own.std)


def _net(assignment: BitAssignment) -> tuple[object, ...]:
    return tuple(sorted(assignment.pairs.items())), assignment.provenance.start


def _trained(assignment: BitAssignment) -> bool:
    return any(name.startswith("val_") for name in assignment.metrics)


def _before(candidate: Candidate) -> tuple[float, ...]:
    return tuple(each.loss for each in candidate.rounds if each.split == "train" and each.loss is not None)


def _place(candidate: Candidate) -> tuple[int, float]:
    return -len(_before(candidate)), mean_loss([each for each in candidate.rounds if each.split == "train"])


def _finalist(
    context: JobContext, pool: BudgetPool, candidate: Candidate, net: BitAssignment, others: ImageSet | None
) -> Finalist:
    job, trained = context.job, Measurer(context).stored(net, 0)
    val, test = (job.measured(trained, images) for images in (job.data.val, job.data.test))
    found = Finalist(candidate.id, _before(candidate), val.loss, 100 * val.score, 100 * test.score)
    if others is not None:
        more = job.measured(trained, others)
        found = replace(found, unseen_loss=more.loss, unseen=100 * more.score)
    judged = " ".join(f"{loss:.3f}" for loss in found.judged)
    print(f"{context.log.run.name} {pool.search} {found.id}: judged {judged}, validation {found.val_loss:.3f}", end=" ")
    unseen = "" if found.unseen is None else f", unseen {found.unseen_loss:.3f} ({found.unseen:.2f} %)"
    print(f"({found.val:.2f} %){unseen}, test {found.test:.2f} %", flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--unseen", type=int, default=0, help="test images that the job left out, to judge by")
    options = parser.parse_args()
    ways = {name: worth for name, worth in WAYS.items() if options.unseen or "unseen" not in name}
    reached: dict[str, list[float]] = defaultdict(list)
    for folder in options.runs:
        for _, found in finalists(Run.open(folder), options.unseen):
            for name, worth in ways.items():
                reached[name].append(min(found, key=worth).test)
    print("\n| chosen by | test %, mean | pool by pool |\n|---|---|---|")
    for name, values in reached.items():
        print(f"| {name} | {fmean(values):.2f} | {' '.join(f'{value:.1f}' for value in values)} |")


if __name__ == "__main__":
    main()
