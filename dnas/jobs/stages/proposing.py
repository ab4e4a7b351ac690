"""The pools of a job's budgets as assignments: what the searches, controls and programs propose, the best refined."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dnas.execution.tasks import JobTask
from dnas.jobs.context import JobContext
from dnas.jobs.progress import Work
from dnas.jobs.stages.refining import REFINE, refining_task, refining_units
from dnas.jobs.stages.search_names import proposal_id, search_labels
from dnas.search.learning import Learned, Seen
from dnas.search.pool import Proposal, Proposers, Widths, joined
from dnas.training.schedules import derived_seed
from results.events import Pool
from results.pools import THETA
from search_spaces.allocation.monotone import from_largest
from search_spaces.allocation.program import dominated
from search_spaces.allocation.widening import allocate_widest
from search_spaces.assignments import BitAssignment
from search_spaces.costs.budgets import Budget
from search_spaces.provenance import CONTROL, ILP, MEASURED_ILP, PROPOSAL, RANDOM, Provenance

LEARNED = "learned-"
_TRIES = 8  # draws, of which each may be known
_CONTROLS = (ILP, MEASURED_ILP, RANDOM, CONTROL)


@dataclass(frozen=True)
class Proposed:
    """A proposal, all that proposed it, and its ``loss`` in the supernet, if that was measured."""

    assignment: BitAssignment
    sources: tuple[str, ...]
    loss: float | None = None


@dataclass(frozen=True)
class Pools:
    """Makes the pools of a job's budgets from what was ``found`` before: proposals of the searches, and controls."""

    context: JobContext
    found: Sequence[BitAssignment]

    def of(self, labels: Sequence[str], bound: Widths | None) -> dict[str, list[Proposed]]:
        """The pools of these searches, nothing in them wider than ``bound``; what is new is not saved nor journaled."""
        known = {label: self._known(label) for label in labels}
        new = {label: self._proposers(label, bound).pool() for label in labels if known[label] is None}
        if self.context.job.config.choice.refined:
            tasks = {label: refining_task(self.context, label, pool, bound) for label, pool in new.items()}
            self.context.tasks.announce(tasks.values())
            new = {label: self._with_refined(pool, tasks[label]) for label, pool in new.items()}
        return {label: known[label] or self._described(label, new[label]) for label in labels}

    def _known(self, label: str) -> list[Proposed] | None:
        """The pool of a budget as an earlier process left it."""
        log = self.context.log
        *_, known = [None, *(event for event in log.events(Pool) if event.run == label)]
        if known is None or not set(known.proposals) <= set(log.decoded):
            return None
        self.context.progress.recall(refining_work(self.context, len(known.proposals)))
        pool = {name: log.run.assignment(name) for name in known.proposals}
        return [
            Proposed(each, known.proposals[name], known.supernet.get(name))
            for name, each in pool.items()
            if not each.provenance.start  # the bits of another, judged once more in the end
        ]

    def _with_refined(self, pool: Sequence[Proposal], task: JobTask) -> list[Proposal]:
        """The pool and what refining makes of its best, each choice once, with the losses in the supernet."""
        measured = [
            (tuple((int(w), int(a)) for w, a in widths), loss if math.isfinite(loss) else None)
            for widths, loss in self.context.outcome(task)
        ]
        new = range(1, 1 + len(measured) - len(pool))
        sources = [*(each.sources for each in pool), *((f"refined-{n}",) for n in new)]
        return joined(Proposal(widths, source, loss) for (widths, loss), source in zip(measured, sources, strict=True))

    def learned(
        self, label: str, pool: Sequence[Proposed], seen: Sequence[Seen], bound: Widths | None
    ) -> Proposed | None:
        """What losses that were ``seen`` propose for a budget beside its pool; None where that has enough of them.

        It is the best by the posterior mean, or where that is known the best by a draw.
        """
        job, budget, section = self.context.job, self._budget(label), self.context.job.config.choice
        number = 1 + sum(source.startswith(LEARNED) for each in pool for source in each.sources)
        if number > section.learned:
            return None
        evidence = self.context.sensitivities.evidence
        learned = Learned(job.plan.space, seen, [evidence.sensitivities, evidence.measured] if section.programs else [])
        known = [job.plan.space.pairs_of(each.assignment.layers) for each in pool]
        generator = np.random.default_rng(derived_seed(job.config.seed, label, LEARNED, number))
        closed = dominated(job.plan.table, budget, bound)
        for draws in [None, *[generator] * _TRIES] if learned.is_enough else []:
            worth = np.where(closed, -np.inf, learned.worth(label, draws))
            widths = [job.plan.space.pair(*cell) for cell in allocate_widest(worth, job.plan.table, budget, bound)]
            if widths not in known:
                return self._described(label, [Proposal(tuple(widths), (f"{LEARNED}{number}",))])[0]
        return None

    def _described(self, label: str, pool: Sequence[Proposal]) -> list[Proposed]:
        """Proposals as assignments, the same in all processes."""
        job, described = self.context.job, []
        for proposal in job.device.processes.agreed(pool):
            name, made = proposal_id(label, proposal.sources[0]), Provenance(kind=PROPOSAL, run=proposal.sources[0])
            layers = job.plan.space.layers_with(proposal.widths)
            log, budget = self.context.log, self._budget(label)
            assignment = log.run.assignment(name) if name in log.decoded else log.made(name, layers, made, budget)
            described.append(Proposed(assignment, proposal.sources, proposal.loss))
        return described

    def _proposers(self, label: str, bound: Widths | None) -> Proposers:
        """All that proposes for a budget: the controls that were made for it too."""
        budget, job = self._budget(label), self.context.job
        widths = {each.id: job.plan.space.pairs_of(each.layers) for each in self.found}
        own = proposal_id(label, "")
        within = {name.removeprefix(own): pairs for name, pairs in widths.items() if name.startswith(own)}
        within |= {
            each.id: widths[each.id]
            for each in self.found
            if each.provenance.kind in _CONTROLS and each.provenance.limits == budget.limits
        }
        elsewhere = {each: widths[proposal_id(each, THETA)] for each in self._neighbours(label)}
        number, programs = int(label.rpartition("-")[2]), job.config.choice.programs
        evidence = self.context.sensitivities.evidence
        return Proposers(evidence, budget, number, within, elsewhere, programs, bound)

    def _budget(self, label: str) -> Budget:
        budget = search_labels(self.context.job, pruned=False)[label]
        assert budget is not None  # the job's file is refused without any
        return budget

    def _neighbours(self, label: str) -> list[str]:
        """The searches of the next larger and the next smaller budget."""
        job = self.context.job
        labels = list(search_labels(job, pruned=False))
        ordered = [labels[place] for place in from_largest(job.plan.budgets, job.plan.table)]
        place = ordered.index(label)
        return ordered[max(0, place - 1) : place] + ordered[place + 1 : place + 2]


def refining_work(context: JobContext, count: int) -> Work:
    """Refining the best of so many proposals for one budget, about."""
    job = context.job
    return {REFINE: refining_units(job, count)} if job.config.choice.refined else {}
