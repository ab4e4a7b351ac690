"""What carries tasks out: in this process, in processes of this machine, on a Ray cluster, or as jobs of Slurm."""

from __future__ import annotations

import platform
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from dnas.execution.tasks import JobTask
from search_spaces.errors import InputError, one_line, out_of_memory
from search_spaces.registry import hidden_working_directory, loaded

Send = Callable[[Any, bool], None]
"""send(message, live): tells the scheduler of something; live: at once, not in the order of the tasks."""

Bench = Callable[[JobTask], Any]
"""Carries a task out and returns what it gives."""


@dataclass(frozen=True)
class Folder:
    """An argument of a setting: the folder in which tasks read and write, or what stands for it on another machine."""

    path: str


@dataclass(frozen=True)
class Setting:
    """What a process makes its bench from: ``prepare(send, *arguments)``, a function of a module and plain values."""

    prepare: Callable[..., Bench]
    arguments: tuple[Any, ...]

    def moved(self, folder: Folder) -> Setting:
        """The same with another folder in the place of its own."""
        return replace(self, arguments=tuple(folder if isinstance(each, Folder) else each for each in self.arguments))


@dataclass(frozen=True)
class Told:
    """A task said something while it was carried out."""

    task: str
    message: Any
    live: bool = False


@dataclass(frozen=True)
class Done:
    """A task is done, and gave this."""

    task: str
    value: Any


@dataclass(frozen=True)
class Refused:
    """A task raised an error; it would do so again."""

    task: str
    error: BaseException


@dataclass(frozen=True)
class Lost:
    """What carried a task out has gone, so that it may be tried again unless this is ``final``."""

    task: str
    why: str
    final: bool = False


Report = Told | Done | Refused | Lost


class Executor(ABC):
    """Carries out as many tasks at once as it has places for; used by one thread alone but for :meth:`wake`.

    ``told`` are sentences for the user.
    """

    told: tuple[str, ...] = ()

    @property
    @abstractmethod
    def free(self) -> int:
        """How many tasks can begin now."""

    @abstractmethod
    def start(self, task: JobTask) -> None:
        """Begin with a task."""

    @abstractmethod
    def reports(self) -> Sequence[Report]:
        """Wait until there is something to tell, or :meth:`wake` is called; returns all there is."""

    @abstractmethod
    def wake(self) -> None:
        """Let :meth:`reports` return."""

    @abstractmethod
    def close(self) -> None:
        """End everything, at once; nothing is left running."""


def make_executor(name: str, settings: Sequence[Setting], **options: Any) -> Executor:
    """The executor of that name; :class:`InputError` where its extra is missing."""
    with hidden_working_directory():
        make = loaded(_EXECUTORS[name], f"executor '{name}'")
    return make(settings, **options)


_EXECUTORS = {
    "local": "dnas.execution.local:LocalProcesses",
    "ray": "dnas.execution.cluster:RayCluster",
    "submitit": "dnas.execution.slurm:SlurmJobs",
}


def made(setting: Setting, send: Send) -> Bench:
    """A bench of this machine; an :class:`InputError` of the setting says on which it was."""
    try:
        return setting.prepare(send, *setting.arguments)
    except InputError as error:
        raise InputError(f"on {platform.node()}: {error}") from error


class RemoteError(Exception):
    """An error that cannot be sent itself, by its sentence."""


def sendable(error: BaseException, copied: Callable[[Any], Any]) -> BaseException:
    """The error if it can be sent, without the frames it holds; else one that has its sentence.

    Of too little memory that itself, whatever was made of it.
    """
    error = out_of_memory(error) or error
    error.__traceback__ = error.__cause__ = error.__context__ = None
    try:
        copied(error)
    except Exception:
        return RemoteError(one_line(error))
    return error
