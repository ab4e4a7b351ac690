"""How a command ends: one sentence on stderr and an exit code, never a traceback unless it is asked for."""

from __future__ import annotations

import functools
import os
import sys
import traceback
from collections.abc import Callable
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import ParamSpec

import typer

from dnas.commands.signals import Interrupted, terminable
from dnas.commands.starting import INTERRUPTED
from dnas.commands.terminal import one_document
from search_spaces.errors import (
    InputError,
    JobError,
    ToldElsewhere,
    first_sentence,
    one_line,
    out_of_memory,
    printable,
    shortened,
)

DONE, FAILURE, WRONG_INPUT = 0, 1, 2
TRACEBACK_VARIABLE = "DNAS_TRACEBACK"
LAUNCHER_VARIABLE = "DNAS_LAUNCHER"
"""A folder of our launcher of several processes: each leaves there what it says as it ends, and one of it is told."""

Arguments = ParamSpec("Arguments")


def told(command: Callable[Arguments, None]) -> Callable[Arguments, None]:
    """Make every error of a command end it with its sentence and code; SIGTERM as Ctrl-C."""

    @functools.wraps(command)
    def run(*args: Arguments.args, **kwargs: Arguments.kwargs) -> None:
        if _is_another():
            _be_silent()
        received: list[int] = []
        try:
            with terminable() as signals:
                received = signals.received
                with one_document() if kwargs.get("as_json") else nullcontext():
                    command(*args, **kwargs)
                sys.stdout.flush()
        except (typer.Exit, typer.Abort, typer.BadParameter):
            raise
        except BrokenPipeError:
            forget_stdout()
            raise typer.Exit(DONE) from None
        except Interrupted as error:
            raise typer.Exit(_tell(str(error), error.exit_code, prefix="")) from None
        except KeyboardInterrupt:
            raise typer.Exit(_tell("interrupted", INTERRUPTED, prefix="")) from None
        except ToldElsewhere:
            raise typer.Exit(DONE) from None
        except (InputError, JobError) as error:
            raise typer.Exit(_refused(error)) from None
        except (Exception, SystemExit) as error:  # the user's own code may leave, too
            if received:  # a library made an error of its own of it
                raise typer.Exit(_tell("interrupted", 128 + received[-1], prefix="")) from None
            raise typer.Exit(_failed(error)) from None

    return run


def tell_wrong_input(sentence: str) -> int:
    """Tell a mistake of the command line itself, by one of several processes, and return the exit code."""
    return WRONG_INPUT if _is_another() else _tell(sentence, WRONG_INPUT)


def _tell(sentence: str, code: int, prefix: str = "error: ") -> int:
    if os.environ.get(TRACEBACK_VARIABLE):
        traceback.print_exc()
    line, rank = printable(f"{prefix}{shortened(sentence)}"), os.environ.get("RANK")
    if rank is None or LAUNCHER_VARIABLE not in os.environ:
        print(line, file=sys.stderr)
    else:
        with suppress(OSError):  # the launcher has gone
            Path(os.environ[LAUNCHER_VARIABLE], rank).write_text(f"{code} {line}", encoding="utf-8")
    return code


def _refused(error: InputError | JobError) -> int:
    if isinstance(error, JobError):
        return _tell(f"{error}{_hint()}", FAILURE)
    return _failed(error) if out_of_memory(error) else _tell(str(error), WRONG_INPUT)


def _failed(error: BaseException) -> int:
    memory = out_of_memory(error)
    why = f" ({first_sentence(memory)})" if memory and str(memory) else ""
    sentence = f"too little memory{why}; free some, or take smaller inputs or batches" if memory else one_line(error)
    return _tell(f"{sentence}{_hint()}", FAILURE)


def _hint() -> str:
    return f" (run it again with {TRACEBACK_VARIABLE}=1 for the traceback)"


def _is_another() -> bool:
    """Whether this is one of several processes of which another speaks."""
    rank, size = os.environ.get("RANK", ""), os.environ.get("WORLD_SIZE", "")
    return rank.isdecimal() and size.isdecimal() and 0 < int(rank) < int(size)


def _be_silent() -> None:
    """Leave it to the first process of several to speak; tracebacks stay, where they are asked for."""
    nothing = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 1)
    if not os.environ.get(TRACEBACK_VARIABLE):
        os.dup2(nothing, 2)


def forget_stdout() -> None:
    """Point stdout at nothing, or Python would complain about the closed pipe once more while it exits."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
