"""What reads a run: tables, pictures, pages, files for other tools.

The modules that do the work are imported by the commands themselves, so that ``dnas --help`` need not wait for torch.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dnas.commands.exits import told
from dnas.commands.options import (
    FORMATS,
    DeviceOption,
    Engine,
    JsonOption,
    Kind,
    Look,
    RunArgument,
    Split,
    TrustOption,
    check_file,
    check_format_name,
    check_page,
    run_folder,
)
from dnas.commands.trust import trusting
from results.run.layout import RUNS
from search_spaces.errors import InputError

commands = typer.Typer()


@commands.command()
@told
def switch(run: RunArgument, as_json: JsonOption = False) -> None:
    """Show every profile of a run's switchable nets beside the same assignment trained alone."""
    from dnas.commands import switch_view

    switch_view.switch(run_folder(run), as_json)


@commands.command()
@told
def status(
    runs: Annotated[
        list[str] | None, typer.Argument(metavar="RUN...", help="Runs, folders of runs; runs/ by default.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Show where runs stand, how far they are, the best net so far, their age and their size."""
    from dnas.commands import status_view

    status_view.status([run_folder(run) for run in runs or []], RUNS, as_json)


@commands.command()
@told
def show(
    run: RunArgument,
    assignment: Annotated[
        str | None,
        typer.Argument(metavar="ASSIGNMENT|float", help="Show this one's layers, or the float network's row."),
    ] = None,
    pool: Annotated[
        bool, typer.Option("--pool", help="Show what each budget's assignment was chosen from, and how it was judged.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Show the front of a run, what it was chosen from, or the bits and costs of one assignment."""
    from dnas.commands import viewing

    if pool and assignment is not None:
        raise InputError(f"--pool shows those of all budgets; leave out '{assignment}', or --pool")
    if pool:
        viewing.show_pools(run_folder(run), as_json)
    elif assignment is None:
        viewing.show_run(run_folder(run), as_json)
    else:
        viewing.show_assignment(run_folder(run), assignment, as_json)


@commands.command()
@told
def plot(
    runs: Annotated[list[str], typer.Argument(metavar="RUN...", help="Run folders, or their names in runs/.")],
    x: Annotated[
        str | None, typer.Option(metavar="COST", help="The cost to draw; that of the runs' first budgets by default.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A .png, .svg or .pdf; into the run by default.")
    ] = None,
    kind: Annotated[Kind, typer.Option(help="What to draw.")] = Kind.all,
    style: Annotated[
        Look, typer.Option(help="paper: a .pdf (or .svg) as wide as a column, its letters in the file.")
    ] = Look.screen,
    data: Annotated[
        bool, typer.Option("--data", help="Also write every drawn number, as .data.csv beside it.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Draw the front against its controls, bits and pruning ratios along it, and the course of search and trials."""
    from dnas.commands import plotting
    from results.pictures.figures import STYLES, picture_format

    check_file(out)
    if out is not None:
        picture_format(out)
    kinds = [kind.value for kind in Kind if kind is not Kind.all] if kind is Kind.all else [kind.value]
    plotting.plot([run_folder(run) for run in runs], x, out, kinds, as_json, STYLES[style.value], data)


@commands.command()
@told
def report(
    runs: Annotated[list[str], typer.Argument(metavar="RUN...", help="Run folders, or their names in runs/.")],
    out: Annotated[
        Path | None, typer.Option(metavar="FILE.html", help="The file to write; into the run by default.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Write runs as one HTML page: the front, bits, network, search, trials; what to take, and its files."""
    from dnas.commands import reporting

    check_file(out)
    check_page(out)
    reporting.report([run_folder(run) for run in runs], out, as_json)


@commands.command()
@told
def serve(
    runs: Annotated[list[str] | None, typer.Argument(metavar="RUN...", help="All in runs/ by default.")] = None,
    host: Annotated[
        str, typer.Option(help="The address to listen at; others than this one let others in.")
    ] = "127.0.0.1",
    port: Annotated[
        int | None,
        typer.Option(metavar="N", min=0, max=65535, help="8600, or a free one, by default; 0: a free one."),
    ] = None,
    allow_stop: Annotated[
        bool, typer.Option("--allow-stop", help="Let those stop a job who know the token that is printed.")
    ] = False,
) -> None:
    """Show runs in a browser, live while their jobs run; files are only read."""
    from dnas.commands import serving

    serving.serve([run_folder(run) for run in runs or []], host, port, allow_stop)


@commands.command()
@told
def export(
    run: RunArgument,
    assignment: Annotated[
        str | None,
        typer.Argument(
            metavar="ASSIGNMENT", help="An id, or the beginning of one; or a switchable net (the last one)."
        ),
    ] = None,
    *,
    out: Annotated[Path, typer.Option(metavar="FILE", help="The file to write.")],
    format: Annotated[
        str,
        typer.Option(
            metavar="|".join([*FORMATS, "package.module:name"]),
            help="The format; all but json and csv: the trained net.",
        ),
    ] = "json",
    seed: Annotated[
        int | None, typer.Option(help="The seed of the trained net; the first one's without.", show_default=False)
    ] = None,
    normalise: Annotated[
        bool, typer.Option("--normalise", help="onnx and qonnx: the file takes pixels in 0 to 1 and normalises them.")
    ] = False,
    target: Annotated[
        str | None,
        typer.Option(
            metavar="generic|compact|onnxruntime|openvino|tensorrt|FILE.toml",
            help="onnx: the runtime that the file is for.",
            show_default=False,
        ),
    ] = None,
    residual_bits: Annotated[
        int | None,
        typer.Option(help="onnx, pt2e: 8: sums and outputs that nothing quantizes, in 8 bits.", show_default=False),
    ] = None,
    trust: TrustOption = False,
    as_json: JsonOption = False,
) -> None:
    """Write an assignment, its trained net, or a switchable net with all its profiles, for other tools."""
    from results.tables.export import EXPORTERS

    check_file(out)
    check_format_name(format)
    folder = run_folder(run)
    netless = format in EXPORTERS and (seed, normalise, target, residual_bits) == (None, False, None, None)
    if assignment is not None and netless and out.suffix.lower() == f".{format}":
        from dnas.commands import exporting_bits

        exporting_bits.export(folder, assignment, format, out, as_json)
        return
    from dnas.commands.beforehand import check_net
    from dnas.commands.exporting_bits import NETLESS, check_format

    check_format(out, format)
    # A seed that no net has is not what is wrong where the format holds no net.
    check_net(folder, assignment, None if format in NETLESS else seed)
    if target is not None:
        from dnas.export.targets import find_target

        find_target(target)
    from dnas.commands import exporting
    from dnas.export.formats import ExportOptions

    options = ExportOptions(normalise, target, residual_bits)
    with trusting(folder, trust, [format]):
        exporting.export(folder, assignment, format, out, as_json, seed, options)


@commands.command()
@told
def evaluate(
    run: RunArgument,
    assignment: Annotated[
        str, typer.Argument(metavar="ASSIGNMENT|float", help="An id, or the beginning of one; or the float network.")
    ],
    split: Annotated[Split, typer.Option(help="What to measure on.")] = Split.val,
    runtime: Annotated[
        Engine, typer.Option(help="What runs the net: PyTorch, or its packed file in integer arithmetic.")
    ] = Engine.torch,
    device: DeviceOption = None,
    trust: TrustOption = False,
    as_json: JsonOption = False,
) -> None:
    """Measure an assignment of a run, or its float network, again."""
    from dnas.commands.beforehand import check_run
    from dnas.commands.written import Crew

    folder = run_folder(run)
    check_run(folder, Crew(device=device).overrides, assignment)
    from dnas.commands import launching

    with trusting(folder, trust):
        launching.evaluate(folder, assignment, split.value, device, as_json, runtime is Engine.packed)
