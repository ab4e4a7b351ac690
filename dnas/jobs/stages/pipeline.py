"""The stages of a job that searches bits and removes filters, and of one that only trains a switchable net."""

from __future__ import annotations

from functools import partial

from dnas.jobs.compressions import Compression
from dnas.jobs.context import JobContext
from dnas.jobs.job import Job
from dnas.jobs.stage import Stage
from dnas.jobs.stages.choice import Choose
from dnas.jobs.stages.controls import Controls, uniform_assignments
from dnas.jobs.stages.measure import Measure, Measurer
from dnas.jobs.stages.prune import Prune
from dnas.jobs.stages.search import Search


class SearchCompression(Compression):
    """Bit searches and pruning in the order that the job asks for."""

    def stages(self, context: JobContext, measurer: Measurer) -> list[Stage]:
        """A later search starts from a pruned net."""
        stages: list[Stage] = []
        order = context.job.config.order
        for number, step in enumerate(order):
            stages += [Search(context, pruned="prune" in order[:number])] if step == "search" else []
            if number == 0:
                chooses = [Choose(context, measurer)] if context.job.config.chooses else []
                uniform = partial(uniform_assignments, context)
                stages += [Controls(context), *chooses, Measure(context, measurer, uniform)]
            stages += [Prune(context, measurer)] if step == "prune" else []
            stages += [Measure(context, measurer)] if number > 0 or step == "prune" else []
        return stages

    def introduction(self, job: Job) -> tuple[str, str]:
        """The decisions, and the engine."""
        what = f"{len(job.plan.space.decisions)} decisions over {len(job.plan.graph.layers)} layers"
        return what, f"{job.config.search.engine} engine, {job.mixture}"


class SwitchableCompression(Compression):
    """No search: the controls, and the switchable net that `[finalise]` describes."""

    def stages(self, context: JobContext, measurer: Measurer) -> list[Stage]:
        """Only the controls are made; the switchable net comes after them, as in any job."""
        return [Controls(context), Measure(context, measurer, partial(uniform_assignments, context))]

    def introduction(self, job: Job) -> tuple[str, str]:
        """The layers, and the method."""
        return f"{len(job.plan.graph.layers)} layers", f"a switchable net ({job.config.finalise.method})"
