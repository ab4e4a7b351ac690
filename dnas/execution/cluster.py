"""Tasks on a Ray cluster: Ray places them, and tries them again where a process or a machine dies (docs.ray.io).

Where every machine sees the folder of the tasks, they read and write there. Where one does not, a task is sent the
files that it reads, through Ray's object store, and those that it wrote come back with its result.
"""

from __future__ import annotations

import hashlib
import logging
import secrets
import socket
import tempfile
import threading
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from dnas.execution.executors import Bench, Done, Executor, Folder, Lost, Refused, Report, Setting, Told, made, sendable
from dnas.execution.tasks import JobTask
from dnas.execution.transfer import Files, laid_out, needed_files, read_files, written_files
from search_spaces.errors import InputError, JobError, first_sentence

RETRIES = 2
"""Of a task whose process or machine died."""
_SECONDS_TO_ANSWER, _SECONDS_TO_PROBE = 5.0, 120.0
_SECONDS_BETWEEN_LOOKS = 0.1

Keep = Callable[[Path, bytes], None]
"""Writes a file in one step."""
_Sent = dict[tuple[str, str], Any]
"""(name, digest) of a file → the object of Ray's that holds it."""

_Answer = tuple[list[Told], Done | Refused, Files]


class RayCluster(Executor):
    """As many tasks at once as the cluster has room for, but no more than ``most``; each has CPUs and GPUs of its own.

    ``folder`` is where tasks read and write; ``keep`` writes what comes back of those that do so elsewhere. Raises
    :class:`InputError` where nobody answers at the ``address``, and where no machine has what a task needs.
    """

    def __init__(
        self,
        settings: Sequence[Setting],
        *,
        address: str,
        threads: int,
        num_gpus: float,
        most: int | None,
        folder: Path,
        keep: Keep,
    ) -> None:
        (self._setting,) = settings
        self._folder, self._keep = folder, keep
        self._threads, self._num_gpus, self._most = threads, num_gpus, most
        self._connected = _connect(address)
        self._running: dict[Any, tuple[JobTask, _Sent]] = {}
        self._alarm = threading.Event()
        try:
            if not self._places:
                raise InputError(
                    f"no machine of the Ray cluster at {address} has {threads} CPUs and {num_gpus:g} GPUs for a task; "
                    "ask for fewer (threads, ray.num_gpus), or start workers that have them: ray start --num-gpus"
                )
            seen = _who_sees(folder)
        except BaseException:
            self.close()
            raise
        self._shared = all(sees for _, sees in seen)
        self.told = (
            f"tasks go to the Ray cluster at {address}: {len(seen)} machine{'s' if len(seen) > 1 else ''}, "
            f"{self._places} tasks at once; {_told_of_files(folder, seen)}",
        )
        options: dict[str, Any] = {"num_cpus": threads, "num_gpus": num_gpus, "max_retries": RETRIES}
        self._remote = ray.remote(**options)(_carry_out)

    @property
    def _places(self) -> int:
        """How many tasks the machines that are there have room for."""
        count = 0
        for node in _nodes():
            having = node["Resources"]
            count += min(
                int(having.get("CPU", 0.0) // self._threads),
                int(having.get("GPU", 0.0) // self._num_gpus) if self._num_gpus else 1 << 16,
            )
        return count if self._most is None else min(count, self._most)

    @property
    def free(self) -> int:
        """Places without a task."""
        return max(0, self._places - len(self._running))

    def start(self, task: JobTask) -> None:
        """Hand a task to Ray, with the files that it reads where it will not see them."""
        sent = {} if self._shared else self._sent(task)
        names = None if self._shared else tuple(name for name, _ in sent)
        self._running[self._remote.remote(self._setting, task, names, *sent.values())] = task, sent

    def _sent(self, task: JobTask) -> _Sent:
        """The files of a task as objects of Ray's; those that a running task has were sent already."""
        known = {key: found for _, sent in self._running.values() for key, found in sent.items()}
        found: _Sent = {}
        for name, content in read_files(self._folder, needed_files(task)).items():
            key = name, hashlib.sha256(content).hexdigest()
            found[key] = known.get(key) or ray.put(content)
        return found

    def reports(self) -> list[Report]:
        """What has come back."""
        if not self._running:
            self._alarm.wait(_SECONDS_BETWEEN_LOOKS)
            self._alarm.clear()
            return []
        ready, _ = ray.wait(list(self._running), timeout=_SECONDS_BETWEEN_LOOKS)
        return [report for reference in ready for report in self._taken(reference)]

    def _taken(self, reference: Any) -> list[Report]:
        task, _ = self._running.pop(reference)
        try:
            told, ended, files = ray.get(reference)
        except RayTaskError as error:
            return [Refused(task.id, JobError(f"{task.id}: {first_sentence(error.cause or error)}"))]
        except RayError as error:
            return [Lost(task.id, f"{type(error).__name__}: {first_sentence(error)}", final=True)]
        for name, content in written_files(task, files).items():
            path = self._folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            self._keep(path, content)
        return [*told, ended]

    def wake(self) -> None:
        """Let :meth:`reports` return."""
        self._alarm.set()

    def close(self) -> None:
        """Cancel what runs, and leave the cluster."""
        for reference in self._running:
            ray.cancel(reference, force=True)
        if self._connected:
            ray.shutdown()


def _connect(address: str) -> bool:
    """Join the cluster; whether this process was not in one already."""
    if ray.is_initialized():
        return False
    host, _, port = address.rpartition(":")
    if address not in ("auto", "local"):
        _check_answer(address, host, port)
    try:
        ray.init(address=address, configure_logging=False, logging_level=logging.ERROR, log_to_driver=False)
    except (ConnectionError, RuntimeError, ValueError, RayError) as error:
        raise InputError(
            f"ray.address = '{address}': no Ray cluster can be joined there ({first_sentence(error)}); start one "
            "with: ray start --head, or name the address of one"
        ) from error
    return True


def _check_answer(address: str, host: str, port: str) -> None:
    """Ask for a connection first: Ray itself goes on asking for minutes."""
    if not host or not port.isdecimal() or "/" in host:
        raise InputError(f"ray.address = '{address}' is neither auto, local nor HOST:PORT, such as 10.0.0.1:6379")
    try:
        socket.create_connection((host, int(port)), _SECONDS_TO_ANSWER).close()
    except (OSError, OverflowError) as error:
        raise InputError(
            f"ray.address = '{address}': nobody answers there ({error}); start a cluster on that machine with: "
            "ray start --head, or name the address of one"
        ) from error


def _nodes() -> list[dict[str, Any]]:
    return [node for node in ray.nodes() if node["Alive"]]


def _who_sees(folder: Path) -> list[tuple[str, bool]]:
    """Every machine of the cluster, and whether it sees a folder.

    Raises :class:`InputError` where one carries no task out.
    """
    token = secrets.token_hex(8)
    probe = folder / f".shared-{token}"
    probe.write_text(token)
    try:
        asked = {}
        for node in _nodes():
            where = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            reads = ray.remote(num_cpus=0, scheduling_strategy=where)(_reads)
            asked[node["NodeManagerHostname"], node["NodeID"]] = reads.remote(str(probe), token)
        found = []
        for (host, _), answer in asked.items():
            try:
                found.append((host, bool(ray.get(answer, timeout=_SECONDS_TO_PROBE))))
            except RayError as error:
                raise InputError(
                    f"{host}, a machine of the Ray cluster, carries no task out: {first_sentence(error)}; "
                    "it needs the same versions of Python, dnas and Ray"
                ) from error
    finally:
        probe.unlink()
    return found


def _told_of_files(folder: Path, seen: Sequence[tuple[str, bool]]) -> str:
    """How what tasks read and write gets where it is needed, for the user."""
    blind = [host for host, sees in seen if not sees]
    if not blind:
        return f"{folder} is on storage that all of them share"
    who = blind[0] if len(blind) == 1 else f"{blind[0]} and {len(blind) - 1} more"
    return (
        f"{who} {'does' if len(blind) == 1 else 'do'} not see {folder}: tasks are sent what they read, and what they "
        "write is returned through Ray"
    )


def _reads(path: str, token: str) -> bool:
    """Whether this machine finds the token in a file."""
    probe = Path(path)
    return probe.is_file() and probe.read_text() == token


_made: tuple[Setting, Bench] | None = None
_told: list[Told] = []
_current = ""


def _say(message: Any, live: bool) -> None:
    _told.append(Told(_current, message, live))


def _carry_out(setting: Setting, task: JobTask, names: Sequence[str] | None, *contents: bytes) -> _Answer:
    """Carry a task out in a process of the cluster, which keeps its bench for the next one.

    ``names`` are those of the files that were sent with it; None where the process sees the folder itself.
    """
    if names is None:
        return (*_ended(setting, task), {})
    folder = _own_folder()
    with laid_out(folder, dict(zip(names, contents, strict=True)), task):
        ended = _ended(setting.moved(Folder(str(folder))), task)
        return (*ended, read_files(folder, task.writes))


@cache
def _own_folder() -> Path:
    """What stands for the folder in this process, the same for all of its tasks; there while one is carried out."""
    return Path(tempfile.gettempdir()) / f"dnas-{secrets.token_hex(8)}"


def _ended(setting: Setting, task: JobTask) -> tuple[list[Told], Done | Refused]:
    """What a task said, and gave."""
    global _made, _current
    _current = task.id
    _told.clear()
    try:
        if _made is None or _made[0] != setting:
            _made = None
            _made = setting, made(setting, _say)
        ended: Done | Refused = Done(task.id, _made[1](task))
    except Exception as error:
        ended = Refused(task.id, sendable(error, lambda error: ray.cloudpickle.loads(ray.cloudpickle.dumps(error))))
    return list(_told), ended
