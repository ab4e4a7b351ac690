"""Which networks the search works on without an edit: a table over torchvision's classifiers and a list of timm's.

Run from the repository root::

    python -m benchmarks.coverage [--only PATTERN] [--processes N] [--out FILE.md]

Each network is checked in a process of its own with a limit on its memory, so that one that fails, or is killed for
memory, is a line of the table. Without ``--only`` the table is written to benchmarks/coverage.md.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import asdict
from fnmatch import fnmatch
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from filelock import FileLock

from benchmarks.model_check import (
    BATCH,
    BITS,
    MOST_BYTES,
    Coverage,
    all_sources,
    check_module,
    expected_bytes,
    input_side,
)
from search_spaces.models.load import load_model

MEMORY_BYTES = 16 * 2**30
LARGE_BYTES = 5e9
_ALONE = FileLock(Path(tempfile.gettempdir()) / "dnas-coverage.lock")
"""Held while a large network is checked, so that several processes fit in memory together."""
# One thread; and the allocator keeps large blocks, since new pages for each tensor cost more than the arithmetic where
# weights are large: on one virtual machine the two steps of AlexNet take 9 s instead of 30.
CHILD_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(MEMORY_BYTES),
    "MALLOC_TOP_PAD_": str(2**28),
}
RECORD = Path(__file__).with_suffix(".md")
ABOUT = f"""\
Each network is built untrained, read, priced at uniform bits, made a supernet (composite, W/A {BITS}), calibrated on
{BATCH} random images, trained for one step of the weights and one of θ, decoded under 15 % of its fp32 size (or the
least size that can be reached), converted to the fixed net, calibrated and run. Converted but not yet quantized it must
give the model's own logits, and the model itself must be unchanged afterwards.

A whole check takes about 36 bytes for each parameter and 56 more for each of the largest tensor: networks that come to
more than {MOST_BYTES / 1e9:.0f} GB so get `doctor` alone. MACs are those of one image of the stated side in pixels. The
first and the last layer are fixed at 8 bits and so are not searched. Step seconds are those of both steps together,
uncompiled.
"""
COLUMNS = (
    "model",
    "input",
    "layers found",
    "searched",
    "unsupported",
    "residual branches",
    "GMACs counted",
    "GMACs uncounted",
    "graph s",
    "step s",
    "status",
)


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table; 0 when every network passed."""
    options = _parser().parse_args(argv)
    if options.one:
        return _child(options.one)
    sources = [source for source in all_sources() if any(fnmatch(source, f"*{p}*") for p in options.only or [""])]
    if not sources:
        print(f"no network fits {' or '.join(options.only)}", file=sys.stderr)
        return 2
    outcomes = []
    print(_row(COLUMNS), flush=True)
    with ThreadPoolExecutor(options.processes) as pool:
        for outcome in pool.map(check_in_process, sources):
            outcomes.append(outcome)
            print(_row(cells(outcome)), flush=True)
    passed = sum(outcome.status.startswith("ok") for outcome in outcomes)
    print(f"{passed} of {len(outcomes)} passed")
    out = options.out or (None if options.only else RECORD)
    if out:
        out.write_text(markdown(outcomes, options.processes))
    return 0 if passed == len(outcomes) else 1


def check_in_process(source: str) -> Coverage:
    """Check one network in a fresh process; whatever ends that process is told in the status."""
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.coverage", "--one", source]
    environment = {**os.environ, **CHILD_ENVIRONMENT}
    root = Path(__file__).parents[1]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=root, check=False)
    try:
        return Coverage(**json.loads(done.stdout.splitlines()[-1]))
    except (IndexError, ValueError):
        last = (done.stderr.strip().splitlines() or [""])[-1]
        reason = f"killed by signal {-done.returncode}" if done.returncode < 0 else last
        return Coverage(source, input_side(source), status=f"FAILED: {reason}")


def _child(source: str) -> int:
    """Check one network here, and print what was found as JSON."""
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY_BYTES, MEMORY_BYTES))
    torch.manual_seed(0)
    model = load_model(source).module
    with _ALONE if expected_bytes(model) > LARGE_BYTES else nullcontext():
        print(json.dumps(asdict(check_module(model, input_side(source), source))))
    return 0


def cells(outcome: Coverage) -> list[str]:
    """One line of the table."""
    reasons = "; ".join(f"{count} × {reason}" for reason, count in outcome.unsupported.items())
    unsupported = f"{sum(outcome.unsupported.values())}: {reasons}" if reasons else "0"
    step = "" if outcome.step_seconds is None else f"{outcome.step_seconds:.1f}"
    return [
        outcome.source,
        f"{outcome.side}",
        f"{outcome.layers}",
        f"{outcome.searched}",
        unsupported,
        f"unknown: {outcome.couplings_unknown}" if outcome.couplings_unknown else f"{outcome.branches}",
        f"{outcome.macs / 1e9:.3f}",
        f"{outcome.uncounted_macs / 1e9:.3f}",
        f"{outcome.graph_seconds:.1f}",
        step,
        outcome.status,
    ]


def markdown(outcomes: Sequence[Coverage], processes: int) -> str:
    """The recorded page: how it was made, the totals, the table."""
    passed = [outcome for outcome in outcomes if outcome.status.startswith("ok")]
    alone = [outcome.source for outcome in passed if outcome.step_seconds is None]
    doctor_alone = f", {len(alone)} of them by `doctor` alone ({', '.join(alone)})" if alone else ""
    lines = [
        "# Coverage",
        "",
        f"{len(passed)} of {len(outcomes)} networks pass without an edit{doctor_alone}.",
        "",
        *ABOUT.splitlines(),
        "",
        f"Command: `python -m benchmarks.coverage --processes {processes}` on {_today()}, one thread each.",
        f"Versions: {_versions()}.",
        "",
        _row(COLUMNS),
        _row(["---"] * len(COLUMNS)),
        *(_row(cells(outcome)) for outcome in outcomes),
        "",
    ]
    return "\n".join(lines)


def _row(values: Iterable[str]) -> str:
    return f"| {' | '.join(value.replace('|', '/') for value in values)} |"


def _today() -> str:
    return datetime.datetime.now(datetime.UTC).date().isoformat()


def _versions() -> str:
    found = [f"Python {platform.python_version()}"]
    for name in ("torch", "torchvision", "timm"):
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            found.append(f"no {name}")
    return ", ".join(found)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.coverage", description="Which networks can be searched."
    )
    parser.add_argument("--only", action="append", metavar="PATTERN", help="only networks whose name fits; repeatable")
    parser.add_argument(
        "--processes", type=int, default=1, metavar="N", help="networks checked at once (large ones one by one)"
    )
    parser.add_argument("--out", type=Path, metavar="FILE.md", help="where to write the table")
    parser.add_argument("--one", metavar="SOURCE", help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    sys.exit(main())
