"""Functions that tasks of the tests are made of: plain, and of a module that any process can import."""

from __future__ import annotations

import os
import signal
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dnas.execution.executors import Bench, Folder, Send
from dnas.execution.tasks import JobTask
from search_spaces.errors import InputError


class Desk:
    """What a function is given: where it may say something, and the number of tasks that came before."""

    def __init__(self, send: Send, name: str) -> None:
        self.say, self.name, self.done = send, name, 0


def prepare(send: Send, name: str) -> Bench:
    desk = Desk(send, name)

    def bench(task: JobTask) -> Any:
        desk.done += 1
        return task.carry_out(desk)

    return bench


def refuse(send: Send, name: str) -> Bench:
    raise InputError(f"{name} has no device")


def die(send: Send, name: str) -> Bench:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


def doubled(desk: Desk, seed: int, number: int) -> int:
    """Twice a number; says it on the way."""
    desk.say({"number": number}, False)
    desk.say({"step": number}, True)
    desk.say({"twice": 2 * number}, False)
    return 2 * number


def raises(desk: Desk, seed: int, what: str) -> None:
    raise InputError(what)


class Odd(Exception):
    """Cannot be sent: it is made of something else than it tells."""

    def __init__(self, one: int, other: int) -> None:
        super().__init__(f"{one} and {other}")


def raises_oddly(desk: Desk, seed: int) -> None:
    raise Odd(1, 2)


def killed_so_often(desk: Desk, seed: int, file: str, times: int) -> str:
    """Kills its process the first so many times; counted in a file."""
    path = Path(file)
    tries = len(path.read_text()) if path.exists() else 0
    desk.say(f"try {tries}", False)
    if tries < times:
        path.write_text("x" * (tries + 1))
        os.kill(os.getpid(), signal.SIGKILL)
    return f"done after {tries}"


def cut_off(desk: Desk, seed: int, file: str) -> str:
    """Kills its process the first time, in the middle of a message."""
    if Path(file).exists():
        return "whole"
    Path(file).write_text("")
    os.write(int(sys.argv[1]), struct.pack("!i", 100) + b"half")
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


def prepare_in(send: Send, folder: Folder) -> Bench:
    return lambda task: task.function(Path(folder.path), task, **task.inputs)


def joined(folder: Path, task: JobTask, more: str) -> list[str]:
    """Appends all that it reads, and more, to the file that it writes; returns the files that it sees."""
    seen = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    read = "".join((folder / name).read_text() for name in task.reads if (folder / name).exists())
    with (folder / task.writes[0]).open("a") as file:
        file.write(read + more)
    return seen


def process(desk: Desk, seed: int) -> int:
    return os.getpid()


def waits(desk: Desk, seed: int, file: str) -> None:
    """Says which process it is in, and stays."""
    Path(file).write_text(str(os.getpid()))
    signal.pause()


Function = Callable[..., Any]


def task(
    id: str, function: Function, *, reads: tuple[str, ...] = (), writes: tuple[str, ...] = (), **inputs: Any
) -> JobTask:
    return JobTask(id, function, inputs, reads=reads, writes=writes)
