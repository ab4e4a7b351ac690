"""The stage `test`: the test split is read, once, for every measured net and the float network; then the front."""

from __future__ import annotations

import contextlib
from dataclasses import replace

from dnas.execution.tasks import JobTask
from dnas.jobs.context import JobContext
from dnas.jobs.normalisation import preprocessing_of
from dnas.jobs.progress import FORWARD, FORWARD_QUANTIZED, Work
from dnas.jobs.stage import Findings, Foreseen, Stage
from dnas.jobs.stages.measure import Measurer
from dnas.jobs.stages.timing import table_of, with_measured_latency
from results.events import FloatMeasured, Tested
from results.pareto import FLOAT, Estimate, FloatReference, ParetoFront
from results.pictures.front import draw_fronts, save_figure
from search_spaces.assignments import BitAssignment
from search_spaces.costs.table import CostTable
from search_spaces.errors import InputError
from search_spaces.layers import FLOAT_BITS


class Test(Stage):
    """Measures on the test split what was measured on validation, and saves the front."""

    name = "test"
    __test__ = False

    def __init__(self, context: JobContext, measurer: Measurer) -> None:
        super().__init__(context)
        self.measurer = measurer

    def work(self, before: Foreseen) -> Work:
        """Every net and seed."""
        return {self.name: self._units() * before.points * self.context.job.config.finetune.seeds}

    def carry_out(self, findings: Findings) -> None:
        """Test what is not tested yet; write the front and its picture."""
        log, plan = self.context.log, self.context.job.plan
        found = [log.run.assignment(point.assignment) for point in findings.points]
        self.context.progress.replan({self.name: self._units() * sum(map(self.measurer.seeds_of, found))})
        known = {(event.assignment, event.seed) for event in log.events(Tested)}
        pairs = [(assignment, seed) for assignment in found for seed in range(self.measurer.seeds_of(assignment))]
        left = [self._task(assignment, seed) for assignment, seed in pairs if (assignment.id, seed) not in known]
        self.context.tasks.announce([*left, *(() if log.events(FloatMeasured) else (self._float_task(),))])
        values = [Estimate.from_values(self._test(assignment)) for assignment in found]
        tested = [replace(point, test=test) for point, test in zip(findings.points, values, strict=True)]
        tested = with_measured_latency(tested, log.history, table_of(self.context.job.config))
        preprocessing = preprocessing_of(self.context.job.data)
        front = ParetoFront.from_points(tested, plan.front_cost, self._float_reference(), preprocessing)
        log.run.save_front(front)
        save_figure(draw_fronts({log.run.name: front}, x=front.x), log.run.picture_path)

    def _units(self) -> float:
        return FORWARD_QUANTIZED * len(self.context.job.data.test)

    def _test(self, assignment: BitAssignment) -> list[float]:
        """Accuracy on the test split for every seed; journaled, so that it is read once."""
        context, values = self.context, []
        known = {(event.assignment, event.seed): event.test for event in context.log.events(Tested)}
        for seed in range(self.measurer.seeds_of(assignment)):
            key = (assignment.id, seed)
            if key in known:
                context.progress.recall({self.name: self._units()})
            else:
                known[key] = context.outcome(self._task(assignment, seed))
                metric = context.job.task.metric.name
                context.log.write(Tested(assignment=assignment.id, seed=seed, metric=metric, test=known[key]))
                context.progress.step(self.name, self._units(), stage=self.name, run=assignment.id)
            values.append(known[key])
        return values

    def _task(self, assignment: BitAssignment, seed: int) -> JobTask:
        reads = (*self.context.reads_float, *self.measurer.net_files(assignment.id, seed))
        inputs = {"assignment": assignment.id}
        return JobTask(f"{self.name} {assignment.id}-seed{seed}", tested, inputs, seed, self._units(), reads)

    def _float_task(self) -> JobTask:
        work = FORWARD * (len(self.context.job.data.test) + len(self.context.job.data.val))
        return JobTask(f"{self.name} {FLOAT}", measured_float, {}, 0, work, self.context.reads_float)

    def _float_reference(self) -> FloatReference:
        """The float network's size and accuracies; journaled too."""
        log, job = self.context.log, self.context.job
        known = log.events(FloatMeasured)
        if known:
            val, test = known[0].val, known[0].test
        else:
            val, test = self.context.outcome(self._float_task())
            log.write(FloatMeasured(metric=job.task.metric.name, val=val, test=test))
        costs = _float_costs(job.plan.table)
        return FloatReference(costs["size_bytes"], val, test, costs)


def tested(context: JobContext, seed: int, assignment: str) -> float:
    """What the stored net of an assignment and seed measures on the test split."""
    found = context.log.run.assignment(assignment)
    return Measurer(context).measure_again(found, seed, context.job.data.test).score


def measured_float(context: JobContext, seed: int) -> tuple[float, float]:
    """What the float network measures on the validation and on the test split."""
    job, network = context.job, context.job.network.eval()
    return job.measured(network, job.data.val).score, job.measured(network, job.data.test).score


def _float_costs(table: CostTable) -> dict[str, float]:
    """All costs of the network in fp32; a latency table need not hold that width."""
    found: dict[str, float] = {}
    for name in table.costs:
        with contextlib.suppress(InputError):
            found |= table.uniform(FLOAT_BITS, [name])
    return found
