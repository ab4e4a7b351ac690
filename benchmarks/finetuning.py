"""What ways of fine-tuning are worth: one job over several job seeds, every arm at every budget, mean ± std.

Run from the repository root; finished runs are read, others are made or gone on with::

    OMP_NUM_THREADS=1 python -m benchmarks.finetuning digits runs/finetuning [--seeds 3] [--split test] \
        [--set KEY=VALUE ...] --way plain --way distilled finetune.distillation=0.5
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from dnas.config.file import dump_job, load_job
from dnas.jobs.run import run_job
from results.pareto import Estimate, FrontPoint, ParetoFront
from results.run.environment import environment
from results.run.folder import Run
from results.run.layout import is_run
from results.run.status import run_status

Row = tuple[str, str]
"""The arm, and the budget it is held to (of uniform widths the assignment itself)."""


def front_of(job: str, folder: Path, settings: Sequence[str]) -> ParetoFront:
    """The front of a run that is finished first, where it is not."""
    if is_run(folder) and run_status(Run.open(folder)).state == "finished":
        return Run.open(folder).load_front()
    config = load_job(job, settings)
    found = Run.open(folder, write=True) if is_run(folder) else Run.create(folder, dump_job(config), environment())
    with found as run:
        return run_job(config, run, lambda event: None)


def row_of(point: FrontPoint) -> Row:
    return point.kind, point.budget or point.assignment


def scores(fronts: Sequence[ParetoFront], split: str) -> dict[Row, Estimate]:
    """Row → percent over the job seeds; several points of one row, such as random draws, count as their mean."""
    found: dict[Row, list[float]] = defaultdict(list)
    for front in fronts:
        own: dict[Row, list[float]] = defaultdict(list)
        for point in front.points:
            estimate = point.test if split == "test" else point.val
            if estimate:
                own[row_of(point)].append(100 * estimate.mean)
        for row, values in own.items():
            found[row].append(sum(values) / len(values))
    return {row: Estimate.from_values(values) for row, values in found.items()}


def print_table(ways: Mapping[str, Mapping[Row, Estimate]]) -> None:
    rows = sorted(set().union(*ways.values()))
    print("| arm | budget |", " | ".join(ways), "|")
    print("|---|---|" + "---|" * len(ways))
    for row in rows:
        cells = [f"{e.mean:.2f} ± {e.std:.2f}" if (e := found.get(row)) else "" for found in ways.values()]
        print(f"| {row[0]} | {row[1]} |", " | ".join(cells), "|")
    for kind in dict.fromkeys(row[0] for row in rows):
        means = [[e.mean for row, e in found.items() if row[0] == kind] for found in ways.values()]
        cells = [f"{sum(values) / len(values):.2f}" if values else "" for values in means]
        print(f"| {kind} | mean |", " | ".join(cells), "|")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("job")
    parser.add_argument("runs", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--split", choices=("val", "test"), default="test")
    parser.add_argument("--set", nargs="*", default=[], help="settings of all ways")
    parser.add_argument("--way", nargs="+", action="append", default=[], help="a name, and its settings")
    options = parser.parse_args()
    found: dict[str, list[ParetoFront]] = defaultdict(list)
    for seed in range(options.seeds):
        for name, *settings in options.way:
            given = [*options.set, *settings, f"seed={seed}", f"name={name}-{seed}"]
            found[name].append(front_of(options.job, options.runs / f"{name}-{seed}", given))
    print_table({name: scores(fronts, options.split) for name, fronts in found.items()})


if __name__ == "__main__":
    main()
