"""A whole job: pretrain, warm up, search for every budget, measure, test; each step journaled and resumable."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dnas.config.file import load_job
from dnas.config.job import JobConfig
from dnas.jobs.bench import employed
from dnas.jobs.compressions import compression_of
from dnas.jobs.context import JobContext
from dnas.jobs.job import Job
from dnas.jobs.log import check_prices, prices_sha256, unproven_told
from dnas.jobs.packed_nets import as_packed
from dnas.jobs.progress import Report, Work
from dnas.jobs.resources import memory_told, prepare_process, resources_of
from dnas.jobs.stage import Findings, Foreseen, Stage
from dnas.jobs.stages.finalise import Finalise
from dnas.jobs.stages.finalise_requests import FinaliseRequest, check_finalise_request, sections
from dnas.jobs.stages.measure import Measurer
from dnas.jobs.stages.pretrain import Pretrain
from dnas.jobs.stages.prune import PruneMore
from dnas.jobs.stages.prune_requests import PruneRequest, check_request, requested, trial_workers
from dnas.jobs.stages.testing import Test
from dnas.jobs.stages.timing import Time, table_of
from dnas.jobs.stored_nets import stored_float
from dnas.quantization.mixture import compiled_mixture
from dnas.quantization.proof import check_twin
from dnas.training.device import deterministic
from dnas.training.distillation import finetune_weight
from dnas.training.processes import Processes
from dnas.training.rehearsal import few_images, rehearse
from results.events import VERSION, Epoch, Failed, Finished, Note, Resumed, Searched, StageEvent, Started
from results.network import Network
from results.pareto import FLOAT, Estimate, ParetoFront
from results.run.environment import environment
from results.run.folder import Run
from results.run.layout import CHECKPOINTS, ENVIRONMENT, NETWORK
from results.run.lost import lost_files, standing, unasked_checkpoints, unknown_files
from results.tracking.tracker import check_trackers, open_trackers, tracked
from search_spaces.assignments import BitAssignment
from search_spaces.errors import InputError, JobError, check_type
from search_spaces.spaces import matches


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
    prepare_process(config.threads)
    _give_up_lost(run, report)
    processes = Processes.here()
    names = config.log.names if processes.rank == 0 else ()
    with tracked(processes.all_accept(lambda: open_trackers(names, run)), report) as report:
        context = processes.all_accept(lambda: _context(config, run, report))
        if isinstance(request, FinaliseRequest):
            context.log.write(check_finalise_request(context, request).event())
        elif request:
            context.log.write(check_request(context, request).event())
        try:
            with processes.watched(), deterministic(config.deterministic), compiled_mixture(context.job.compiles):
                return _run(context)
        except BrokenPipeError:
            raise  # nobody listens any more: an interruption, not a failure
        except Exception as error:
            with contextlib.suppress(JobError):  # the journal's own disk may be what failed
                context.log.write(Failed(message=_sentence(error)))
            raise


def _context(config: JobConfig, run: Run, report: Report) -> JobContext:
    """What the job is carried out with, where the run can be gone on with by it."""
    context = JobContext(config, run, report)
    check_prices(context.job, run, context.log.history)
    return context


def _give_up_lost(run: Run, report: Report) -> None:
    """Journal what the run has lost, so that its stages make it again; tell of results that no record knows.

    What a finished search had to keep until then is removed.
    """
    for lost in lost_files(run):
        if lost.file.startswith(CHECKPOINTS):
            run.delete_checkpoint(Path(lost.file).stem)
        if lost.file == ENVIRONMENT:
            run.save_environment(environment())
        run.journal.append(lost.to_json())
        report(lost.to_json())
    for event in standing(run.journal.events()):
        if isinstance(event, Searched):  # a kill may have come between the record and the deletion
            run.delete_checkpoint(event.run)
    unknown = unknown_files(run, run.journal.events())
    if len(unknown) > 1:
        text = f"the journal does not tell of {len(unknown)} files ({unknown[0]}, ...): they are made again"
        report(Note(text=text).to_json())


def _sentence(error: Exception) -> str:
    """The error's own sentence where it was made for the user, else with its type before it."""
    return str(error) if isinstance(error, (InputError, JobError)) else f"{type(error).__name__}: {error}"


def evaluate_assignment(
    run: Run, assignment_id: str, split: str, report: Report, *, packed: bool = False, device: str | None = None
) -> dict[str, Any]:
    """Measure an assignment of a run, over its seeds, or its ``float`` network again, on ``val`` or ``test``.

    With ``packed`` in integer arithmetic, from the packed file of each seed's net. ``device`` replaces that of the job.
    """
    assignment = None if assignment_id == FLOAT else run.assignment(assignment_id)
    overrides = [] if device is None else [f"device={device}"]
    context = JobContext(load_job(run.job_file(), overrides), run, report)
    job = context.job
    images = {"val": job.data.val, "test": job.data.test}.get(split)
    if images is None:
        raise InputError(f"split '{split}' is not one of val, test")
    if assignment is None and packed:
        raise InputError("the float network has no packed file; name an assignment")
    with memory_told(job, f"measuring {assignment_id}"):
        measured = [job.measured(net, images) for net in _stored(context, assignment, packed)]
    metric, others = job.task.metric, [gauge.metric for gauge in job.task.beside]
    values = {metric.name: [each.score for each in measured]}
    values |= {other.name: [each.beside[other.name] for each in measured] for other in others}
    figures = {name: asdict(Estimate.from_values(found)) for name, found in values.items()}
    names = {"metric": metric.to_json(), "beside": [other.to_json() for other in others]}
    return {"assignment": assignment_id, "split": split, **names, **figures, "images": len(images)}


def _stored(context: JobContext, assignment: BitAssignment | None, packed: bool) -> Iterator[Any]:
    """The trained net of each seed, ``packed`` as its file has it; or the float network."""
    job = context.job
    if assignment is None:
        yield stored_float(context.log.run, job.network, job.config.pretrain.epochs)
        return
    measurer = Measurer(context)
    for seed in range(measurer.seeds_of(assignment)):
        net = measurer.stored(assignment, seed)
        yield as_packed(job, net, assignment) if packed else net


def _run(context: JobContext) -> ParetoFront:
    """Check every stage, then carry out one after the other; tasks of later ones may run meanwhile."""
    log, processes = context.log, context.job.device.processes
    resources = processes.all_accept(lambda: resources_of(context.job.config, processes, trial_workers(context)))
    log.write(Resumed(version=VERSION) if log.history else _started(context.job))
    stages = job_stages(context)
    context.progress.plan(processes.all_accept(lambda: _checked(context, stages)))
    log.tell_once(_introduction(context.job))
    _keep_network(context)
    with employed(context, resources):
        _carry_out(context, stages)
    for name in unasked_checkpoints(log.run, log.history):
        log.run.delete_checkpoint(name)
    log.write(Finished())
    return log.run.load_front()


def _started(job: Job) -> Started:
    weights, prices = job.loaded.checkpoint_sha256, prices_sha256(job)
    return Started(version=VERSION, checkpoint_sha256=weights, prices_sha256=prices)


def _keep_network(context: JobContext) -> None:
    """Leave the layers in the run, for those who show it and do not run the network; anew where they are damaged."""
    run, job, known = context.log.run, context.job, None
    try:
        known = run.network()
    except InputError:
        context.log.tell_once([f"{NETWORK} is damaged: it is made again"])
    if known is None:
        run.save_network(Network.of(job.config.model.source, job.plan.graph))


def _carry_out(context: JobContext, stages: Sequence[Stage]) -> None:
    log, findings = context.log, Findings()
    for number, stage in enumerate(stages):
        log.write(StageEvent(stage=stage.name, state="start"))
        for later in stages[number:]:
            context.tasks.announce(later.ahead(findings))
        with context.progress.within(number), memory_told(context.job, f"the stage {stage.name}"), unproven_told(log):
            stage.carry_out(findings)
        context.forget()
        log.write(StageEvent(stage=stage.name, state="done"))


def job_stages(context: JobContext) -> list[Stage]:
    """The stages of a job, in order."""
    measurer = Measurer(context)
    stages: list[Stage] = [Pretrain(context)]
    stages += compression_of(context.job.config).stages(context, measurer)
    stages += [PruneMore(context, measurer)] if requested(context.log) else []
    stages += [Finalise(context, measurer)] if sections(context) else []
    return [*stages, *([Time(context, measurer)] if table_of(context.job.config) else []), Test(context, measurer)]


def _checked(context: JobContext, stages: Sequence[Stage]) -> list[Work]:
    """Refuse, before any training, what cannot work; returns the work of every stage."""
    check_trackers(context.job.config.log.names)
    before, works = Foreseen(), []
    for stage in stages:
        stage.check(before)
        works.append(stage.work(before))
        before = stage.foresee(before)
    if not context.log.events(Epoch):
        with memory_told(context.job, "the rehearsal"):
            _rehearse(context.job, curved="hessian" in before.sensitivities)
    return works


def _rehearse(job: Job, curved: bool) -> None:
    """Refuse a network or data that training would stumble over, as :func:`rehearse` says.

    ``curved``: sensitivities are read from second derivatives.
    """
    config, search_data = job.config, job.search_data
    sets = {"fine-tuning": job.data.train}
    epochs = [config.pretrain.epochs, config.finetune.epochs]
    if "search" in config.order:
        sets |= {"the weights": search_data.weights, "θ": search_data.theta, "validation": search_data.validation}
        epochs.append(config.search.warmup_epochs)
    rehearse(
        job.network,
        job.data,
        sets,
        config.data.batch_size,
        augmentation=job.augmentation,
        device=job.device,
        task=job.task,
        trains=any(epochs),
        searches="search" in config.order,
        curved=curved,
        teachers=_teachers(job),
    )
    _prove_twins(job)


def _teachers(job: Job) -> int:
    """How many networks teach another at once: several where the profiles of a switchable net do together."""
    config, finalise = job.config, job.config.finalise
    finishing = finalise.enabled and finalise.epochs > 0 and finalise.distillation != 0
    if finishing and finalise.teacher == "ensemble":
        return 2
    tuned = config.finetune.epochs > 0 and finetune_weight(config.finetune, job.task) > 0
    searched = "search" in config.order and config.search.distillation > 0
    return int(tuned or searched or (finishing and finalise.teacher != "none"))


def _prove_twins(job: Job) -> None:
    """Refuse layers whose quantized twins are not the network's; what any stage makes of them is not proven again."""
    plan, search = job.plan, job.config.search
    check_twin(job.network, plan.graph, plan.space.quantized)
    if "search" in job.config.order and search.engine == "branches":
        check_twin(job.network, plan.graph, plan.space.quantized, branched=True)


def auxiliary_sentences(job: Job) -> list[str]:
    """What heads that only serve training take of the network, if it has some."""
    layers = job.plan.graph.layers
    own = [layer.weight_elements for layer in layers if matches(job.task.auxiliary_layers, layer)]
    if not own:
        return []
    share = sum(own) / sum(layer.weight_elements for layer in layers)
    return [
        f"auxiliary heads ({', '.join(job.task.auxiliary_layers)}) hold {sum(own):,} weights, {share:.0%} of all; "
        "they count in every size and only serve training: aux_loss = false builds the network without them"
    ]


def _introduction(job: Job) -> list[str]:
    """What the user should know before the first epoch."""
    missing, unexpected = job.loaded.missing_keys, job.loaded.unexpected_keys
    told = []
    if missing or unexpected:
        told.append(
            f"checkpoint: {len(missing)} keys missing ({', '.join(missing[:3]) or 'none'}), "
            f"{len(unexpected)} unexpected ({', '.join(unexpected[:3]) or 'none'})"
        )
    data = job.data
    told += few_images(data)
    told += [note for budget in job.plan.budgets if (note := budget.note(job.plan.table))]
    told += [f"unsupported: {name}: {why}" for name, why in job.plan.graph.unsupported.items()]
    told += auxiliary_sentences(job)
    what, how = compression_of(job.config).introduction(job)
    told.append(
        f"{what}; {len(data.train)} training, {len(data.val)} validation, {len(data.test)} test images; "
        f"{how}, on {job.device}"
    )
    return told
