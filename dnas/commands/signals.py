"""SIGINT and SIGTERM: a job finishes the step it is at and keeps what it has; a second signal ends it at once."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

_NUMBERS = (signal.SIGINT, signal.SIGTERM)
_WORDS = b"\nstopping after this step; once more to stop at once\n"

Handler = Callable[[int, FrameType | None], None]


class Interrupted(KeyboardInterrupt):
    """The user ended the command, by the signal of this ``number``; the message says how to go on."""

    def __init__(self, sentence: str = "interrupted", number: int = signal.SIGINT) -> None:
        super().__init__(sentence)
        self.number = number

    @property
    def exit_code(self) -> int:
        """As shells have it: 130 after Ctrl-C, 143 after SIGTERM."""
        return 128 + self.number


class Signals:
    """The signals that came so far. ``check`` raises :class:`Interrupted` once there was one."""

    def __init__(self) -> None:
        self.received: list[int] = []

    def at_once(self, number: int, frame: FrameType | None) -> None:
        """Handle a signal by raising :class:`Interrupted`, wherever the program is."""
        self.received.append(number)
        raise Interrupted(number=number)

    def at_next_check(self, number: int, frame: FrameType | None) -> None:
        """Handle the first signal by saying so, a second one at once."""
        if self.received:
            self.at_once(number, frame)
        self.received.append(number)
        os.write(2, _WORDS)  # print could be in the middle of a line of its own

    def check(self) -> None:
        """Raise where it is a good moment to end: what was done is saved."""
        if self.received:
            raise Interrupted(number=self.received[0])

    @property
    def number(self) -> int:
        """The last signal; SIGINT before there was one."""
        return self.received[-1] if self.received else signal.SIGINT


@contextmanager
def terminable() -> Iterator[Signals]:
    """Let SIGINT and SIGTERM raise :class:`Interrupted` while the block runs."""
    signals = Signals()
    with _handled(signals.at_once):
        yield signals


@contextmanager
def finishing() -> Iterator[Signals]:
    """Let the first signal wait for the next ``check`` while the block runs.

    One of several processes that train together is ended at once: the others would wait for it.
    """
    signals = Signals()
    with _handled(signals.at_once if "RANK" in os.environ else signals.at_next_check):
        yield signals


@contextmanager
def _handled(handler: Handler) -> Iterator[None]:
    """Handle both signals, but for one that whoever started the process wants to be ignored, as ``nohup`` does."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = [number for number in _NUMBERS if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, own in before.items():
            signal.signal(number, own)
