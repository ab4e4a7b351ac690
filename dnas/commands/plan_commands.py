"""What can be asked before a search or about one: jobs, networks, what widths cost.

The modules that do the work are imported by the commands themselves, so that ``dnas --help`` need not wait for torch,
nor whoever mistyped a job or a run: what can be told without it is checked before.
"""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Literal

import typer

from dnas.commands.exits import WRONG_INPUT, told
from dnas.commands.options import (
    DeviceOption,
    ExecutorOption,
    JsonOption,
    RunArgument,
    TrustOption,
    WorkersOption,
    check_file,
    check_table,
    run_folder,
)
from dnas.commands.trust import trusting
from search_spaces.errors import InputError, quoted

commands = typer.Typer()


@commands.command()
@told
def init(
    path: Annotated[Path, typer.Argument(metavar="JOB.toml", help="The file to write.")] = Path("job.toml"),
) -> None:
    """Write a commented job file that holds the default job."""
    from dnas.commands.terminal import show
    from dnas.config.file import commented_job, preset_names
    from results.files import write_text

    if str(path) in preset_names():  # a job of that name is never read from a file
        raise InputError(f"'{path}' is the name of a preset, and dnas search takes that; name the file {path}.toml")
    check_file(path)
    if path.exists():
        raise InputError(f"{path} exists already; name another file, or remove it")
    write_text(path, commented_job())
    show(f"written: {path}; run it with: dnas search {quoted(path)}")


@commands.command()
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


@commands.command()
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
    from dnas.commands.beforehand import check_network
    from dnas.commands.written import budget_of, input_shape_of

    if model is None and job is None:
        raise InputError("name a MODEL such as torchvision:resnet18, or a job with --job")
    shape, budgets = input_shape_of(input_shape), [budget_of(text) for text in budget or []]
    check_network(model, job, budgets)
    from dnas.commands.doctor_view import consult

    if not consult(model, shape, budgets, job, as_json):
        raise typer.Exit(WRONG_INPUT)


@commands.command()
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
    device: DeviceOption = None,
    trust: TrustOption = False,
    as_json: JsonOption = False,
) -> None:
    """Show how much each width of each layer costs in loss, without training; kept in the run."""
    from dnas.commands.beforehand import check_job, check_run, has_run
    from dnas.commands.written import Crew
    from dnas.config.file import names_a_job

    if subject is None and job is None:
        raise InputError("name a RUN, or a job with --job")
    check_file(out)
    if out is not None:
        from results.pictures.figures import picture_format

        picture_format(out)
    overrides = Crew(device=device).overrides
    folder = run_folder(subject) if subject is not None and job is None else None
    if folder is None:
        check_job(job or "", overrides, subject)
    elif has_run(folder):
        check_run(folder, overrides)
    elif names_a_job(str(subject)):
        raise InputError(f"'{subject}' is a job, not a run; name it so: dnas sensitivity --job {quoted(subject)}")
    else:
        raise InputError(
            f"'{subject}' is no run, and a network alone has no images to be judged on; name a job whose data it "
            "takes, as in: dnas sensitivity MODEL --job digits"
        )
    from dnas.commands import sensitivity_view

    kind: Literal["hessian", "measured"] = "measured" if measured else "hessian"
    with nullcontext() if folder is None else trusting(folder, trust):
        sensitivity_view.sensitivity(subject, folder, job, kind, out, device, as_json)


@commands.command()
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
    device: DeviceOption = None,
    workers: WorkersOption = None,
    executor: ExecutorOption = None,
    trust: TrustOption = False,
    as_json: JsonOption = False,
) -> None:
    """Tell how well the supernet ranks: its loss beside what fine-tuning makes of assignments of equal cost."""
    from dnas.commands.beforehand import check_ranked
    from dnas.commands.written import Crew, budget_of
    from dnas.jobs.rank_requests import RankRequest

    crew, folder = Crew(workers, executor, device), run_folder(run)
    request = RankRequest(assignments, int(budget) if budget.isdecimal() else budget_of(budget), epochs)
    check_ranked(folder, request, crew.overrides)
    from dnas.commands import rank_view

    with trusting(folder, trust):
        rank_view.rank(folder, request, crew, as_json)


@commands.command("bench-latency")
@told
def bench_latency(
    subject: Annotated[
        str, typer.Argument(metavar="MODEL|RUN", help="A network such as torchvision:resnet18, or a run.")
    ],
    runtime: Annotated[str, typer.Option(metavar="onnxruntime|openvino|torch|packed", help="Where nets will run.")],
    device: Annotated[str, typer.Option(metavar="cpu|cuda", help="On what.")] = "cpu",
    threads: Annotated[int, typer.Option(metavar="N", help="With how many threads.")] = 1,
    input_shape: Annotated[str | None, typer.Option(metavar="C,H,W", help="Shape of one input.")] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE.json", help="The table to write; latency-RUNTIME.json by default.")
    ] = None,
    nets: Annotated[
        int, typer.Option(min=2, metavar="N", help="Whole nets that calibrate it; as many again show its error.")
    ] = 20,
    rounds: Annotated[int, typer.Option(min=3, metavar="N", help="How often each is timed.")] = 30,
    trust: TrustOption = False,
    as_json: JsonOption = False,
) -> None:
    """Time the layers of a network where it will run: a table for budgets in ms, and the widths that are worth it."""
    from dnas.commands.beforehand import check_network, check_run, has_run
    from dnas.commands.written import input_shape_of
    from dnas.latency.places import Place, check_place

    out = out or Path(f"latency-{runtime}.json")
    check_table(out)
    input_shape_of(input_shape)
    folder = run_folder(subject)
    place = Place(device, threads)
    check_place(runtime, place)
    if has_run(folder):
        check_run(folder)
    else:
        check_network(subject)
    from dnas.commands import latency_view
    from dnas.latency.measure import Effort

    with trusting(folder, trust):
        effort = Effort(rounds, nets, nets)
        latency_view.bench(subject, folder, runtime, place, input_shape, out, effort, as_json)
