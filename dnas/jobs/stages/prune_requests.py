"""What a run is to prune: what its job asks for, and what `dnas prune` asked for since; refused before any training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from bayesopt.criteria import CRITERIA, rankings
from dnas.config.job import PruneSection
from dnas.jobs.context import JobContext
from dnas.jobs.stages.prune import trial_work
from dnas.jobs.stages.prune_plan import PruneTarget, Pruning, prunable_groups
from results.events import PruneRequested, Withdrawn
from search_spaces.assignments import BitAssignment, LayerBits
from search_spaces.errors import InputError, nearest
from search_spaces.provenance import UNIFORM, Provenance
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


def check_section(context: JobContext) -> None:
    """Refuse a job whose pruning cannot work; what depends on the bits is tried with the most and the fewest."""
    section = context.config.prune
    if not section.enabled:
        return
    _check_criterion(context, section)
    names = expected_ids(context)
    for pattern in section.assignments:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise InputError(
                f"prune.assignments: '{pattern}' fits no assignment that this job makes{nearest(pattern, names)}; "
                f"it makes {', '.join(names)}"
            )
    widths = [width for width in context.plan.space.weight_bits if width]
    refused: InputError | None = None
    for bits in (max(widths), min(widths)):
        try:
            Pruning(context, PruneTarget(_uniform(context, bits), section))
            return
        except InputError as error:
            refused = error
    assert refused is not None
    raise InputError(f"prune: {refused}")


def requested_parents(context: JobContext) -> list[BitAssignment]:
    """The uniform assignments that `dnas prune --bits` asked for, to be measured like the others."""
    return [_kept_uniform(context, bits) for bits in _requested_bits(context)]


def config_targets(context: JobContext, measured: Sequence[BitAssignment]) -> list[PruneTarget]:
    """What the job itself prunes: those of the ``measured`` assignments that fit its patterns."""
    section = context.config.prune
    # Read anew: measuring has noted in the file how accurate it is, and which other assignment has the same net.
    fitting = [context.run.assignment(a.id) for a in measured if _fits(a.id, section)]
    best = sorted(fitting, key=lambda a: a.metrics["val_top1"]["mean"], reverse=True)[: section.at_most]
    targets = [PruneTarget(assignment, section) for assignment in fitting if assignment in best]
    return [target for target in targets if _can_be_pruned(context, target)]


def _can_be_pruned(context: JobContext, target: PruneTarget) -> bool:
    """Whether the bits that were found leave the budgets in reach; if not, the user is told and the job goes on."""
    try:
        Pruning(context, target)
    except InputError as error:
        context.tell_once([f"{target.parent.id} is not pruned: {error}"])
        return False
    return True


def requested(context: JobContext) -> bool:
    """Whether `dnas prune` asked for anything that was not taken back."""
    return len(_requests(context)) > len(context.events(Withdrawn))


def withdraw(context: JobContext, number: int, error: Exception) -> None:
    """Take back a request that failed: a run must not fail of it for ever."""
    context.journal(Withdrawn(request=number, message=str(error)))


def requested_targets(context: JobContext) -> dict[int, PruneTarget]:
    """What `dnas prune` asked for and was not taken back, by its number; results of one assignment are numbered on."""
    withdrawn = {event.request for event in context.events(Withdrawn)}
    section = context.config.prune
    own = len(section.budgets) or section.finalists
    numbers: dict[str, int] = {}
    targets = {}
    for number, request in enumerate(_requests(context)):
        parent = context.run.assignment(request.assignment or f"uniform-{request.bits}")
        by_job = section.enabled and _fits(parent.id, section)
        first = numbers.get(parent.id, 1 + own * by_job)
        numbers[parent.id] = first + (len(request.section.budgets) or request.section.finalists)
        if number not in withdrawn:
            targets[number] = PruneTarget(parent, request.section, first)
    return targets


def check_request(context: JobContext, request: PruneRequest) -> PruneRequest:
    """The request as it is; raises :class:`InputError` for what cannot be pruned so."""
    _check_criterion(context, request.section)
    if request.bits is not None:
        parent = _uniform(context, request.bits)
        _check_widths(context, parent)
        Pruning(context, PruneTarget(parent, request.section))
        return request
    parent = context.run.assignment(request.assignment or "")
    if any(bits.kept_channels is not None for bits in parent.layers.values()):
        raise InputError(f"assignment '{parent.id}' is pruned already; name one that has all its filters")
    if any(bits.sparse is not None for bits in parent.layers.values()):
        raise InputError(f"assignment '{parent.id}' has sparse weights, which cannot lose filters; name a dense one")
    Pruning(context, PruneTarget(parent, request.section))
    return request


def _check_criterion(context: JobContext, section: PruneSection) -> None:
    """Refuse a criterion that does not exist, or that this network gives nothing to judge by."""
    if section.criterion != "auto":
        CRITERIA.find(section.criterion)
    if section.criterion == "bn_scale":
        rankings(context.network, prunable_groups(context, section), section.criterion)


def _check_widths(context: JobContext, assignment: BitAssignment) -> None:
    """Refuse bits that the job's quantizers do not have."""
    weights, activations = context.choice.of_weights(), context.choice.of_activations()
    for weight_bits, activation_bits in assignment.pairs.values():
        weights.check(weight_bits)
        activations.check(activation_bits)


def prune_work(context: JobContext) -> float:
    """Work of everything that is to be pruned, in image passes, as if every result were another one."""
    config = context.config
    names = expected_ids(context)
    sections = [request.section for request in _requests(context)]
    if config.prune.enabled:
        fitting = [name for name in names if _fits(name, config.prune)]
        sections += [config.prune] * len(fitting[: config.prune.at_most])
    finetune = context.work.finetune * config.finetune.epochs * config.finetune.seeds
    total = finetune * len(set(_requested_bits(context)) - set(config.controls.uniform))
    for section in sections:
        budgets = len(section.budgets)
        searches = 1 + ("random" in section.controls and budgets > 0)
        total += section.trials * max(1, budgets) * searches * trial_work(context, section)
        total += context.work.finetune * section.finetune_epochs * section.finalists * budgets * searches
        total += finetune * ((1 + len(section.controls)) * budgets or section.finalists)
    return total


def _fits(name: str, section: PruneSection) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in section.assignments)


def _requests(context: JobContext) -> list[PruneRequest]:
    return [PruneRequest.of(event) for event in context.events(PruneRequested)]


def _requested_bits(context: JobContext) -> list[int]:
    """The widths of `dnas prune --bits`, each once."""
    return list(dict.fromkeys(request.bits for request in _requests(context) if request.bits is not None))


def expected_ids(context: JobContext) -> list[str]:
    """The ids of the assignments that are there to be pruned, as far as they can be told beforehand."""
    config, budgets = context.config, len(context.plan.budgets)
    names = [f"search-{n}" for n in range(1, max(1, budgets) + 1)] if "search" in config.order[:1] else []
    names += [f"ilp-{number}" for number in range(1, budgets + 1)] if config.controls.ilp else []
    return [*names, *(f"uniform-{bits}" for bits in config.controls.uniform)]


def _uniform(context: JobContext, bits: int) -> BitAssignment:
    """A uniform assignment that is neither saved nor measured."""
    layers = context.plan.space.uniform(bits)
    return BitAssignment(f"uniform-{bits}", context.reference, layers, context.plan.table.price(layers))


def _kept_uniform(context: JobContext, bits: int) -> BitAssignment:
    layers: Mapping[str, LayerBits] = context.plan.space.uniform(bits)
    return context.keep(f"uniform-{bits}", layers, Provenance(kind=UNIFORM, run=UNIFORM))
