"""How the command line begins: with streams that can be written to, and Ctrl-C ends it with a word from the start."""

from __future__ import annotations

import atexit
import os
import signal
import sys
from io import TextIOWrapper

INTERRUPTED = 130
_STREAMS = ("stdin", "stdout", "stderr")


def main() -> None:
    """Run the command line; the entry point of ``dnas``."""
    try:
        prepare_streams()
        from dnas.commands.cli import app

        app()
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(INTERRUPTED)
    finally:
        atexit.register(end_at_once)  # registered last, it comes before what libraries do at the end


def end_at_once() -> None:
    """Let Ctrl-C end the process without a word: all is said, and what libraries tidy up would show a traceback."""
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.SIG_DFL)


def prepare_streams() -> None:
    """Let every sentence be printed: into nothing where a stream is closed, with ? for what an encoding lacks.

    A number of a closed stream would be that of the next file that is opened, such as a journal, which would get what
    libraries print.
    """
    while (number := os.open(os.devnull, os.O_RDWR)) < len(_STREAMS):
        os.set_inheritable(number, True)
    os.close(number)
    for number, name in enumerate(_STREAMS):
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, "w" if number else "r", encoding="utf-8", closefd=False))
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")
