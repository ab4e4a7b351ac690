"""How a whole job grows with the depth of the network: CPU seconds of each stage for 20 to 200 layers.

    python -m benchmarks.growth [--layers 20 50 100 200] [--set KEY=VALUE ...]

The networks are residual chains of the same small width on the same 200 digits, so that the arithmetic of a layer is
next to nothing: what is timed is what every layer costs in planning, steps, integer programs, trials, files.
"""

from __future__ import annotations

import argparse
import resource
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from torch import Tensor, nn

from dnas.config.file import dump_job, load_job
from dnas.jobs.run import run_job
from results.run.folder import Run

SETTINGS = (
    *("model.source=benchmarks.growth:Chain", "device=cpu", "threads=1", "data.train_limit=200", "data.test_limit=60"),
    *("data.batch_size=64", "pretrain.epochs=1", "search.warmup_epochs=1", "search.epochs=1", "finetune.epochs=1"),
    *("search.budgets=[{size_bytes='15%'},{size_bytes='20%'}]", "finetune.seeds=1", "controls.uniform=[4]"),
    *("choice.draws=1", "choice.programs=1", "choice.rounds=1", "search.compile=off"),
    *("prune.enabled=true", "prune.at_most=1", "prune.trials=4", "prune.finalists=1", "finalise.enabled=false"),
)
WIDTH = 8


class Block(nn.Module):
    """Two convolutions and a shortcut."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(WIDTH, WIDTH, 3, padding=1, bias=False), nn.BatchNorm2d(WIDTH)
        self.conv2, self.bn2 = nn.Conv2d(WIDTH, WIDTH, 3, padding=1, bias=False), nn.BatchNorm2d(WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return (x + self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))).relu()


class Chain(nn.Module):
    """A network of so many layers for images (N, 1, 8, 8): a stem, blocks of two convolutions, a head."""

    def __init__(self, layers: int = 20) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(1, WIDTH, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(WIDTH)
        self.blocks = nn.Sequential(*(Block() for _ in range((layers - 2) // 2)))
        self.head = nn.Linear(WIDTH, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.norm(self.stem(x)).relu()).mean((2, 3)))


def seconds_of(layers: int, settings: Sequence[str]) -> dict[str, float]:
    """CPU seconds by stage; ``before`` is what comes before the first of them, ``all`` their sum."""
    found: dict[str, float] = defaultdict(float)
    last, name = time.process_time(), "before"

    def note(event: Mapping[str, Any]) -> None:
        nonlocal last, name
        if event["event"] == "stage":
            now = time.process_time()
            found[name] += now - last
            last, name = now, event["stage"] if event.get("state", "start") == "start" else "between"

    config = load_job("digits", [*SETTINGS, f"model.arguments={{layers = {layers}}}", *settings])
    with TemporaryDirectory() as folder, Run.create(Path(folder) / "run", dump_job(config), {}) as run:
        run_job(config, run, note)
        size = sum(path.stat().st_size for path in run.folder.rglob("*") if path.is_file())
    found.pop("between", None)
    return {**found, "all": sum(found.values()), "MB of files": size / 1e6}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, nargs="*", default=[20, 50, 100, 200])
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    arguments = parser.parse_args()
    for number, layers in enumerate(arguments.layers):
        found = seconds_of(layers, arguments.set)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        if not number:
            print(f"| layers | {' | '.join(found)} | MB at most |\n{'|---' * (len(found) + 2)}|")
        print(f"| {layers} | {' | '.join(f'{value:.1f}' for value in found.values())} | {peak:.0f} |", flush=True)


if __name__ == "__main__":
    main()
