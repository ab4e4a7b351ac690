"""How the command line begins: Ctrl-C ends it with a word even while its modules are still being loaded."""

from __future__ import annotations

import sys

INTERRUPTED = 130


def main() -> None:
    """Run the command line; the entry point of ``dnas``."""
    try:
        from dnas.commands.cli import app

        app()
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(INTERRUPTED)
