"""How much of a job is done, told step by step: every stage announces its work in image passes beforehand."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from dnas.config import JobConfig
from dnas.planning import Plan

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

    def step(self, work: float, **fields: Any) -> None:
        """Count the work of one step and report where the job stands."""
        self.advance(work)
        self.report({"event": "progress", "fraction": self.done / self.total, **fields})


def planned_work(config: JobConfig, plan: Plan, images: int, judges: int) -> float:
    """Work of a whole job in image passes, for ``images`` training and ``judges`` validation images."""
    search, controls = config.search, config.controls
    searches = max(1, len(plan.budgets))
    theta = round(search.theta_fraction * images)
    weights = images - theta
    per_epoch = TRAIN_QUANTIZED * (theta + (weights if search.weight_updates != "frozen" else 0))
    candidates = searches + len(controls.uniform) + len(plan.budgets) * (int(controls.ilp) + controls.random)
    if search.sample_every:
        candidates += search.samples * (search.epochs // search.sample_every)
    return (
        TRAIN * images * config.pretrain.epochs
        + (TRAIN_QUANTIZED * weights + FORWARD * judges) * search.warmup_epochs
        + (per_epoch + 2 * FORWARD * judges) * search.epochs * searches
        + TRAIN_QUANTIZED * images * config.finetune.epochs * config.finetune.seeds * candidates
    )
