"""What `dnas prune` asked for, kept in the journal; refused before any training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from bayesopt.criteria import CRITERIA, rankings
from dnas.config.job import PruneSection
from dnas.jobs.context import JobContext
from dnas.jobs.job import Job
from dnas.jobs.log import RunLog
from dnas.jobs.stages.controls import uniform_control
from dnas.jobs.stages.prune_plan import PruneTarget, Pruning, prunable_groups, result_numbers
from dnas.quantization.conversion import fixed_copy
from results.events import PruneRequested, Withdrawn
from search_spaces.assignments import BitAssignment
from search_spaces.errors import InputError
from search_spaces.records import read_as


@dataclass(frozen=True)
class PruneRequest:
    """An assignment of a run, or uniform ``bits``, to be pruned by these options."""

    section: PruneSection
    assignment: str | None = None
    bits: int | None = None

    def event(self) -> PruneRequested:
        """The journal's event of it."""
        section = self.section.model_dump(mode="json")
        return PruneRequested(assignment=self.assignment, bits=self.bits, section=section)

    @classmethod
    def of(cls, event: PruneRequested) -> PruneRequest:
        """Read it back."""
        return cls(
            read_as(PruneSection, event.section, f"the journal's event '{event.tag}': "), event.assignment, event.bits
        )


def requests(log: RunLog) -> list[PruneRequest]:
    """Everything that `dnas prune` asked for, in order."""
    return [PruneRequest.of(event) for event in log.events(PruneRequested)]


def requested(log: RunLog) -> bool:
    """Whether `dnas prune` asked for anything that was not taken back."""
    return len(requests(log)) > len(log.events(Withdrawn))


def trial_workers(context: JobContext) -> int:
    """The most ``prune.workers`` of what is pruned here."""
    own = context.job.config.prune
    sections = [request.section for request in requests(context.log)] + ([own] if own.enabled else [])
    return max((section.workers for section in sections), default=1)


def requested_bits(log: RunLog) -> list[int]:
    """The widths of `dnas prune --bits`, each once."""
    return list(dict.fromkeys(request.bits for request in requests(log) if request.bits is not None))


def withdraw(log: RunLog, number: int, error: Exception) -> None:
    """Take back a request that failed: a run must not fail of it for ever."""
    log.write(Withdrawn(request=number, message=str(error)))


def requested_targets(context: JobContext) -> dict[int, PruneTarget]:
    """What `dnas prune` asked for and was not taken back, by its number; results of one assignment are numbered on."""
    log, section = context.log, context.job.config.prune
    withdrawn = {event.request for event in log.events(Withdrawn)}
    numbers: dict[str, int] = {}
    targets = {}
    for number, request in enumerate(requests(log)):
        parent = log.run.assignment(request.assignment or uniform_control(request.bits or 0).id)
        by_job = section.enabled and bool(fits([parent.id], section.assignments))
        first = numbers.get(parent.id, result_numbers(section).stop if by_job else 1)
        numbers[parent.id] = result_numbers(request.section, first).stop
        if number not in withdrawn:
            targets[number] = PruneTarget(parent, request.section, first)
    return targets


def fits(names: Sequence[str], patterns: Sequence[str]) -> list[str]:
    """Those of the names that fit one of the patterns."""
    return [name for name in names if any(fnmatchcase(name, pattern) for pattern in patterns)]


def check_request(context: JobContext, request: PruneRequest) -> PruneRequest:
    """The request as it is; raises :class:`InputError` for what cannot be pruned so."""
    job, log = context.job, context.log
    check_criterion(job, request.section)
    if request.bits is not None:
        parent = uniform(job, request.bits)
        _check_widths(job, parent)
        Pruning(context, PruneTarget(parent, request.section))
        return request
    parent = log.run.assignment(request.assignment or "")
    if any(bits.kept_channels is not None for bits in parent.layers.values()):
        raise InputError(f"assignment '{parent.id}' is pruned already; name one that has all its filters")
    for scheme in (bits.scheme for bits in parent.layers.values() if bits.scheme):
        raise InputError(f"assignment '{parent.id}' has {scheme.words}, which cannot lose filters; name a dense one")
    Pruning(context, PruneTarget(parent, request.section))
    return request


def check_criterion(job: Job, section: PruneSection) -> None:
    """Refuse a criterion that does not exist, or that this network gives nothing to judge by.

    One of the user's own is tried on the quantized net before it is trained: pruning is what a job does last.
    """
    if section.criterion != "auto":
        CRITERIA.find(section.criterion)
    if section.criterion == "bn_scale":
        rankings(job.network, prunable_groups(job, section), section.criterion)
    if ":" in section.criterion:
        widest = uniform(job, max(job.plan.space.weight_bits)).layers
        rankings(
            fixed_copy(job.network, job.plan.graph, widest, job.choice).eval(),
            prunable_groups(job, section),
            section.criterion,
        )


def _check_widths(job: Job, assignment: BitAssignment) -> None:
    """Refuse bits that the job's quantizers do not have."""
    weights, activations = job.choice.of_weights(), job.choice.of_activations()
    for weight_bits, activation_bits in assignment.pairs.values():
        weights.check(weight_bits)
        activations.check(activation_bits)


def uniform(job: Job, bits: int) -> BitAssignment:
    """A uniform assignment that is neither saved nor measured."""
    layers = job.plan.space.uniform(bits)
    return BitAssignment(uniform_control(bits).id, job.reference, layers, job.plan.table.price(layers))
