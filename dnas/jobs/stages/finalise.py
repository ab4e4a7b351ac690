"""The stage `finalise`: the chosen configurations become profiles of one switchable net, trained and measured.

Each switchable net of a run is numbered (``switchable-1``, ...), and each of its profiles is an assignment of the run
(``switchable-1-search-3``), so that it can be shown, measured and exported like any other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from dnas.config.job import FinaliseSection, SearchSection
from dnas.jobs.context import JobContext, Stage
from dnas.jobs.profile_names import (
    FRONT,
    check_names,
    matching,
    read_assignment,
    uniform_layers,
    uniform_name,
    uniform_pair,
)
from dnas.jobs.progress import FORWARD, TRAIN_QUANTIZED
from dnas.jobs.stages.measure import Measurer
from dnas.jobs.stages.prune_requests import expected_ids
from dnas.jobs.stored_nets import save_switchable
from dnas.jobs.training import teacher_of
from dnas.quantization.conversion import QuantizerChoice
from dnas.switchable.net import SwitchableNet, check_profiles
from dnas.switchable.training import SwitchableTrainer, passes_per_step
from dnas.training.schedules import derived_seed
from dnas.training.trainer import evaluate
from results.events import Dropped, FinaliseRequested, Measured, Profiles
from results.pareto import FrontPoint, ParetoFront
from search_spaces.assignments import BitAssignment, LayerBits
from search_spaces.errors import InputError, JobError
from search_spaces.provenance import GIVEN, PROFILE, UNIFORM, Profile, Provenance, Quantizers
from search_spaces.records import read_as

_GUESSED_PROFILES = 4


@dataclass(frozen=True)
class FinaliseRequest:
    """What `dnas finalise` asked for: a switchable net by these options."""

    section: FinaliseSection

    def event(self) -> FinaliseRequested:
        """The journal's event of it."""
        return FinaliseRequested(section=self.section.model_dump(mode="json"))


def check_finalise(context: JobContext) -> None:
    """Refuse, before any training, what the job's own ``[finalise]`` cannot do."""
    if makes_own(context) and 1 in sections(context):
        section = context.config.finalise
        names = check_names(section, _ids_to_come(context))
        if names == [FRONT] and not _ids_to_come(context):
            raise InputError(
                "nothing will be measured that could be a profile; name some, as in finalise.profiles = ['w4a4']"
            )
        _check_widths(context, section, names)
        if not any(event.net == f"{PROFILE}-1" for event in context.events(Profiles)):
            _check_files(context, section, names)


def check_finalise_request(context: JobContext, request: FinaliseRequest) -> FinaliseRequest:
    """Refuse what `dnas finalise` cannot do; returns the request."""
    known = [name for name, assignment in context.run.assignments().items() if not assignment.provenance.net]
    names = check_names(request.section, known)
    _check_widths(context, request.section, names)
    _check_files(context, request.section, names)
    for name in names:
        if name in known:
            check_profiles(context.plan.graph, {name: context.run.assignment(name)}, request.section.private_norms)
    return request


def _ids_to_come(context: JobContext) -> list[str]:
    """The ids of assignments that the job will measure, as far as they can be told beforehand."""
    config = context.config
    names = expected_ids(context)
    for number in range(1, len(context.plan.budgets) + 1):
        names += [f"random-{number}-{draw}" for draw in range(1, config.controls.random + 1)]
        names += [f"pruned-search-{number}"] if "prune" in config.order and "search" in config.order else []
    names += [f"sampled-{n}" for n in sampled_ids(config.search, max(1, len(context.plan.budgets)))]
    if "prune" in config.order:
        kinds = ("pruned", "pruned-uniform", "pruned-random", "fewer-bits")
        count = len(config.prune.budgets) or config.prune.finalists
        names += [f"{name}-{kind}-{n}" for name in names for kind in kinds for n in range(1, count + 1)]
    return names


def sampled_ids(section: SearchSection, searches: int) -> list[str]:
    """What follows "sampled-" in the ids of architectures drawn during searches."""
    epochs = range(section.sample_every, section.epochs + 1, section.sample_every) if section.sample_every else ()
    return [f"{n}-epoch{e}-{k}" for n in range(1, searches + 1) for e in epochs for k in range(1, section.samples + 1)]


def makes_own(context: JobContext) -> bool:
    """Whether the job itself ends with a switchable net."""
    return context.config.finalise.enabled or context.config.compression == "switchable"


def sections(context: JobContext) -> dict[int, FinaliseSection]:
    """The switchable nets of a run by number: that of the job, and those that `dnas finalise` asked for since."""
    requests = [
        read_as(FinaliseSection, event.section, f"the journal's event '{event.tag}': ")
        for event in context.events(FinaliseRequested)
    ]
    dropped = {event.number for event in context.events(Dropped)}
    own = [context.config.finalise] if makes_own(context) else []
    return {n: section for n, section in enumerate([*own, *requests], start=1) if n not in dropped}


def finalise_work(context: JobContext) -> float:
    """Work of all switchable nets in image passes, as far as it can be told beforehand."""
    return sum(_work(context, section, _GUESSED_PROFILES) for section in sections(context).values())


def finalise_all(context: JobContext, measurer: Measurer, points: Sequence[FrontPoint]) -> list[FrontPoint]:
    """Train and measure every switchable net of the run; returns the points of their profiles, and of what is new."""
    found: list[FrontPoint] = []
    for number, section in sections(context).items():
        finaliser = _Finaliser(context, measurer, number, section)
        try:
            found += finaliser.run([*points, *found])
        except (InputError, JobError) as error:
            own = makes_own(context) and number == 1
            if own and isinstance(error, JobError):
                raise
            context.journal(Dropped(number=number, message=str(error)))
            again = (
                f"{PROFILE}-{number} is taken back: dnas resume finishes the rest, dnas finalise asks for another one"
            )
            raise type(error)(f"{error}; {again}") from error
    return found


class _Finaliser:
    """One switchable net of a run."""

    def __init__(self, context: JobContext, measurer: Measurer, number: int, section: FinaliseSection) -> None:
        self.context, self.measurer, self.section = context, measurer, section
        self.net = f"{PROFILE}-{number}"
        self.choice = _choice(section, context)

    def run(self, points: Sequence[FrontPoint]) -> list[FrontPoint]:
        """Choose the profiles, measure each alone, train them together, measure them in the net."""
        context = self.context
        profiles = self._profiles(points)
        check_profiles(context.plan.graph, profiles, self.section.private_norms)
        per_profile = _work(context, self.section, len(profiles)) - _work(context, self.section, _GUESSED_PROFILES)
        (context.progress.add if per_profile > 0 else context.progress.drop)(abs(per_profile))
        measured = {point.assignment for point in points}
        new = [item for item in profiles.values() if item.id not in measured] if self.section.alone else []
        context.progress.add(self.measurer.work * sum(map(self.measurer.seeds_of, new)))
        alone = self.measurer.measure_all(new)
        kept = {name: self._keep(name, item) for name, item in profiles.items()}
        for seed in range(self.section.seeds):
            self._train(kept, seed)
        return [*alone, *(self.measurer.measure(assignment) for assignment in kept.values())]

    def _profiles(self, points: Sequence[FrontPoint]) -> dict[str, BitAssignment]:
        """Profile name → its assignment; chosen once and journaled, for the front may grow later."""
        context = self.context
        decided = next((event.profiles for event in context.events(Profiles) if event.net == self.net), None)
        if decided is not None:
            return {name: self._again(name) for name in decided}
        chosen: dict[str, BitAssignment] = {}
        front = [point.assignment for point in ParetoFront.from_points(points).front]
        known = {name: item for name, item in context.run.assignments().items() if not item.provenance.net}
        for name in check_names(self.section, list(known)):
            for assignment in self._of(name, front, known):
                chosen.setdefault(assignment.id, assignment)
        if not chosen:
            raise InputError("nothing was measured that could be a profile; name some, such as finalise.profiles=w4a4")
        context.journal(Profiles(net=self.net, profiles=tuple(chosen)))
        return chosen

    def _again(self, name: str) -> BitAssignment:
        """The assignment of a profile that was chosen before; a width or a file that the run has lost is read again."""
        if name in self.context.decoded:
            return self.context.run.assignment(name)
        named = [other for other in (name, *self.section.profiles) if other.endswith(".json") or uniform_pair(other)]
        found = {item.id: item for other in named for item in self._of(other, (), {})}
        return found.get(name) or self.context.run.assignment(name)

    def _of(self, name: str, front: Sequence[str], known: Mapping[str, BitAssignment]) -> list[BitAssignment]:
        context = self.context
        pair = uniform_pair(name)
        if pair is not None:
            made = Provenance(kind=UNIFORM, run=UNIFORM)
            return [context.keep(uniform_name(*pair), uniform_layers(context.plan.space, *pair), made)]
        if name.endswith(".json"):
            read = _read(context, name)
            found = context.run.assignments().get(read.id)
            if found is not None and isinstance(found.provenance, Profile):  # of another net: what that is made of
                found = context.run.assignment(found.provenance.alone)
            return [found or context.keep(read.id, read.layers, Provenance(kind=GIVEN, run=GIVEN))]
        return [known[other] for other in matching(name, front, known)]

    def _keep(self, name: str, source: BitAssignment) -> BitAssignment:
        """The assignment of a profile: that of ``source`` within this net."""
        made = Profile(
            kind=PROFILE,
            run=self.net,
            limits=source.provenance.limits,
            quantizer=Quantizers(**asdict(self.choice)),
            net=self.net,
            profile=name,
            alone=source.id,
            seeds=self.section.seeds,
        )
        return self.context.keep(f"{self.net}-{name}", source.layers, made)

    def _train(self, profiles: Mapping[str, BitAssignment], seed: int) -> None:
        """Train the net of one seed, unless it was measured already."""
        context, section = self.context, self.section
        done = {(event.assignment, event.seed) for event in context.events(Measured)}
        if all((assignment.id, seed) in done for assignment in profiles.values()):
            context.progress.advance(_work(context, section, len(profiles)) / section.seeds)
            return
        model = self.measurer.starting_model(section.start, seed)
        graph = context.plan.graph
        net = SwitchableNet(model, graph, profiles, self.choice, private_norms=section.private_norms)
        net = net.to(context.device.place)
        net.calibrate(model, context.calibration_images())
        trainer = SwitchableTrainer(
            net,
            section,
            images=context.data.train,
            batch_size=context.config.data.batch_size,
            augmentation=context.augmentation,
            seed=derived_seed(context.config.seed, seed),
            label=PROFILE,
            device=context.device,
            teacher=teacher_of(context.network, float(section.teacher == "float")),
        )
        stage = Stage(
            "finalise", self.net, f"{self.net}-seed{seed}", _epoch_work(context, section, len(profiles)), seed
        )
        context.train(trainer, stage)
        net.recalibrate(self.measurer.batchnorm_images())
        save_switchable(context.run, net, self.net, seed)
        net.eval()
        for name, assignment in profiles.items():
            if (assignment.id, seed) in done:
                continue
            view = net.view_of(name)
            top1 = evaluate(view, context.data.val, context.config.data.batch_size, context.device).top1
            context.journal(Measured(assignment=assignment.id, kind=PROFILE, seed=seed, val_top1=top1))
        context.run.delete_checkpoint(stage.checkpoint)


def _read(context: JobContext, path: str) -> BitAssignment:
    """The assignment of a file; refused where the run has another one of its name."""
    read = read_assignment(path, context.plan.graph)
    known = context.run.assignments().get(read.id)
    if known is not None and known.layers != read.layers:
        raise InputError(f"{path}: the run has another assignment called '{read.id}'; give the file's another id")
    return read


def _choice(section: FinaliseSection, context: JobContext) -> QuantizerChoice:
    return QuantizerChoice(section.weights, section.activations, context.config.quantizer.per_channel)


def _check_files(context: JobContext, section: FinaliseSection, names: Sequence[str]) -> None:
    """Refuse files of assignments that cannot be read, or whose assignments cannot be profiles."""
    for name in names:
        if name.endswith(".json"):
            read = _read(context, name)
            check_profiles(context.plan.graph, {name: read}, section.private_norms)
            _check_layers(_choice(section, context), read.layers)


def _check_widths(context: JobContext, section: FinaliseSection, names: Sequence[str]) -> None:
    """Refuse widths that the quantizers of the switchable net do not have, of those that can be told beforehand."""
    choice, space = _choice(section, context), context.plan.space
    known = context.run.assignments()
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


def _epoch_work(context: JobContext, section: FinaliseSection, profiles: int) -> float:
    """Work of one epoch: its training passes, and the measurement of every profile."""
    images, validation_images = len(context.data.train), len(context.search_data.validation)
    return TRAIN_QUANTIZED * images * passes_per_step(section, profiles) + FORWARD * validation_images * profiles


def _work(context: JobContext, section: FinaliseSection, profiles: int) -> float:
    return _epoch_work(context, section, profiles) * section.epochs * section.seeds
