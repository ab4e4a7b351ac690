"""The stage `prune`: ratios per channel group for measured assignments, found by trials and proved by fine-tuning.

Ours throughout, as the paper (Guerra et al., arXiv 2002.00523) leaves it open: trials measure the trained quantized net
with filters removed and BatchNorm re-estimated; the best few are fine-tuned shortly and the best of these is kept.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from bayesopt.criteria import rankings
from bayesopt.trials import PruningTrial, best_trials, front_trials, run_trials
from dnas.config.job import PruneSection
from dnas.jobs.context import JobContext, Stage
from dnas.jobs.progress import FORWARD
from dnas.jobs.stages.measure import Measurer
from dnas.jobs.stages.prune_plan import PruneTarget, Pruning
from dnas.jobs.stages.prune_trials import Orders, Trials, open_trials
from dnas.jobs.stages.trial_events import BAYESIAN, RANDOM, known_trials, trial_event
from dnas.jobs.training import teacher_of
from dnas.quantization.calibration import recalibrate_batchnorm
from dnas.training.trainer import Trainer, evaluate
from results.events import Finalist
from search_spaces.allocation.program import allocate, is_reachable
from search_spaces.assignments import BitAssignment
from search_spaces.costs.budgets import Budget
from search_spaces.errors import JobError
from search_spaces.groups import kept_rows
from search_spaces.provenance import FEWER_BITS, PRUNED, PRUNED_RANDOM, PRUNED_UNIFORM, FewerBits, Pruned


def prune_all(context: JobContext, measurer: Measurer, targets: Sequence[PruneTarget]) -> list[BitAssignment]:
    """Prune every target; returns the pruned assignments and their controls, not yet fine-tuned at length."""
    prunings = [Pruning(context, target) for target in targets]
    return [found for pruning in prunings for found in _prune(pruning, measurer)]


def _prune(pruning: Pruning, measurer: Measurer) -> Iterator[BitAssignment]:
    context, section = pruning.context, pruning.section
    orders = removal_orders(pruning, measurer)
    with open_trials(context, pruning.parent.id, orders, section) as trials:
        found = _trials(pruning, BAYESIAN, section.proposer, trials)
        is_control = "random" in section.controls and section.proposer != "random"
        random = _trials(pruning, RANDOM, "random", trials) if is_control else []
        for number, budget in enumerate(pruning.budgets, start=pruning.first):
            name = f"{pruning.parent.id}-pruned"
            chosen = _chosen(pruning, f"{name}-{number}", found, budget, trials)
            yield _keep(pruning, f"{name}-{number}", PRUNED, chosen, orders, budget)
            if "uniform" in section.controls:
                uniform = pruning.space.named(pruning.space.uniform(budget.limits))
                yield _keep(pruning, f"{name}-uniform-{number}", PRUNED_UNIFORM, uniform, orders, budget)
            if random:
                chosen = _chosen(pruning, f"{name}-random-{number}", random, budget, trials)
                yield _keep(pruning, f"{name}-random-{number}", PRUNED_RANDOM, chosen, orders, budget)
            if "fewer-bits" in section.controls:
                yield from _fewer_bits(pruning, f"{pruning.parent.id}-fewer-bits-{number}", budget)
        if not pruning.budgets:
            front = _spread_out(front_trials(found, "size_bytes"), section.finalists)
            context.progress.drop((section.finalists - len(front)) * _measuring_work(context))
            for number, trial in enumerate(front, start=pruning.first):
                name = f"{pruning.parent.id}-pruned-{number}"
                yield _keep(pruning, name, PRUNED, trial.counts, orders, None)


def removal_orders(pruning: Pruning, measurer: Measurer) -> dict[str, tuple[int, ...]]:
    """The order in which the filters of each group go, judged on the parent's trained net."""
    network = measurer.stored(pruning.parent, 0)
    criterion, parent, groups = pruning.section.criterion, pruning.parent, pruning.groups
    batches = pruning.context.labelled_batches("importance", pruning.section.batchnorm_batches)
    seed = pruning.context.config.seed
    if criterion != "auto":
        found = rankings(network, groups, criterion, batches=batches, seed=seed)
        return {name: ranking.order for name, ranking in found.items()}
    orders = {}
    for group in groups.groups:
        binary = all(parent.layers[layer].weight_bits == 1 for layer in group.layers)
        one = replace(groups, groups=(group,))
        orders[group.name] = rankings(network, one, "hamming" if binary else "geometric")[group.name].order
    return orders


def _trials(pruning: Pruning, kind: str, name: str, trials: Trials) -> list[PruningTrial]:
    """All trials of one proposer, those of the journal first."""
    context, section = pruning.context, pruning.section
    known = known_trials(context, pruning.label, kind)
    context.progress.advance(len(known) * trial_work(context, section))
    proposer = pruning.proposer(name)
    if kind == BAYESIAN:
        context.tell_once([*proposer.notes])
    found = list(known)
    for trial in run_trials(proposer, trials, total=pruning.total, batch=section.batch, known=known):
        found.append(trial)
        context.journal(trial_event(pruning.label, kind, trial))
        context.progress.step(trial_work(context, section), **_trial_facts(pruning, kind, found))
    if len(found) < pruning.total:
        context.progress.drop((pruning.total - len(found)) * trial_work(context, section))
        context.tell_once([f"{pruning.label}: every configuration within the budgets was tried, {len(found)} in all"])
    return found


def trial_work(context: JobContext, section: PruneSection) -> float:
    """Work of one trial in image passes."""
    images = min(section.proxy_images or len(context.data.val), len(context.data.val))
    return FORWARD * (images + section.batchnorm_batches * context.config.data.batch_size)


def _trial_facts(pruning: Pruning, kind: str, found: Sequence[PruningTrial]) -> dict[str, Any]:
    """What the display shows of the last trial."""
    last = found[-1]
    same = [trial for trial in found if trial.proposal.budget == last.proposal.budget]
    best = min((trial.loss for trial in same if trial.loss is not None), default=math.nan)
    return {
        "stage": "prune",
        "run": pruning.label if kind == BAYESIAN else f"{pruning.label} ({kind})",
        "trial": len(found),
        "trials": pruning.total,
        "loss": math.nan if last.loss is None else last.loss,
        "best": best,
        "top1": last.top1,
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
        pruning.context.progress.drop(_finalist_work(pruning) * section.finalists)
        return finalists[0].counts
    pruning.context.progress.drop(_finalist_work(pruning) * (section.finalists - len(finalists)))
    scores = [_short_finetune(pruning, f"{name}-finalist-{n}", t, trials) for n, t in enumerate(finalists, start=1)]
    best = max(range(len(finalists)), key=lambda n: (scores[n], -n))
    return finalists[best].counts


def _finalist_work(pruning: Pruning) -> float:
    return pruning.context.work.finetune * pruning.section.finetune_epochs


def _short_finetune(pruning: Pruning, name: str, trial: PruningTrial, trials: Trials) -> tuple[float, float]:
    """Validation accuracy and negated loss of a finalist after a short fine-tuning; journaled."""
    context = pruning.context
    for finalist in context.events(Finalist):
        if finalist.run == name:
            context.run.delete_checkpoint(name)  # a kill may have come before it was
            context.progress.advance(_finalist_work(pruning))
            return finalist.top1, -finalist.loss
    network = trials.objective.pruned(trial.counts)
    config = context.config
    trainer = Trainer(
        network,
        config.finetune.model_copy(update={"epochs": pruning.section.finetune_epochs}),
        images=context.data.train,
        batch_size=config.data.batch_size,
        augmentation=context.augmentation,
        seed=config.seed,
        label="finalist",
        device=context.device,
        teacher=teacher_of(context.network, config.finetune.distillation),
    )
    context.train(trainer, Stage("prune", name, name, context.work.finetune))
    recalibrate_batchnorm(network, trials.objective.batchnorm_images)
    measured = evaluate(network.eval(), context.data.val, config.data.batch_size, context.device)
    found = Finalist(
        run=name,
        top1=measured.top1,
        loss=measured.loss,
        proxy_loss=trial.loss,
        proxy_top1=trial.top1,
        number=trial.proposal.number,
    )
    context.journal(found)
    context.run.delete_checkpoint(name)
    return measured.top1, -measured.loss


def _keep(
    pruning: Pruning, name: str, kind: str, counts: Mapping[str, int], orders: Orders, budget: Budget | None
) -> BitAssignment:
    """Save the pruned assignment: the parent's bits, and the filters that stay."""
    kept = {group: tuple(sorted(order[len(order) - counts[group] :])) for group, order in orders.items()}
    rows = kept_rows(pruning.context.plan.graph.channels, kept)
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
    return pruning.context.keep(name, layers, made, budget)


def _fewer_bits(pruning: Pruning, name: str, budget: Budget) -> Iterator[BitAssignment]:
    """All filters at fewer bits: the integer program within the budget, and no dearer than the parent in anything."""
    context, parent = pruning.context, pruning.parent
    table = context.plan.table
    limits = {cost: parent.cost[cost] for cost in ("size_bytes", "bitops")} | dict(budget.limits)
    whole = Budget(limits, budget.label)
    if not is_reachable(table, whole):
        context.tell_once([f"no control with fewer bits for {parent.id} at {budget.label}: the space has no such bits"])
        context.progress.drop(_measuring_work(context))
        return
    known = name in context.decoded
    losses = np.zeros(context.plan.space.allowed.shape) if known else pruning.sensitivity_losses
    layers = context.plan.space.layers_of(allocate(-losses, table, whole))
    yield context.keep(name, layers, FewerBits(kind=FEWER_BITS, run=pruning.label, parent=parent.id), budget)


def _measuring_work(context: JobContext) -> float:
    """Work of fine-tuning one assignment over all seeds before it is measured."""
    return context.work.finetune * context.config.finetune.epochs * context.config.finetune.seeds


def _spread_out(trials: Sequence[PruningTrial], count: int) -> list[PruningTrial]:
    """At most ``count`` trials of a front, evenly spread along it, its ends among them."""
    if len(trials) <= count:
        return list(trials)
    if count == 1:
        return [trials[len(trials) // 2]]
    return [trials[round(i * (len(trials) - 1) / (count - 1))] for i in range(count)]
