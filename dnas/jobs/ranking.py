"""How well a run's supernet ranks: assignments of equal cost by its loss, and by what fine-tuning makes of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence

from torch import nn

from dnas.config.fields import Amount
from dnas.config.file import load_job
from dnas.execution.tasks import JobTask
from dnas.jobs.bench import employed
from dnas.jobs.context import JobContext
from dnas.jobs.job import Job
from dnas.jobs.planning import read_budgets
from dnas.jobs.rank_requests import RankRequest
from dnas.jobs.resources import memory_told, prepare_process, resources_of
from dnas.jobs.sensitivity import digest
from dnas.jobs.stages.measure import BATCHNORM_BATCHES, Measurer, start_files
from dnas.jobs.stages.search_names import WARMUP
from dnas.jobs.stored_nets import stored_float
from dnas.quantization.calibration import calibrate, recalibrate_batchnorm
from dnas.quantization.conversion import fixed_copy
from dnas.quantization.mixture import compiled_mixture
from dnas.search.evidence import LEAST_ASSIGNMENTS
from dnas.search.ranking import random_assignments, rank_correlation, supernet_loss
from dnas.search.supernet import Supernet
from dnas.training.device import deterministic
from dnas.training.processes import Processes
from dnas.training.schedules import derived_seed
from dnas.training.trainer import Trainer, with_prefix
from results.ranking import Correlation, Ranked, Ranking
from results.run.folder import Run
from search_spaces.allocation.program import Cells
from search_spaces.costs.budgets import Budget
from search_spaces.errors import InputError, quoted

RANK = "rank"


def rank_run(run: Run, request: RankRequest, tell: Callable[[str], None], overrides: Sequence[str] = ()) -> Ranking:
    """The ranking that is asked for: what the run keeps of it, and what is missing, kept as it is found.

    ``tell`` hears of every assignment; ``overrides`` are keys of the job, as in ``workers=2``. Raises
    :class:`InputError`, before any training, for a run without a warm supernet of the whole network, and for a budget
    that cannot be met or allows too few assignments.
    """
    config = load_job(run.job_file(), overrides)
    request.check(config, run.folder)
    prepare_process(config.threads)
    context = JobContext(config, run, lambda event: None)
    job = context.job
    budget = _budget(job, request.budget)
    seed = derived_seed(config.seed, RANK, budget.label)
    wanted = random_assignments(job.plan.table, budget, request.assignments, seed)
    stored_float(run, job.network, config.pretrain.epochs)  # into the job's own network
    epochs = config.finetune.epochs if request.epochs is None else request.epochs
    resources = resources_of(config, Processes.here())
    exact, memory = deterministic(config.deterministic), memory_told(job, "the ranking")
    with exact, memory, compiled_mixture(job.compiles), employed(context, resources):
        ranking = begun = _begun(run, job, _warm_supernet(run, job), wanted, budget, epochs)
        for ranking in _finetuned(context, begun, wanted):
            if run.writable:
                run.save_ranking(ranking)
            count = len(ranking.done)
            tell(f"{count} of {len(wanted)}: {_row_text(ranking, count - 1)}")
    return ranking


def _budget(job: Job, asked: int | Mapping[str, Amount]) -> Budget:
    if not isinstance(asked, int):
        return read_budgets([asked], job.plan.table)[0]
    return job.plan.budgets[asked - 1]


def _warm_supernet(run: Run, job: Job) -> Supernet:
    """The supernet as the warm-up left it."""
    plan, section = job.plan, job.config.search
    supernet = Supernet(job.network, plan.graph, plan.space, plan.table, job.choice, section.engine)
    supernet = supernet.to(job.device.place)
    calibrate(supernet.network, job.calibration_images())
    if section.warmup_epochs:
        saved = run.load_checkpoint(WARMUP)
        if saved is None or saved[1]["epoch"] < section.warmup_epochs:
            raise InputError(
                f"{run.folder} has not warmed its supernet up; go on with: dnas resume {quoted(run.folder)}"
            )
        supernet.load_state_dict(with_prefix(saved[0], "supernet"))
    return supernet.eval()


def _begun(run: Run, job: Job, supernet: Supernet, wanted: list[Cells], budget: Budget, epochs: int) -> Ranking:
    """The ranking with all losses; with the scores that the run keeps where it keeps the same one."""
    images = job.search_data.validation
    space, table = job.plan.space, job.plan.table
    begun = Ranking(
        supernet=digest(supernet),
        budget=budget.label,
        limits=dict(budget.limits),
        images=len(images),
        epochs=epochs,
        metric=job.task.metric.to_json(),
        assignments=(),
    )
    known = _known(run, begun)
    rows = []
    batches = job.batchnorm_images(BATCHNORM_BATCHES)
    for cells in wanted:
        layers = space.layers_of(cells)
        bits = {name: (each.weight_bits, each.activation_bits) for name, each in layers.items()}
        row = known.get(_key(bits))
        if row is None:
            loss = supernet_loss(
                supernet,
                cells,
                batches,
                images,
                batch_size=job.config.data.batch_size,
                device=job.device,
                task=job.task,
            )
            row = Ranked(bits=bits, cost=table.price(layers), loss=loss if math.isfinite(loss) else None)
        rows.append(row)
    return _correlated(begun.model_copy(update={"assignments": tuple(rows)}))


def _known(run: Run, begun: Ranking) -> dict[str, Ranked]:
    """What the run keeps of the same supernet, budget, epochs and images, by bits."""
    try:
        kept = run.ranking()
    except InputError:  # damaged: made again
        return {}
    alone = {"assignments": (), "correlation": None}
    if kept is None or kept.model_copy(update=alone) != begun:
        return {}
    return {_key(row.bits): row for row in kept.assignments}


def _key(bits: Mapping[str, tuple[int, int]]) -> str:
    return " ".join(f"{name}={pair[0]}/{pair[1]}" for name, pair in sorted(bits.items()))


def _finetuned(context: JobContext, ranking: Ranking, wanted: list[Cells]) -> Iterator[Ranking]:
    """The ranking after each assignment that had no score."""
    rows = list(ranking.assignments)
    left = [place for place, row in enumerate(rows) if not row.finetuned]
    reads = (*context.reads_float, *start_files(context.job.config.finetune.start))
    tasks = {
        place: JobTask(f"{RANK} {place + 1}", score_of, {"cells": wanted[place], "epochs": ranking.epochs}, reads=reads)
        for place in left
    }
    context.tasks.announce(tasks.values())
    for place, task in tasks.items():
        score = context.outcome(task)
        found = {"score": score if math.isfinite(score) else None, "finetuned": True}
        rows[place] = rows[place].model_copy(update=found)
        yield _correlated(ranking.model_copy(update={"assignments": tuple(rows)}))


def score_of(context: JobContext, seed: int, cells: Cells, epochs: int) -> float:
    """What the net of an assignment measures on validation after so many epochs."""
    job = context.job
    start = context.last_made(RANK, lambda: Measurer(context).starting_model(job.config.finetune.start, 0))
    return job.measured(finetuned_net(job, start, cells, epochs), job.data.val).score


def finetuned_net(job: Job, start: nn.Module, cells: Cells, epochs: int) -> nn.Module:
    """The fixed net of an assignment after so many epochs from the weights of ``start``, in eval mode."""
    section, seed = job.config.finetune, job.config.seed
    network = fixed_copy(start, job.plan.graph, job.plan.space.layers_of(cells), job.choice).to(job.device.place)
    calibrate(network, job.calibration_images())
    trainer = Trainer(
        network,
        section.model_copy(update={"epochs": epochs}),
        images=job.data.train,
        batch_size=job.config.data.batch_size,
        augmentation=job.augmentation,
        seed=derived_seed(seed, 0),
        label=RANK,  # the same for all
        device=job.device,
        teacher=job.teacher,
        task=job.task,
    )
    for _ in trainer.epochs():
        pass
    recalibrate_batchnorm(network, job.batchnorm_images(BATCHNORM_BATCHES), allow_overflow=True)
    return network.eval()


def _correlated(ranking: Ranking) -> Ranking:
    """The same with the correlation of what is fine-tuned, where that is enough."""
    done = ranking.done
    if len(done) < LEAST_ASSIGNMENTS:
        return ranking.model_copy(update={"correlation": None})
    gain = ranking.scored_by.gain
    losses = [math.inf if row.loss is None else row.loss for row in done]
    scores = [-math.inf if row.score is None else gain(row.score) for row in done]
    return ranking.model_copy(update={"correlation": Correlation.read(rank_correlation(losses, scores))})


def _row_text(ranking: Ranking, place: int) -> str:
    row, metric = ranking.done[place], ranking.scored_by
    loss = "no number" if row.loss is None else f"{row.loss:.3f}"
    score = "no number" if row.score is None else metric.text(row.score)
    return f"loss {loss} in the supernet, {metric.title} {score} after fine-tuning"
