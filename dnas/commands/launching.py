"""The commands that compute: start a job, go on with one, measure an assignment again."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import Any

from dnas.commands.beforehand import told_of
from dnas.commands.concluding import conclude
from dnas.commands.display import open_display
from dnas.commands.serving import check_installed, served
from dnas.commands.signals import Interrupted, Signals, finishing
from dnas.commands.terminal import show, show_json, tell
from dnas.commands.written import Crew, finalise_overrides, prune_overrides
from dnas.config.file import dump_job, load_job
from dnas.config.job import JobConfig
from dnas.jobs import run as jobs
from dnas.jobs.copies import own_run
from dnas.jobs.stages.finalise_requests import FinaliseRequest
from dnas.jobs.stages.prune_requests import PruneRequest
from dnas.training.joining import joined
from results.events import Epoch, Measured
from results.pareto import FLOAT, ParetoFront
from results.run.environment import environment
from results.run.folder import Run
from results.run.layout import ASSIGNMENTS, CHECKPOINTS, RUNS
from results.run.lost import lost_files
from results.run.progress import noted
from results.run.status import run_status
from results.units import measured
from search_spaces.errors import InputError, quoted
from search_spaces.metrics import Metric

Request = PruneRequest | FinaliseRequest


def in_processes(count: int | None) -> bool:
    """Run this command line in so many processes instead, where there are to be several."""
    if count is None or count == 1:
        return False
    from dnas.commands.processes import run_in_processes  # PyTorch's launcher, which few need

    run_in_processes(count)
    return True


def search(
    source: str | None, overrides: Sequence[str], folder: Path | None, as_json: bool, serve: bool = False
) -> None:
    """Run a job in a new folder and show its front, and with ``serve`` in a browser how it goes.

    A job that is refused before anything was computed leaves no folder behind, so that it can be corrected and
    started again.
    """
    if serve:
        check_installed()
    with joined() as processes:
        config = processes.all_accept(lambda: load_job(source, overrides))
        folder = folder or RUNS / config.name
        with told_of(folder):
            missing = [path for path in (folder, *folder.parents) if not path.exists()]
        with own_run(processes, partial(_created, folder, config)) as run:
            try:
                with served(run.folder) if serve and processes.rank == 0 else nullcontext():
                    front = _carry_out(config, run, as_json)
            except InputError:
                _discard_if_empty(run, missing)
                raise
            conclude(run, front, as_json)


def _created(folder: Path, config: JobConfig) -> Run:
    with told_of(folder):
        return Run.create(folder, dump_job(config), environment(config.seed, config.device))


def resume(folder: Path, crew: Crew, as_json: bool, take_over: bool = False) -> None:
    """Go on with an interrupted job and show its front; a finished one that has lost nothing is only shown."""
    with _opened(folder, take_over) as run:
        config = load_job(run.job_file(), crew.overrides)
        if run_status(run).state == "finished" and not lost_files(run):
            tell(f"{folder} is finished; nothing is left to do")
            front = run.load_front()
        else:
            front = _carry_out(config, run, as_json)
        conclude(run, front, as_json)


def prune(
    folder: Path,
    assignment: str | None,
    bits: int | None,
    budgets: Sequence[str],
    trials: int | None,
    settings: Sequence[str],
    crew: Crew,
    as_json: bool,
    take_over: bool = False,
) -> None:
    """Prune an assignment of a run, or a uniform one, by the run's own ``[prune]`` with these overrides."""
    overrides = prune_overrides(budgets, trials, settings)
    with _opened(folder, take_over) as run:
        job = run.job_file()
        parent = run.complete_id(assignment) if assignment is not None else None
        request = PruneRequest(load_job(job, overrides).prune, parent, bits)
        front = _carry_out(load_job(job, crew.overrides), run, as_json, request)
        conclude(run, front, as_json)


def finalise(
    folder: Path, profiles: str | None, settings: Sequence[str], crew: Crew, as_json: bool, take_over: bool = False
) -> None:
    """Make a switchable net of a run's assignments, by the run's own ``[finalise]`` with these overrides."""
    overrides = finalise_overrides(profiles, settings)
    with _opened(folder, take_over) as run:
        job = run.job_file()
        request = FinaliseRequest(load_job(job, overrides).finalise)
        front = _carry_out(load_job(job, crew.overrides), run, as_json, request)
        conclude(run, front, as_json)


def evaluate(folder: Path, assignment: str, split: str, device: str | None, as_json: bool, packed: bool) -> None:
    """Measure an assignment of a run, or its float network, once more on the validation or the test split."""
    run = Run.open(folder)
    name = FLOAT if assignment == FLOAT else run.assignment(run.complete_id(assignment)).id
    with open_display(as_json) as display:
        result = jobs.evaluate_assignment(run, name, split, display.report, packed=packed, device=device)
    if as_json:
        show_json(result)
        return
    metrics = [Metric.read(each) for each in (result["metric"], *result["beside"])]
    count = result[metrics[0].name]["n"]
    seeds = f"{count} seed{'s' if count > 1 else ''}"
    figures = ", ".join(_figure(metric, **result[metric.name]) for metric in metrics)
    show(f"{name} on {split}: {figures} ({seeds}, {result['images']} images)")


def _figure(metric: Metric, mean: float, std: float, n: int) -> str:
    return f"{measured(metric, mean, std, n).replace('±', '± ')} {metric.unit}".rstrip() + f" {metric.label}"


@contextmanager
def _opened(folder: Path, take_over: bool) -> Iterator[Run]:
    """A run to write to, for every process that works on it."""
    with joined() as processes, own_run(processes, partial(Run.open, folder, write=True, take_over=take_over)) as run:
        yield run


@contextmanager
def opened_if_free(folder: Path, what: str) -> Iterator[Run]:
    """A run to keep ``what`` in, if nobody is writing to it; else, which is told, to read."""
    writable = Run.open(folder).writer is None
    if not writable:
        tell(f"{folder} is being written to, so {what} not kept there")
    with Run.open(folder, write=writable) as run:
        yield run


def _carry_out(config: JobConfig, run: Run, as_json: bool, request: Request | None = None) -> ParetoFront:
    with finishing() as signals:
        try:
            with open_display(as_json) as display, noted(run, display.report) as shown:

                def report(event: Any) -> None:
                    """Show what happened; it is in the journal by then, so here the job can end."""
                    shown(event)
                    signals.check()

                return jobs.run_job(config, run, report, request)
        except (KeyboardInterrupt, BrokenPipeError) as error:
            raise _go_on_with(run, signals) from error
        except Exception as error:
            if signals.received:  # a library made an error of its own of it
                raise _go_on_with(run, signals) from error
            raise


def _go_on_with(run: Run, signals: Signals) -> Interrupted:
    return Interrupted(f"interrupted; go on with: dnas resume {quoted(run.folder)}", signals.number)


def _discard_if_empty(run: Run, missing: Sequence[Path]) -> None:
    """Remove a run that has neither an epoch nor a file to lose, and the folders that were ``missing`` before it."""
    kept: list[Any] = [event for event in run.journal.events() if isinstance(event, Epoch | Measured)]
    for name in (ASSIGNMENTS, CHECKPOINTS):
        kept += (run.folder / name).glob("*")
    if kept:
        return
    shutil.rmtree(run.folder, ignore_errors=True)
    if run.folder not in missing:
        run.folder.mkdir(exist_ok=True)
    for path in missing[1:]:
        with suppress(OSError):  # somebody else has put something there
            path.rmdir()
