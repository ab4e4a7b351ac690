"""What a trial of pruning is worth, on a finished run with a pruned uniform assignment.

Run from the repository root::

    python -m benchmarks.pruning criteria RUN ASSIGNMENT      # the criteria at equal ratios, no fine-tuning
    python -m benchmarks.pruning rank RUN ASSIGNMENT          # a trial against a short fine-tuning, Kendall's tau
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path

import numpy as np
from scipy.stats import kendalltau

from bayesopt.criteria import CRITERIA, rankings
from bayesopt.proposers import make_proposer
from dnas.config.file import load_job
from dnas.jobs.context import JobContext
from dnas.jobs.stages.measure import Measurer
from dnas.jobs.stages.prune_plan import PruneTarget, Pruning
from dnas.jobs.stages.prune_trials import TrialNets
from dnas.jobs.stages.pruning import removal_orders
from dnas.quantization.calibration import recalibrate_batchnorm
from dnas.training.trainer import Trainer, evaluate
from results.run.folder import Run

RATIOS = (0.3, 0.5)
CONFIGURATIONS = 24


def opened(folder: str, assignment: str) -> tuple[JobContext, Pruning]:
    run = Run.open(Path(folder))
    context = JobContext(load_job(str(run.folder / "job.toml")), run, lambda event: None)
    return context, Pruning(context, PruneTarget(run.assignment(assignment), context.job.config.prune))


def compare_criteria(folder: str, name: str) -> None:
    context, pruning = opened(folder, name)
    measurer, section = Measurer(context), pruning.section
    batches = context.job.labelled_batches("importance", section.batchnorm_batches)
    print(f"{name}: validation top-1 % after removing filters, BatchNorm re-estimated, no fine-tuning")
    print("| criterion | " + " | ".join(f"{100 * ratio:.0f} % of every group" for ratio in RATIOS) + " |")
    print("|---" * (1 + len(RATIOS)) + "|")
    for criterion in CRITERIA:
        cells = []
        for ratio in RATIOS:
            values = []
            for seed in range(context.job.config.finetune.seeds):
                network = measurer.stored(pruning.parent, seed)
                found = rankings(network, pruning.groups, criterion, batches=batches, seed=seed)
                orders = {group: ranking.order for group, ranking in found.items()}
                objective = TrialNets(context, section).objective(name, orders)
                objective.network = network
                counts = {g.name: max(section.min_keep, round(g.units * (1 - ratio))) for g in pruning.groups.groups}
                values.append(100 * objective(counts).top1)
            cells.append(f"{statistics.mean(values):.2f} ± {statistics.stdev(values) if len(values) > 1 else 0:.2f}")
        print(f"| {criterion} | " + " | ".join(cells) + " |", flush=True)


def rank_trials(folder: str, name: str) -> None:
    context, pruning = opened(folder, name)
    network = Measurer(context).stored(pruning.parent, 0)
    orders = removal_orders(context.job, network, pruning.parent, pruning.section)
    objective = TrialNets(context, pruning.section).objective(name, orders)
    config = context.job.config
    proposer = make_proposer("random", pruning.space, [pruning.budgets[0].limits], seed=1, total=CONFIGURATIONS)
    proxies, tuned = [], []
    for proposal in proposer.ask(CONFIGURATIONS):
        proxies.append(objective(proposal.counts))
        network = objective.pruned(proposal.counts)
        trainer = Trainer(
            network,
            config.finetune.model_copy(update={"epochs": 1}),
            images=context.job.data.train,
            batch_size=config.data.batch_size,
            augmentation=context.job.augmentation,
            seed=config.seed,
            label="rank",
        )
        for _ in trainer.epochs():
            pass
        recalibrate_batchnorm(network, objective.batchnorm_images)
        tuned.append(evaluate(network.eval(), context.job.data.val, config.data.batch_size))
        figures = (f"{m.loss:.4f} {100 * m.top1:.2f} %" for m in (proxies[-1], tuned[-1]))
        print("trial {}, after an epoch {}".format(*figures), flush=True)
    pairs = {
        "trial loss, loss after an epoch": ([p.loss for p in proxies], [t.loss for t in tuned]),
        "trial loss, error after an epoch": ([p.loss for p in proxies], [-t.top1 for t in tuned]),
        "trial error, error after an epoch": ([-p.top1 for p in proxies], [-t.top1 for t in tuned]),
    }
    for what, (first, second) in pairs.items():
        tau, chance = kendalltau(np.array(first), np.array(second))
        configurations = f"{len(first)} random configurations at {pruning.budgets[0].label}"
        print(f"{name}, {configurations}: {what}: tau {tau:.2f} (p {chance:.3f})")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("criteria", "rank"))
    parser.add_argument("run")
    parser.add_argument("assignment")
    arguments = parser.parse_args()
    {"criteria": compare_criteria, "rank": rank_trials}[arguments.what](arguments.run, arguments.assignment)


if __name__ == "__main__":
    main()
