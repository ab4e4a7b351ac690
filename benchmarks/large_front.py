"""How long the commands that read a run take where its front has many points: CPU and wall seconds of each.

``python -m benchmarks.large_front`` makes a run folder of 2,000 assignments of ResNet-20's layers, without any
training, and runs ``dnas status``, ``show``, ``compare`` and every kind of ``plot`` on it; ``--points N`` and
``--share S`` (of the points that are on the front) make others, ``--keep DIR`` leaves the folder there.
"""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from dnas.config.file import dump_job, load_job
from results.events import Decoded, Epoch, Event, Finished, Measured, StageEvent, Started
from results.pareto import Estimate, FloatReference, FrontPoint, ParetoFront
from results.run.folder import Run
from search_spaces.assignments import BitAssignment, LayerBits, ModelReference

LAYERS = ("conv1", *(f"layer{s}.{b}.conv{c}" for s in (1, 2, 3) for b in (0, 1, 2) for c in (1, 2)), "linear")
WEIGHTS = (432, *[2304] * 6, 4608, *[9216] * 5, 18432, *[36864] * 5, 640)
WIDTHS = (2, 3, 4, 5, 6, 8)
KINDS = ("search", "ilp", "uniform", "pruned")
"""In turn: an assignment for each of as many budgets, its controls, and one pruned from it."""
EPOCHS = 5
COMMANDS = (
    ("status",),
    ("show",),
    ("compare",),
    *(("plot", "--kind", kind) for kind in ("front", "bits", "curves")),
)


def main() -> None:
    """Print a line for every command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--points", type=int, default=2000)
    parser.add_argument("--share", type=float, default=1.0)
    parser.add_argument("--keep", type=Path)
    options = parser.parse_args()
    with TemporaryDirectory() as home:
        folder = options.keep or Path(home) / "large"
        make_run(folder, options.points, options.share)
        print(f"{options.points} points, {len(Run.open(folder).load_front().front)} of them on the front")
        for name, *arguments in COMMANDS:
            wall, cpu, code = timed(
                [
                    name,
                    str(folder),
                    *arguments,
                    *(["--out", str(Path(home) / "a.png"), str(folder)] if name == "compare" else []),
                ]
            )
            print(f"{' '.join([name, *arguments]):20} {cpu:7.2f} s CPU {wall:7.2f} s wall  exit {code}", flush=True)


def make_run(folder: Path, count: int, share: float = 1.0, seed: int = 0) -> None:
    """Make a finished run of ``count`` measured assignments; about this ``share`` of them is on the front."""
    draw = random.Random(seed)
    config = load_job(None, ["model.source=zoo:resnet20", "finetune.seeds=1"])
    with Run.create(folder, dump_job(config), {"python": sys.version.split()[0]}) as run:
        points = []
        run.journal.append(Started(version=2).to_json())
        run.journal.append(StageEvent(stage="search").to_json())
        for number, found in enumerate(_assignments(count, draw)):
            size = found.cost["size_bytes"]
            top1 = 0.6 + 0.3 * number / count - (0.0 if draw.random() < share else 0.1 * draw.random())
            run.save_assignment(found)
            _journal(run, found, top1)
            origin = found.provenance
            facts: dict[str, Any] = {"budget": origin.budget, "limits": origin.limits, "parent": origin.parent}
            facts["kept_filters"] = 0.9 if origin.kind == "pruned" else None
            costs = (size, found.cost["bitops"], found.cost["macs"])
            points.append(FrontPoint(found.id, origin.kind, *costs, Estimate(top1, 0.002, 2), **facts))
        run.save_front(ParetoFront.from_points(points, reference=FloatReference(4.0 * sum(WEIGHTS), 0.92)))
        run.journal.append(Finished().to_json())


def _journal(run: Run, found: BitAssignment, top1: float) -> None:
    """What a job tells of an assignment."""
    name, kind = found.id, found.provenance.kind
    told: list[Event] = [Decoded(assignment=name, kind=kind, run=name, cost=found.cost)]
    for epoch in range(1, EPOCHS + 1):
        told.append(Epoch(stage="measure", run=name, epoch=epoch, epochs=EPOCHS, loss=1 / epoch, score=top1))
    for event in (*told, Measured(assignment=name, kind=kind, seed=0, val=top1)):
        run.journal.append(event.to_json())


def _assignments(count: int, draw: random.Random) -> Iterator[BitAssignment]:
    """Assignments by rising size, no two of the same."""
    model = ModelReference("zoo:resnet20", (3, 32, 32))
    drawn: dict[float, dict[str, LayerBits]] = {}
    while len(drawn) < count:
        least = draw.random()
        bits = [LayerBits(draw.choice(WIDTHS[round(least * 4) :]), draw.choice(WIDTHS)) for _ in LAYERS]
        size = sum(each.weight_bits * weights for each, weights in zip(bits, WEIGHTS, strict=True)) / 8
        drawn[size] = dict(zip(LAYERS, bits, strict=True))
    for number, (size, layers) in enumerate(sorted(drawn.items())):
        cost = {"size_bytes": size, "bitops": 3000.0 * size, "macs": 4e7}
        kind, first = KINDS[number % len(KINDS)], f"point-{number - number % len(KINDS):04d}"
        facts: dict[str, Any] = {"kind": kind, "run": first}
        facts |= {} if kind == "uniform" else {"budget": f"size_bytes {size:.0f}", "limits": {"size_bytes": size}}
        facts |= {"parent": first} if kind == "pruned" else {}
        yield BitAssignment(f"point-{number:04d}", model, layers, cost, {}, facts)  # type: ignore[arg-type]


def timed(words: Sequence[str]) -> tuple[float, float, int]:
    """Wall seconds, CPU seconds and the exit code of a command line of dnas in a process of its own."""
    before, start = os.times(), time.perf_counter()
    done = subprocess.run([sys.executable, "-m", "dnas", *words], stdout=subprocess.DEVNULL, check=False)
    after = os.times()
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    return time.perf_counter() - start, cpu, done.returncode


if __name__ == "__main__":
    main()
