"""A whole job: pretrain, warm up, search for every budget, measure, test; each step journaled and resumable."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import torch

from dnas.config.file import load_job
from dnas.config.job import JobConfig
from dnas.jobs.context import JobContext, Stage
from dnas.jobs.normalisation import preprocessing_of
from dnas.jobs.progress import Report
from dnas.jobs.stages.controls import control_assignments
from dnas.jobs.stages.finalise import (
    FinaliseRequest,
    check_finalise,
    check_finalise_request,
    finalise_all,
    finalise_work,
    sections,
)
from dnas.jobs.stages.measure import Measurer
from dnas.jobs.stages.prune import prune_all
from dnas.jobs.stages.prune_requests import (
    PruneRequest,
    check_request,
    check_section,
    config_targets,
    prune_work,
    requested,
    requested_parents,
    requested_targets,
    withdraw,
)
from dnas.jobs.stages.search import BitSearch
from dnas.jobs.stages.squantizer import check_budgets, sigma_work, squantizer_assignments
from dnas.jobs.stored_nets import stored_float
from dnas.quantization.mixture import compiled_mixture
from dnas.training.rehearsal import few_images, rehearse
from dnas.training.trainer import Trainer, evaluate
from results.events import VERSION, Epoch, Failed, Finished, FloatMeasured, Note, Resumed, StageEvent, Started
from results.pareto import FLOAT, Estimate, FloatReference, FrontPoint, ParetoFront
from results.pictures.front import draw_fronts, save_figure
from results.run.environment import environment
from results.run.folder import CHECKPOINTS, ENVIRONMENT, Run
from results.run.lost import lost_files, unknown_files
from search_spaces.assignments import BitAssignment
from search_spaces.costs.table import CostTable
from search_spaces.errors import InputError, JobError, check_type
from search_spaces.layers import FLOAT_BITS
from search_spaces.provenance import PRUNED

Result = TypeVar("Result")


def run_job(
    config: JobConfig, run: Run, report: Report, request: PruneRequest | FinaliseRequest | None = None
) -> ParetoFront:
    """Run a job, or go on with it if the run's journal is not empty; returns the measured front.

    ``request`` is something to prune or finalise beyond what the job says; it is kept in the journal, and so is part of
    the run.
    ``report`` receives every journal event, and ``progress`` events in between. Raises :class:`InputError` before
    any training for what cannot work, :class:`JobError` for what went wrong on the way; both leave the run resumable.
    """
    check_type(config, JobConfig, "a job", "give what dnas.load_job(source) returns")
    if config.threads:
        torch.set_num_threads(config.threads)
    _give_up_lost(run, report)
    context = JobContext(config, run, report)
    if isinstance(request, FinaliseRequest):
        context.journal(check_finalise_request(context, request).event())
    elif request:
        context.journal(check_request(context, request).event())
    try:
        with compiled_mixture(context.compiles):
            return _run(context)
    except BrokenPipeError:
        raise  # nobody listens any more: an interruption, not a failure
    except Exception as error:
        with contextlib.suppress(JobError):  # the journal's own disk may be what failed
            context.journal(Failed(message=_sentence(error)))
        raise


def _give_up_lost(run: Run, report: Report) -> None:
    """Journal what the run has lost, so that its stages make it again; tell of results that no record knows."""
    for lost in lost_files(run):
        if lost.file.startswith(CHECKPOINTS):
            run.delete_checkpoint(Path(lost.file).stem)
        if lost.file == ENVIRONMENT:
            run.save_environment(environment())
        run.journal.append(lost.to_json())
        report(lost.to_json())
    unknown = unknown_files(run, run.journal.events())
    if len(unknown) > 1:
        text = f"the journal does not tell of {len(unknown)} files ({unknown[0]}, ...): they are made again"
        report(Note(text=text).to_json())


def _sentence(error: Exception) -> str:
    """The error's own sentence where it was made for the user, else with its type before it."""
    return str(error) if isinstance(error, (InputError, JobError)) else f"{type(error).__name__}: {error}"


def evaluate_assignment(run: Run, assignment_id: str, split: str, report: Report) -> dict[str, Any]:
    """Measure an assignment of a run, over its seeds, or its ``float`` network again, on ``val`` or ``test``."""
    assignment = None if assignment_id == FLOAT else run.assignment(assignment_id)
    context = JobContext(load_job(str(run.folder / "job.toml")), run, report)
    images = {"val": context.data.val, "test": context.data.test}.get(split)
    if images is None:
        raise InputError(f"split '{split}' is not one of val, test")
    if assignment is None:
        network = stored_float(run, context.network, context.config.pretrain.epochs)
        values = [evaluate(network, images, context.config.data.batch_size, context.device).top1]
    else:
        measurer = Measurer(context)
        seeds = range(measurer.seeds_of(assignment))
        values = [measurer.measure_again(assignment, seed, images).top1 for seed in seeds]
    estimate = Estimate.from_values(values)
    top1 = {"mean": estimate.mean, "std": estimate.std, "n": estimate.n}
    return {"assignment": assignment_id, "split": split, "top1": top1, "images": len(images)}


def _run(context: JobContext) -> ParetoFront:
    """Every stage in turn."""
    context.journal(Resumed(version=VERSION) if context.history else Started(version=VERSION))
    _check(context)
    context.progress.add(prune_work(context) + sigma_work(context) + finalise_work(context))
    context.tell_once(_introduction(context))
    measurer = Measurer(context)
    _stage(context, "pretrain", lambda: _pretrain(context))
    ways = {"search": _pipeline, "squantizer": _squantizer, "switchable": _controls}
    points = ways[context.config.compression](context, measurer)
    if requested(context):
        points += _stage(context, "prune", lambda: _prune_requested(context, measurer, {p.assignment for p in points}))
    if sections(context):
        points += _stage(context, "finalise", lambda: finalise_all(context, measurer, points))
    front = _stage(context, "test", lambda: _front(context, measurer, points))
    context.run.save_front(front)
    save_figure(draw_fronts({context.run.name: front}, x=front.x), context.run.picture_path)
    context.journal(Finished())
    return front


def check_job(config: JobConfig) -> None:
    """Raise the :class:`InputError` that :func:`run_job` would raise before any training; nothing is kept."""
    with TemporaryDirectory() as folder, Run.create(Path(folder) / "run", "", {}) as run:
        _check(JobContext(config, run, lambda event: None))


def _check(context: JobContext) -> None:
    """Refuse, before any training, what cannot work."""
    check_budgets(context)
    check_section(context)
    check_finalise(context)
    if not context.events(Epoch):
        _rehearse(context)


def _rehearse(context: JobContext) -> None:
    """Refuse a network or data that training would stumble over, as :func:`rehearse` says."""
    config, search_data = context.config, context.search_data
    sets = {"fine-tuning": context.data.train}
    epochs = [config.pretrain.epochs, config.finetune.epochs]
    if "search" in config.order:
        sets |= {"the weights": search_data.weights, "θ": search_data.theta, "validation": search_data.validation}
        epochs.append(config.search.warmup_epochs)
    rehearse(
        context.network,
        context.data,
        sets,
        config.data.batch_size,
        augmentation=context.augmentation,
        device=context.device,
        trains=any(epochs),
    )


def _controls(context: JobContext, measurer: Measurer) -> list[FrontPoint]:
    """The uniform controls alone."""
    found = _stage(context, "controls", lambda: control_assignments(context))
    return _stage(context, "measure", lambda: measurer.measure_all(found))


def _squantizer(context: JobContext, measurer: Measurer) -> list[FrontPoint]:
    """Sparse, low-bit nets and their controls."""
    found = _stage(context, "squantizer", lambda: squantizer_assignments(context))
    found += _stage(context, "controls", lambda: control_assignments(context))
    return _stage(context, "measure", lambda: measurer.measure_all(found))


def _pipeline(context: JobContext, measurer: Measurer) -> list[FrontPoint]:
    """Bit searches and pruning in the order that the job asks for; a later search starts from a pruned net."""
    points: list[FrontPoint] = []
    found: list[BitAssignment] = []
    base: BitAssignment | None = None
    for number, step in enumerate(context.config.order):
        if step == "search":
            found = _stage(context, "search", BitSearch(context, base).assignments)
        if number == 0:
            found += _stage(context, "controls", lambda: control_assignments(context))
            points += _stage(context, "measure", partial(measurer.measure_all, found))
        if step == "prune":
            targets = config_targets(context, found)
            found = _stage(context, "prune", partial(prune_all, context, measurer, targets))
            base = next((assignment for assignment in found if assignment.provenance.kind == PRUNED), base)
        if number > 0 or step == "prune":
            points += _stage(context, "measure", partial(measurer.measure_all, found))
    return points


def _prune_requested(context: JobContext, measurer: Measurer, known: Collection[str]) -> list[FrontPoint]:
    """Prune what `dnas prune` asked for; measure the outcome like anything else."""
    points = measurer.measure_all([parent for parent in requested_parents(context) if parent.id not in known])
    for number, target in requested_targets(context).items():
        try:
            points += measurer.measure_all(prune_all(context, measurer, [target]))
        except (InputError, JobError) as error:
            withdraw(context, number, error)
            raise type(error)(f"{error}; pruning {target.parent.id} is taken back, so ask for it again") from error
    return points


def _stage(context: JobContext, name: str, work: Callable[[], Result]) -> Result:
    context.journal(StageEvent(stage=name, state="start"))
    result = work()
    context.journal(StageEvent(stage=name, state="done"))
    return result


def _introduction(context: JobContext) -> list[str]:
    """What the user should know before the first epoch."""
    missing, unexpected = context.loaded.missing_keys, context.loaded.unexpected_keys
    told = []
    if missing or unexpected:
        told.append(
            f"checkpoint: {len(missing)} keys missing ({', '.join(missing[:3]) or 'none'}), "
            f"{len(unexpected)} unexpected ({', '.join(unexpected[:3]) or 'none'})"
        )
    graph, data = context.plan.graph, context.data
    told += few_images(data)
    told += [f"unsupported: {name}: {why}" for name, why in graph.unsupported.items()]
    if context.config.compression == "squantizer":
        sparse = sum(len(decision.layers) for decision in context.plan.space.decisions)
        what, how = f"{sparse} sparse layers of {len(graph.layers)}", "SQuantizer"
    elif context.config.compression == "switchable":
        what, how = f"{len(graph.layers)} layers", f"a switchable net ({context.config.finalise.method})"
    else:
        what = f"{len(context.plan.space.decisions)} decisions over {len(graph.layers)} layers"
        how = f"{context.config.search.engine} engine, {'compiled' if context.compiles else 'eager'} mixture"
    told.append(
        f"{what}; {len(data.train)} training, {len(data.val)} validation, {len(data.test)} test images; "
        f"{how}, on {context.device}"
    )
    return told


def _pretrain(context: JobContext) -> None:
    """Train the float network, where the job asks for it; in a search without the images of θ, new to the weights."""
    config = context.config
    if not config.pretrain.epochs:
        return
    trainer = Trainer(
        context.network,
        config.pretrain,
        images=context.search_data.weights if config.compression == "search" else context.data.train,
        batch_size=config.data.batch_size,
        augmentation=context.search_data.augmentation,
        seed=config.seed,
        label="pretrain",
        device=context.device,
    )
    context.train(trainer, Stage("pretrain", "float", "pretrain", context.work.pretrain))


def _front(context: JobContext, measurer: Measurer, points: list[FrontPoint]) -> ParetoFront:
    """Read the test split, once, for every measured net, and build the front."""
    tested = []
    for point in points:
        values = measurer.test(context.run.assignment(point.assignment))
        tested.append(replace(point, test_top1=Estimate.from_values(values)))
    reference = _float_reference(context)
    x = next(iter(context.plan.budgets[0].limits)) if context.plan.budgets else "size_bytes"
    return ParetoFront.from_points(tested, x, reference, preprocessing_of(context.data))


def _float_reference(context: JobContext) -> FloatReference:
    """The float network's size and accuracies; journaled, so that the test split is read once."""
    known = context.events(FloatMeasured)
    if known:
        val, test = known[0].val_top1, known[0].test_top1
    else:
        context.network.eval()
        batch_size = context.config.data.batch_size
        val = evaluate(context.network, context.data.val, batch_size, context.device).top1
        test = evaluate(context.network, context.data.test, batch_size, context.device).top1
        context.journal(FloatMeasured(val_top1=val, test_top1=test))
    costs = _float_costs(context.plan.table)
    return FloatReference(costs["size_bytes"], val, test, costs)


def _float_costs(table: CostTable) -> dict[str, float]:
    """All costs of the network in fp32; a latency table need not hold that width."""
    found: dict[str, float] = {}
    for name in table.costs:
        with contextlib.suppress(InputError):
            found |= table.uniform(FLOAT_BITS, [name])
    return found
