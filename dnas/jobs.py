"""A whole job: pretrain, warm up, search for every budget, measure, test; each step journaled and resumable.

Resuming is replaying: every stage looks for what it left behind (a journal line, a checkpoint) and goes on from
there. Each epoch is saved before it is journaled, and an epoch that was saved but not journaled is journaled first.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dnas.augmentation import Augmentation
from dnas.calibration import calibrate
from dnas.config import JobConfig
from dnas.controls import control_assignments
from dnas.conversion import QuantizerChoice
from dnas.data import load_data
from dnas.diagnosis import diagnose
from dnas.image_sets import DataSplits
from dnas.jobfile import load_job
from dnas.measuring import Measurer
from dnas.mixture import compiled_mixture
from dnas.planning import Plan, compilation_pays, plan_job
from dnas.progress import FORWARD, TRAIN, TRAIN_QUANTIZED, Progress, Report, planned_work
from dnas.schedules import derived_seed
from dnas.search import EpochRecord, SearchData, SupernetTrainer
from dnas.supernet import Supernet
from dnas.training import EpochResult, Trainer, evaluate, inputs_of, with_prefix
from results.pareto import Estimate, FloatReference, FrontPoint, ParetoFront
from results.plots import draw_fronts, save_figure
from results.runs import Run
from search_spaces.allocation import Cells
from search_spaces.assignments import BitAssignment, LayerBits, ModelReference
from search_spaces.budgets import Budget
from search_spaces.errors import InputError, JobError
from search_spaces.models import LoadedModel, load_model


def run_job(config: JobConfig, run: Run, report: Report) -> ParetoFront:
    """Run a job, or go on with it if the run's journal is not empty; returns the measured front.

    ``report`` receives every journal event, and ``progress`` events in between. Raises :class:`InputError` before
    any training for what cannot work, :class:`JobError` for what went wrong on the way; both leave the run resumable.
    """
    if config.threads:
        torch.set_num_threads(config.threads)
    job = Job(config, run, report)
    try:
        with compiled_mixture(job.compiles):
            return job.run_all()
    except JobError as error:
        job.journal({"event": "failed", "message": str(error)})
        raise


def evaluate_assignment(run: Run, assignment_id: str, split: str, report: Report) -> dict[str, Any]:
    """Measure a finished assignment of a run again, over its seeds, on ``val`` or ``test``."""
    config = load_job(str(run.folder / "job.toml"))
    job = Job(config, run, report)
    assignment = run.assignment(assignment_id)
    images = {"val": job.data.val, "test": job.data.test}.get(split)
    if images is None:
        raise InputError(f"split '{split}' is not one of val, test")
    values = [job.measurer.measure_again(assignment, seed, images).top1 for seed in range(config.finetune.seeds)]
    estimate = Estimate.from_values(values)
    top1 = {"mean": estimate.mean, "std": estimate.std, "n": estimate.n}
    return {"assignment": assignment.id, "split": split, "top1": top1, "images": len(images)}


def choose_device(name: str) -> torch.device:
    """The device of that name; ``auto`` is CUDA where there is one. :class:`InputError` for CUDA without one."""
    if name == "cuda" and not torch.cuda.is_available():
        raise InputError("device = 'cuda' but PyTorch finds no CUDA device here; use --device cpu or auto")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


class Job:
    """One job and everything it works on, made without any training."""

    def __init__(self, config: JobConfig, run: Run, report: Report) -> None:
        self.config, self.run, self.report = config, run, report
        self.device = choose_device(config.device)
        self.choice = QuantizerChoice(
            config.quantizer.weights, config.quantizer.activations, config.quantizer.per_channel
        )
        self.loaded = load_network(config)
        self.data = load_splits(config)
        self.plan = plan_job(config, self.loaded.module, self.data.input_shape)
        self.reference = ModelReference(config.model.source, self.data.input_shape, self.loaded.checkpoint_sha256)
        section = config.data
        crop_flip = Augmentation(section.crop_padding, section.flip, 0)
        self.search_data = SearchData.split(
            self.data.train,
            self.data.val,
            config.search.theta_fraction,
            section.batch_size,
            crop_flip if section.crop_padding or section.flip else None,
            seed=config.seed,
        )
        self.augmentation = replace(crop_flip, cutout=section.cutout)
        self.records = run.journal.records()
        self.compiles = {"on": True, "off": False}.get(config.search.compile, compilation_pays(config, self.plan, len(self.data.train)))
        judges = len(self.search_data.judge)
        self.progress = Progress(planned_work(config, self.plan, len(self.data.train), judges), report)
        self.network = self.loaded.module.to(self.device)
        self.measurer = Measurer(self)

    # ---- the pipeline -------------------------------------------------------------------------------------------

    def run_all(self) -> ParetoFront:
        """Every stage in turn."""
        self.journal({"event": "resumed" if self.records else "started"})
        self._tell_once(self._introduction())
        self._stage("pretrain", self._pretrain)
        candidates = self._stage("search", self._search)
        candidates += self._stage("controls", lambda: control_assignments(self))
        points = self._stage("measure", lambda: [self.measurer.measure(c) for c in unique(candidates)])
        front = self._stage("test", lambda: self._front(points))
        self.run.save_front(front)
        save_figure(draw_fronts({self.run.name: front}, x=front.x), self.run.picture_path)
        self.journal({"event": "finished"})
        return front

    def _stage(self, name: str, work: Any) -> Any:
        self.journal({"event": "stage", "stage": name, "state": "start"})
        result = work()
        self.journal({"event": "stage", "stage": name, "state": "done"})
        return result

    def _introduction(self) -> list[str]:
        missing, unexpected = self.loaded.missing_keys, self.loaded.unexpected_keys
        told = []
        if missing or unexpected:
            told.append(
                f"checkpoint: {len(missing)} keys missing ({', '.join(missing[:3]) or 'none'}), "
                f"{len(unexpected)} unexpected ({', '.join(unexpected[:3]) or 'none'})"
            )
        told += [f"left alone: {name}: {why}" for name, why in self.plan.graph.left_alone.items()]
        engine = "compiled" if self.compiles else "eager"
        told.append(
            f"{len(self.plan.space.decisions)} decisions over {len(self.plan.graph.layers)} layers; "
            f"{len(self.data.train)} training, {len(self.data.val)} validation, {len(self.data.test)} test images; "
            f"{self.config.search.engine} engine, {engine} mixture, on {self.device}"
        )
        return told

    def _pretrain(self) -> None:
        if self.config.pretrain.epochs:
            trainer = Trainer(
                self.network,
                self.config.pretrain,
                images=self.data.train,
                batch_size=self.config.data.batch_size,
                augmentation=self.search_data.augmentation,
                seed=self.config.seed,
                label="pretrain",
                device=self.device,
            )
            self.train(trainer, "pretrain", "float", 0, self.data.train, TRAIN)

    def _search(self) -> list[BitAssignment]:
        """Search for every budget from one warmed-up supernet; what is decoded already is not searched again."""
        labels = [f"search-{number}" for number in range(1, max(1, len(self.plan.budgets)) + 1)]
        decoded = self.assignments_of("decoded")
        if all(any(r["run"] == label for r in self.events("searched")) for label in labels):
            return [a for a in decoded if a.provenance["kind"] in ("search", "sampled")]
        supernet = self._warm_supernet()
        warm = {name: value.clone() for name, value in supernet.state_dict().items()}
        found: list[BitAssignment] = []
        for label, budget in zip(labels, self.plan.budgets or (None,), strict=True):
            if not any(r["run"] == label for r in self.events("searched")):
                supernet.load_state_dict(warm)
                self._search_one(supernet, label, budget)
            found += [a for a in self.assignments_of("decoded") if a.provenance["run"] == label]
        return found

    def _warm_supernet(self) -> Supernet:
        supernet = Supernet(
            self.network, self.plan.graph, self.plan.space, self.plan.table, self.choice, self.config.search.engine
        ).to(self.device)
        calibrate(supernet.network, self.calibration_images())
        trainer = self._supernet_trainer(supernet, "warmup")
        work = TRAIN_QUANTIZED * len(self.search_data.weights)
        for record in self._resumed(trainer, "warmup", lambda: trainer.warmup(self._steps("warmup", "warmup", work, trainer)), 0):
            self.progress.advance(FORWARD * len(self.search_data.judge))
            del record
        return supernet

    def _supernet_trainer(self, supernet: Supernet, label: str) -> SupernetTrainer:
        return SupernetTrainer(
            supernet, self.config.search, self.search_data, seed=self.config.seed, label=label, device=self.device
        )

    def _search_one(self, supernet: Supernet, label: str, budget: Budget | None) -> None:
        """Train θ for one budget, decode, and journal what was found."""
        trainer = self._supernet_trainer(supernet, label)
        images = len(self.search_data.theta)
        if self.config.search.weight_updates != "frozen":
            images += len(self.search_data.weights)
        last: EpochRecord | None = None
        steps = self._steps("search", label, TRAIN_QUANTIZED * images, trainer)
        limits = dict(budget.limits) if budget else {}
        for last in self._resumed(trainer, label, lambda: trainer.search(budget, steps), 0, budget=limits):
            self.progress.advance(2 * FORWARD * len(self.search_data.judge))
            self._sample_architectures(supernet, label, last.epoch)
        cells = supernet.decode(budget)
        self.keep(label, "search", cells, budget=budget, run=label)
        if last is not None:
            self._tell_once(diagnose(label, last, supernet.decode(), cells, self.plan.table, budget))
        self.journal({"event": "searched", "run": label})
        self.run.delete_checkpoint(label)

    def _sample_architectures(self, supernet: Supernet, label: str, epoch: int) -> None:
        """Draw architectures from P(θ), as DNAS does every few epochs (section 4.2)."""
        section = self.config.search
        if not section.sample_every or epoch % section.sample_every:
            return
        generator = torch.Generator().manual_seed(derived_seed(self.config.seed, label, "draw", epoch))
        for number in range(1, section.samples + 1):
            self.keep(f"sampled-{label[7:]}-e{epoch}-{number}", "sampled", supernet.draw(generator), run=label)

    def _front(self, points: list[FrontPoint]) -> ParetoFront:
        """Read the test split, once, for every measured net, and build the front."""
        tested = []
        for point in points:
            values = self.measurer.test(self.run.assignment(point.assignment))
            tested.append(replace(point, test_top1=Estimate.from_values(values)))
        size = self.plan.table.uniform(32)["size_bytes"]
        batch_size = self.config.data.batch_size
        self.network.eval()
        val, test = (evaluate(self.network, s, batch_size, self.device).top1 for s in (self.data.val, self.data.test))
        x = next(iter(self.plan.budgets[0].limits)) if self.plan.budgets else "size_bytes"
        return ParetoFront.from_points(tested, x=x, reference=FloatReference(size, val, test))

    # ---- what the stages share ----------------------------------------------------------------------------------

    def journal(self, record: Mapping[str, Any]) -> None:
        """Write an event to the journal and report it."""
        self.run.journal.append(record)
        self.records.append(dict(record))
        self.report(record)

    def events(self, kind: str) -> list[dict[str, Any]]:
        """Journaled events of one kind."""
        return [record for record in self.records if record["event"] == kind]

    def _tell_once(self, sentences: list[str]) -> None:
        told = {record["text"] for record in self.events("note")}
        for text in sentences:
            if text not in told:
                self.journal({"event": "note", "text": text})

    def keep(
        self, name: str, kind: str, cells_or_layers: Cells | Mapping[str, LayerBits], *, budget: Budget | None = None, run: str
    ) -> BitAssignment:
        """Save a decoded assignment and journal it, once."""
        known = {record["assignment"] for record in self.events("decoded")}
        if name in known:
            return self.run.assignment(name)
        layers = (
            cells_or_layers
            if isinstance(cells_or_layers, Mapping)
            else self.plan.space.layers_of(cells_or_layers)
        )
        layers = {
            spec.name: replace(layers[spec.name], out_channels=spec.out_channels) for spec in self.plan.graph.layers
        }
        provenance = {"kind": kind, "run": run, "budget": budget.label if budget else None, "seed": self.config.seed,
                      "limits": dict(budget.limits) if budget else {}}
        assignment = BitAssignment(name, self.reference, layers, self.plan.table.price(layers), {}, provenance)
        self.run.save_assignment(assignment)
        self.journal({"event": "decoded", "assignment": name, "kind": kind, "run": run, "cost": dict(assignment.cost)})
        return assignment

    def assignments_of(self, event: str) -> list[BitAssignment]:
        """The assignments that events of this kind name, in order."""
        return [self.run.assignment(record["assignment"]) for record in self.events(event)]

    def calibration_images(self) -> list[Tensor]:
        """The first training batches, without augmentation."""
        batches = self.data.train.batches(
            self.config.data.batch_size, seed=derived_seed(self.config.seed, "calibration"), device=self.device
        )
        return inputs_of(batches, self.config.quantizer.calibration_batches)

    def train(self, trainer: Trainer, stage: str, label: str, seed: int, images: Any, work_per_image: float) -> None:
        """Run a trainer's remaining epochs, saving and journaling each."""
        name = stage if stage == "pretrain" else f"{label}-seed{seed}"
        steps = self._steps(stage, label, work_per_image * len(images), trainer)
        for _ in self._resumed(trainer, name, lambda: trainer.epochs(steps), seed, stage=stage, label=label):
            pass

    def _steps(self, stage: str, label: str, epoch_work: float, trainer: Trainer | SupernetTrainer) -> Any:
        epochs = self.config.search.warmup_epochs if stage == "warmup" else trainer.section.epochs

        def step(number: int, steps: int, loss: float) -> None:
            self.progress.step(
                epoch_work / steps,
                stage=stage,
                run=label,
                epoch=trainer.epoch + 1,
                epochs=epochs,
                step=number,
                steps=steps,
                loss=loss,
            )

        return step

    def _resumed(
        self,
        trainer: Trainer | SupernetTrainer,
        name: str,
        epochs: Any,
        seed: int,
        *,
        budget: Mapping[str, float] | None = None,
        stage: str | None = None,
        label: str | None = None,
    ) -> Iterator[Any]:
        """Restore a trainer from its checkpoint, then yield its remaining epochs, each saved and journaled."""
        stage = stage or ("warmup" if name == "warmup" else "search")
        saved = self.run.load_checkpoint(name)
        if saved is not None:
            tensors, values = saved
            trainer.restore({key: value.to(self.device) for key, value in tensors.items()}, values)
            self._journal_epoch(values["record"])
        for result in epochs():
            record = {
                "event": "epoch",
                "stage": stage,
                "run": label or name,
                "seed": seed,
                **self._epoch_fields(trainer, result),
                **({"budget": dict(budget)} if budget else {}),
            }
            tensors, values = trainer.state()
            self.run.save_checkpoint(name, tensors, {**values, "record": record})
            self._journal_epoch(record)
            yield result

    def _epoch_fields(self, trainer: Trainer | SupernetTrainer, result: EpochResult | EpochRecord) -> dict[str, Any]:
        if isinstance(result, EpochRecord):
            return result.to_json()
        trainer.network.eval()  # type: ignore[union-attr]
        judge = self.search_data.judge
        top1 = evaluate(trainer.network, judge, self.config.data.batch_size, self.device).top1  # type: ignore[union-attr]
        return {"epoch": result.epoch, "epochs": trainer.section.epochs, "loss": result.loss, "top1": top1}

    def _journal_epoch(self, record: Mapping[str, Any]) -> None:
        key = ("stage", "run", "seed", "epoch")
        if not any(all(known[k] == record[k] for k in key) for known in self.events("epoch")):
            self.journal(record)


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


def unique(candidates: list[BitAssignment]) -> list[BitAssignment]:
    """The candidates, once each by id, in order."""
    return list({candidate.id: candidate for candidate in candidates}.values())
