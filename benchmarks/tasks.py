"""Detection and segmentation of the generated shapes: what a search finds beside uniform widths and integer programs.

All at equal bytes, over seeds. ``python -m benchmarks.tasks segmentation-shapes --set finetune.seeds=3 --run FOLDER``
runs the preset, or goes on with the run in that folder, and prints, for each budget, the metric of the search and its
controls with their sizes.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from dnas import Run, dump_job, load_job, run_job
from results.pareto import FrontPoint, ParetoFront

KINDS = ("search", "ilp", "measured-ilp", "uniform")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("preset", choices=("detection-shapes", "segmentation-shapes"))
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--run", type=Path, help="the run folder, which a later call goes on with (a temporary one)")
    arguments = parser.parse_args()
    settings = ["controls.measured_ilp=true", "prune.enabled=false", "finalise.enabled=false", *arguments.set]
    with tempfile.TemporaryDirectory() as folder:
        with run_of(arguments.run or Path(folder) / "run", arguments.preset, settings) as run:
            front = run_job(load_job(run.job_file()), run, lambda event: None)
    for line in lines(front):
        print(line)


def run_of(folder: Path, preset: str, settings: list[str]) -> Run:
    """A run of the preset in a folder; the one that is there already, whatever the settings."""
    if folder.exists():
        return Run.open(folder, write=True)
    return Run.create(folder, dump_job(load_job(preset, settings)), {})


def lines(front: ParetoFront) -> list[str]:
    """What to print: the float network, then for each budget what was found within it, and the widths below it."""
    val = front.reference.val if front.reference else None
    told = [front.metric.label if val is None else f"{front.metric.label}; float: {front.metric.text(val)}"]
    for budget in sorted({point.budget for point in front.points if point.kind == "search" and point.budget}):
        limit = next(point.limits["size_bytes"] for point in front.points if point.budget == budget)
        rows = [point for point in front.points if point.kind in KINDS and fits(point, budget, limit)]
        told.append(f"budget {budget} ({limit:,.0f} B)")
        told += [row_of(point) for point in sorted(rows, key=lambda point: KINDS.index(point.kind))]
    return told


def fits(point: FrontPoint, budget: str, limit: float) -> bool:
    return point.budget == budget or (point.kind == "uniform" and point.size_bytes <= limit)


def row_of(point: FrontPoint) -> str:
    metric, val = point.metric, point.val
    spread = f" ± {metric.number(val.std)}" if val.n > 1 else ""
    test = "" if point.test is None else f", test {metric.number(point.test.mean)}"
    return (
        f"  {point.assignment:<16} {point.size_bytes:>9,.0f} B  val {metric.number(val.mean)}{spread}{test} "
        f"({val.n} seed{'s' if val.n > 1 else ''})"
    )


if __name__ == "__main__":
    main()
