"""Jobs that are killed at random moments, resumed until they are finished, and compared with one that never was.

    python -m benchmarks.kills [--kills 100] [--seed 0] [--workers 1] [JOB]

Every run is killed by SIGKILL (with its workers) after a random part of the time that the job takes, again and again,
then left to finish; so the moments are spread over all stages: search, fine-tunings, controls, trials, the switchable
net, pictures. Compared are the front, the assignments, the tensors of all nets, and the journal without its times.
Prints how many runs of how many kills ended equal, and what differs where one did not.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from results.run.checkpoints import read_checkpoint

SMALL = (
    *("device=cpu", "threads=1", "model.arguments={width=4}", "data.train_limit=200", "data.test_limit=60"),
    *("data.batch_size=32", "pretrain.epochs=2", "search.warmup_epochs=1", "search.epochs=2", "finetune.epochs=2"),
    *("search.budgets=[{size_bytes='20%'},{size_bytes='30%'}]", "finetune.seeds=2", "controls.uniform=[4]"),
    *("prune.enabled=true", "prune.at_most=1", "prune.trials=4", "prune.finalists=1", "finalise.epochs=2"),
)
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
    command += ["--workers", str(given.workers)]
    draw = random.Random(given.seed)
    with tempfile.TemporaryDirectory() as parent:
        start = time.monotonic()
        whole = Path(parent) / "whole"
        subprocess.run(dnas("search", *command, "--run", str(whole)), check=True, stdout=subprocess.DEVNULL)
        seconds = time.monotonic() - start
        expected, kills, equal, runs = outcome(whole), 0, 0, 0
        places: Counter[str] = Counter()
        while kills < given.kills:
            folder = Path(parent) / f"run-{runs}"
            runs += 1
            for _ in range(min(draw.randint(1, 8), given.kills - kills)):
                if not killed(folder, command, draw.uniform(0.02, 0.7) * seconds):
                    break
                kills += 1
                places[last_record(folder)] += 1
            carry_on(folder, command)
            found = outcome(folder)
            differing = sorted(key for key in expected.keys() | found.keys() if expected.get(key) != found.get(key))
            equal += not differing
            print(f"run {runs}: {kills} kills so far, {'equal' if not differing else differing}", flush=True)
        print(f"{kills} kills, {equal} of {runs} runs equal; killed after: {dict(places.most_common())}")
    sys.exit(equal != runs)


def dnas(*words: str) -> list[str]:
    return [sys.executable, "-m", "dnas", *words]


def next_command(folder: Path, command: list[str]) -> list[str]:
    begun = (folder / "journal.jsonl").exists()
    return dnas("resume", str(folder)) if begun else dnas("search", *command, "--run", str(folder))


def killed(folder: Path, command: list[str], after_seconds: float) -> bool:
    """Start or resume the job and kill it with all that it started; whether it was still at work by then."""
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(next_command(folder, command), start_new_session=True, **quiet)
    try:
        process.wait(after_seconds)
        return False
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return True


def carry_on(folder: Path, command: list[str]) -> None:
    subprocess.run(next_command(folder, command), check=True, stdout=subprocess.DEVNULL)


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
