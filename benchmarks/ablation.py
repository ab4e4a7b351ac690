"""What each ingredient of a search is worth: one job, in which every row changes one thing, over several job seeds.

Run from the repository root; it goes on where it was stopped, and with --read it tells of what is finished::

    OMP_NUM_THREADS=1 python -m benchmarks.ablation runs/ablation [--seeds 0 1 2] [--rows NAME ...] [--read] \
        [--job JOB] --set 'data.root="FOLDER with train/ and test/"' 'model.checkpoint="resnet20-12fca82f.th"'

A row goes on from a copy of the default job that was stopped before the first stage that the row's settings change:
whatever came before is the same for both, to the bit. So bits are compared from one supernet, and ways of fine-tuning
on the same bits. Rows that change the supernet are held against θ without a choice, which would hide it.
"""

from __future__ import annotations

import argparse
import math
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.finetuning import front_of
from benchmarks.proof import JOB
from dnas.config.file import dump_job, load_job
from dnas.jobs.run import run_job
from results.pareto import Estimate, ParetoFront
from results.run.environment import environment
from results.run.folder import Run
from results.run.layout import is_run
from results.run.status import run_status
from search_spaces.provenance import ILP, SEARCH

BASE = (
    "search.budgets=[{size_bytes='5.2%'}]",
    "choice.finalists=1",
    "choice.learned=0",
    "choice.programs=0",
    "controls.uniform=[]",
    "controls.random=0",
    "controls.measured_ilp=false",
)
"""The proof's job at one budget, with what is on by default."""
STAGES = ("search", "theta", "choice", "measure")
"""Where a job can be stopped: where a stage begins, or the warm-up has ended."""
DEFAULT, THETA = "default", "no choice"
ALONE = ("choice.enabled=false", "controls.ilp=false")


@dataclass(frozen=True)
class Row:
    """What a row changes: the first stage that its settings reach, and the row that it is held against."""

    stage: str
    settings: tuple[str, ...] = ()
    against: str = DEFAULT


ROWS = {
    DEFAULT: Row("measure"),
    THETA: Row("theta", ALONE),
    "soft mixtures": Row("search", (*ALONE, "search.sampling=gumbel", "search.temperature_start=5.0"), THETA),
    "sandwich": Row("search", (*ALONE, "search.warmup=sandwich"), THETA),
    "hinge": Row("theta", (*ALONE, "search.loss=hinge", "search.penalty=1.0"), THETA),
    "gentle pull": Row("theta", (*ALONE, "search.penalty=1.0"), THETA),
    "finalists": Row("choice", ("choice.finalists=3",)),
    "learned proposals": Row("choice", ("choice.learned=4",)),
    "no distillation": Row("measure", ("finetune.distillation=0.0",)),
    "damping": Row("measure", ("finetune.damping=0.01",)),
    "averaged weights": Row("measure", ("finetune.averaging=0.95",)),
    "from the supernet": Row("measure", ("finetune.start=supernet",)),
}


class Enough(BaseException):
    """Stops a job, as Ctrl-C does."""


@dataclass(frozen=True)
class Seed:
    """The default job with one seed, and the rows that go on from it."""

    number: int
    folder: Path
    job: str
    settings: tuple[str, ...]

    def front(self, name: str) -> ParetoFront:
        """The front of a row, which is carried out first, where it is not."""
        row, folder = ROWS[name], self.of(name)
        settings = [*self.settings, *row.settings, f"seed={self.number}", f"name={folder.name}"]
        if not is_run(folder):
            self._copied(self._before(row.stage), folder, settings)
        return front_of(self.job, folder, settings)

    def finished(self, name: str) -> bool:
        """Whether nothing is left to be done of a row."""
        return is_run(self.of(name)) and run_status(Run.open(self.of(name))).state == "finished"

    def of(self, name: str) -> Path:
        """The run of a row."""
        return self.folder / f"{name.replace(' ', '-')}-{self.number}"

    def _before(self, stage: str) -> Path:
        """The default job, stopped at one of the stages."""
        folder, place = self.of(f"before {stage}"), STAGES.index(stage)
        if folder.exists():
            return folder
        growing = folder.with_name(f"growing-{folder.name}")
        settings = [*self.settings, f"seed={self.number}"]
        if not is_run(growing):
            if place:
                self._copied(self._before(STAGES[place - 1]), growing, settings)
            else:
                Run.create(growing, dump_job(load_job(self.job, settings)), environment()).close()
        with Run.open(growing, write=True) as run:
            try:
                run_job(load_job(self.job, settings), run, lambda event: _stop_at(stage, event))
            except Enough:
                pass
            else:
                raise AssertionError(f"the job has no stage {stage}")
        return growing.rename(folder)

    def _copied(self, source: Path, folder: Path, settings: Sequence[str]) -> None:
        """A run that goes on from another's with settings of its own."""
        partial = folder.with_name(f"copy-of-{folder.name}")
        shutil.rmtree(partial, ignore_errors=True)
        shutil.copytree(source, partial)
        (partial / "job.toml").write_text(dump_job(load_job(self.job, settings)), encoding="utf-8")
        partial.rename(folder)


def _stop_at(stage: str, event: Mapping[str, Any]) -> None:
    begins = (event["event"], event.get("stage"), event.get("state")) == ("stage", stage, "start")
    warm = stage == "theta" and (event["event"], event.get("stage")) == ("epoch", "warmup")
    if begins or (warm and event["epoch"] == event["epochs"]):
        raise Enough


def table(found: Mapping[str, Mapping[int, ParetoFront]]) -> Iterator[str]:
    """A line a row: what the search reaches, and by how much each seed differs from the row it is held against."""
    yield "| row | against | seeds | validation % | test % | test, by seed | ILP, test, by seed |"
    yield "|---" * 7 + "|"
    for name, fronts in found.items():
        against = ROWS[name].against
        both = sorted(fronts.keys() & found.get(against, {}).keys())
        cells = [_text([_of(fronts[seed], split, SEARCH) for seed in sorted(fronts)]) for split in ("val", "test")]
        apart = [
            _apart([_of(fronts[seed], "test", arm) - _of(found[against][seed], "test", arm) for seed in both])
            for arm in (SEARCH, ILP)
        ]
        yield "| " + " | ".join([name, against, str(len(fronts)), *cells, *apart]) + " |"


def _of(front: ParetoFront, split: str, arm: str) -> float:
    """The percent of what is best on validation of one arm; NaN where there is nothing of it."""
    points = [point for point in front.points if point.kind == arm]
    best = max(points, key=lambda point: point.gain, default=None)
    estimate = getattr(best, split, None)
    return 100 * estimate.mean if estimate else math.nan


def _text(values: Sequence[float], sign: str = "") -> str:
    estimate = Estimate.from_values(list(values))
    return f"{estimate.mean:{sign}.2f} ± {estimate.std:.2f}"


def _apart(differences: Sequence[float]) -> str:
    if not any(differences) or any(map(math.isnan, differences)):  # the same nets, or none
        return ""
    return f"{_text(differences, '+')}: " + " ".join(f"{value:+.2f}" for value in differences)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path)
    parser.add_argument("--job", default=JOB)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS), metavar="NAME")
    parser.add_argument("--read", action="store_true", help="train nothing; tell of what is finished")
    parser.add_argument("--set", nargs="*", default=[], help="settings of all rows")
    options = parser.parse_args()
    seeds = [Seed(number, options.runs, options.job, (*BASE, *options.set)) for number in options.seeds]
    found: dict[str, dict[int, ParetoFront]] = {}
    for seed in seeds:
        for name in options.rows:
            if seed.finished(name) or not options.read:
                found.setdefault(name, {})[seed.number] = seed.front(name)
                print(*table(found), sep="\n", flush=True)


if __name__ == "__main__":
    main()
