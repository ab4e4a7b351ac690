"""All that is to be seen on a GPU, by one command and within a quarter of an hour; results are text files in a folder.

    python benchmarks/gpu_session.py RESULTS --data DATA --wheels WHEELS

It needs this checkout, a Python with PyTorch and torchvision for the device, and no network. Packages that are missing
there come from WHEELS, a folder that ``benchmarks/gpu_wheels.py`` fills where there is a network.

DATA holds JPEG CIFAR-10 (folders ``train`` and ``test`` of classes, or zip files of them) and the checkpoint
``resnet20-12fca82f.th``; without it the jobs are left out. Every step has a time limit; one that fails or is stopped
leaves what it printed, and the next begins. ``--device cpu --tiny`` tries it all where there is no GPU.

``--only suite steps large --minutes 8`` and then ``--only job feed proof --minutes 5`` do it by two commands of less
than ten minutes each.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PARTS = ("suite", "steps", "large", "job", "feed", "proof")
CHECKPOINT = "resnet20-12fca82f.th"
SECONDS_TO_END = 20.0  # for what is stopped, to save what it has
LEAST_SECONDS = 5.0  # that a step is begun for


@dataclass(frozen=True)
class Step:
    """A command of this Python, what it is part of, and the seconds that it may take.

    ``brief`` ones show what was done before them, so that they run even where no time is left.
    """

    part: str
    seconds: float
    words: tuple[str, ...]
    brief: bool = False

    def __str__(self) -> str:
        return f"python {shlex.join(self.words)}"


def suite(tiny: bool) -> list[Step]:
    """The tests that need the device."""
    chosen = ["-k", "kernels_compute or in_memory"] if tiny else []
    words = "-m", "pytest", "-q", "-n", "0", "-m", "gpu", "-p", "no:cacheprovider", "--tb=short", "--durations=15"
    return [Step("suite", 240, (*words, *chosen, "tests/dnas/test_gpu.py"))]


def tables(device: str, tiny: bool) -> list[Step]:
    """What a step costs: ResNet-20 in fp32, then networks for 224 pixels in bf16, each compiled whole as well."""
    cost = "-m", "benchmarks.step_cost", "--device", device
    if tiny:
        small = *cost, "--batch", "4", "--rounds", "1"
        return [
            Step("steps", 600, (*small, "--candidates", "2", "7", "--profiles", "3")),
            Step("large", 900, (*small, "--precision", "bf16", "--candidates", "2", "--whole")),
        ]
    large = *cost, "--precision", "bf16", "--channels-last", "--candidates", "7", "--no-steps", "--rounds", "3"
    return [
        Step("steps", 120, (*cost, "--rounds", "3", "--profiles", "3", "16")),
        *(Step("large", 100, (*large, "--network", network)) for network in ("resnet50", "vit_s")),
        *(Step("large", 150, (*large, "--whole", "--network", network)) for network in ("resnet50", "vit_s")),
    ]


def feed(device: str, tiny: bool) -> list[Step]:
    """What the network is fed with."""
    seconds = ("--seconds", "0.3", "--workers", "0") if tiny else ("--seconds", "2", "--workers", "0", "8", "16")
    return [Step("feed", 600 if tiny else 90, ("-m", "benchmarks.feed", "--device", device, *seconds))]


def jobs(device: str, data: Path | None, folder: Path, tiny: bool) -> list[Step]:
    """A whole job, shown whether it finished or not."""
    if tiny:
        return _job(600, folder / "job", ("digits", "threads=1", *TINY, f"device={device}"))
    return _job(240, folder / "job", ("benchmarks/cifar10_gpu.toml", *_own(device, data))) if data else []


def proof(device: str, data: Path | None, folder: Path, tiny: bool) -> list[Step]:
    """As many seeds as there is time for of the job that shows what a search is worth; each is told as it ends."""
    settings = *_own(device, data), *PROOF
    words = "-m", "benchmarks.proof", "weights", str(folder / "proof"), "--seeds", "3", "--set", *settings
    return [Step("proof", 840, words)] if data and not tiny else []


def _own(device: str, data: Path | None) -> tuple[str, ...]:
    """The settings of a job that depend on where it is run."""
    root, checkpoint = (json.dumps(str(path)) for path in (data, (data or Path()) / CHECKPOINT))
    return f"device={device}", f"data.root={root}", f"model.checkpoint={checkpoint}"


TINY = (
    "model.arguments={width=4}", "data.train_limit=40", "data.test_limit=10", "data.batch_size=16", "pretrain.epochs=1",
    "search.warmup_epochs=1", "search.epochs=1", "finetune.epochs=1", "finetune.seeds=1", "finalise.enabled=false",
    "prune.enabled=false", "choice.enabled=false",
)  # fmt: skip
PROOF = (
    "threads=4", "data.train_limit=50000", "data.test_limit=10000", "data.batch_size=128", "data.workers=12",
    "pretrain.epochs=0",
)  # fmt: skip


def _job(seconds: float, run: Path, job: Sequence[str]) -> list[Step]:
    source, *settings = job
    sets = [word for setting in settings for word in ("--set", setting)]
    return [
        Step("job", seconds, ("-m", "dnas", "search", source, "--run", str(run), *sets)),
        Step("job", 60, ("-m", "dnas", "show", str(run)), brief=True),
    ]


def unpacked(data: Path, folder: Path) -> list[Step]:
    """Steps that bring the zip files of the data together in a folder, with the checkpoint."""
    there = [("-m", "zipfile", "-e", str(path), str(folder)) for path in sorted(data.glob("*.zip"))]
    copy = "import shutil, sys; shutil.copy(*sys.argv[1:])"
    return [Step("environment", 120, words) for words in (*there, ("-c", copy, str(data / CHECKPOINT), str(folder)))]


def carried_out(step: Step, seconds: float, file: Path, environment: dict[str, str]) -> str:
    """Run a step for at most so many seconds, with all it prints added to a file; returns how it ended."""
    started = time.monotonic()
    with file.open("a", encoding="utf-8") as out:
        print(f"$ {step}", file=out, flush=True)
        process = subprocess.Popen(
            [sys.executable, *step.words], stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT,
            env=environment, cwd=ROOT, start_new_session=True,
        )  # fmt: skip
        try:
            ended = f"ended with code {process.wait(seconds)}"
        except subprocess.TimeoutExpired:
            ended = "was stopped"
        finally:
            end(process)
        told = f"{ended} after {time.monotonic() - started:.0f} s"
        print(f"[{told}]\n", file=out)
    return told


def end(process: subprocess.Popen[bytes]) -> None:
    """Let a process end itself, then end by force what is left of it and of all that it started."""
    if process.poll() is None:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(SECONDS_TO_END)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def session(steps: Sequence[Step], results: Path, seconds: float, environment: dict[str, str]) -> list[str]:
    """Run all steps within so many seconds; returns a line for each, which the summary has as they end."""
    results.mkdir(parents=True, exist_ok=True)
    until, lines, summary = time.monotonic() + seconds, list[str](), results / "summary.txt"
    before = summary.read_text(encoding="utf-8") if summary.exists() else ""  # of the parts that another call took
    for step in steps:
        left = until - time.monotonic()
        allowed = step.seconds if step.brief else min(step.seconds, left)
        told = "left out, as no time is left"
        if allowed >= LEAST_SECONDS:
            told = carried_out(step, allowed, results / f"{step.part}.txt", environment)
        lines.append(f"{step.part}: {told}: {step}")
        print(lines[-1], flush=True)
        summary.write_text(before + "\n".join([*lines, ""]), encoding="utf-8")
    return lines


def installing(wheels: Path, site: Path) -> Step:
    """A step that installs every wheel of a folder beside this Python's own packages."""
    paths = [str(path) for path in sorted(wheels.glob("*.whl"))]
    words = "-m", "pip", "install", "-q", "--no-index", "--no-deps", "--no-compile", "--target", str(site)
    return Step("environment", 180, (*words, *paths))


def planned(options: argparse.Namespace, folder: Path) -> list[Step]:
    """The steps of a session, those that tell of most first."""
    device, tiny, data = options.device, options.tiny, options.data
    steps = [installing(options.wheels, folder / "site")] if options.wheels else []
    steps += [Step("environment", 60, ("-m", "torch.utils.collect_env"))]
    if data and not (data / "train").is_dir() and not tiny and {"job", "proof"} & set(options.only):
        steps += unpacked(data, folder / "data")
        data = folder / "data"
    parts = [
        *suite(tiny),
        *tables(device, tiny),
        *jobs(device, data, folder, tiny),
        *feed(device, tiny),
        *proof(device, data, folder, tiny),
    ]
    return [*steps, *(step for step in parts if step.part in options.only)]


def _path(text: str) -> Path:
    """A path that steps find, wherever they run."""
    return Path(text).resolve()


def main() -> None:
    """Run a session."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="for the results")
    parser.add_argument("--data", type=_path, help="JPEG CIFAR-10 and the checkpoint")
    parser.add_argument("--wheels", type=_path, help="packages that are missing here")
    parser.add_argument(
        "--minutes", type=float, default=13.0, help="for all of it; to end what runs then takes one more"
    )
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="as little of everything as can be")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, help="these parts alone")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        environment = {
            **os.environ,
            "DNAS_GPU": options.device,
            "PYTHONPATH": os.pathsep.join([str(Path(folder) / "site"), str(ROOT), os.environ.get("PYTHONPATH", "")]),
            "PYTHONUNBUFFERED": "1",
        }
        session(planned(options, Path(folder)), options.folder, 60 * options.minutes, environment)


if __name__ == "__main__":
    main()
