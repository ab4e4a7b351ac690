"""What is to be pruned: the groups, the space of their ratios with exact costs, the budgets; made before any trial."""

from __future__ import annotations

from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import cached_property

import numpy as np

from bayesopt.proposers import CostRange, Proposer, make_proposer
from bayesopt.ratios import RatioSpace
from dnas.config.job import PruneSection
from dnas.jobs.context import JobContext
from dnas.jobs.job import Job
from dnas.training.schedules import derived_seed
from search_spaces.assignments import BitAssignment
from search_spaces.costs.amounts import number_text
from search_spaces.costs.budgets import Budget, parse_budget
from search_spaces.costs.pruned import PrunedCosts
from search_spaces.costs.table import CostTable
from search_spaces.errors import InputError, nearest
from search_spaces.groups import ChannelGroups
from search_spaces.provenance import FEWER_BITS, PRUNED, PRUNED_RANDOM, PRUNED_UNIFORM

_ROUNDING = 1e-9  # of percentages


@dataclass(frozen=True)
class PruneTarget:
    """One assignment to prune: by which options, and the number of its first result among all of that assignment."""

    parent: BitAssignment
    section: PruneSection
    first: int = 1


def result_numbers(section: PruneSection, first: int = 1) -> range:
    """The numbers of what pruning one assignment gives: one for each budget, or for each point of a front."""
    return range(first, first + (len(section.budgets) or section.finalists))


def result_ids(parent: str, section: PruneSection, number: int) -> dict[str, str]:
    """Kind → id of everything that pruning ``parent`` gives under one number, as far as it can be had."""
    wanted = {
        PRUNED_UNIFORM: "uniform" in section.controls,
        PRUNED_RANDOM: tries_random(section),
        FEWER_BITS: "fewer-bits" in section.controls,
    }
    kinds = [PRUNED, *(kind for kind, asked in wanted.items() if asked and section.budgets)]
    return {kind: f"{parent}-{kind}-{number}" for kind in kinds}


def tries_random(section: PruneSection) -> bool:
    """Whether there is a control of as many random trials."""
    return "random" in section.controls and section.proposer != "random"


class Pruning:
    """Everything about one target that is the same in all of its trials; made before any of them.

    Raises :class:`InputError` for what cannot work: no groups, a budget out of reach, a pattern that fits nothing.
    """

    def __init__(self, context: JobContext, target: PruneTarget) -> None:
        self.context, self.job, self.parent, self.section = context, context.job, target.parent, target.section
        self.label = f"prune-{target.parent.id}" + (f"-{target.first}" if target.first > 1 else "")
        self.first = target.first
        self.groups = prunable_groups(context.job, target.section)
        self.space = ratio_space(context.job, target.parent, target.section, self.groups)
        self.budgets = own_budgets(context.job, target.parent, target.section)
        for budget in self.budgets:
            self.space.check_reachable(budget.limits)
        if not self.budgets:
            least = self.space.costs(self.space.least())["size_bytes"]
            self.range = CostRange("size_bytes", least, self.space.costs(self.space.most())["size_bytes"])
        self._try_proposer()

    def proposer(self, name: str) -> Proposer:
        """The proposer of that name for all budgets, or for the whole front without any."""
        targets = [budget.limits for budget in self.budgets] or self.range
        seed = derived_seed(self.job.config.seed, self.label, name) % 2**32
        return make_proposer(name, self.space, targets, seed=seed, total=self.total)

    def _try_proposer(self) -> None:
        """Refuse a proposer that is not installed, and one of the user's own that cannot propose anything."""
        made = self.proposer(self.section.proposer)
        if ":" in self.section.proposer:
            made.try_engine(self.total)

    @cached_property
    def sensitivity_losses(self) -> np.ndarray:
        """What each choice of bits costs in loss, for the control with fewer bits; computed once for all budgets."""
        return self.context.sensitivities.evidence.sensitivities

    @property
    def total(self) -> int:
        """Trials in all."""
        return self.section.trials * max(1, len(self.budgets))


def prunable_groups(job: Job, section: PruneSection) -> ChannelGroups:
    """The network's groups but the excluded ones; :class:`InputError` where none is left or a pattern fits none."""
    groups = job.plan.graph.channels
    if groups.unknown:
        raise InputError(f"the network cannot be pruned: {groups.unknown}; set prune.enabled = false")
    for key, patterns in (("exclude", section.exclude), ("fix", section.fix)):
        for pattern in patterns:
            if not any(fnmatchcase(name, pattern) for name in groups.names):
                raise InputError(
                    f"prune.{key}: no channel group fits '{pattern}'; there are {', '.join(groups.names[:12])}"
                    f"{', ...' if len(groups.names) > 12 else ''}{nearest(pattern, groups.names)}"
                )
    left = tuple(g for g in groups.groups if not any(fnmatchcase(g.name, pattern) for pattern in section.exclude))
    if not left:
        raise InputError("no channel group is left to prune; `dnas doctor` says why layers keep their filters")
    return replace(groups, groups=left)


def ratio_space(job: Job, parent: BitAssignment, section: PruneSection, groups: ChannelGroups) -> RatioSpace:
    """The ratios of all groups and what the rest costs at the parent's bits."""
    table = job.plan.table
    costs = PrunedCosts(table, parent.layers, _shrinking(table))
    everything = {group.name: group.units for group in job.plan.graph.channels.groups}
    fixed = {
        group.name: ratio
        for pattern, ratio in section.fix.items()
        for group in groups.groups
        if fnmatchcase(group.name, pattern)
    }
    return RatioSpace(
        groups.names,
        tuple(group.units for group in groups.groups),
        lambda counts: costs({**everything, **counts}),
        max_ratio=section.max_ratio,
        min_keep=[min(section.min_keep, group.units) for group in groups.groups],
        round_to=section.round_to,
        fixed=fixed,
    )


def _shrinking(table: CostTable) -> list[str]:
    """The costs that pruning can lower."""
    return [name for name, cost in table.costs.items() if cost.shrinks]


def own_budgets(job: Job, parent: BitAssignment, section: PruneSection) -> list[Budget]:
    """The section's budgets; a plain percentage is of the parent's own cost."""
    budgets = []
    for entry in section.budgets:
        for name in entry:
            job.plan.table.require(name, "prune.budgets")
            known = _shrinking(job.plan.table)
            if name not in known:
                raise InputError(f"prune.budgets: '{name}' is not one of {', '.join(known)}{nearest(name, known)}")
        budget = parse_budget(entry, job.plan.table, own=parent.cost)
        for name, limit in budget.limits.items():
            if limit > parent.cost[name] * (1 + _ROUNDING):
                raise InputError(
                    f"prune.budgets: '{budget.label}' is more than the {number_text(parent.cost[name])} that "
                    f"{parent.id} takes with all its filters; ask for less than 100%"
                )
        budgets.append(budget)
    return budgets
