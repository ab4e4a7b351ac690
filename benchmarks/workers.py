"""What workers save, and what a task costs beside its own work: one job with 1, 2 and 4 of them, and on Ray nodes.

Every run's front and journal are held against those of the first: they must be equal.

    python -m benchmarks.workers [JOB] [--workers 1 2 4] [--nodes 1 3] [--set KEY=VALUE ...]
    python -m benchmarks.workers --overhead [--workers 2] [--nodes 1]

A node of Ray is a process here that offers one CPU. With --overhead tasks that do nothing are carried out.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from dnas.config.file import dump_job, load_job
from dnas.execution.executors import Bench, Send, Setting, make_executor
from dnas.execution.scheduler import Ahead
from dnas.execution.tasks import JobTask
from dnas.jobs.run import run_job
from results.files import write_bytes
from results.run.folder import Run

TASKS = 200


@contextmanager
def ray_nodes(count: int) -> Iterator[str]:
    """A cluster of so many nodes on this machine; its address."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    for _ in range(count - 1):
        cluster.add_node(num_cpus=1)
    try:
        yield cluster.address
    finally:
        cluster.shutdown()


def timed(source: str, settings: Sequence[str]) -> tuple[float, str]:
    """Seconds that a job takes, and what it left: its journal without times, and its front."""
    config = load_job(source, settings)
    with TemporaryDirectory() as folder, Run.create(Path(folder) / "run", dump_job(config), {}) as run:
        begin = time.perf_counter()
        front = run_job(config, run, lambda event: None)
        seconds = time.perf_counter() - begin
        records = [{k: v for k, v in r.items() if k not in ("time", "seconds")} for r in run.journal.records()]
    return seconds, json.dumps([records, front.to_json()], sort_keys=True)


def compare(source: str, settings: Sequence[str], workers: Sequence[int], nodes: Sequence[int]) -> None:
    """Print the wall time of every way to carry a job out beside the first one's."""
    ways: dict[str, list[str]] = {f"{n} worker{'s' if n > 1 else ''}": [f"workers={n}"] for n in workers}
    first: tuple[float, str] | None = None
    for name, own in ways.items():
        first = told(name, timed(source, [*settings, *own]), first)
    for count in nodes:
        with ray_nodes(count) as address:
            own = ["executor=ray", f"ray.address={address}"]
            first = told(f"{count} Ray node{'s' if count > 1 else ''}", timed(source, [*settings, *own]), first)


def told(name: str, found: tuple[float, str], first: tuple[float, str] | None) -> tuple[float, str]:
    """Print one way; returns the first one."""
    first = first or found
    equal = "equal" if found[1] == first[1] else "DIFFERENT"
    print(f"{name:12} {found[0]:8.1f} s  {first[0] / found[0]:5.2f} ×  {equal}", flush=True)
    return first


def prepared(send: Send) -> Bench:
    return lambda task: task.carry_out(None)


def nothing(bench: Any, seed: int) -> None:
    """A task without any work."""


def overhead(name: str, executor: str, count: int, **options: Any) -> None:
    """Print how long it takes to start, and what each of many tasks costs."""
    from benchmarks import workers as own  # by its name: a function of __main__ is of no other process

    setting = Setting(own.prepared, ())
    begin = time.perf_counter()
    made = make_executor(executor, [setting] * count, **options)
    scheduler = Ahead(made, lambda *told: None)
    scheduler.outcome(JobTask("first", own.nothing), lambda message: None)
    start = time.perf_counter() - begin
    tasks = [JobTask(str(n), own.nothing) for n in range(TASKS)]
    begin = time.perf_counter()
    scheduler.announce(tasks)
    for task in tasks:
        scheduler.outcome(task, lambda message: None)
    seconds = (time.perf_counter() - begin) / TASKS
    scheduler.close()
    print(f"{name:12} first task after {start:5.2f} s, then {1000 * seconds:6.2f} ms a task", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("job", nargs="?", default="digits")
    parser.add_argument("--workers", type=int, nargs="*", default=[1, 2, 4])
    parser.add_argument("--nodes", type=int, nargs="*", default=[])
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--overhead", action="store_true")
    arguments = parser.parse_args()
    if not arguments.overhead:
        compare(arguments.job, arguments.set, arguments.workers, arguments.nodes)
        return
    for count in arguments.workers:
        overhead(f"{count} worker{'s' if count > 1 else ''}", "local", count)
    for count in arguments.nodes:
        with ray_nodes(count) as address, TemporaryDirectory() as folder:
            options = {"address": address, "threads": 1, "num_gpus": 0.0, "most": None}
            options |= {"folder": Path(folder), "keep": write_bytes}
            overhead(f"{count} Ray node{'s' if count > 1 else ''}", "ray", 1, **options)


if __name__ == "__main__":
    main()
