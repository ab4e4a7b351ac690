"""The command line: arguments in, one call to the module that does the work.

Those modules are imported by the commands themselves, so that ``dnas --help`` need not wait for torch.
"""

from __future__ import annotations

import importlib.metadata
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Literal

import typer

from dnas.commands.care import care
from dnas.commands.exits import INTERRUPTED, TRACEBACK_VARIABLE, WRONG_INPUT, told
from dnas.commands.options import (
    Engine,
    ExecutorOption,
    JsonOption,
    Kind,
    ProcessesOption,
    RunArgument,
    Split,
    TakeOverOption,
    TrustOption,
    WorkersOption,
    check_file,
    run_folder,
)
from dnas.commands.trust import trusting
from results.run.layout import RUNS
from search_spaces.errors import InputError

app = typer.Typer(
    name="dnas",
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


@app.command()
@told
def init(
    path: Annotated[Path, typer.Argument(metavar="JOB.toml", help="The file to write.")] = Path("job.toml"),
) -> None:
    """Write a commented job file that holds the default job."""
    from dnas.commands.terminal import show
    from dnas.config.file import commented_job
    from results.files import write_text

    if path.exists():
        raise InputError(f"{path} exists already; name another file, or remove it")
    check_file(path)
    write_text(path, commented_job())
    show(f"written: {path}; run it with: dnas search {path}")


@app.command()
@told
def presets(as_json: JsonOption = False) -> None:
    """List the jobs that are shipped."""
    from dnas.commands.terminal import show, show_json
    from dnas.config.file import preset_names

    names = preset_names()
    if as_json:
        show_json(names)
    else:
        width = max(map(len, names))
        show(*(f"{name:{width}}  {description}" for name, description in names.items()))


@app.command()
@told
def doctor(
    model: Annotated[
        str | None,
        typer.Argument(metavar="MODEL", help="zoo:, torchvision:, timm:NAME or module:callable."),
    ] = None,
    input_shape: Annotated[str | None, typer.Option(metavar="C,H,W", help="Shape of one input.")] = None,
    budget: Annotated[
        list[str] | None,
        typer.Option(metavar="COST=AMOUNT", help="Can it be met? Repeatable; commas join costs."),
    ] = None,
    job: Annotated[
        str | None, typer.Option(metavar="JOB", help="Take model, space, costs and budgets from a job.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Tell of every layer whether it will be searched, what it costs, and whether a budget can be met."""
    from dnas.commands.doctor_view import consult

    if not consult(model, input_shape, budget or [], job, as_json):
        raise typer.Exit(WRONG_INPUT)


@app.command()
@told
def sensitivity(
    subject: Annotated[
        str | None,
        typer.Argument(metavar="RUN|MODEL", help="A run; or a network for --job's data, the job's own without one."),
    ] = None,
    job: Annotated[
        str | None, typer.Option(metavar="JOB", help="Take model, data, space and quantizers from a job.")
    ] = None,
    measured: Annotated[
        bool, typer.Option("--measured", help="Measure the loss with one decision at a time at fewer bits.")
    ] = False,
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="Draw it: a .png, .svg or .pdf.")] = None,
    trust: TrustOption = False,
    as_json: JsonOption = False,
) -> None:
    """Show how much each width of each layer costs in loss, without training; kept in the run."""
    from dnas.commands import sensitivity_view

    if subject is None and job is None:
        raise InputError("name a RUN, or a job with --job")
    check_file(out)
    kind: Literal["hessian", "measured"] = "measured" if measured else "hessian"
    folder = run_folder(subject) if subject is not None and job is None else None
    with nullcontext() if folder is None else trusting(folder, trust):
        sensitivity_view.sensitivity(subject, folder, job, kind, out, as_json)


@app.command()
@told
def rank(
    run: RunArgument,
    budget: Annotated[
        str, typer.Option(metavar="N|COST=AMOUNT", help="The job's budget of this number, or one of its own.")
    ] = "1",
    assignments: Annotated[int, typer.Option(metavar="N", help="Assignments drawn within the budget.")] = 12,
    epochs: Annotated[
        int | None, typer.Option(metavar="N", help="Epochs of fine-tuning each; by default as the job says.")
    ] = None,
    trust: TrustOption = False,
    as_json: JsonOption = False,
) -> None:
    """Tell how well the supernet ranks: its loss beside what fine-tuning makes of assignments of equal cost."""
    from dnas.commands import rank_view

    folder = run_folder(run)
    with trusting(folder, trust):
        rank_view.rank(folder, budget, assignments, epochs, as_json)


@app.command()
@told
def search(
    job: Annotated[str | None, typer.Argument(metavar="JOB.toml|PRESET", help="Without one: digits.")] = None,
    setting: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Override a key, as in search.epochs=20; repeatable."),
    ] = None,
    run: Annotated[
        Path | None, typer.Option(metavar="DIR", help="The run folder to create; runs/NAME by default.")
    ] = None,
    device: Annotated[str | None, typer.Option(metavar="auto|cpu|cuda|cuda:1|mps", help="Where to compute.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Seed of everything random.")] = None,
    workers: WorkersOption = None,
    executor: ExecutorOption = None,
    nproc_per_node: ProcessesOption = None,
    serve: Annotated[
        bool, typer.Option("--serve", help="Show the run in a browser meanwhile, at an address that is told.")
    ] = False,
    detach: Annotated[
        bool, typer.Option("--detach", help="Go on without this terminal; look after it with dnas status, logs, stop.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Run a job and show the front it measured."""
    from dnas.commands import launching

    overrides = list(setting or [])
    overrides += [f"device={device}"] if device is not None else []
    overrides += [f"seed={seed}"] if seed is not None else []
    overrides += launching.Crew(workers, executor).overrides
    if detach:
        from dnas.commands.detaching import search_detached

        search_detached(job, overrides, run, as_json)
        return
    if launching.in_processes(nproc_per_node):
        return
    launching.search(job, overrides, run, as_json, serve)


@app.command()
@told
def resume(
    run: RunArgument,
    workers: WorkersOption = None,
    executor: ExecutorOption = None,
    nproc_per_node: ProcessesOption = None,
    take_over: TakeOverOption = False,
    trust: TrustOption = False,
    as_json: JsonOption = False,
) -> None:
    """Go on with an interrupted job, from its journal and checkpoints."""
    from dnas.commands import launching

    if launching.in_processes(nproc_per_node):
        return
    folder = run_folder(run)
    with trusting(folder, trust):
        launching.resume(folder, launching.Crew(workers, executor), as_json, take_over)


@app.command()
@told
def prune(
    run: RunArgument,
    assignment: Annotated[
        str | None, typer.Argument(metavar="ASSIGNMENT", help="An id, or the beginning of one; or give --bits.")
    ] = None,
    bits: Annotated[
        int | None, typer.Option(metavar="N", help="Prune the uniform assignment of N bits; 1 is the binarized net.")
    ] = None,
    budget: Annotated[
        list[str] | None,
        typer.Option(metavar="AMOUNT|COST=AMOUNT", help="As in 70% (of its own size) or bitops=50%; repeatable."),
    ] = None,
    trials: Annotated[int | None, typer.Option(metavar="N", help="Configurations tried for each budget.")] = None,
    setting: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="Override a key of [prune], as in criterion=taylor; repeatable."
        ),
    ] = None,
    workers: WorkersOption = None,
    executor: ExecutorOption = None,
    nproc_per_node: ProcessesOption = None,
    take_over: TakeOverOption = False,
    trust: TrustOption = False,
    as_json: JsonOption = False,
) -> None:
    """Find pruning ratios for an assignment of a run, remove the filters, measure, and show the new front."""
    from dnas.commands import launching

    if launching.in_processes(nproc_per_node):
        return
    if (assignment is None) == (bits is None):
        raise InputError("name either an assignment of the run or --bits, as in: dnas prune RUN --bits 1")
    crew, folder = launching.Crew(workers, executor), run_folder(run)
    with trusting(folder, trust, setting or []):
        launching.prune(folder, assignment, bits, budget or [], trials, setting or [], crew, as_json, take_over)


@app.command()
@told
def finalise(
    run: RunArgument,
    profiles: Annotated[
        str | None,
        typer.Option(
            metavar="NAME,...", help="front, assignments or patterns, widths such as w4a8; by default as the job says."
        ),
    ] = None,
    setting: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Override a key of [finalise], as in epochs=20; repeatable."),
    ] = None,
    workers: WorkersOption = None,
    executor: ExecutorOption = None,
    nproc_per_node: ProcessesOption = None,
    take_over: TakeOverOption = False,
    trust: TrustOption = False,
    as_json: JsonOption = False,
) -> None:
    """Make one switchable net of assignments of a run: one set of weights that runs at any of them."""
    from dnas.commands import launching

    if launching.in_processes(nproc_per_node):
        return
    crew, folder = launching.Crew(workers, executor), run_folder(run)
    with trusting(folder, trust, setting or []):
        launching.finalise(folder, profiles, setting or [], crew, as_json, take_over)


@app.command("train-switchable")
@told
def train_switchable(
    job: Annotated[str, typer.Argument(metavar="JOB.toml|PRESET", help="Its [finalise] says what to train.")],
    setting: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Override a key, as in finalise.epochs=20; repeatable."),
    ] = None,
    run: Annotated[
        Path | None, typer.Option(metavar="DIR", help="The run folder to create; runs/NAME by default.")
    ] = None,
    workers: WorkersOption = None,
    executor: ExecutorOption = None,
    nproc_per_node: ProcessesOption = None,
    as_json: JsonOption = False,
) -> None:
    """Train a switchable net without a search, as SP-Nets and Quantizable DNNs do."""
    from dnas.commands import launching

    if launching.in_processes(nproc_per_node):
        return
    overrides = ['compression="switchable"', *(setting or []), *launching.Crew(workers, executor).overrides]
    launching.search(job, overrides, run, as_json)


@app.command()
@told
def switch(run: RunArgument, as_json: JsonOption = False) -> None:
    """Show every profile of a run's switchable nets beside the same assignment trained alone."""
    from dnas.commands import switch_view

    switch_view.switch(run_folder(run), as_json)


@app.command()
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


@app.command()
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


@app.command()
@told
def plot(
    runs: Annotated[list[str], typer.Argument(metavar="RUN...", help="Run folders, or their names in runs/.")],
    x: Annotated[str, typer.Option(metavar="COST", help="The cost to draw: size_bytes, bitops, ...")] = "size_bytes",
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A .png, .svg or .pdf; into the run by default.")
    ] = None,
    kind: Annotated[Kind, typer.Option(help="What to draw.")] = Kind.all,
    as_json: JsonOption = False,
) -> None:
    """Draw the front against its controls, bits and pruning ratios along it, and the course of search and trials."""
    from dnas.commands import plotting

    check_file(out)
    kinds = [kind.value for kind in Kind if kind is not Kind.all] if kind is Kind.all else [kind.value]
    plotting.plot([run_folder(run) for run in runs], x, out, kinds, as_json)


@app.command()
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
    reporting.report([run_folder(run) for run in runs], out, as_json)


@app.command()
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


@app.command()
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
            metavar="json|csv|packed|onnx|qonnx|pt2e|torchao|aimet|package.module:name",
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
        typer.Option(help="onnx: 8: sums and outputs that nothing quantizes, in 8 bits.", show_default=False),
    ] = None,
    trust: TrustOption = False,
    as_json: JsonOption = False,
) -> None:
    """Write an assignment, its trained net, or a switchable net with all its profiles, for other tools."""
    from dnas.commands import exporting
    from dnas.export.formats import ExportOptions

    check_file(out)
    options = ExportOptions(normalise, target, residual_bits)
    folder = run_folder(run)
    with trusting(folder, trust, [format]):
        exporting.export(folder, assignment, format, out, as_json, seed, options)


@app.command()
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
    trust: TrustOption = False,
    as_json: JsonOption = False,
) -> None:
    """Measure an assignment of a run, or its float network, again."""
    from dnas.commands import launching

    folder = run_folder(run)
    with trusting(folder, trust):
        launching.evaluate(folder, assignment, split.value, as_json, runtime is Engine.packed)


app.add_typer(care)


def main() -> None:
    """Run the command line; the entry point of ``dnas``."""
    try:
        app()
    except KeyboardInterrupt:  # while a command was still being looked up
        sys.exit(INTERRUPTED)


if __name__ == "__main__":
    main()
