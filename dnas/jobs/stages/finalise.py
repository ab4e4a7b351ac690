"""The stage `finalise`: the chosen configurations become profiles of one switchable net, trained and measured.

Each switchable net of a run is numbered (``switchable-1``, ...), and each of its profiles is an assignment of the run
(``switchable-1-search-3``), so that it can be shown, measured and exported like any other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from dnas.config.job import FinaliseSection
from dnas.execution.tasks import JobTask
from dnas.jobs.context import JobContext, Place
from dnas.jobs.job import Job
from dnas.jobs.profile_names import FRONT, check_names, matching, uniform_layers, uniform_name, uniform_pair
from dnas.jobs.progress import FORWARD_QUANTIZED, TRAIN_QUANTIZED, Work, in_all, times
from dnas.jobs.stage import Findings, Foreseen, Stage
from dnas.jobs.stages.finalise_requests import (
    check_files,
    check_widths,
    choice_of,
    makes_own,
    net_name,
    read_file,
    sections,
)
from dnas.jobs.stages.measure import BATCHNORM_BATCHES, Measure, Measurer, start_files
from dnas.jobs.stored_nets import net_file, save_switchable
from dnas.jobs.training import teacher_of
from dnas.switchable.net import SwitchableNet
from dnas.switchable.profiles import check_profiles
from dnas.switchable.training import SwitchableTrainer, passes_per_step
from dnas.training.schedules import derived_seed
from results.events import Dropped, Measured, Profiles
from results.pareto import FrontPoint, ParetoFront
from results.run.layout import checkpoint_file
from search_spaces.assignments import BitAssignment
from search_spaces.errors import InputError, JobError, out_of_memory
from search_spaces.provenance import GIVEN, PROFILE, UNIFORM, Profile, Provenance, Quantizers

_GUESSED_PROFILES = 4


class Finalise(Stage):
    """Trains and measures every switchable net of the run."""

    name = "finalise"

    def __init__(self, context: JobContext, measurer: Measurer) -> None:
        super().__init__(context)
        self.measurer = measurer

    def check(self, before: Foreseen) -> None:
        """Refuse what the job's own ``[finalise]`` cannot do."""
        context, section = self.context, self.context.job.config.finalise
        if not makes_own(context.job) or 1 not in sections(context):
            return
        names = check_names(section, before.ids)
        if names == [FRONT] and not before.ids:
            raise InputError(
                "nothing will be measured that could be a profile; name some, as in finalise.profiles = ['w4a4']"
            )
        check_widths(context, section, names)
        if not any(event.net == net_name(1) for event in context.log.events(Profiles)):
            check_files(context, section, names)

    def foresee(self, before: Foreseen) -> Foreseen:
        """So many points more, as far as their number can be guessed."""
        return replace(before, points=before.points + _GUESSED_PROFILES * len(sections(self.context)))

    def work(self, before: Foreseen) -> Work:
        """The training of all nets, of so many profiles as can be guessed."""
        wanted = sections(self.context).values()
        return in_all(*(_work(self.measurer, section, _GUESSED_PROFILES) for section in wanted))

    def carry_out(self, findings: Findings) -> None:
        """Make every net that was not dropped; add the points of their profiles, and of what is new."""
        for number, section in sections(self.context).items():
            finaliser = _Finaliser(self.context, self.measurer, number, section)
            try:
                findings.points += finaliser.run(findings.points)
            except (InputError, JobError) as error:
                if out_of_memory(error):
                    raise  # what was asked for is right, and goes on where there is more of it
                if makes_own(self.context.job) and number == 1 and isinstance(error, JobError):
                    raise
                self.context.log.write(Dropped(number=number, message=str(error)))
                again = "is taken back: dnas resume finishes the rest, dnas finalise asks for another one"
                raise type(error)(f"{error}; {net_name(number)} {again}") from error


class _Finaliser:
    """One switchable net of a run."""

    def __init__(self, context: JobContext, measurer: Measurer, number: int, section: FinaliseSection) -> None:
        self.context, self.job, self.log = context, context.job, context.log
        self.measurer, self.section = measurer, section
        self.net = net_name(number)
        self.choice = choice_of(section, self.job)

    def run(self, points: Sequence[FrontPoint]) -> list[FrontPoint]:
        """Choose the profiles, measure each alone, train them together, measure them in the net."""
        progress, section = self.context.progress, self.section
        profiles = self._profiles(points)
        check_profiles(self.job.plan.graph, profiles, section.private_norms)
        progress.correct(-1, _work(self.measurer, section, _GUESSED_PROFILES))
        progress.correct(1, _work(self.measurer, section, len(profiles)))
        measured = {point.assignment for point in points}
        new = [item for item in profiles.values() if item.id not in measured] if section.alone else []
        progress.correct(sum(map(self.measurer.seeds_of, new)), self.measurer.work)
        alone = self.measurer.measure_all(new)
        kept = {name: self._keep(name, item) for name, item in profiles.items()}
        self.context.tasks.announce(self._task(kept, seed) for seed in range(section.seeds) if self._left(kept, seed))
        for seed in range(section.seeds):
            self._train(kept, seed)
        return [*alone, *(self.measurer.measure(assignment) for assignment in kept.values())]

    def _profiles(self, points: Sequence[FrontPoint]) -> dict[str, BitAssignment]:
        """Profile name → its assignment; chosen once and journaled, for the front may grow later."""
        run = self.log.run
        decided = next((event.profiles for event in self.log.events(Profiles) if event.net == self.net), None)
        if decided is not None:
            return {name: self._again(name) for name in decided}
        chosen: dict[str, BitAssignment] = {}
        front = [point.assignment for point in ParetoFront.from_points(points, self.job.plan.front_cost).front]
        known = {name: item for name, item in run.assignments().items() if not item.provenance.net}
        for name in check_names(self.section, list(known)):
            for assignment in self._of(name, front, known):
                chosen.setdefault(assignment.id, assignment)
        if not chosen:
            raise InputError("nothing was measured that could be a profile; name some, such as finalise.profiles=w4a4")
        self.log.write(Profiles(net=self.net, profiles=tuple(chosen)))
        return chosen

    def _again(self, name: str) -> BitAssignment:
        """The assignment of a profile that was chosen before; a width or a file that the run has lost is read again."""
        if name in self.log.decoded:
            return self.log.run.assignment(name)
        named = [other for other in (name, *self.section.profiles) if other.endswith(".json") or uniform_pair(other)]
        found = {item.id: item for other in named for item in self._of(other, (), {})}
        return found.get(name) or self.log.run.assignment(name)

    def _of(self, name: str, front: Sequence[str], known: Mapping[str, BitAssignment]) -> list[BitAssignment]:
        log = self.log
        pair = uniform_pair(name)
        if pair is not None:
            made = Provenance(kind=UNIFORM, run=UNIFORM)
            return [log.keep(uniform_name(*pair), uniform_layers(self.job.plan.space, *pair), made)]
        if name.endswith(".json"):
            read = read_file(self.context, name)
            found = log.run.assignments().get(read.id)
            if found is not None and isinstance(found.provenance, Profile):  # of another net: what that is made of
                found = log.run.assignment(found.provenance.alone)
            return [found or log.keep(read.id, read.layers, Provenance(kind=GIVEN, run=GIVEN))]
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
        return self.log.keep(f"{self.net}-{name}", source.layers, made)

    def _left(self, profiles: Mapping[str, BitAssignment], seed: int) -> dict[str, BitAssignment]:
        """The profiles that were not measured yet."""
        done = {(event.assignment, event.seed) for event in self.log.events(Measured)}
        return {name: each for name, each in profiles.items() if (each.id, seed) not in done}

    def _task(self, profiles: Mapping[str, BitAssignment], seed: int) -> JobTask:
        """The training of the net of one seed."""
        net, section = self.net, self.section
        work = sum(_work(self.measurer, section, len(profiles)).values()) / section.seeds
        inputs = {
            "net": net,
            "section": section.model_dump(mode="json"),
            "profiles": {name: each.to_json() for name, each in profiles.items()},
        }
        reads = (*self.context.reads_float, *start_files(section.start))
        writes = tuple(map(checkpoint_file, (f"{net}-seed{seed}", net_file(net, seed))))
        return JobTask(f"{Finalise.name} {net}-seed{seed}", train_switchable, inputs, seed, work, reads, writes)

    def _train(self, profiles: Mapping[str, BitAssignment], seed: int) -> None:
        """Train the net of one seed, unless it was measured already."""
        context, section, left = self.context, self.section, self._left(profiles, seed)
        if not left:
            self.log.run.delete_checkpoint(f"{self.net}-seed{seed}")  # a kill may have come before it was
            context.progress.recall(times(1 / section.seeds, _work(self.measurer, section, len(profiles))))
            return
        values, metric = context.outcome(self._task(profiles, seed)), self.job.task.metric.name
        for name, assignment in profiles.items():
            if name not in left:
                context.progress.recall({Measure.name: self.measurer.units})
                continue
            event = Measured(assignment=assignment.id, kind=PROFILE, seed=seed, metric=metric, val=values[name])
            self.log.write(event)
            context.progress.step(Measure.name, self.measurer.units, stage=Measure.name, run=assignment.id)
        self.log.run.delete_checkpoint(f"{self.net}-seed{seed}")


def train_switchable(
    context: JobContext, seed: int, net: str, section: Mapping[str, Any], profiles: Mapping[str, Mapping[str, Any]]
) -> dict[str, float]:
    """Train the switchable net of a seed and keep it; returns what each of its profiles measures on validation."""
    job, options = context.job, FinaliseSection.model_validate(section)
    chosen = {name: BitAssignment.from_json(each) for name, each in profiles.items()}
    model = Measurer(context).starting_model(options.start, seed)
    choice = choice_of(options, job)
    made = SwitchableNet(model, job.plan.graph, chosen, choice, private_norms=options.private_norms)
    made = made.to(job.device.place)
    made.calibrate(model, job.calibration_images())
    trainer = SwitchableTrainer(
        made,
        options,
        images=job.data.train,
        batch_size=job.config.data.batch_size,
        augmentation=job.augmentation,
        seed=derived_seed(job.config.seed, seed),
        label=PROFILE,
        device=job.device,
        teacher=teacher_of(job.network, float(options.teacher == "float")),
        task=job.task,
    )
    units = _epoch_units(job, options, len(chosen))
    context.train(trainer, Place(Finalise.name, net, f"{net}-seed{seed}", Finalise.name, units, seed))
    made.recalibrate(job.batchnorm_images(BATCHNORM_BATCHES), allow_overflow=True)
    save_switchable(context.log.run, made, net, seed)
    made.eval()
    return {name: job.measured(made.view_of(name), job.data.val).score for name in chosen}


def _epoch_units(job: Job, section: FinaliseSection, profiles: int) -> float:
    """Units of one epoch: its training passes, and the measurement of every profile."""
    trained = TRAIN_QUANTIZED * len(job.data.train) * passes_per_step(section, profiles)
    return trained + FORWARD_QUANTIZED * len(job.search_data.validation) * profiles


def _work(measurer: Measurer, section: FinaliseSection, profiles: int) -> Work:
    """Work of training and measuring a net of so many profiles."""
    training = _epoch_units(measurer.job, section, profiles) * section.epochs
    return times(section.seeds, {Finalise.name: training, Measure.name: measurer.units * profiles})
