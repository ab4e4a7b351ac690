"""What every stage of a job works with: its data, network and plan, its journal, and training that resumes.

Resuming is replaying: every stage looks for what it left behind (a journal line, a checkpoint) and goes on from
there. Each epoch is saved before it is journaled, and an epoch that was saved but not journaled is journaled first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from dnas.config.job import JobConfig
from dnas.data.augmentation import Augmentation
from dnas.data.image_sets import DataSplits
from dnas.data.load import load_data
from dnas.jobs.planning import Plan, compilation_pays, plan_job
from dnas.jobs.progress import EpochWork, Progress, Report, planned_work
from dnas.jobs.training import check_training
from dnas.quantization.conversion import QuantizerChoice
from dnas.search.trainer import EpochRecord, SearchData, SupernetTrainer
from dnas.training.device import Device
from dnas.training.schedules import derived_seed
from dnas.training.trainer import EpochResult, StepReport, Trainer, inputs_of
from results.events import Decoded, Epoch, Event, Note, read_epoch
from results.run.folder import Run
from results.run.lost import sound_events, standing
from search_spaces.allocation.program import Cells
from search_spaces.assignments import BitAssignment, LayerBits, ModelReference
from search_spaces.costs.budgets import Budget
from search_spaces.costs.sparse import costs_by_layer, sparse_prices
from search_spaces.errors import InputError
from search_spaces.layers import LayerSpec
from search_spaces.models.load import LoadedModel, load_model
from search_spaces.provenance import Provenance, Quantizers

Happened = TypeVar("Happened", bound=Event)


@dataclass(frozen=True)
class Stage:
    """Where an epoch belongs: the stage, what it is run for, and the seed; ``checkpoint`` names its file.

    ``epoch_work`` is the work of one epoch in image passes (see :mod:`dnas.jobs.progress`).
    """

    name: str
    run: str
    checkpoint: str
    epoch_work: float
    seed: int = 0
    budget: Mapping[str, float] = field(default_factory=dict)


class JobContext:
    """One job and everything it works on, made without any training.

    Raises :class:`InputError` for what cannot work: an unknown model, a budget out of reach, missing data.
    """

    def __init__(self, config: JobConfig, run: Run, report: Report) -> None:
        _check_start(config)
        check_training(config)
        self.config, self.run, self.report = config, run, report
        self.device = Device.named(config.device, config.precision, config.channels_last)
        quantizer = config.quantizer
        self.choice = QuantizerChoice(quantizer.weights, quantizer.activations, quantizer.per_channel)
        self.loaded = load_network(config)
        self.data = load_splits(config)
        self.plan: Plan = plan_job(config, self.loaded.module, self.data.input_shape)
        self._check_widths()
        self.reference = ModelReference(config.model.source, self.data.input_shape, self.loaded.checkpoint_sha256)
        self.augmentation, self.search_data = self._images()
        self.history: list[Event] = standing(sound_events(run))
        pays = compilation_pays(config, self.plan, len(self.data.train))
        self.compiles = {"on": True, "off": False}.get(config.search.compile, pays)
        search_data = self.search_data
        self.work = EpochWork.of(config, len(search_data.weights), len(search_data.theta), len(search_data.validation))
        self.progress = Progress(planned_work(config, self.work, len(self.plan.budgets)), report)
        self.network = self.loaded.module.to(self.device.place)

    def _images(self) -> tuple[Augmentation | None, SearchData]:
        """The augmentation of fine-tuning, and the images of the search (which never uses cutout)."""
        section = self.config.data
        full = Augmentation(section.crop_padding, section.flip, section.cutout)
        light = replace(full, cutout=0)
        nothing = Augmentation()
        search_data = SearchData.split(
            self.data.train,
            self.data.val,
            self.config.search.theta_fraction,
            section.batch_size,
            None if light == nothing else light,
            seed=self.config.seed,
        )
        return None if full == nothing else full, search_data

    def _check_widths(self) -> None:
        """Refuse widths that the job's quantizers do not have, or cannot mix where the job searches."""
        space, weights, activations = self.plan.space, self.choice.of_weights(), self.choice.of_activations()
        if self.config.compression == "search":
            pairs = [pair for bits in self.config.controls.uniform for pair in space.uniform(bits).values()]
            used = {(bits.weight_bits, bits.activation_bits) for bits in pairs} | set(space.fixed.values())
            used |= {(w, a) for w in space.weight_bits if w for a in space.activation_bits}
            for weight_bits, activation_bits in sorted(used):
                weights.check(weight_bits)
                activations.check(activation_bits)
            if "search" in self.config.order:
                self.choice.check_mixture(space.weight_bits, space.activation_bits)

    def journal(self, event: Event) -> None:
        """Write an event to the journal and report it."""
        self.run.journal.append(event.to_json())
        self.history.append(event)
        self.report(event.to_json())

    def events(self, kind: type[Happened]) -> list[Happened]:
        """Journaled events of one kind."""
        return [event for event in self.history if isinstance(event, kind)]

    @property
    def decoded(self) -> list[str]:
        """The ids of the assignments that are saved and journaled, in order."""
        return [event.assignment for event in self.events(Decoded)]

    def tell_once(self, sentences: list[str]) -> None:
        """Journal each sentence for the user, unless it was told before."""
        told = {note.text for note in self.events(Note)}
        for text in sentences:
            if text not in told:
                self.journal(Note(text=text))

    def keep_cells(self, name: str, cells: Cells, made: Provenance, budget: Budget | None = None) -> BitAssignment:
        """Save and journal a decoded assignment given as one cell per decision, once."""
        return self.keep(name, self.plan.space.layers_of(cells), made, budget)

    def keep(
        self, name: str, layers: Mapping[str, LayerBits], made: Provenance, budget: Budget | None = None
    ) -> BitAssignment:
        """Save and journal an assignment, once; a name that is known already gives what was saved then.

        ``made`` says where it comes from, but for the budget, the seed and the job's quantizers.
        """
        if name in self.decoded:
            return self.run.assignment(name)
        layers = {spec.name: _with_channels(layers[spec.name], spec) for spec in self.plan.graph.layers}
        known = {
            "budget": budget.label if budget else None,
            "limits": dict(budget.limits) if budget else {},
            "seed": self.config.seed,
            "quantizer": Quantizers(**asdict(self.choice)),
        }
        told = {key: value for key, value in known.items() if key not in made.model_fields_set}
        made = made.model_copy(update=told)
        by_layer = costs_by_layer(self.plan.table, layers)
        assignment = BitAssignment(name, self.reference, layers, self._price(layers), {}, made, by_layer)
        self.run.save_assignment(assignment)
        self.journal(Decoded(assignment=name, kind=made.kind, run=made.run, cost=dict(assignment.cost)))
        return assignment

    def _price(self, layers: Mapping[str, LayerBits]) -> dict[str, float]:
        """All costs; with sparse weights also the sizes without their index."""
        table = self.plan.table
        return sparse_prices(table, layers) if self.config.compression == "squantizer" else table.price(layers)

    def calibration_images(self) -> list[Tensor]:
        """The first training batches, without augmentation."""
        batches = self.data.train.batches(
            self.config.data.batch_size, seed=derived_seed(self.config.seed, "calibration"), device=self.device.place
        )
        return inputs_of(batches, self.config.quantizer.calibration_batches)

    def labelled_batches(self, purpose: str, count: int) -> list[tuple[Tensor, Tensor]]:
        """The first ``count`` training batches in an order of their own, (N, C, H, W) and (N,), not augmented."""
        seed = derived_seed(self.config.seed, purpose)
        batches = self.data.train.batches(self.config.data.batch_size, seed=seed, device=self.device.place)
        return [batch for _, batch in zip(range(count), batches, strict=False)]

    def train(self, trainer: Trainer, stage: Stage) -> None:
        """Run a trainer's remaining epochs, saving and journaling each."""
        steps = self.steps(stage, trainer, trainer.section.epochs)
        for _ in self.resumed(stage, trainer, lambda: trainer.epochs(steps)):
            pass

    def steps(self, stage: Stage, trainer: Trainer | SupernetTrainer, epochs: int) -> StepReport:
        """A callback that reports each step of a stage, and the share of the whole job it leaves done."""

        def step(number: int, steps: int, loss: float) -> None:
            self.progress.step(
                stage.epoch_work / steps,
                stage=stage.name,
                run=stage.run,
                epoch=trainer.epoch + 1,
                epochs=epochs,
                step=number,
                steps=steps,
                loss=loss,
            )

        return step

    def resumed(
        self,
        stage: Stage,
        trainer: Trainer | SupernetTrainer,
        epochs: Callable[[], Iterable[EpochResult | EpochRecord]],
    ) -> Iterator[Epoch]:
        """Yield the journal's event of every epoch that is left, once it is saved and journaled.

        The epoch that a checkpoint restores comes first: what follows an epoch may have been cut off by a kill.
        """
        saved = self.run.load_checkpoint(stage.checkpoint)
        if saved is not None:
            tensors, values = saved
            trainer.restore({key: value.to(self.device.place) for key, value in tensors.items()}, values)
            self.progress.advance(stage.epoch_work * trainer.epoch)
            yield self._journaled(read_epoch(values["record"]))
        for result in epochs():
            fields = self._epoch_fields(trainer, result)
            fields |= {"budget": dict(stage.budget)} if stage.budget else {}
            epoch = Epoch(stage=stage.name, run=stage.run, seed=stage.seed, **fields)
            tensors, values = trainer.state()
            self.run.save_checkpoint(stage.checkpoint, tensors, {**values, "record": epoch.to_json()})
            yield self._journaled(epoch)

    def _epoch_fields(self, trainer: Trainer | SupernetTrainer, result: EpochResult | EpochRecord) -> dict[str, Any]:
        if isinstance(result, EpochRecord) or isinstance(trainer, SupernetTrainer):
            return result.to_json()
        return {**result.to_json(), "epochs": trainer.section.epochs, **trainer.measured(self.search_data.validation)}

    def _journaled(self, epoch: Epoch) -> Epoch:
        """The epoch, in the journal once."""
        if not any(known.place == epoch.place for known in self.events(Epoch)):
            self.journal(epoch)
        return epoch


def _with_channels(bits: LayerBits, spec: LayerSpec) -> LayerBits:
    """The choice for a layer with the number of filters that it has in the end."""
    kept = bits.kept_channels
    return replace(bits, out_channels=spec.out_channels if kept is None else len(kept))


def _check_start(config: JobConfig) -> None:
    """Refuse fine-tuning from a supernet that has no weights to give."""
    if config.finetune.start != "supernet":
        return
    if config.search.engine != "composite":
        raise InputError(
            "finetune.start = 'supernet' needs search.engine = 'composite': of many branches none is the net's own; "
            "use finetune.start = 'pretrained' or 'fresh'"
        )
    if not config.search.warmup_epochs:
        raise InputError("finetune.start = 'supernet' needs search.warmup_epochs of at least 1")


def load_network(config: JobConfig) -> LoadedModel:
    """The job's network, freshly made: its initial weights depend on the job's seed alone."""
    checkpoint = Path(config.model.checkpoint).expanduser() if config.model.checkpoint else None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derived_seed(config.seed, "initial weights"))
        return load_model(config.model.source, arguments=config.model.arguments, checkpoint=checkpoint)


def load_splits(config: JobConfig) -> DataSplits:
    """The job's training, validation and test images."""
    section = config.data
    return load_data(
        section.source,
        root=Path(section.root).expanduser() if section.root else None,
        download=section.download,
        validation_fraction=section.validation_fraction,
        split_seed=config.seed,
        image_size=section.image_size,
        train_limit=section.train_limit,
        test_limit=section.test_limit,
        workers=section.workers,
    )
