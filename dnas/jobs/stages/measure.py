"""From an assignment to a figure: a fixed quantized net, fine-tuned and measured over several seeds."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from dnas.data.image_sets import ImageSet
from dnas.execution.tasks import JobTask
from dnas.jobs.compressions import compression_of
from dnas.jobs.context import JobContext, Place
from dnas.jobs.job import Job
from dnas.jobs.narrowing import Course, courses, keep_ranges
from dnas.jobs.progress import FORWARD_QUANTIZED, TRAIN_QUANTIZED, Work, times
from dnas.jobs.stage import Findings, Foreseen, Stage
from dnas.jobs.stored_nets import net_file, save_fixed, stored_net
from dnas.quantization.calibration import calibrate, recalibrate_batchnorm
from dnas.quantization.conversion import fixed_copy
from dnas.training.schedules import derived_seed
from dnas.training.trainer import Measurement, Trainer, with_prefix
from results.events import Measured, Profiles
from results.pareto import Estimate, FrontPoint
from results.points import point_of
from results.run.layout import assignment_file, checkpoint_file
from search_spaces.assignments import BitAssignment, kept_rows_of
from search_spaces.channels.slicing import remove_filters
from search_spaces.errors import InputError
from search_spaces.groups import kept_units
from search_spaces.metrics import ACCURACY
from search_spaces.models.copies import fresh_copy
from search_spaces.models.load import load_model
from search_spaces.provenance import PROPOSAL, Profile

BATCHNORM_BATCHES = 30
FINETUNE = "finetune"


class Measure(Stage):
    """Fine-tunes and measures what was handed on."""

    name = "measure"

    def __init__(
        self,
        context: JobContext,
        measurer: Measurer,
        early: Callable[[], Iterable[BitAssignment]] = lambda: (),
    ) -> None:
        super().__init__(context)
        self.measurer, self.early = measurer, early

    def foresee(self, before: Foreseen) -> Foreseen:
        """So many points more."""
        return replace(before, points=before.points + before.count)

    def work(self, before: Foreseen) -> Work:
        """Every assignment, as if it were like no other."""
        return times(before.count * self.context.job.config.finetune.seeds, self.measurer.work)

    def ahead(self, findings: Findings) -> Iterable[JobTask]:
        """Those that nothing is chosen from, where each is trained by itself."""
        if self.context.job.config.finetune.start != "wider":
            known = [*findings.found, *self.early()]
            yield from self.measurer.tasks([each for each in known if each.provenance.kind != PROPOSAL])

    def carry_out(self, findings: Findings) -> None:
        """Measure all of them."""
        seeds = self.context.job.config.finetune.seeds
        self.context.progress.replan(times(len(findings.found) * seeds, self.measurer.work))
        findings.points += self.measurer.measure_all(findings.found)


class Measurer:
    """Fine-tunes and measures the assignments of one job; equal assignments are measured once."""

    def __init__(self, context: JobContext) -> None:
        self.context, self.job, self.log = context, context.job, context.log
        self.compression = compression_of(self.job.config)
        self._first_with: dict[str, str] = {}
        self._courses: dict[str, Course] = {}
        self._first_of: dict[str, str] = {}

    def measure_all(self, assignments: Sequence[BitAssignment]) -> list[FrontPoint]:
        """Measure every assignment, wider ones first where others start from them; see :meth:`measure`."""
        section, progress = self.job.config.finetune, self.context.progress
        planned = courses(assignments, section.epochs, self.job.plan.table, narrows=section.start == "wider")
        self._courses |= planned
        by_id = {assignment.id: assignment for assignment in assignments}
        ordered = [by_id[name] for name in planned]
        for assignment in ordered:
            progress.correct(-section.seeds, self.work)
            again = self._first(assignment) != assignment.id
            progress.correct(0 if again else section.seeds, self.work_of(planned[assignment.id]))
        self.context.tasks.announce(self.tasks(ordered))
        points = {assignment.id: self.measure(assignment) for assignment in ordered}
        return [points[assignment.id] for assignment in assignments]

    def measure(self, assignment: BitAssignment) -> FrontPoint:
        """Accuracy of the assignment on validation, over the job's seeds, as a point of the front."""
        first = self._first(assignment)
        values = [self._measure_seed(assignment, first, seed) for seed in range(self.seeds_of(assignment))]
        estimate = Estimate.from_values(values)
        assignment = self.compression.as_measured(assignment, self.context)
        metric = self.job.task.metric
        metrics: dict[str, Any] = {f"val_{metric.name}": {"mean": estimate.mean, "std": estimate.std, "n": estimate.n}}
        if first != assignment.id:
            metrics["same_as"] = first
        if metric != ACCURACY:
            metrics["metric"] = metric.to_json()
        self.log.run.save_assignment(assignment.with_metrics(**metrics))
        filters = {spec.name: spec.out_channels for spec in self.job.plan.graph.layers}
        return point_of(assignment, estimate, filters, metric)

    def _first(self, assignment: BitAssignment) -> str:
        """The id of the first assignment with equal bits and an equal course."""
        self._first_of[assignment.id] = self._first_with.setdefault(self.key(assignment), assignment.id)
        return self._first_of[assignment.id]

    def key(self, assignment: BitAssignment) -> str:
        """What assignments trained alike have in common; one with a weight scheme, or shared, is like no other."""
        if any(bits.scheme for bits in assignment.layers.values()) or assignment.provenance.net:
            return assignment.id
        kept = sorted(kept_rows_of(assignment.layers).items())
        course = self.course_of(assignment)
        trained = [assignment.provenance.parent, assignment.provenance.start, self._start(course), course.epochs]
        return json.dumps([sorted(assignment.pairs.items()), kept, *trained])

    def _start(self, course: Course) -> str | None:
        """The assignment whose net a course starts from: of equal ones the first, which has it."""
        return self._first_of.get(course.start or "", course.start)

    def tasks(self, assignments: Iterable[BitAssignment]) -> Iterator[JobTask]:
        """What is left to be trained of assignments, those of a switchable net left out."""
        known = {(event.assignment, event.seed) for event in self.log.events(Measured)}
        first_with, decoded = dict(self._first_with), set(self.log.decoded)
        for assignment in assignments:
            if (
                not assignment.provenance.net
                and first_with.setdefault(self.key(assignment), assignment.id) == assignment.id
            ):
                if assignment.id in decoded and self.log.run.assignment(assignment.id).metrics.get("same_as"):
                    continue  # measured already, by the name of another
                seeds = range(self.seeds_of(assignment))
                yield from (self.task(assignment, seed) for seed in seeds if (assignment.id, seed) not in known)

    def task(self, assignment: BitAssignment, seed: int) -> JobTask:
        """Training and measuring the net of an assignment and seed."""
        course = self.course_of(assignment)
        start = self._start(course)
        inputs = {"assignment": assignment.to_json(), "epochs": course.epochs, "links": course.links, "start": start}
        name = f"{assignment.id}-seed{seed}"
        work = sum(self.work_of(course).values())
        return JobTask(
            f"{FINETUNE} {name}",
            finetune,
            inputs,
            seed,
            work,
            self.reads(assignment, seed, start),
            tuple(map(checkpoint_file, (name, net_file(assignment.id, seed)))),
        )

    def reads(self, assignment: BitAssignment, seed: int, start: str | None = None) -> tuple[str, ...]:
        """The files that an assignment is trained from."""
        own = start or assignment.provenance.parent
        from_net = self.net_files(own, self._seed_of(self.log.run.assignment(own), seed)) if own else ()
        return (*self.context.reads_float, *start_files(self._weights_of(assignment)), *from_net)

    def net_files(self, name: str, seed: int) -> tuple[str, ...]:
        """The files that :meth:`stored` reads of the assignment of that id, as the run has it now, and a seed."""
        assignment = self.log.run.assignment(name)
        net = assignment.provenance.net
        if not net:
            trained = net_file(assignment.metrics.get("same_as", name), seed)
            return assignment_file(name), checkpoint_file(trained)
        profiles = next(event.profiles for event in self.log.events(Profiles) if event.net == net)
        return checkpoint_file(net_file(net, seed)), *(assignment_file(f"{net}-{profile}") for profile in profiles)

    def course_of(self, assignment: BitAssignment) -> Course:
        """How the assignment is fine-tuned."""
        return self._courses.get(assignment.id) or Course(self.job.config.finetune.epochs)

    def _measure_seed(self, assignment: BitAssignment, first: str, seed: int) -> float:
        for known in self.log.events(Measured):
            if known.seed == seed and known.assignment == first:
                if assignment.id == first and not assignment.provenance.net:  # that is the work of its net
                    self.log.run.delete_checkpoint(f"{first}-seed{seed}")  # a kill may have come before it was
                    self.context.progress.recall(self.work_of(self.course_of(assignment)))
                return known.val
        course = self.course_of(assignment)
        val = self.context.outcome(self.task(assignment, seed))
        kind = assignment.provenance.kind
        metric = self.job.task.metric.name
        measured, start = Measured(assignment=assignment.id, kind=kind, seed=seed, metric=metric, val=val), course.start
        self.log.write(measured.model_copy(update={"start": start}) if start else measured)
        self.log.run.delete_checkpoint(f"{assignment.id}-seed{seed}")
        self.context.progress.step(Measure.name, self.units, stage=Measure.name, run=assignment.id)
        return val

    @property
    def units(self) -> float:
        """Units of measuring a net: its BatchNorm is estimated anew, and it reads the validation images."""
        job = self.job
        images = min(len(job.data.train), BATCHNORM_BATCHES * job.config.data.batch_size)
        return FORWARD_QUANTIZED * (images + len(job.data.val))

    @property
    def work(self) -> Work:
        """Work of fine-tuning and measuring one net, as far as it is known before its course."""
        return self.work_of(Course(self.job.config.finetune.epochs))

    def work_of(self, course: Course) -> Work:
        """Work of fine-tuning one net so and measuring it."""
        return {FINETUNE: finetune_units(self.job) * course.epochs, Measure.name: self.units}

    def seeds_of(self, assignment: BitAssignment) -> int:
        """How many nets are trained of an assignment: what its switchable net says, or the job."""
        origin = assignment.provenance
        return origin.seeds if isinstance(origin, Profile) else self.job.config.finetune.seeds

    def _seed_of(self, start: BitAssignment, seed: int) -> int:
        """Which net of ``start`` that of a seed is made from: of a switchable net there may be fewer, taken in turn."""
        return seed % self.seeds_of(start)

    def _trained(self, assignment: BitAssignment, course: Course, seed: int) -> nn.Module:
        """The fixed net, fine-tuned as far as it has not been already, in eval mode; it is kept."""
        job = self.job
        network = self.fixed(assignment, seed, course.start)
        trainer = Trainer(
            network,
            job.config.finetune.model_copy(update={"epochs": course.epochs}),
            images=job.data.train,
            batch_size=job.config.data.batch_size,
            augmentation=job.augmentation,
            seed=derived_seed(job.config.seed, seed),
            # Not the assignment's name: equal assignments must train equally. No link repeats the batches of another.
            label=f"finetune-{course.links}" if course.links else "finetune",
            device=job.device,
            on_progress=self.compression.on_progress(network, job),
            teacher=job.teacher,
            task=job.task,
        )
        place = Place(FINETUNE, assignment.id, f"{assignment.id}-seed{seed}", FINETUNE, finetune_units(job), seed)
        self.context.train(trainer, place)
        self.compression.settle(network, assignment, job)
        recalibrate_batchnorm(network, job.batchnorm_images(BATCHNORM_BATCHES), allow_overflow=True)
        save_fixed(self.log.run, network, assignment, seed)
        return network.eval()

    def fixed(self, assignment: BitAssignment, seed: int, start: str | None = None) -> nn.Module:
        """The quantized net before fine-tuning, calibrated; from the net of ``start``, or as its course says."""
        job, start = self.job, start or self._start(self.course_of(assignment))
        if start:
            return self._requantized(self.stored(self.log.run.assignment(start), seed), assignment)
        if assignment.provenance.parent:
            return self._from_parent(assignment, assignment.provenance.parent, seed)
        model = self.starting_model(self._weights_of(assignment), seed)
        network = fixed_copy(model, job.plan.graph, assignment.layers, job.choice).to(job.device.place)
        calibrate(network, job.calibration_images())
        return network

    def _weights_of(self, assignment: BitAssignment) -> str:
        """What an assignment starts from, as a job file calls it: what was chosen for it, or as all do."""
        return assignment.provenance.start or self.job.config.finetune.start

    def starting_model(self, start: str, seed: int) -> nn.Module:
        """The float network to start from: the job's, the supernet's weights in it, or a new initialization."""
        job = self.job
        if start == "fresh":
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(derived_seed(job.config.seed, "fresh", seed))
                section = job.config.model
                return load_model(section.source, arguments=section.arguments).module.to(job.device.place)
        if start in ("pretrained", "wider"):
            return job.network
        warm = self.log.run.load_checkpoint("warmup")
        if warm is None:
            raise InputError("the checkpoint 'warmup' is gone, which starting from the supernet needs; restore it")
        network = fresh_copy(job.network)
        inherit(network, with_prefix(warm[0], "supernet.network"))
        return network

    def _from_parent(self, assignment: BitAssignment, name: str, seed: int) -> nn.Module:
        """The parent's trained net: without the filters that this assignment removes, or at other bits."""
        channels = self.job.plan.graph.channels
        parent = self.log.run.assignment(name)
        network, rows = self.stored(parent, self._seed_of(parent, seed)), kept_rows_of(assignment.layers)
        if assignment.pairs == parent.pairs and not kept_rows_of(parent.layers):
            return remove_filters(network, channels, kept_units(channels, rows))
        return self._requantized(network, assignment)

    def _requantized(self, network: nn.Module, assignment: BitAssignment) -> nn.Module:
        """A trained net at the bits of this assignment: ranges are kept where the width is, else calibrated."""
        job = self.job
        other = fixed_copy(job.network, job.plan.graph, assignment.layers, job.choice).to(job.device.place)
        inherit(other, network.state_dict())
        calibrate(other, job.calibration_images())
        keep_ranges(other, network)
        return other

    def measure_again(self, assignment: BitAssignment, seed: int, images: ImageSet) -> Measurement:
        """Measure the stored net of an assignment and seed on ``images``."""
        return self.job.measured(self.stored(assignment, seed), images)

    def stored(self, assignment: BitAssignment, seed: int) -> nn.Module:
        """The measured net of an assignment and seed, in eval mode."""
        job = self.job
        found = stored_net(self.log.run, job.network, job.plan.graph, assignment, job.choice, seed)
        return found.to(job.device.place)


def finetune(
    context: JobContext, seed: int, assignment: Mapping[str, Any], epochs: int, links: int, start: str | None
) -> float:
    """Train the net of an assignment and seed; keep it, and return what it measures on validation."""
    context.forget()
    found = BitAssignment.from_json(assignment)
    network = Measurer(context)._trained(found, Course(epochs, start, links), seed)
    return context.job.measured(network, context.job.data.val).score


def start_files(start: str) -> tuple[str, ...]:
    """What is read, beside the float network, where a net starts from what a job file calls so."""
    return (checkpoint_file("warmup"),) if start == "supernet" else ()


def inherit(network: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Copy what two quantized versions of one network have in common: weights, biases, BatchNorm."""
    own = network.state_dict()
    shared = {k: v for k, v in tensors.items() if k in own and own[k].shape == v.shape and ".quantize_" not in k}
    network.load_state_dict({**own, **shared})


def finetune_units(job: Job) -> float:
    """Units of one epoch of fine-tuning, with its measurement."""
    return TRAIN_QUANTIZED * len(job.data.train) + FORWARD_QUANTIZED * len(job.search_data.validation)
