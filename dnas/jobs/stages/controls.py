"""The stage `controls`: what every search is measured against: uniform, training-free, random and the user's own."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from dnas.config.job import ControlsSection
from dnas.execution.tasks import JobTask
from dnas.jobs.context import JobContext
from dnas.jobs.job import Job
from dnas.jobs.progress import Work
from dnas.jobs.sensitivity import evidence_of, sensitivity_work
from dnas.jobs.stage import Findings, Foreseen, Stage
from dnas.jobs.stages.evidence import sensitivity_tasks, settle
from dnas.search.controls import CONTROLS, Question, Rehearsal
from dnas.training.schedules import derived_seed
from search_spaces.allocation.program import is_reachable
from search_spaces.allocation.widening import allocate_widest
from search_spaces.assignments import BitAssignment, LayerBits
from search_spaces.costs.budgets import Budget
from search_spaces.provenance import CONTROL, ILP, MEASURED_ILP, RANDOM, UNIFORM, Provenance
from search_spaces.sensitivities import SensitivityKind


@dataclass(frozen=True)
class Control:
    """One control: uniform ``bits``, or chosen by ``source`` within the budget of that ``number``, from 1."""

    id: str
    kind: str
    bits: int = 0
    budget: Budget | None = None
    number: int = 0
    source: str = ""
    draw: int = 1


def uniform_control(bits: int) -> Control:
    """The control with these bits everywhere."""
    return Control(f"uniform-{bits}", UNIFORM, bits)


def job_controls(job: Job) -> Iterator[Control]:
    """Every control that the job asks for; of a budget that only a pruned net meets there is none."""
    section = job.config.controls
    yield from map(uniform_control, section.uniform)
    budgets = [(n, budget) for n, budget in enumerate(job.plan.budgets, 1) if is_reachable(job.plan.table, budget)]
    for kind, asked in _programs(section).items():
        for number, budget in budgets if asked else ():
            yield Control(f"{kind}-{number}", kind, budget=budget, number=number, source=kind)
    for number, budget in budgets:
        for draw in range(1, section.random + 1):
            yield Control(f"random-{number}-{draw}", RANDOM, budget=budget, number=number, source="random", draw=draw)
    for source in section.own:
        for number, budget in budgets:
            name = f"control-{_named(source)}-{number}"
            yield Control(name, CONTROL, budget=budget, number=number, source=source)


def _named(source: str) -> str:
    """A control's source as a part of names, in which journals and files have no colon."""
    return source.replace(":", ".")


def _programs(section: ControlsSection) -> dict[str, bool]:
    """The integer programs by kind: whether the job asks for them."""
    return {ILP: section.ilp, MEASURED_ILP: section.measured_ilp}


class Controls(Stage):
    """Makes the controls, to be measured beside what was found before."""

    name = "controls"

    def check(self, before: Foreseen) -> None:
        """Try each control of the user's own: it is asked when the search is done."""
        context, tried = self.context, set[str]()
        for control in job_controls(context.job):
            new = control.kind == CONTROL and control.source not in tried and control.id not in context.log.decoded
            if new and control.budget is not None:
                tried.add(control.source)
                evidence = Rehearsal.of(evidence_of(context.job))
                CONTROLS.find(control.source)(Question(evidence, control.budget, context.job.config.seed))

    def foresee(self, before: Foreseen) -> Foreseen:
        """The controls as well."""
        ids = [control.id for control in job_controls(self.context.job)]
        known = replace(before, sensitivities=before.sensitivities | self._kinds)
        return known.handing((*before.handed, *ids), before.count + len(ids))

    def work(self, before: Foreseen) -> Work:
        """The sensitivities that the integer programs go by; all else is next to nothing."""
        return sensitivity_work(self.context.job, self._kinds - before.sensitivities)

    @property
    def _kinds(self) -> frozenset[SensitivityKind]:
        kinds: dict[str, SensitivityKind] = {ILP: "hessian", MEASURED_ILP: "measured"}
        return frozenset(kinds[each.kind] for each in job_controls(self.context.job) if each.kind in kinds)

    def ahead(self, findings: Findings) -> Iterable[JobTask]:
        """The sensitivities that it goes by."""
        return sensitivity_tasks(self.context, self._kinds).values()

    def carry_out(self, findings: Findings) -> None:
        """Save and journal every control."""
        context = self.context
        _tell_missing(context)
        evidence = context.sensitivities.evidence
        settle(context, self._kinds)
        for control in job_controls(context.job):
            if control.budget is None:
                findings.found.append(keep_uniform(context, control))
            elif control.id in context.log.decoded:
                findings.found.append(context.log.run.assignment(control.id))
            else:
                seed = derived_seed(context.job.config.seed, control.kind, control.number)
                worth = CONTROLS.find(control.source)(Question(evidence, control.budget, seed, control.draw))
                cells = allocate_widest(worth, context.job.plan.table, control.budget)
                made = Provenance(kind=control.kind, run=_named(control.source))
                findings.found.append(context.log.keep_cells(control.id, cells, made, control.budget))


def keep_uniform(context: JobContext, control: Control) -> BitAssignment:
    """Save and journal a uniform assignment, once."""
    return context.log.keep(control.id, *_uniform(context, control))


def uniform_assignments(context: JobContext) -> list[BitAssignment]:
    """The uniform controls, before they are kept."""
    wanted = map(uniform_control, context.job.config.controls.uniform)
    return [context.log.made(control.id, *_uniform(context, control)) for control in wanted]


def _uniform(context: JobContext, control: Control) -> tuple[Mapping[str, LayerBits], Provenance]:
    return context.job.plan.space.uniform(control.bits), Provenance(kind=UNIFORM, run=UNIFORM)


def _tell_missing(context: JobContext) -> None:
    plan = context.job.plan
    for number, budget in enumerate(plan.budgets, start=1):
        asked = [kind for kind, asked in _programs(context.job.config.controls).items() if asked]
        if asked and not is_reachable(plan.table, budget):
            names = [f"'{kind}-{number}'" for kind in asked]
            context.log.tell_once([f"no control {' or '.join(names)}: {budget.label} can be met by a pruned net alone"])
