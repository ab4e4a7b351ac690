"""How a command ends: one sentence on stderr and an exit code, never a traceback unless it is asked for."""

from __future__ import annotations

import functools
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from types import FrameType
from typing import ParamSpec

import typer

from dnas.commands.terminal import one_document
from search_spaces.errors import InputError, JobError, ToldElsewhere, one_line, printable, shortened

DONE, FAILURE, WRONG_INPUT, INTERRUPTED = 0, 1, 2, 130
TRACEBACK_VARIABLE = "DNAS_TRACEBACK"

Arguments = ParamSpec("Arguments")


class Interrupted(KeyboardInterrupt):
    """The user ended the command; the message says how to go on."""


def told(command: Callable[Arguments, None]) -> Callable[Arguments, None]:
    """Make every error of a command end it with its sentence and code; SIGTERM counts as Ctrl-C."""

    @functools.wraps(command)
    def run(*args: Arguments.args, **kwargs: Arguments.kwargs) -> None:
        if int(os.environ.get("RANK", "0")):
            _be_silent()
        try:
            with terminable():
                with one_document() if kwargs.get("as_json") else nullcontext():
                    command(*args, **kwargs)
                sys.stdout.flush()
        except (typer.Exit, typer.Abort, typer.BadParameter):
            raise
        except BrokenPipeError:
            _forget_stdout()
            raise typer.Exit(DONE) from None
        except KeyboardInterrupt as error:
            raise typer.Exit(_tell(str(error) or "interrupted", INTERRUPTED, prefix="")) from None
        except ToldElsewhere:
            raise typer.Exit(DONE) from None
        except InputError as error:
            raise typer.Exit(_tell(str(error), WRONG_INPUT)) from None
        except JobError as error:
            raise typer.Exit(_tell(f"{error}{_hint()}", FAILURE)) from None
        except (Exception, SystemExit) as error:  # the user's own code may leave, too
            raise typer.Exit(_tell(f"{one_line(error)}{_hint()}", FAILURE)) from None

    return run


@contextmanager
def terminable() -> Iterator[None]:
    """Let SIGTERM raise KeyboardInterrupt while the block runs."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, _interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _tell(sentence: str, code: int, prefix: str = "error: ") -> int:
    if os.environ.get(TRACEBACK_VARIABLE):
        traceback.print_exc()
    print(printable(f"{prefix}{shortened(sentence)}"), file=sys.stderr)
    return code


def _hint() -> str:
    return f" (run it again with {TRACEBACK_VARIABLE}=1 for the traceback)"


def _be_silent() -> None:
    """Leave it to the first process of several to speak; tracebacks stay, where they are asked for."""
    nothing = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 1)
    if not os.environ.get(TRACEBACK_VARIABLE):
        os.dup2(nothing, 2)


def _forget_stdout() -> None:
    """Point stdout at nothing, or Python would complain about the closed pipe once more while it exits."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
