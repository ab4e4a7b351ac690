"""Processes of this machine that carry tasks out; one that is killed costs the task it had, and is replaced."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from multiprocessing import Pipe
from multiprocessing.connection import wait

from dnas.execution.executors import Executor, Lost, Report, Setting, Told
from dnas.execution.tasks import JobTask
from search_spaces.errors import JobError

_PATIENCE_SECONDS = 0.5
"""Between two looks whether a process lives whose pipe another process of its own keeps open."""
_MOST_IDLE_DEATHS = 3
"""Between two tasks that are done."""


class _Worker:
    """One process and the task it has."""

    def __init__(self, setting: Setting) -> None:
        self.setting, self.task = setting, ""
        self.connection, theirs = Pipe()
        reading, self._lifeline = os.pipe()
        path = os.pathsep.join(entry for entry in sys.path if entry)
        # A new interpreter, no fork and no spawn of multiprocessing: threads hold locks, and scripts need no guard.
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "dnas.execution.worker", str(theirs.fileno()), str(reading)],
            pass_fds=(theirs.fileno(), reading),
            stdin=subprocess.DEVNULL,
            stdout=2,  # stdout is the command's own
            env={**os.environ, "PYTHONPATH": path},
            start_new_session=True,  # Ctrl-C is for the process that started it
        )
        theirs.close()
        os.close(reading)
        self._send(setting)

    def begin(self, task: JobTask) -> None:
        """Send it a task."""
        self.task = task.id
        self._send(task)

    def _send(self, what: object) -> None:
        try:
            self.connection.send(what)
        except (BrokenPipeError, ConnectionResetError):
            pass  # it has died, which the next look tells

    def end(self) -> None:
        """End it, at once."""
        self.process.kill()
        self.process.wait()
        self.connection.close()
        if self._lifeline >= 0:
            os.close(self._lifeline)
            self._lifeline = -1

    @property
    def last_words(self) -> str:
        """How it ended."""
        code = self.process.wait()
        return f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"


class LocalProcesses(Executor):
    """One worker process for each of the settings."""

    def __init__(self, settings: Sequence[Setting]) -> None:
        self._awake, self._alarm = Pipe(duplex=False)
        self._idle_deaths = 0
        self._workers = [_Worker(setting) for setting in settings]

    @property
    def free(self) -> int:
        """Workers without a task."""
        return sum(not worker.task for worker in self._workers)

    def start(self, task: JobTask) -> None:
        """Send the task to a worker that has none."""
        next(worker for worker in self._workers if not worker.task).begin(task)

    def reports(self) -> list[Report]:
        """What workers sent, and which of them have gone."""
        connections = [worker.connection for worker in self._workers]
        heard = wait([self._awake, *connections], _PATIENCE_SECONDS)
        if self._awake in heard:
            self._awake.recv()
        found: list[Report] = []
        for place, worker in enumerate(self._workers):
            ended = worker.process.poll() is not None  # asked first: what it sent before is there to be heard
            closed = (ended or worker.connection in heard) and self._hear(worker, found)
            if ended or closed:
                found += self._replace(place)
        return found

    def _hear(self, worker: _Worker, found: list[Report]) -> bool:
        """Add all that a worker has sent; whether it has gone."""
        try:
            while worker.connection.poll():
                found.append(worker.connection.recv())
                if not isinstance(found[-1], Told):
                    worker.task, self._idle_deaths = "", 0
        except (EOFError, OSError):  # at the end, or in the middle of a message
            return True
        return False

    def _replace(self, place: int) -> list[Report]:
        old = self._workers[place]
        lost = [Lost(old.task, f"its process {old.last_words}")] if old.task else []
        self._idle_deaths += not lost
        old.end()
        if self._idle_deaths > _MOST_IDLE_DEATHS:
            raise JobError(f"worker processes end before they have anything to do: the last one {old.last_words}")
        self._workers[place] = _Worker(old.setting)
        return list(lost)

    def wake(self) -> None:
        """Let :meth:`reports` return."""
        self._alarm.send(None)

    def close(self) -> None:
        """Kill every worker: what they write is written in one step."""
        for worker in self._workers:
            worker.end()
