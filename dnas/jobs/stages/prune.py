"""The stage `prune`: what the job prunes of the measured assignments, and what `dnas prune` asked for since."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace

from dnas.config.job import PruneSection
from dnas.execution.tasks import JobTask
from dnas.jobs.context import JobContext
from dnas.jobs.progress import Work, in_all, times
from dnas.jobs.sensitivity import sensitivity_work
from dnas.jobs.stage import Findings, Foreseen, Stage
from dnas.jobs.stages.controls import keep_uniform, uniform_control
from dnas.jobs.stages.evidence import sensitivity_tasks, settle
from dnas.jobs.stages.measure import Measurer
from dnas.jobs.stages.prune_plan import PruneTarget, Pruning, result_ids, result_numbers
from dnas.jobs.stages.prune_requests import (
    check_criterion,
    fits,
    requested_bits,
    requested_targets,
    requests,
    uniform,
    withdraw,
)
from dnas.jobs.stages.pruning import PRUNE, prune_all, prune_work
from search_spaces.assignments import BitAssignment
from search_spaces.errors import InputError, JobError, nearest, out_of_memory
from search_spaces.metrics import metric_of, validation_of
from search_spaces.provenance import PRUNED
from search_spaces.sensitivities import SensitivityKind


class Prune(Stage):
    """Prunes those of the measured assignments that fit the job's patterns."""

    name = PRUNE

    def __init__(self, context: JobContext, measurer: Measurer) -> None:
        super().__init__(context)
        self.measurer, self.section = measurer, context.job.config.prune

    def check(self, before: Foreseen) -> None:
        """Refuse what cannot work; what depends on the bits is tried with the most and the fewest."""
        check_criterion(self.context.job, self.section)
        for pattern in self.section.assignments:
            if not fits(before.handed, (pattern,)):
                raise InputError(
                    f"prune.assignments: '{pattern}' fits no assignment that this job makes"
                    f"; it makes {', '.join(before.handed)}{nearest(pattern, before.handed)}"
                )
        widths = [width for width in self.context.job.plan.space.weight_bits if width]
        refused: InputError | None = None
        for bits in (max(widths), min(widths)):
            try:
                Pruning(self.context, PruneTarget(uniform(self.context.job, bits), self.section))
                return
            except InputError as error:
                refused = error
        raise InputError(f"prune: {refused}")

    def foresee(self, before: Foreseen) -> Foreseen:
        """What becomes of every assignment that fits; how many of them are pruned is known."""
        ids = [name for parent in self._fitting(before) for name in all_ids(parent, self.section)]
        known = replace(before, sensitivities=before.sensitivities | self._kinds)
        return known.handing(ids, self._count(before) * len(all_ids("", self.section)))

    def work(self, before: Foreseen) -> Work:
        """The trials and finalists of so many assignments; the sensitivities of the control with fewer bits."""
        sensitivities = sensitivity_work(self.context.job, self._kinds - before.sensitivities)
        return in_all(times(self._count(before), prune_work(self.context.job, self.section)), sensitivities)

    @property
    def _kinds(self) -> frozenset[SensitivityKind]:
        return frozenset(("hessian",) if self.section.budgets and "fewer-bits" in self.section.controls else ())

    def ahead(self, findings: Findings) -> Iterable[JobTask]:
        """The sensitivities that it goes by."""
        return sensitivity_tasks(self.context, self._kinds).values()

    def carry_out(self, findings: Findings) -> None:
        """Prune them; what is measured next is what became of them."""
        settle(self.context, self._kinds)
        findings.found = prune_all(self.context, self.targets(findings.found))
        findings.base = next((item for item in findings.found if item.provenance.kind == PRUNED), findings.base)

    def _fitting(self, before: Foreseen) -> list[str]:
        return fits(before.handed, self.section.assignments)

    def _count(self, before: Foreseen) -> int:
        return len(self._fitting(before)[: self.section.at_most])

    def targets(self, measured: Sequence[BitAssignment]) -> list[PruneTarget]:
        """Those of the ``measured`` assignments that fit, the most accurate ones."""
        run, names = self.context.log.run, [assignment.id for assignment in measured]
        # Read anew: measuring has noted in the file how accurate it is, and which other assignment has the same net.
        fitting = [run.assignment(name) for name in fits(names, self.section.assignments)]
        best = sorted(fitting, key=_gain, reverse=True)[: self.section.at_most]
        targets = [PruneTarget(assignment, self.section) for assignment in fitting if assignment in best]
        return [target for target in targets if self._can_be_pruned(target)]

    def _can_be_pruned(self, target: PruneTarget) -> bool:
        """Whether the bits that were found leave the budgets in reach; if not, the user is told and the job goes on."""
        try:
            Pruning(self.context, target)
        except InputError as error:
            self.context.log.tell_once([f"{target.parent.id} is not pruned: {error}"])
            return False
        return True


class PruneMore(Stage):
    """Prunes what `dnas prune` asked for; measures the outcome like anything else."""

    name = PRUNE

    def __init__(self, context: JobContext, measurer: Measurer) -> None:
        super().__init__(context)
        self.measurer = measurer

    def foresee(self, before: Foreseen) -> Foreseen:
        """So many points more."""
        count = sum(len(all_ids("", section)) for section in self._sections())
        return replace(before, points=before.points + count)

    def work(self, before: Foreseen) -> Work:
        """The trials and finalists of every request, and the measurement of what is new."""
        job = self.context.job
        new = set(requested_bits(self.context.log)) - set(job.config.controls.uniform)
        count = len(new) + sum(len(all_ids("", section)) for section in self._sections())
        pruned = [prune_work(job, section) for section in self._sections()]
        return in_all(times(count * job.config.finetune.seeds, self.measurer.work), *pruned)

    def carry_out(self, findings: Findings) -> None:
        """Prune every target that was not taken back."""
        context, points = self.context, findings.points
        known = {point.assignment for point in points}
        parents = [keep_uniform(context, uniform_control(bits)) for bits in requested_bits(context.log)]
        points += self.measurer.measure_all([parent for parent in parents if parent.id not in known])
        for number, target in requested_targets(context).items():
            try:
                points += self.measurer.measure_all(prune_all(context, [target]))
            except (InputError, JobError) as error:
                if out_of_memory(error):
                    raise  # what was asked for is right, and goes on where there is more of it
                withdraw(context.log, number, error)
                raise type(error)(f"{error}; pruning {target.parent.id} is taken back, so ask for it again") from error

    def _sections(self) -> list[PruneSection]:
        return [request.section for request in requests(self.context.log)]


def all_ids(parent: str, section: PruneSection) -> list[str]:
    """The ids of everything that pruning ``parent`` may give."""
    return [name for number in result_numbers(section) for name in result_ids(parent, section, number).values()]


def _gain(assignment: BitAssignment) -> float:
    """How good a measured assignment is on validation, larger being better."""
    found = validation_of(assignment.metrics)
    return -math.inf if found is None else metric_of(assignment.metrics).gain(found["mean"])
