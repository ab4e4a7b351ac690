"""How many tasks of a job run at once, and what each has: a device and CPU threads; what to do where memory ends."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import joblib
import torch

from dnas.config.job import JobConfig
from dnas.jobs.job import Job
from dnas.training.memory import keep_freed_memory
from dnas.training.processes import Processes
from search_spaces.errors import InputError, JobError, out_of_memory

AUTO = "auto"


@dataclass(frozen=True)
class Resources:
    """One entry of ``devices`` for each task at once, none where the job's own process does all; ``threads`` of each.

    Results depend on ``threads``, where they are several, in the last digits; never on the number of tasks at once.
    """

    devices: tuple[str, ...] = ()
    threads: int = 1

    @property
    def in_process(self) -> bool:
        """Whether the job's own process carries the tasks out."""
        return not self.devices


def prepare_process(threads: int) -> None:
    """Let this process train with so many CPU threads (0: PyTorch's own number), and keep the memory that it frees."""
    if threads:
        torch.set_num_threads(threads)
    keep_freed_memory()


def resources_of(config: JobConfig, processes: Processes, at_least: int = 1) -> Resources:
    """What the job's ``executor``, ``workers`` and ``threads`` ask for; ``at_least`` so many workers where it is local.

    Raises :class:`InputError` where processes that train together should start workers of their own.
    """
    if processes.several:
        if config.executor != "local" or config.workers not in (None, 1, AUTO):
            raise InputError(
                f"{processes} train together here; leave out workers and executor, or start one process alone"
            )
        return Resources()
    if config.executor != "local":
        name, num_gpus = config.executor, getattr(config, config.executor).num_gpus
        if config.device.startswith("cuda") and not num_gpus:
            raise InputError(
                f"device = '{config.device}' with executor = '{name}' needs the GPUs of each task; set "
                f"{name}.num_gpus = 1"
            )
        device = ("cuda" if num_gpus else "cpu") if config.device == AUTO else config.device
        return Resources((device,), max(1, config.threads))
    devices = _devices(config)
    count = _local_workers(config, devices)
    count = max(count, at_least) if config.workers is None else count
    if count == 1:
        return Resources()
    threads = config.threads or max(1, torch.get_num_threads() // count)
    return Resources(tuple(devices[number % len(devices)] for number in range(count)), threads)


def _devices(config: JobConfig) -> list[str]:
    """The devices that workers share out among them."""
    if config.device in (AUTO, "cuda") and torch.cuda.is_available():
        return [f"cuda:{number}" for number in range(torch.cuda.device_count())]
    return [config.device]


def _local_workers(config: JobConfig, devices: list[str]) -> int:
    if config.workers is None:
        return 1
    if config.workers != AUTO:
        return int(config.workers)
    if devices[0].startswith("cuda"):
        return len(devices)
    return max(1, joblib.cpu_count() // max(1, config.threads))


@contextmanager
def memory_told(job: Job, what: str) -> Iterator[None]:
    """Say what to lower where a device's memory is too small for ``what`` is done inside, by a :class:`JobError`.

    Whatever was made of that error on the way is no fault of the user's network or data.
    """
    try:
        yield
    except JobError:
        raise
    except Exception as error:
        if not out_of_memory(error):
            raise
        size = job.config.data.batch_size
        raise JobError(
            f"{job.device.place} has too little memory for {what} at data.batch_size = {size}; free "
            f"some and go on with the run, or start a new one with --set data.batch_size={max(1, size // 2)}, and with "
            "accumulation = 2 in its training sections for updates of the same size"
        ) from error
