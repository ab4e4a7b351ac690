"""The stage `latency`: what was measured is timed where it will run, if that is here; only jobs with a table do so."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from dnas.config.file import load_job
from dnas.config.job import JobConfig
from dnas.export.stored import StoredNet
from dnas.jobs.context import JobContext
from dnas.jobs.progress import Report, Work
from dnas.jobs.stage import Findings, Foreseen, Stage
from dnas.jobs.stages.measure import Measurer
from dnas.latency.places import Place
from dnas.latency.timing import hindrance, time_nets
from dnas.quantization.conversion import QuantizerChoice
from results.events import Event, Timed
from results.pareto import FrontPoint, ParetoFront
from results.run.folder import Run
from results.units import MEASURED_LATENCY
from search_spaces.assignments import BitAssignment
from search_spaces.costs.latency import LatencyTable, MeasuredLatencies, read_latencies
from search_spaces.errors import InputError, quoted


class Time(Stage):
    """Times one net of every measured assignment."""

    name = "latency"

    def __init__(self, context: JobContext, measurer: Measurer) -> None:
        super().__init__(context)
        self.measurer, self.table = measurer, table_of(context.job.config)

    def work(self, before: Foreseen) -> Work:
        """Nothing beside training."""
        return {}

    def carry_out(self, findings: Findings) -> None:
        """Time what is not timed yet; tell why it is not, where that cannot be done here."""
        if self.table is None:
            return
        log, where = self.context.log, self.table.where
        known = measured_latencies(log.history, self.table)
        left = [point.assignment for point in findings.points if point.assignment not in known]
        why = hindrance(self.table) if left else ""
        if why:
            place = f"--runtime {self.table.runtime}{_place_options(self.table)}"
            again = f"dnas bench-latency {quoted(log.run.folder)} {place}"
            log.tell_once([f"nets are not timed in {where} ({why}); time them there with: {again}"])
            return
        time_assignments(self.context, self.measurer, self.table, left)


def _place_options(table: LatencyTable) -> str:
    """Options that time nets on the table's device with its threads; none where it is what the command does unasked."""
    usual, own = Place(), Place(table.device, table.threads)
    device = f" --device {own.device}" if own.device != usual.device else ""
    return device + (f" --threads {own.threads}" if own.threads != usual.threads else "")


def time_assignments(context: JobContext, measurer: Measurer, table: LatencyTable, names: Sequence[str]) -> None:
    """Time the first net of each of these assignments, and journal it."""
    log, job = context.log, context.job

    def made(assignment: BitAssignment) -> StoredNet:
        choice = QuantizerChoice.of(assignment) if assignment.provenance.net else job.choice
        images = job.calibration_images()[0]
        if not isinstance(images, Tensor):
            raise InputError("its network takes more than one tensor of images")
        network = measurer.stored(assignment, 0)
        return StoredNet(network, job.plan.graph, assignment, choice, images=images[:2].cpu())

    def refused(name: str, error: InputError) -> None:
        log.tell_once([f"{name} is not timed: {error}"])

    nets = {name: lambda name=name: made(log.run.assignment(name)) for name in names}
    for name, timing in map(job.device.processes.agreed, time_nets(table, nets, refused)):
        timed = Timed(
            assignment=name,
            where=table.where,
            processor=table.processor,
            latency_ms=timing.ms,
            spread=timing.spread,
            rounds=table.rounds,
        )
        log.write(timed)


def time_run(run: Run, table: LatencyTable, report: Report) -> dict[str, float]:
    """Time the nets of a finished run as ``table`` was made, and keep it in the run; assignment → milliseconds."""
    front, context = run.load_front(), JobContext(load_job(run.job_file()), run, report)
    names = [point.assignment for point in front.points]
    time_assignments(context, Measurer(context), table, names)
    points = with_measured_latency(front.points, context.log.history, table_of(context.job.config))
    run.save_front(ParetoFront.from_points(points, front.x, front.reference, front.preprocessing))
    return {name: ms for name, ms in measured_latencies(context.log.history, table).items() if name in names}


def table_of(config: JobConfig) -> LatencyTable | None:
    """The table that `dnas bench-latency` made and the job goes by; None without one."""
    given = config.costs.latency_table
    found = read_latencies(Path(given)) if given else None
    return found.table if isinstance(found, MeasuredLatencies) else None


def with_measured_latency(
    points: Sequence[FrontPoint], events: Sequence[Event], table: LatencyTable | None
) -> list[FrontPoint]:
    """The points, with what their nets took where the table was made, as far as that was timed."""
    known = measured_latencies(events, table)
    costs = {name: {MEASURED_LATENCY: ms} for name, ms in known.items()}
    return [replace(point, extra_costs={**point.extra_costs, **costs.get(point.assignment, {})}) for point in points]


def measured_latencies(events: Sequence[Event], table: LatencyTable | None) -> Mapping[str, float]:
    """Assignment → milliseconds, as last timed where the ``table`` was made; without one, where any was timed last.

    That is the runtime, device and threads, and the processor: times of another one do not compare.
    """
    timed = [event for event in events if isinstance(event, Timed)]
    known = [table] if table else timed[-1:]
    places = {(one.where, one.processor) for one in known}
    return {event.assignment: event.latency_ms for event in timed if (event.where, event.processor) in places}
