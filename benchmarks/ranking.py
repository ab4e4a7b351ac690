"""What makes a supernet rank: Kendall's τ of its losses with fine-tuned accuracy, one ingredient changed at a time.

Assignments that spend a budget are fine-tuned once for each job seed; every way to warm a supernet up is held against
the same ones. BatchNorm is judged estimated anew, by the statistics of each batch, and as the warm-up left it.

    python -m benchmarks.ranking [JOB] [--seeds 0 1 2] [--budgets 2 3] [--assignments 20] [--set KEY=VALUE ...]

With --search the searches of the same budgets are carried out as well, from each supernet and by each pull to the
budget, and what they find is fine-tuned.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

from dnas.config.file import load_job
from dnas.config.job import SearchSection
from dnas.jobs.job import Job
from dnas.jobs.ranking import finetuned_net
from dnas.jobs.training import teacher_of
from dnas.quantization.calibration import batch_statistics, calibrate
from dnas.search.ranking import random_assignments, rank_correlation, supernet_loss
from dnas.search.records import EpochRecord
from dnas.search.supernet import Supernet
from dnas.search.trainer import SupernetTrainer
from dnas.training.schedules import derived_seed
from dnas.training.trainer import Trainer
from search_spaces.allocation.program import Cells

SOFT = {"sampling": "gumbel", "temperature_start": 5.0, "temperature_end": 0.5}
WARMUPS: dict[str, dict[str, Any]] = {
    "calibrated, not warmed up": {"warmup_epochs": 0},
    "soft mixtures": SOFT,
    "soft mixtures, 3 × the epochs": {**SOFT, "warmup_epochs": 15},
    "hard samples": {},
    "hard samples, 3 × the epochs": {"warmup_epochs": 15},
    "hard samples, taught": {"distillation": 0.5},
    "sandwich": {"warmup": "sandwich"},
    "sandwich, taught": {"warmup": "sandwich", "distillation": 0.5},
    "sandwich, taught, 3 × the epochs": {"warmup": "sandwich", "distillation": 0.5, "warmup_epochs": 15},
}
PULLS: dict[str, dict[str, Any]] = {
    "hinge": {"loss": "hinge", "penalty": 1.0},
    "two-sided": {"loss": "two_sided", "penalty": 4.0},
}


@dataclass
class Study:
    """One seed of a job: its pretrained network, and what fine-tuning made of assignments."""

    job: Job
    scores: dict[tuple[tuple[int, int], ...], float] = field(default_factory=dict)

    @classmethod
    def of(cls, source: str, settings: Sequence[str], seed: int) -> Study:
        job = Job.of(load_job(source, ["prune.enabled=false", "finalise.enabled=false", *settings, f"seed={seed}"]))
        if job.config.pretrain.epochs:
            trainer = Trainer(
                job.network, job.config.pretrain, images=job.data.train, batch_size=job.config.data.batch_size,
                augmentation=job.augmentation, seed=seed, label="pretrain", device=job.device, task=job.task,
            )  # fmt: skip
            for _ in trainer.epochs():
                pass
        job.network.eval()
        return cls(job)

    def finetuned(self, cells: Cells) -> float:
        """Score of the fine-tuned net on validation."""
        key = tuple(cells)
        if key not in self.scores:
            net = finetuned_net(self.job, self.job.network, cells, self.job.config.finetune.epochs)
            self.scores[key] = self.job.measured(net, self.job.data.val).score
        return self.scores[key]

    def trainer(self, supernet: Supernet, section: SearchSection, label: str) -> SupernetTrainer:
        job = self.job
        return SupernetTrainer(
            supernet, section, job.search_data, seed=job.config.seed, label=label, device=job.device, task=job.task,
            teacher=teacher_of(job.network, section.distillation), budgets=job.plan.budgets,
        )  # fmt: skip

    def warmed(self, section: SearchSection) -> Supernet:
        job, plan = self.job, self.job.plan
        supernet = Supernet(job.network, plan.graph, plan.space, plan.table, job.choice, section.engine)
        supernet = supernet.to(job.device.place)
        calibrate(supernet.network, job.calibration_images())
        for _ in self.trainer(supernet, section, "warmup").warmup():
            pass
        return supernet.eval()

    def losses(self, supernet: Supernet, pool: Sequence[Cells]) -> dict[str, list[float]]:
        """The loss of every assignment by each way to judge it; running statistics change last."""
        job = self.job
        own = partial(self._loss, supernet)
        batches = job.batchnorm_images(10)
        anew = partial(
            supernet_loss, supernet, batches=batches, images=job.search_data.validation,
            batch_size=job.config.data.batch_size, device=job.device, task=job.task,
        )  # fmt: skip
        with batch_statistics(supernet.network):
            found = {"of each batch": [own(cells) for cells in pool]}
        found["of the warm-up"] = [own(cells) for cells in pool]
        return {"anew": [anew(cells) for cells in pool], **found}

    def _loss(self, supernet: Supernet, cells: Cells) -> float:
        supernet.eval()
        with supernet.sampled(supernet.one_hot(cells)):
            return self.job.measured(supernet, self.job.search_data.validation).loss


def ranks(studies: Sequence[Study], budgets: Sequence[int], count: int) -> None:
    """Print τ of every warm-up, budget and way to judge: the mean over seeds, and each."""
    for name, keys in WARMUPS.items():
        taus: dict[tuple[int, str], list[float]] = {}
        for study in studies:
            job = study.job
            supernet = study.warmed(job.config.search.model_copy(update=keys))
            for number in budgets:
                budget = job.plan.budgets[number - 1]
                seed = derived_seed(job.config.seed, "rank", budget.label)
                pool = random_assignments(job.plan.table, budget, count, seed)
                scores = [job.task.metric.gain(study.finetuned(cells)) for cells in pool]
                for how, losses in study.losses(supernet, pool).items():
                    taus.setdefault((number, how), []).append(rank_correlation(losses, scores)["tau"] or 0.0)
        for (number, how), found in taus.items():
            each = " ".join(f"{tau:.2f}" for tau in found)
            print(f"{name} | budget {number} | BatchNorm {how} | {statistics.mean(found):.2f} | {each}", flush=True)


def searches(studies: Sequence[Study], budgets: Sequence[int]) -> None:
    """Print where E[cost] ends relative to its limit, and what the decoded net is worth after fine-tuning."""
    for warmup, keys in WARMUPS.items():
        for pull, own in PULLS.items():
            rows: list[tuple[float, EpochRecord, float]] = []
            for study in studies:
                section = study.job.config.search.model_copy(update={**keys, **own})
                supernet = study.warmed(section)
                warm = {name: value.clone() for name, value in supernet.state_dict().items()}
                for number in budgets:
                    supernet.load_state_dict(warm)
                    budget = study.job.plan.budgets[number - 1]
                    *_, last = study.trainer(supernet, section, f"search-{number}").search(budget)
                    spent = max(last.expected[name] / limit for name, limit in budget.limits.items())
                    rows.append((spent, last, study.finetuned(supernet.decode(budget))))
            spent = ", ".join(f"{row[0]:.2f}" for row in rows)
            gap = statistics.mean(row[1].score - (row[1].argmax_score or 0.0) for row in rows)
            score = statistics.mean(row[2] for row in rows)
            print(
                f"{warmup} | {pull} | E[cost] / limit {spent} | soft - argmax {gap:.3f} | fine-tuned {score:.4f}",
                flush=True,
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("job", nargs="?", default="digits")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--budgets", type=int, nargs="+", default=[2, 3])
    parser.add_argument("--assignments", type=int, default=20)
    parser.add_argument("--search", action="store_true")
    parser.add_argument("--set", dest="settings", action="append", default=[], metavar="KEY=VALUE")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    studies = [Study.of(asked.job, asked.settings, seed) for seed in asked.seeds]
    ranks(studies, asked.budgets, asked.assignments)
    if asked.search:
        searches(studies, asked.budgets)


if __name__ == "__main__":
    main()
