"""The part of the command line that looks after runs: stop, logs, clean, compare."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dnas.commands.exits import told
from dnas.commands.options import JsonOption, RunArgument, check_file, run_folder
from search_spaces.errors import InputError

commands = typer.Typer()


@commands.command()
@told
def stop(
    run: RunArgument,
    wait: Annotated[
        float, typer.Option(min=0, metavar="SECONDS", help="How long to wait until it has finished its step.")
    ] = 60.0,
    as_json: JsonOption = False,
) -> None:
    """Ask the process that works on a run to finish its step, save and end; the run can be resumed."""
    from dnas.commands import care_view

    care_view.stop(run_folder(run), wait, as_json)


@commands.command()
@told
def logs(
    run: RunArgument,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with what comes, until the run ends.")] = False,
    lines: Annotated[int | None, typer.Option(min=1, metavar="N", help="The last N lines alone; all without.")] = None,
) -> None:
    """Show what a run did, a line an event of its journal, and what a detached process printed."""
    from dnas.commands import care_view

    care_view.logs(run_folder(run), follow, lines)


@commands.command()
@told
def clean(
    run: RunArgument,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only tell what would be removed.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Remove what no command needs any more of a run: what kills left, and checkpoints of work that is done."""
    from dnas.commands import care_view

    care_view.clean(run_folder(run), dry_run, as_json)


@commands.command()
@told
def compare(
    runs: Annotated[list[str], typer.Argument(metavar="RUN RUN...", help="Run folders, or their names in runs/.")],
    x: Annotated[
        str | None, typer.Option(metavar="COST", help="The cost; that of the runs' first budgets by default.")
    ] = None,
    reference: Annotated[
        str | None,
        typer.Option(metavar="COST,VALUE", help="Where areas are measured from; the worst measured without."),
    ] = None,
    out: Annotated[Path, typer.Option(metavar="FILE", help="The picture: a .png, .svg or .pdf.")] = Path(
        "comparison.png"
    ),
    as_json: JsonOption = False,
) -> None:
    """Show the settings in which runs differ, their fronts in one table and one picture, and their areas."""
    from dnas.commands import compare_view
    from results.pictures.figures import picture_format

    if len(runs) < 2:
        raise InputError(f"there is nothing to compare {runs[0]} with; name another run, or see it with: dnas show")
    check_file(out)
    picture_format(out)
    compare_view.compare([run_folder(run) for run in runs], x, reference, out, as_json)
