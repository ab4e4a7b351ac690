"""Pruning measured assignments: ratios per channel group, found by trials and proved by fine-tuning.

Ours throughout, as the paper (Guerra et al., arXiv 2002.00523) leaves it open: trials measure the trained quantized net
with filters removed and BatchNorm re-estimated; the best few are fine-tuned shortly and the best of these is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from torch import Tensor, nn

from bayesopt.criteria import rankings
from bayesopt.trials import PruningTrial, best_trials, front_trials
from dnas.config.job import PruneSection
from dnas.execution.tasks import JobTask
from dnas.jobs.context import JobContext, Place
from dnas.jobs.job import Job
from dnas.jobs.progress import FORWARD_QUANTIZED, Work
from dnas.jobs.stages.measure import FINETUNE, Measurer, finetune_units
from dnas.jobs.stages.prune_plan import (
    PruneTarget,
    Pruning,
    prunable_groups,
    result_ids,
    result_numbers,
    tries_random,
)
from dnas.jobs.stages.prune_trials import Orders, Trials, objective_of, trial_units
from dnas.jobs.stages.trial_events import BAYESIAN, RANDOM
from dnas.jobs.stages.trial_search import TrialPlace, TrialSearch, take_turns
from dnas.quantization.calibration import recalibrate_batchnorm
from dnas.training.task import Task
from dnas.training.trainer import Trainer
from results.events import Finalist
from results.run.layout import checkpoint_file
from search_spaces.allocation.program import is_reachable
from search_spaces.allocation.widening import allocate_widest
from search_spaces.assignments import BitAssignment
from search_spaces.costs.budgets import Budget
from search_spaces.errors import JobError
from search_spaces.groups import kept_rows
from search_spaces.provenance import FEWER_BITS, PRUNED, PRUNED_RANDOM, PRUNED_UNIFORM, FewerBits, Pruned

PRUNE, TRIAL = "prune", "trial of a pruning"


def prune_all(context: JobContext, targets: Sequence[PruneTarget]) -> list[BitAssignment]:
    """Prune every target; returns the pruned assignments and their controls, not yet fine-tuned at length.

    Trials of all targets take turns, and finalists of all are trained at once, where workers do that.
    """
    prunings = [Pruning(context, target) for target in targets]
    tasks = [order_task(pruning) for pruning in prunings]
    all_orders = context.outcomes(tasks)
    begun = [_Begun(pruning, orders) for pruning, orders in zip(prunings, all_orders, strict=True)]
    take_turns([search for each in begun for search in each.searches.values()])
    for each in begun:
        each.announce_finalists()
    return [found for each in begun for found in each.results()]


class _Begun:
    """A pruning whose filters are in order: its searches, and what comes of them."""

    def __init__(self, pruning: Pruning, orders: Mapping[str, Sequence[int]]) -> None:
        self.pruning, self.context, self.section = pruning, pruning.context, pruning.section
        self.orders = {name: tuple(order) for name, order in orders.items()}
        self.trials = Trials(self.context, pruning.parent, self.orders, self.section, pruning.label)
        self.searches = {BAYESIAN: self._search(BAYESIAN, self.section.proposer)}
        if tries_random(self.section):
            self.searches[RANDOM] = self._search(RANDOM, "random")

    def _search(self, kind: str, name: str) -> TrialSearch:
        pruning, section = self.pruning, self.section
        proposer = pruning.proposer(name)
        if kind == BAYESIAN:
            self.context.log.tell_once([*proposer.notes])
        units = trial_units(pruning.job, section)
        place = TrialPlace(PRUNE, pruning.label, kind, TRIAL, units, pruning.total, section.batch)
        return TrialSearch(self.context, place, proposer, partial(self.trials.measured, kind))

    def announce_finalists(self) -> None:
        """Let the short fine-tunings of all budgets begin."""
        for kind, name, budget in self._wanted():
            if search := self._searched(kind):
                known = {finalist.run for finalist in self.context.log.events(Finalist)}
                _, tasks = self._finalists(name, search.found, budget)
                self.context.tasks.announce(task for run, task in tasks.items() if run not in known)

    def results(self) -> Iterator[BitAssignment]:
        """Everything that can be had, saved and journaled."""
        for kind, name, budget in self._wanted():
            yield from self._result(kind, name, budget)
        if self.pruning.budgets:
            return
        front = _spread_out(front_trials(self.searches[BAYESIAN].found, "size_bytes"), self.section.finalists)
        for number, trial in zip(result_numbers(self.section, self.pruning.first), front, strict=False):
            name = result_ids(self.pruning.parent.id, self.section, number)[PRUNED]
            yield _keep(self.pruning, name, PRUNED, trial.counts, self.orders, None)

    def _wanted(self) -> Iterator[tuple[str, str, Budget]]:
        """Kind, id and budget of every result within a budget."""
        numbers = result_numbers(self.section, self.pruning.first)
        for number, budget in zip(numbers, self.pruning.budgets, strict=False):
            for kind, name in result_ids(self.pruning.parent.id, self.section, number).items():
                yield kind, name, budget

    def _searched(self, kind: str) -> TrialSearch | None:
        """The search whose best trial becomes a result of this kind, if any does."""
        return self.searches.get({PRUNED: BAYESIAN, PRUNED_RANDOM: RANDOM}.get(kind, ""))

    def _result(self, kind: str, name: str, budget: Budget) -> Iterator[BitAssignment]:
        """One result of a budget, if it can be had."""
        pruning = self.pruning
        if kind == FEWER_BITS:
            yield from _fewer_bits(pruning, name, budget)
        elif kind == PRUNED_UNIFORM:
            uniform = pruning.space.named(pruning.space.uniform(budget.limits))
            yield _keep(pruning, name, kind, uniform, self.orders, budget)
        elif (search := self._searched(kind)) and search.found:
            chosen = self._chosen(name, search.found, budget)
            yield _keep(pruning, name, kind, chosen, self.orders, budget)

    def _finalists(
        self, name: str, found: Sequence[PruningTrial], budget: Budget
    ) -> tuple[list[PruningTrial], dict[str, JobTask]]:
        """The best trials within a budget, and by name the short fine-tuning of each, where a choice is left."""
        section = self.section
        best, epochs = best_trials(found, budget.limits, section.finalists), section.finetune_epochs
        if not epochs or len(best) < 2:
            return best, {}
        work, tasks = finetune_units(self.pruning.job) * epochs, {}
        for number, trial in enumerate(best, start=1):
            own = f"{name}-finalist-{number}"
            options: dict[str, Any] = {"name": own, "epochs": epochs, "writes": (checkpoint_file(own),)}
            tasks[own] = self.trials.task(f"finalist {own}", finetune_finalist, trial.counts, work, **options)
        return best, tasks

    def _chosen(self, name: str, found: Sequence[PruningTrial], budget: Budget) -> Mapping[str, int]:
        """Of the best trials within a budget, the one that is best after a short fine-tuning."""
        best, tasks = self._finalists(name, found, budget)
        if not best:
            raise JobError(f"no trial of {self.pruning.label} met the budget {budget.label} with a finite loss")
        if not tasks:
            return best[0].counts
        scores = [self._finetuned(trial, *named) for trial, named in zip(best, tasks.items(), strict=True)]
        return best[max(range(len(best)), key=lambda n: (scores[n], -n))].counts

    def _finetuned(self, trial: PruningTrial, name: str, task: JobTask) -> tuple[float, float]:
        """Validation accuracy and negated loss of a finalist after a short fine-tuning; journaled."""
        context, job = self.context, self.pruning.job
        found = next((finalist for finalist in context.log.events(Finalist) if finalist.run == name), None)
        if found:
            context.progress.recall({FINETUNE: finetune_units(job) * self.section.finetune_epochs})
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


def order_task(pruning: Pruning) -> JobTask:
    """Working out in which order the filters of a pruning go."""
    context, parent = pruning.context, pruning.parent
    job = context.job
    inputs = {"assignment": parent.id, "section": pruning.section.model_dump(mode="json")}
    reads = (*context.reads_float, *Measurer(context).net_files(parent.id, 0))
    images = pruning.section.batchnorm_batches * job.config.data.batch_size
    return JobTask(
        f"filters of {pruning.label}", order_filters, inputs, job.config.seed, FORWARD_QUANTIZED * images, reads
    )


def order_filters(
    context: JobContext, seed: int, assignment: str, section: Mapping[str, Any]
) -> dict[str, tuple[int, ...]]:
    """The order in which the filters of each group go, judged on the assignment's trained net."""
    parent, options = context.log.run.assignment(assignment), PruneSection.model_validate(section)
    return removal_orders(context.job, Measurer(context).stored(parent, 0), parent, options)


def removal_orders(
    job: Job, network: nn.Module, parent: BitAssignment, section: PruneSection
) -> dict[str, tuple[int, ...]]:
    """The order in which the filters of each group go, judged on the trained ``network`` of ``parent``."""
    groups, criterion = prunable_groups(job, section), section.criterion
    batches = job.labelled_batches("importance", section.batchnorm_batches)
    if criterion != "auto":
        loss, run, seed = task_loss(job.task), job.task.run, job.config.seed
        found = rankings(network, groups, criterion, batches=batches, loss_sum=loss, run=run, seed=seed)
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


def prune_work(job: Job, section: PruneSection) -> Work:
    """Work of pruning one assignment: the trials, and the short fine-tuning of the finalists."""
    budgets, searches = len(section.budgets), 1 + (tries_random(section) and bool(section.budgets))
    finalists = section.finalists if section.finalists > 1 else 0
    return {
        TRIAL: trial_units(job, section) * section.trials * max(1, budgets) * searches,
        FINETUNE: finetune_units(job) * section.finetune_epochs * finalists * budgets * searches,
    }


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
