"""What becomes of switchable nets: what the job and `dnas finalise` ask for; refused before any training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from dnas.config.job import FinaliseSection
from dnas.jobs.context import JobContext
from dnas.jobs.job import Job
from dnas.jobs.profile_names import check_names, read_assignment, uniform_layers, uniform_pair
from dnas.quantization.conversion import QuantizerChoice
from dnas.switchable.profiles import check_profiles
from results.events import Dropped, FinaliseRequested
from search_spaces.assignments import BitAssignment, LayerBits
from search_spaces.errors import InputError
from search_spaces.provenance import PROFILE
from search_spaces.records import read_as


@dataclass(frozen=True)
class FinaliseRequest:
    """What `dnas finalise` asked for: a switchable net by these options."""

    section: FinaliseSection

    def event(self) -> FinaliseRequested:
        """The journal's event of it."""
        return FinaliseRequested(section=self.section.model_dump(mode="json"))


def net_name(number: int) -> str:
    """The name of a run's switchable net of this number, from 1."""
    return f"{PROFILE}-{number}"


def check_finalise_request(context: JobContext, request: FinaliseRequest) -> FinaliseRequest:
    """Refuse what `dnas finalise` cannot do; returns the request."""
    log = context.log
    known = [name for name, assignment in log.run.assignments().items() if not assignment.provenance.net]
    names = check_names(request.section, known)
    check_widths(context, request.section, names)
    check_files(context, request.section, names)
    for name in names:
        if name in known:
            check_profiles(context.job.plan.graph, {name: log.run.assignment(name)}, request.section.private_norms)
    return request


def makes_own(job: Job) -> bool:
    """Whether the job itself ends with a switchable net."""
    return job.config.finalise.enabled or job.config.compression == "switchable"


def sections(context: JobContext) -> dict[int, FinaliseSection]:
    """The switchable nets of a run by number: that of the job, and those that `dnas finalise` asked for since."""
    requests = [
        read_as(FinaliseSection, event.section, f"the journal's event '{event.tag}': ")
        for event in context.log.events(FinaliseRequested)
    ]
    dropped = {event.number for event in context.log.events(Dropped)}
    own = [context.job.config.finalise] if makes_own(context.job) else []
    return {n: section for n, section in enumerate([*own, *requests], start=1) if n not in dropped}


def read_file(context: JobContext, path: str) -> BitAssignment:
    """The assignment of a file; refused where the run has another one of its name."""
    read = read_assignment(path, context.job.plan.graph)
    known = context.log.run.assignments().get(read.id)
    if known is not None and known.layers != read.layers:
        raise InputError(f"{path}: the run has another assignment called '{read.id}'; give the file's another id")
    return read


def choice_of(section: FinaliseSection, job: Job) -> QuantizerChoice:
    """The quantizers of a switchable net."""
    return QuantizerChoice(section.weights, section.activations, job.config.quantizer.per_channel)


def check_files(context: JobContext, section: FinaliseSection, names: Sequence[str]) -> None:
    """Refuse files of assignments that cannot be read, or whose assignments cannot be profiles."""
    for name in names:
        if name.endswith(".json"):
            read = read_file(context, name)
            check_profiles(context.job.plan.graph, {name: read}, section.private_norms)
            _check_layers(choice_of(section, context.job), read.layers)


def check_widths(context: JobContext, section: FinaliseSection, names: Sequence[str]) -> None:
    """Refuse widths that the quantizers of the switchable net do not have, of those that can be told beforehand."""
    choice, space = choice_of(section, context.job), context.job.plan.space
    known = context.log.run.assignments()
    layers = [uniform_layers(space, *pair) for name in names if (pair := uniform_pair(name)) is not None]
    layers += [dict(known[name].layers) for name in names if name in known]
    if not all(uniform_pair(name) for name in names):  # what the search finds has the fixed layers too
        layers.append({name: LayerBits(*pair) for name, pair in space.fixed.items()})
    for chosen in layers:
        _check_layers(choice, chosen)


def _check_layers(choice: QuantizerChoice, layers: Mapping[str, LayerBits]) -> None:
    for bits in layers.values():
        if bits.weight_bits:
            choice.of_weights().check(bits.weight_bits)
            choice.of_activations().check(bits.activation_bits)
