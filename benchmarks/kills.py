"""Jobs that are killed at random moments, resumed until they are finished, and compared with one that never was.

    python -m benchmarks.kills [--kills 100] [--seed 0] [--workers 1] [JOB]

Every run is killed by SIGKILL after a random part of the time that the job takes, again and again, then left to
finish; so the moments are spread over all stages: search, fine-tunings, controls, trials, the switchable net, pictures.
By turns the job is killed with all its workers, or alone, which its workers must not outlive. Then an export is killed:
there is no file, or the whole one. Compared are the front, the assignments, the tensors of all nets, the journal
without its times and the exported file; the run that was never killed has one worker. Prints how many runs of how many
kills ended equal, and what differs where one did not.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dnas.commands import concluding, exporting, launching  # noqa: F401 - what the processes need
from dnas.commands.cli import app
from results.run.checkpoints import read_checkpoint

SMALL = (
    *("device=cpu", "threads=1", "model.arguments={width=4}", "data.train_limit=120", "data.test_limit=60"),
    *("data.batch_size=32", "space.weight_bits=[2,4,8]", "space.activation_bits=[2,4,8]", "pretrain.epochs=2"),
    *("search.warmup_epochs=1", "search.epochs=2", "search.budgets=[{size_bytes='20%'},{size_bytes='25%'}]"),
    *("choice.draws=1", "choice.programs=0", "choice.rounds=1", "finetune.epochs=1", "finetune.seeds=2"),
    *("controls.uniform=[2,4]", "controls.random=1", "prune.enabled=true", "prune.at_most=1", "prune.trials=3"),
    *("prune.finalists=1", "finalise.epochs=1"),
)
LATEST = 0.02, 0.3
"""Of the time of the whole job: when a process is killed."""
VARIES = ("time", "seconds", "version")
LASTING = ("epoch", "decoded", "searched", "pool", "judged", "measured", "tested", "trial", "finalist", "finished")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("job", nargs="?", default="digits")
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=1)
    given = parser.parse_args()
    settings = SMALL if given.job == "digits" else ()
    command = [given.job, *(word for setting in settings for word in ("--set", setting))]
    workers = ["--workers", str(given.workers)]
    draw = random.Random(given.seed)
    with tempfile.TemporaryDirectory() as parent:
        whole, start = Path(parent) / "whole", time.monotonic()
        carry_on(whole, [*command, "--workers", "1"])
        seconds = {"job": time.monotonic() - start}
        start = time.monotonic()
        expected = {**outcome(whole), "export": exported(whole)}
        seconds["export"] = time.monotonic() - start
        kills, equal, runs = 0, 0, 0
        places: Counter[str] = Counter()
        while kills < given.kills:
            folder = Path(parent) / f"run-{runs}"
            runs += 1
            most = min(draw.randint(8, 20), given.kills - kills)
            for place in killed_often(folder, [*command, *workers], draw, seconds, most):
                kills += 1
                places[place] += 1
            found = {**outcome(folder), "export": exported(folder)}
            differing = sorted(key for key in expected.keys() | found.keys() if expected.get(key) != found.get(key))
            equal += not differing
            print(f"run {runs}: {kills} kills so far, {'equal' if not differing else differing}", flush=True)
        print(f"{kills} kills, {equal} of {runs} runs equal; killed after: {dict(places.most_common())}")
    sys.exit(equal != runs)


def killed_often(
    folder: Path, command: list[str], draw: random.Random, seconds: dict[str, float], most: int
) -> Iterator[str]:
    """Kill the job up to ``most`` times, and an export once; yields what each kill came after. The run is finished."""
    for _ in range(most - 1):
        words = next_command(folder, command)
        if not killed(words, draw.uniform(*LATEST) * seconds["job"], alone=draw.random() < 0.5):
            break
        yield last_record(folder)
    carry_on(folder, command)
    if killed(export_command(folder), draw.uniform(0.3, 1.0) * seconds["export"], alone=True):
        yield "export" + (" (written)" if out_of(folder).exists() else "")


def next_command(folder: Path, command: list[str]) -> list[str]:
    begun = (folder / "journal.jsonl").exists()
    workers = command[command.index("--workers") :]
    return ["resume", str(folder), *workers] if begun else ["search", *command, "--run", str(folder)]


def export_command(folder: Path) -> list[str]:
    return ["export", str(folder), "--format", "packed", "--out", str(out_of(folder))]


def out_of(folder: Path) -> Path:
    return folder.with_suffix(".dnas")


def started(words: list[str]) -> int:
    """Begin a command in a process of its own, a fork of this one, which has imported what it needs; returns its id."""
    process = os.fork()
    if process:
        return process
    code = 1
    try:
        os.setsid()
        nothing = os.open(os.devnull, os.O_RDWR)
        for stream in range(3):
            os.dup2(nothing, stream)
        app(words)
    except SystemExit as end:
        code = int(end.code or 0)
    finally:
        os._exit(code)


def has_ended(process: int, within_seconds: float) -> bool:
    until = time.monotonic() + within_seconds
    while time.monotonic() < until:
        if os.waitpid(process, os.WNOHANG)[0]:
            return True
        time.sleep(0.01)
    return False


def killed(words: list[str], after_seconds: float, alone: bool) -> bool:
    """Begin a command and kill it, alone or with all that it started; whether it was still at work by then."""
    process = started(words)
    if has_ended(process, after_seconds):
        return False
    workers = [] if alone else children(process)
    for each in (process, *workers):
        with contextlib.suppress(ProcessLookupError):
            os.kill(each, signal.SIGKILL)
    os.waitpid(process, 0)
    return True


def children(process: int) -> list[int]:
    return [int(pid) for pid in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


def carry_out(words: list[str]) -> None:
    code = os.waitstatus_to_exitcode(os.waitpid(started(words), 0)[1])
    if code:
        raise SystemExit(f"dnas {' '.join(words)} ended with code {code}")


def carry_on(folder: Path, command: list[str]) -> None:
    carry_out(next_command(folder, command))


def exported(folder: Path) -> str:
    """The digest of a packed file that the run gives, over what a killed export may have left."""
    left = out_of(folder).read_bytes() if out_of(folder).exists() else None
    carry_out(export_command(folder))
    found = out_of(folder).read_bytes()
    return hashlib.sha256(found).hexdigest() if left in (None, found) else "torn"


def records(folder: Path) -> list[dict[str, Any]]:
    lines = (folder / "journal.jsonl").read_bytes().split(b"\n")[:-1] if (folder / "journal.jsonl").exists() else []
    return [json.loads(line) for line in lines]


def last_record(folder: Path) -> str:
    """What a killed run wrote last into its journal."""
    found = records(folder)
    last = found[-1] if found else {"event": "nothing yet"}
    return " ".join(dict.fromkeys((last["event"], last.get("stage", last["event"]))))


def outcome(folder: Path) -> dict[str, Any]:
    """What a run left, by name: digests of its files, the records of its journal."""
    found: dict[str, Any] = {}
    for path in (folder / "front.json", folder / "front.csv", *(folder / "assignments").glob("*.json")):
        found[path.name] = hashlib.sha256(path.read_bytes()).hexdigest()
    for path in (folder / "checkpoints").glob("*.safetensors"):
        digest = hashlib.sha256()
        for name, tensor in sorted(read_checkpoint(path)[0].items()):
            digest.update(name.encode() + tensor.contiguous().numpy().tobytes())
        found[path.name] = digest.hexdigest()
    told = [record for record in records(folder) if record["event"] in LASTING]
    plain = [{key: value for key, value in each.items() if key not in (*VARIES, "sha256")} for each in told]
    found["journal"] = [json.dumps(each, sort_keys=True) for each in plain]
    return found


if __name__ == "__main__":
    main()
