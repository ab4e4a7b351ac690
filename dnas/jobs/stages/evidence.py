"""What integer programs go by, as tasks: workers work sensitivities out, while the supernet is warmed up, say."""

from __future__ import annotations

from collections.abc import Iterable

from dnas.execution.tasks import JobTask
from dnas.jobs.context import JobContext
from dnas.jobs.sensitivity import SENSITIVITIES, JobSensitivities, sensitivity_work
from results.run.layout import SENSITIVITIES as SENSITIVITY_FILES
from search_spaces.sensitivities import SensitivityKind


def sensitivity_tasks(context: JobContext, kinds: Iterable[SensitivityKind]) -> dict[SensitivityKind, JobTask]:
    """Kind → working it out, where workers do that and the run did not keep it.

    The job's own process needs no task: it works out what is asked for, when it is.
    """
    wanted = [] if context.tasks.in_process else [kind for kind in kinds if not context.sensitivities.kept_before(kind)]
    return {
        kind: JobTask(
            f"{SENSITIVITIES} {kind}",
            work_out,
            {"kind": kind},
            context.job.config.seed,
            sum(sensitivity_work(context.job, [kind]).values()),
            context.reads_float,
            (SENSITIVITY_FILES[kind],),
        )
        for kind in sorted(wanted)
    }


def settle(context: JobContext, kinds: Iterable[SensitivityKind]) -> None:
    """Have sensitivities of these kinds, where workers work them out, and count what an earlier process worked out."""
    wanted = list(kinds)
    for kind, task in sensitivity_tasks(context, wanted).items():
        context.outcome(task)
        context.sensitivities.note_counted(kind)
    context.sensitivities.settle(wanted)


def work_out(context: JobContext, seed: int, kind: SensitivityKind) -> None:
    """Work the sensitivities of one kind out; the run keeps them. Nothing is told: whoever reads them does."""
    found = JobSensitivities(context.job, context.log.run, lambda sentence: None, context.progress)
    found.evidence.found(kind)
