"""What is wrong with a command line as far as PyTorch need not be asked, whose loading takes many times as long.

The commands check it all once more where they work, for what changes meanwhile and for several processes, which refuse
together. So a process that some launcher started checks nothing here.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from dnas.commands.exporting_bits import check_seed, switchable_nets
from dnas.config.fields import Amount
from dnas.config.file import DEFAULT_PRESET, load_job, names_a_job
from dnas.config.job import JobConfig
from dnas.data.roots import check_root
from dnas.jobs.profile_names import check_names
from dnas.jobs.rank_requests import RankRequest
from results.pareto import FLOAT
from results.run.folder import Run
from results.run.layout import JOB, JOURNAL, RUNS, is_run, refuse_occupied
from search_spaces.assignments import LayerBits
from search_spaces.costs.kinds import cost_names, require_cost
from search_spaces.errors import InputError, JobError, quoted
from search_spaces.models.sources import check_model

Budget = Mapping[str, Amount]


def check_new(source: str | None, overrides: Sequence[str], folder: Path | None) -> None:
    """Refuse a job of which nothing comes, as far as it says so, and a folder that cannot become a run of it."""
    if _is_one_of_several():
        return
    if source and is_run(Path(source)):
        raise InputError(
            f"{source} is a run, not a job; go on with it: dnas resume {quoted(source)}, or start its job again: "
            f"dnas search {quoted(Path(source) / JOB)} --run DIR"
        )
    config = load_job(source, overrides)
    _check_named(config)
    folder = folder or RUNS / config.name
    with told_of(folder):
        refuse_occupied(folder)
        _check_place(folder)


def check_job(source: str | None, overrides: Sequence[str] = (), model: str | None = None) -> None:
    """Refuse a job of which nothing comes, as far as it says so, for a ``model`` instead of its own."""
    _check_named(load_job(source, overrides), model)


def check_network(model: str | None, job: str | None = None, budgets: Sequence[Budget] = ()) -> None:
    """Refuse a ``model``, or that of a job without one, that there is none of, and budgets on unknown costs."""
    if model is not None and names_a_job(model):
        raise InputError(f"'{model}' is a job, not a network; examine its own with: dnas doctor --job {quoted(model)}")
    config = load_job(DEFAULT_PRESET if job is None else job)
    if job is None:
        check_model(model or "", None)
    else:
        _check_model(config, model)
    _check_costs(config, {"--budget": budgets})


def check_run(folder: Path, overrides: Sequence[str] = (), assignment: str | None = None) -> JobConfig | None:
    """Refuse what is no run, keys that its job does not take, and an ``assignment`` that it lacks.

    Returns the job; None for one of several processes, which checks nothing.
    """
    if _is_one_of_several():
        return None
    run = Run.open(folder)
    config = load_job(run.job_file(), overrides)
    if assignment is not None and assignment != FLOAT:
        run.assignment(run.complete_id(assignment))
    return config


def check_pruned(folder: Path, overrides: Sequence[str], assignment: str | None, bits: int | None) -> None:
    """Refuse as :func:`check_run`, and uniform ``bits`` of no width and budgets of ``[prune]`` on unknown costs."""
    config = check_run(folder, overrides, assignment)
    if config is not None:
        if bits is not None:
            LayerBits(bits, bits)
        _check_costs(config, {"prune.budgets": config.prune.budgets})


def check_ranked(folder: Path, request: RankRequest, overrides: Sequence[str] = ()) -> None:
    """Refuse what is no run, and a budget that its job does not have or that no supernet of it can be ranked by."""
    config = check_run(folder, overrides)
    if config is not None:
        request.check(config, folder)
        _check_costs(config, {"--budget": [] if isinstance(request.budget, int) else [request.budget]})


def check_finalised(folder: Path, overrides: Sequence[str]) -> None:
    """Refuse what is no run, keys that its job does not take, and profiles that it has not."""
    config = check_run(folder, overrides)
    if config is not None:
        found, damaged = Run.open(folder).read_assignments()
        own = [name for name, item in found.items() if not item.provenance.net]
        check_names(config.finalise, [*own, *damaged])  # what is wrong with a file is told by whoever reads it


def check_net(folder: Path, name: str | None, seed: int | None = None) -> None:
    """Refuse what is no run, a ``name`` of no switchable net and no assignment of it, and a seed that none has."""
    run = Run.open(folder)
    if name is not None and name not in switchable_nets(run.assignments()):
        check_seed(run.assignment(run.complete_id(name)), seed or 0)


@contextmanager
def told_of(folder: Path) -> Iterator[None]:
    """Make it wrong input where no run can be made in ``folder``; a full or broken disk stays a failure."""
    try:
        yield
    except (JobError, OSError) as error:
        cause = error.__cause__ if isinstance(error, JobError) else error
        if isinstance(cause, OSError) and cause.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EIO):
            raise InputError(
                f"{folder} cannot hold a run: {cause.strerror}; choose another folder with --run"
            ) from error
        raise


def _check_place(folder: Path) -> None:
    """Raise the :class:`OSError` that making the folder would, as far as it is known before."""
    home = next(path for path in (folder, *folder.absolute().parents) if path.exists() or path.is_symlink())
    if not home.exists():
        raise FileExistsError(errno.EEXIST, f"{home} is a link that leads nowhere")
    if not home.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
    if not os.access(home, os.W_OK | os.X_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


def _check_named(config: JobConfig, model: str | None = None) -> None:
    """Refuse networks, files, folders and costs that a job names and that are not there."""
    root = config.data.root
    check_root(config.data.source, Path(root) if root else None, config.data.download)
    _check_model(config, model)
    budgets = {"search": config.search.budgets, "prune": config.prune.budgets}
    _check_costs(config, {f"{name}.budgets": budgets[name] for name in dict.fromkeys(config.order)})


def _check_model(config: JobConfig, model: str | None) -> None:
    """Check the network of a job, or another ``model``, which has no weights of the job's."""
    source, checkpoint = config.model.source, config.model.checkpoint
    own = model in (None, source)
    check_model(source if own else str(model), Path(checkpoint) if own and checkpoint else None)


def _check_costs(config: JobConfig, budgets: Mapping[str, Iterable[Budget]]) -> None:
    """Refuse a cost that a job does not know, in ``budgets``, by their key, and where it takes part in the loss.

    A latency table that cannot be read makes its cost unknown, too, and is told.
    """
    table = config.costs.latency_table
    if table is not None:
        from search_spaces.costs.latency import read_latencies  # scipy takes as long to load as all else here

        read_latencies(Path(table))
    known = cost_names(table is not None, config.costs.functions)
    require_cost(config.search.cost, known, "search.cost")
    for key, entries in budgets.items():
        for name in (name for entry in entries for name in entry):
            require_cost(name, known, key)


def has_run(folder: Path) -> bool:
    """Whether a folder holds a run, or what is left of one."""
    return any((folder / name).is_file() for name in (JOB, JOURNAL))


def _is_one_of_several() -> bool:
    return "RANK" in os.environ
