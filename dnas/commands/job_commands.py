"""What trains: a job, and what is made of its run.

The modules that do the work are imported by the commands themselves, so that ``dnas --help`` need not wait for torch,
nor whoever mistyped a job or a run: what can be told without it is checked before.
"""

from __future__ import annotations

from typing import Annotated

import typer

from dnas.commands.exits import told
from dnas.commands.options import (
    DetachOption,
    DeviceOption,
    ExecutorOption,
    JsonOption,
    NewRunOption,
    ProcessesOption,
    RunArgument,
    TakeOverOption,
    TrustOption,
    WorkersOption,
    new_folder,
    run_folder,
)
from dnas.commands.trust import trusting
from search_spaces.errors import InputError

commands = typer.Typer()


@commands.command()
@told
def search(
    job: Annotated[str | None, typer.Argument(metavar="JOB.toml|PRESET", help="Without one: digits.")] = None,
    setting: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Override a key, as in search.epochs=20; repeatable."),
    ] = None,
    run: NewRunOption = None,
    device: DeviceOption = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Seed of everything random.")] = None,
    workers: WorkersOption = None,
    executor: ExecutorOption = None,
    nproc_per_node: ProcessesOption = None,
    serve: Annotated[
        bool, typer.Option("--serve", help="Show the run in a browser meanwhile, at an address that is told.")
    ] = False,
    detach: DetachOption = False,
    as_json: JsonOption = False,
) -> None:
    """Run a job and show the front it measured."""
    from dnas.commands.beforehand import check_new
    from dnas.commands.serving import check_installed
    from dnas.commands.written import Crew

    overrides = list(setting or [])
    overrides += [f"seed={seed}"] if seed is not None else []
    overrides += Crew(workers, executor, device).overrides
    if serve:
        check_installed()
    folder = new_folder(run)
    check_new(job, overrides, folder)
    if detach:
        from dnas.commands.detaching import search_detached

        search_detached(job, overrides, folder, as_json)
        return
    from dnas.commands import launching

    if launching.in_processes(nproc_per_node):
        return
    launching.search(job, overrides, folder, as_json, serve)


@commands.command()
@told
def resume(
    run: RunArgument,
    device: DeviceOption = None,
    workers: WorkersOption = None,
    executor: ExecutorOption = None,
    nproc_per_node: ProcessesOption = None,
    detach: DetachOption = False,
    take_over: TakeOverOption = False,
    trust: TrustOption = False,
    as_json: JsonOption = False,
) -> None:
    """Go on with an interrupted job, from its journal and checkpoints."""
    from dnas.commands.beforehand import check_run
    from dnas.commands.written import Crew

    crew, folder = Crew(workers, executor, device), run_folder(run)
    check_run(folder, crew.overrides)
    if detach:
        from dnas.commands.detaching import resume_detached

        resume_detached(folder, as_json)
        return
    from dnas.commands import launching

    if launching.in_processes(nproc_per_node):
        return
    with trusting(folder, trust):
        launching.resume(folder, crew, as_json, take_over)


@commands.command()
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
    device: DeviceOption = None,
    workers: WorkersOption = None,
    executor: ExecutorOption = None,
    nproc_per_node: ProcessesOption = None,
    take_over: TakeOverOption = False,
    trust: TrustOption = False,
    as_json: JsonOption = False,
) -> None:
    """Find pruning ratios for an assignment of a run, remove the filters, measure, and show the new front."""
    from dnas.commands.beforehand import check_pruned
    from dnas.commands.written import Crew, prune_overrides

    if (assignment is None) == (bits is None):
        raise InputError("name either an assignment of the run or --bits, as in: dnas prune RUN --bits 1")
    crew, folder = Crew(workers, executor, device), run_folder(run)
    overrides = [*prune_overrides(budget or [], trials, setting or []), *crew.overrides]
    check_pruned(folder, overrides, assignment, bits)
    from dnas.commands import launching

    if launching.in_processes(nproc_per_node):
        return
    with trusting(folder, trust, setting or []):
        launching.prune(folder, assignment, bits, budget or [], trials, setting or [], crew, as_json, take_over)


@commands.command()
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
    device: DeviceOption = None,
    workers: WorkersOption = None,
    executor: ExecutorOption = None,
    nproc_per_node: ProcessesOption = None,
    take_over: TakeOverOption = False,
    trust: TrustOption = False,
    as_json: JsonOption = False,
) -> None:
    """Make one switchable net of assignments of a run: one set of weights that runs at any of them."""
    from dnas.commands.beforehand import check_finalised
    from dnas.commands.written import Crew, finalise_overrides

    crew, folder = Crew(workers, executor, device), run_folder(run)
    check_finalised(folder, [*finalise_overrides(profiles, setting or []), *crew.overrides])
    from dnas.commands import launching

    if launching.in_processes(nproc_per_node):
        return
    with trusting(folder, trust, setting or []):
        launching.finalise(folder, profiles, setting or [], crew, as_json, take_over)


@commands.command("train-switchable")
@told
def train_switchable(
    job: Annotated[str, typer.Argument(metavar="JOB.toml|PRESET", help="Its [finalise] says what to train.")],
    setting: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Override a key, as in finalise.epochs=20; repeatable."),
    ] = None,
    run: NewRunOption = None,
    device: DeviceOption = None,
    workers: WorkersOption = None,
    executor: ExecutorOption = None,
    nproc_per_node: ProcessesOption = None,
    as_json: JsonOption = False,
) -> None:
    """Train a switchable net without a search, as SP-Nets and Quantizable DNNs do."""
    from dnas.commands.beforehand import check_new
    from dnas.commands.written import Crew

    overrides = ['compression="switchable"', *(setting or []), *Crew(workers, executor, device).overrides]
    folder = new_folder(run)
    check_new(job, overrides, folder)
    from dnas.commands import launching

    if launching.in_processes(nproc_per_node):
        return
    launching.search(job, overrides, folder, as_json)
