"""The command line: its groups of commands in the order of its help, and how it begins and ends."""

from __future__ import annotations

import importlib.metadata
from typing import Annotated

import typer

from dnas.commands import care_commands, job_commands, plan_commands, run_commands
from dnas.commands.exits import TRACEBACK_VARIABLE
from dnas.commands.misread import Program
from dnas.commands.narrow_help import Command
from dnas.commands.starting import main as main  # where scripts of earlier installations look for it

app = typer.Typer(
    name="dnas",
    cls=Program,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",  # rich's own markup would take [prune] for a style and leave it out
)


def _tell_version(wanted: bool) -> None:
    if wanted:
        try:
            print(f"dnas {importlib.metadata.version('dnas')}")
        except importlib.metadata.PackageNotFoundError:
            print("dnas, run from its sources without being installed")
        raise typer.Exit


@app.callback(
    epilog="Exit codes: 0 done, 2 wrong input, 1 failure, 130 or 143 interrupted. "
    f"With {TRACEBACK_VARIABLE}=1 in the environment an error also shows its traceback."
)
def dnas(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", callback=_tell_version, is_eager=True)
    ] = False,
) -> None:
    """Mixed-precision search for PyTorch: from an unedited network to a measured front of size against accuracy."""


for group in (plan_commands, job_commands, run_commands, care_commands):
    for command in group.commands.registered_commands:
        command.cls = Command
    app.add_typer(group.commands)


if __name__ == "__main__":
    main()
