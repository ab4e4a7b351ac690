"""How much of a job is done, told step by step: every stage announces its work in image passes beforehand."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from dnas.config.job import JobConfig

Report = Callable[[Mapping[str, Any]], None]

FORWARD, TRAIN, TRAIN_QUANTIZED = 1.0, 3.0, 4.0
"""Work of one image in a measurement, a float training step and a quantized one."""


class Progress:
    """Counts work done against work planned and passes it on with each step."""

    def __init__(self, total: float, report: Report) -> None:
        self.total, self.done, self.report = max(total, 1.0), 0.0, report

    def advance(self, work: float) -> None:
        """Count ``work`` as done."""
        self.done = min(self.total, self.done + work)

    def add(self, work: float) -> None:
        """Plan for ``work`` more."""
        self.total += work

    def drop(self, work: float) -> None:
        """Take back ``work`` that turned out not to be needed."""
        self.total = max(self.done, self.total - work)

    def step(self, work: float, **fields: Any) -> None:
        """Count the work of one step and report where the job stands."""
        self.advance(work)
        self.report({"event": "progress", "fraction": self.done / self.total, **fields})


@dataclass(frozen=True)
class EpochWork:
    """Work of one epoch of each stage, its measurement on the judging images included."""

    pretrain: float
    warmup: float
    search: float
    finetune: float

    @classmethod
    def of(cls, config: JobConfig, weights: int, theta: int, validation_images: int) -> EpochWork:
        """The work for so many images that train the weights, train θ, and judge."""
        images = weights + theta
        searched = {"frozen": theta, "epoch": images, "step": 2 * weights}[config.search.weight_updates]
        return cls(
            pretrain=TRAIN * weights + FORWARD * validation_images,
            warmup=TRAIN_QUANTIZED * weights + FORWARD * validation_images,
            search=TRAIN_QUANTIZED * searched + 2 * FORWARD * validation_images,
            finetune=TRAIN_QUANTIZED * images + FORWARD * validation_images,
        )


def planned_work(config: JobConfig, work: EpochWork, budgets: int) -> float:
    """Work of a whole job in image passes, as if every assignment were another one."""
    search, controls = config.search, config.controls
    passes = config.order.count("search")
    searches = max(1, budgets) * passes
    if config.compression == "squantizer":
        sparse = config.squantizer
        in_budgets = len(sparse.budgets) * (2 if sparse.trials else 1)
        nets = len(set(sparse.weight_bits)) * (len(set(sparse.sigma)) + in_budgets) + len(controls.uniform)
        finetuned = config.finetune.epochs * config.finetune.seeds * nets
        return work.pretrain * config.pretrain.epochs + work.finetune * finetuned
    candidates = searches + len(controls.uniform) + budgets * (int(controls.ilp) + controls.random)
    if search.sample_every:
        candidates += searches * search.samples * (search.epochs // search.sample_every)
    return (
        work.pretrain * config.pretrain.epochs
        + work.warmup * search.warmup_epochs * passes
        + work.search * search.epochs * searches
        + work.finetune * config.finetune.epochs * config.finetune.seeds * candidates
    )
