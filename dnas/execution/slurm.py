"""Tasks as jobs of Slurm's queue, one each, handed in by submitit (github.com/facebookincubator/submitit).

For tasks of many minutes: each waits in the queue, starts PyTorch and reads the data anew. What a job gives comes back
as a file in a folder of its own, beside what tasks write, so every machine has to see that folder.
"""

from __future__ import annotations

import os
import pickle
import secrets
import shutil
import threading
import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import submitit
from submitit.core.utils import FailedJobError, UncompletedJobError

from dnas.execution.executors import Done, Executor, Lost, Refused, Report, Setting, Told, made, sendable
from dnas.execution.tasks import JobTask
from search_spaces.errors import InputError, first_sentence

MOST = 64
"""Jobs at once in the queue, where nobody says how many."""
_SECONDS_BETWEEN_LOOKS, _SECONDS_BETWEEN_BEATS, _SECONDS_WITHOUT_BEAT = 1.0, 30.0, 300.0
_Answer = tuple[list[Told], Done | Refused]


class SlurmJobs(Executor):
    """At most ``most`` jobs in the queue; each has CPUs and GPUs of its own, and submitit's further ``parameters``.

    ``folder`` is where tasks read and write; a temporary folder in it, whose name ends in ``suffix``, holds what is
    handed in and comes back. Raises :class:`InputError` where there is no Slurm, and for parameters it does not have.
    """

    def __init__(
        self,
        settings: Sequence[Setting],
        *,
        cluster: str,
        threads: int,
        num_gpus: int,
        most: int | None,
        parameters: Mapping[str, Any],
        folder: Path,
        suffix: str,
    ) -> None:
        (self._setting,) = settings
        self._most = most or MOST
        self._folder = folder / f".submitit-{secrets.token_hex(8)}{suffix}"
        self._running: list[tuple[JobTask, submitit.Job[_Answer]]] = []
        self._alarm, self._beaten = threading.Event(), -_SECONDS_BETWEEN_BEATS
        self._folder.mkdir(mode=0o700)
        try:
            self._queue = submitit.AutoExecutor(self._folder, cluster=cluster)
            self._queue.update_parameters(name="dnas", cpus_per_task=threads, gpus_per_node=num_gpus or None)
            with warnings.catch_warnings(action="ignore"):  # of names that submitit took once, and takes yet
                self._queue.update_parameters(**parameters)
        except (AssertionError, NameError, RuntimeError, TypeError, ValueError) as error:
            self.close()
            raise InputError(
                f"submitit.cluster = '{cluster}' takes no job: {first_sentence(error)}; start where srun and sbatch "
                "are, with submitit.parameters that submitit knows"
            ) from error
        self.told = (
            f"tasks go to the queue of {cluster}, at most {self._most} at once; all machines have to see {folder}",
        )

    @property
    def free(self) -> int:
        """How many more the queue may have."""
        return self._most - len(self._running)

    def start(self, task: JobTask) -> None:
        """Hand a task in."""
        self._beat()
        self._running.append((task, self._queue.submit(_carry_out, self._setting, task, self._folder / "beat")))

    def reports(self) -> list[Report]:
        """What has come back."""
        self._beat()
        done = [each for each in self._running if each[1].done()]
        self._running = [each for each in self._running if each not in done]
        if not done:
            self._alarm.wait(_SECONDS_BETWEEN_LOOKS)
            self._alarm.clear()
        return [report for task, job in done for report in _taken(task, job)]

    def wake(self) -> None:
        """Let :meth:`reports` return."""
        self._alarm.set()

    def close(self) -> None:
        """Take everything out of the queue, and end what runs."""
        for _, job in self._running:
            job.cancel(check=False)
        shutil.rmtree(self._folder, ignore_errors=True)

    def _beat(self) -> None:
        """Show the jobs that somebody waits for them."""
        if time.monotonic() - self._beaten >= _SECONDS_BETWEEN_BEATS:
            self._beaten = time.monotonic()
            (self._folder / "beat").write_text(str(self._beaten))


def _taken(task: JobTask, job: submitit.Job[_Answer]) -> list[Report]:
    try:
        told, ended = job.result()
    except (UncompletedJobError, FailedJobError, OSError) as error:
        lines = [line.strip() for line in (job.stderr() or str(error)).splitlines() if line.strip()]
        return [Lost(task.id, f"its job {job.job_id} of the queue ended with: {lines[-1][:300]}")]
    return [*told, ended]


def _carry_out(setting: Setting, task: JobTask, beat: Path) -> _Answer:
    """Carry a task out, in a process of its own."""
    threading.Thread(target=_end_without_beat, args=(beat,), daemon=True).start()
    told: list[Told] = []
    try:
        bench = made(setting, lambda message, live: told.append(Told(task.id, message, live)))
        return told, Done(task.id, bench(task))
    except Exception as error:
        return told, Refused(task.id, sendable(error, lambda error: pickle.loads(pickle.dumps(error))))


def _end_without_beat(beat: Path) -> None:
    """End this process when whoever handed its task in has gone, by this machine's own clock."""
    seen, since = "", time.monotonic()
    while time.monotonic() - since < _SECONDS_WITHOUT_BEAT and beat.parent.is_dir():
        if beat.exists() and (now := beat.read_text()) != seen:
            seen, since = now, time.monotonic()
        time.sleep(_SECONDS_BETWEEN_LOOKS)
    os._exit(1)
