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
from results.pareto import Estimate, FrontPoint, ParetoFront
from search_spaces.metrics import Metric

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
    """A table: the float network, then for each budget what was found within it, and the widths below it."""
    name = front.metric.label
    told = [f"| within | net | bytes | val {name} | test {name} |", "|---|---|---|---|---|"]
    if front.reference is not None:
        measured = (Estimate(value) for value in (front.reference.val, front.reference.test) if value is not None)
        figures = " | ".join(figure_of(front.metric, each) for each in measured)
        told.append(f"| | float | {front.reference.size_bytes:,.0f} | {figures} |")
    limits = {point.budget: point.limits["size_bytes"] for point in front.points if point.kind == "search"}
    for budget, limit in sorted(limits.items(), key=lambda item: item[1]):
        rows = [point for point in front.points if point.kind in KINDS and fits(point, budget, limit)]
        told += [row_of(f"{limit:,.0f}", point) for point in sorted(rows, key=lambda point: KINDS.index(point.kind))]
    return told


def fits(point: FrontPoint, budget: str | None, limit: float) -> bool:
    return point.budget == budget or (point.kind == "uniform" and point.size_bytes <= limit)


def row_of(within: str, point: FrontPoint) -> str:
    measured = (figure_of(point.metric, figures) for figures in (point.val, point.test))
    return f"| {within} | {point.assignment} | {point.size_bytes:,.0f} | {' | '.join(measured)} |"


def figure_of(metric: Metric, measured: Estimate | None) -> str:
    """The mean, and the sample standard deviation over seeds where there are several."""
    if measured is None:
        return ""
    return metric.number(measured.mean) + (f" ± {metric.number(measured.std)}" if measured.n > 1 else "")


if __name__ == "__main__":
    main()
