"""Pruning measured assignments: ratios per channel group, found by trials and proved by fine-tuning.

Ours throughout, as the paper (Guerra et al., arXiv 2002.00523) leaves it open: trials measure the trained quantized net
with filters removed and BatchNorm re-estimated; the best few are fine-tuned shortly and the best of these is kept.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from torch import Tensor

from bayesopt.criteria import rankings
from bayesopt.trials import PruningTrial, best_trials, front_trials, run_trials
from dnas.config.job import PruneSection
from dnas.execution.tasks import JobTask
from dnas.jobs.context import JobContext, Place
from dnas.jobs.job import Job
from dnas.jobs.progress import Work
from dnas.jobs.stages.measure import FINETUNE, Measurer, finetune_units
from dnas.jobs.stages.prune_plan import PruneTarget, Pruning, result_ids, result_numbers, tries_random
from dnas.jobs.stages.prune_trials import Orders, Trials, objective_of, trial_units
from dnas.jobs.stages.trial_events import BAYESIAN, RANDOM, known_trials, trial_event
from dnas.quantization.calibration import recalibrate_batchnorm
from dnas.training.task import Task
from dnas.training.trainer import Trainer
from results.events import Finalist
from search_spaces.allocation.program import is_reachable
from search_spaces.allocation.widening import allocate_widest
from search_spaces.assignments import BitAssignment
from search_spaces.costs.budgets import Budget
from search_spaces.errors import JobError
from search_spaces.groups import kept_rows
from search_spaces.provenance import FEWER_BITS, PRUNED, PRUNED_RANDOM, PRUNED_UNIFORM, FewerBits, Pruned

PRUNE, TRIAL = "prune", "trial of a pruning"


def prune_all(context: JobContext, measurer: Measurer, targets: Sequence[PruneTarget]) -> list[BitAssignment]:
    """Prune every target; returns the pruned assignments and their controls, not yet fine-tuned at length."""
    prunings = [Pruning(context, target) for target in targets]
    return [found for pruning in prunings for found in _prune(pruning, measurer)]


def _prune(pruning: Pruning, measurer: Measurer) -> Iterator[BitAssignment]:
    context, section = pruning.context, pruning.section
    orders = removal_orders(pruning, measurer)
    numbers = result_numbers(section, pruning.first)
    trials = Trials(context, pruning.parent, orders, section, pruning.label)
    found = _trials(pruning, BAYESIAN, section.proposer, trials)
    tried = found, _trials(pruning, RANDOM, "random", trials) if tries_random(section) else []
    for number, budget in zip(numbers, pruning.budgets, strict=False):
        for kind, name in result_ids(pruning.parent.id, section, number).items():
            yield from _result(pruning, kind, name, budget, tried, orders, trials)
    if not pruning.budgets:
        front = _spread_out(front_trials(found, "size_bytes"), section.finalists)
        for number, trial in zip(numbers, front, strict=False):
            name = result_ids(pruning.parent.id, section, number)[PRUNED]
            yield _keep(pruning, name, PRUNED, trial.counts, orders, None)


def _result(
    pruning: Pruning,
    kind: str,
    name: str,
    budget: Budget,
    tried: tuple[list[PruningTrial], list[PruningTrial]],
    orders: Orders,
    trials: Trials,
) -> Iterator[BitAssignment]:
    """One result of a budget, if it can be had; ``tried`` are the trials of the search and those of the control."""
    if kind == FEWER_BITS:
        yield from _fewer_bits(pruning, name, budget)
    elif kind == PRUNED_UNIFORM:
        uniform = pruning.space.named(pruning.space.uniform(budget.limits))
        yield _keep(pruning, name, kind, uniform, orders, budget)
    elif kind == PRUNED or tried[1]:
        chosen = _chosen(pruning, name, tried[kind == PRUNED_RANDOM], budget, trials)
        yield _keep(pruning, name, kind, chosen, orders, budget)


def removal_orders(pruning: Pruning, measurer: Measurer) -> dict[str, tuple[int, ...]]:
    """The order in which the filters of each group go, judged on the parent's trained net."""
    network = measurer.stored(pruning.parent, 0)
    criterion, parent, groups = pruning.section.criterion, pruning.parent, pruning.groups
    batches = pruning.job.labelled_batches("importance", pruning.section.batchnorm_batches)
    seed = pruning.job.config.seed
    if criterion != "auto":
        task = pruning.job.task
        found = rankings(network, groups, criterion, batches=batches, loss_sum=task_loss(task), run=task.run, seed=seed)
        return {name: ranking.order for name, ranking in found.items()}
    orders = {}
    for group in groups.groups:
        binary = all(parent.layers[layer].weight_bits == 1 for layer in group.layers)
        one = replace(groups, groups=(group,))
        orders[group.name] = rankings(network, one, "hamming" if binary else "geometric")[group.name].order
    return orders


def task_loss(task: Task) -> Callable[[Any, Any], Tensor]:
    """The sum of a task's losses over the images of a batch, of what a network gave for them."""
    return lambda given, targets: task.loss_sum(task.outputs(given), targets)


def _trials(pruning: Pruning, kind: str, name: str, trials: Trials) -> list[PruningTrial]:
    """All trials of one proposer, those of the journal first."""
    context, section = pruning.context, pruning.section
    known = known_trials(context.log, pruning.label, kind)
    units = trial_units(pruning.job, section)
    context.progress.recall({TRIAL: len(known) * units})
    proposer = pruning.proposer(name)
    if kind == BAYESIAN:
        context.log.tell_once([*proposer.notes])
    found = list(known)
    for trial in run_trials(proposer, trials, total=pruning.total, batch=section.batch, known=known):
        found.append(trial)
        context.log.write(trial_event(pruning.label, kind, trial, pruning.job.task.metric.name))
        context.progress.step(TRIAL, units, **_trial_facts(pruning, kind, found))
    if len(found) < pruning.total:
        context.progress.correct(len(found) - pruning.total, {TRIAL: units})
        context.log.tell_once(
            [f"{pruning.label}: every configuration within the budgets was tried, {len(found)} in all"]
        )
    return found


def prune_work(job: Job, section: PruneSection) -> Work:
    """Work of pruning one assignment: the trials, and the short fine-tuning of the finalists."""
    budgets, searches = len(section.budgets), 1 + (tries_random(section) and bool(section.budgets))
    finalists = section.finalists if section.finalists > 1 else 0
    return {
        TRIAL: trial_units(job, section) * section.trials * max(1, budgets) * searches,
        FINETUNE: finetune_units(job) * section.finetune_epochs * finalists * budgets * searches,
    }


def _trial_facts(pruning: Pruning, kind: str, found: Sequence[PruningTrial]) -> dict[str, Any]:
    """What the display shows of the last trial."""
    last = found[-1]
    same = [trial for trial in found if trial.proposal.budget == last.proposal.budget]
    best = min((trial.loss for trial in same if trial.loss is not None), default=math.nan)
    return {
        "stage": PRUNE,
        "run": pruning.label if kind == BAYESIAN else f"{pruning.label} ({kind})",
        "trial": len(found),
        "trials": pruning.total,
        "loss": math.nan if last.loss is None else last.loss,
        "best": best,
        "metric": pruning.job.task.metric.name,
        "score": last.score,
        "expected": {name: last.cost[name] for name in last.proposal.limits},
        "budget": dict(last.proposal.limits),
    }


def _chosen(
    pruning: Pruning, name: str, found: Sequence[PruningTrial], budget: Budget, trials: Trials
) -> Mapping[str, int]:
    """Of the best trials within a budget, the one that is best after a short fine-tuning."""
    section = pruning.section
    finalists = best_trials(found, budget.limits, section.finalists)
    if not finalists:
        raise JobError(f"no trial of {pruning.label} met the budget {budget.label} with a finite loss")
    if section.finetune_epochs == 0 or len(finalists) == 1:
        return finalists[0].counts
    epochs = section.finetune_epochs
    work = finetune_units(pruning.job) * epochs
    tasks = []
    for number, trial in enumerate(finalists, start=1):
        own = f"{name}-finalist-{number}"
        tasks.append(trials.task("finalist", finetune_finalist, trial.counts, work, (own,), name=own, epochs=epochs))
    pruning.context.tasks.announce(each for each in tasks if not _known_finalist(pruning.context, *each.writes))
    scores = [_short_finetune(pruning, trial, task) for trial, task in zip(finalists, tasks, strict=True)]
    best = max(range(len(finalists)), key=lambda n: (scores[n], -n))
    return finalists[best].counts


def _short_finetune(pruning: Pruning, trial: PruningTrial, task: JobTask) -> tuple[float, float]:
    """Validation accuracy and negated loss of a finalist after a short fine-tuning; journaled."""
    context, job = pruning.context, pruning.job
    (name,) = task.writes
    found = _known_finalist(context, name)
    if found:
        context.progress.recall({FINETUNE: finetune_units(job) * pruning.section.finetune_epochs})
    else:
        found = Finalist(
            run=name,
            metric=job.task.metric.name,
            **context.outcome(task),
            proxy_loss=trial.loss,
            proxy_score=trial.score,
            number=trial.proposal.number,
        )
        context.log.write(found)
    context.log.run.delete_checkpoint(name)  # here too where it is known: a kill may have come before
    return job.task.metric.gain(found.score), -found.loss


def _known_finalist(context: JobContext, name: str) -> Finalist | None:
    return next((finalist for finalist in context.log.events(Finalist) if finalist.run == name), None)


def finetune_finalist(
    context: JobContext, seed: int, name: str, counts: Mapping[str, int], epochs: int, **objective: Any
) -> dict[str, float]:
    """Train the net without some of its filters shortly; returns its score and loss on validation."""
    job, tried = context.job, objective_of(context, **objective)
    network = tried.pruned(counts)
    trainer = Trainer(
        network,
        job.config.finetune.model_copy(update={"epochs": epochs}),
        images=job.data.train,
        batch_size=job.config.data.batch_size,
        augmentation=job.augmentation,
        seed=seed,
        label="finalist",
        device=job.device,
        teacher=job.teacher,
        task=job.task,
    )
    context.train(trainer, Place(PRUNE, name, name, FINETUNE, finetune_units(job)))
    recalibrate_batchnorm(network, tried.batchnorm_images, allow_overflow=True)
    measured = job.measured(network.eval(), job.data.val)
    return {"score": measured.score, "loss": measured.loss}


def _keep(
    pruning: Pruning, name: str, kind: str, counts: Mapping[str, int], orders: Orders, budget: Budget | None
) -> BitAssignment:
    """Save the pruned assignment: the parent's bits, and the filters that stay."""
    kept = {group: tuple(sorted(order[len(order) - counts[group] :])) for group, order in orders.items()}
    rows = kept_rows(pruning.job.plan.graph.channels, kept)
    layers = {layer: replace(bits, kept_channels=rows.get(layer)) for layer, bits in pruning.parent.layers.items()}
    ratios = {group: 1 - counts[group] / len(order) for group, order in orders.items()}
    units = {group: (counts[group], len(order)) for group, order in orders.items()}
    made = Pruned(
        kind=kind,
        run=pruning.label,
        parent=pruning.parent.id,
        criterion=pruning.section.criterion,
        ratios=ratios,
        kept_units=units,
    )
    return pruning.context.log.keep(name, layers, made, budget)


def _fewer_bits(pruning: Pruning, name: str, budget: Budget) -> Iterator[BitAssignment]:
    """All filters at fewer bits: the integer program within the budget, and no dearer than the parent in anything."""
    context, parent = pruning.context, pruning.parent
    table = pruning.job.plan.table
    limits = {cost: parent.cost[cost] for cost in ("size_bytes", "bitops")} | dict(budget.limits)
    whole = Budget(limits, budget.label)
    if not is_reachable(table, whole):
        context.log.tell_once(
            [f"no control with fewer bits for {parent.id} at {budget.label}: the space has no such bits"]
        )
        return
    known = name in context.log.decoded
    losses = np.zeros(pruning.job.plan.space.allowed.shape) if known else pruning.sensitivity_losses
    layers = pruning.job.plan.space.layers_of(allocate_widest(-losses, table, whole))
    yield context.log.keep(name, layers, FewerBits(kind=FEWER_BITS, run=pruning.label, parent=parent.id), budget)


def _spread_out(trials: Sequence[PruningTrial], count: int) -> list[PruningTrial]:
    """At most ``count`` trials of a front, evenly spread along it, its ends among them."""
    if len(trials) <= count:
        return list(trials)
    if count == 1:
        return [trials[len(trials) // 2]]
    return [trials[round(i * (len(trials) - 1) / (count - 1))] for i in range(count)]
