"""The differentiable search: warm up the weights, then train θ for each budget, yielding one record per epoch.

The weights and θ have their own optimizer and their own share of the training data (DNAS, section 4.2: 80/20).
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from dnas.config.job import SearchSection
from dnas.config.training import Optimization
from dnas.quantization.calibration import batch_statistics
from dnas.search.images import SearchData
from dnas.search.losses import ThetaLoss, theta_loss
from dnas.search.records import EpochRecord, by_width
from dnas.search.sandwich import Sandwich
from dnas.search.supernet import Sample, Supernet
from dnas.training.device import CPU, AnyDevice, Device
from dnas.training.distillation import Teacher, taught
from dnas.training.loss_meter import LossMeter, looks_every, watched_epoch
from dnas.training.optimization import Updates
from dnas.training.passes import Passes
from dnas.training.schedules import derived_seed, exponential
from dnas.training.task import CLASSIFICATION, AnyTask, outputs_of, smoothed, task_of
from dnas.training.trainer import (
    StepReport,
    measure,
    steps_per_epoch,
    training_batches,
    with_prefix,
    without_single,
)
from search_spaces.costs.budgets import Budget


class SupernetTrainer:
    """Trains one supernet on one split of the data; its state restores bit for bit."""

    def __init__(
        self,
        supernet: Supernet,
        section: SearchSection,
        data: SearchData,
        *,
        seed: int = 0,
        label: str = "search",
        device: AnyDevice = CPU,
        teacher: Teacher | None = None,
        task: AnyTask = CLASSIFICATION,
        budgets: Sequence[Budget] = (),
    ) -> None:
        self.task = task_of(task)
        self.training_task = smoothed(self.task, section.label_smoothing)
        self.supernet, self.section, self.data, self.teacher = supernet, section, data, teacher
        self.seed, self.label, self.device = seed, label, Device.of(device)
        self.sandwich = Sandwich(supernet.table, budgets, section.sandwich_samples)
        beside = [teacher.network] if teacher else []
        self.device.lay_out(supernet, *beside)
        self.weights = Updates(supernet.network, section, self.device.processes)
        self.theta = Updates(supernet.theta, theta_optimization(section), self.device.processes)
        self.passes = Passes(supernet.network, self.device, beside=beside)
        self.epoch = 0

    def warmup(self, report: StepReport | None = None) -> Iterator[EpochRecord]:
        """Train the weights with θ frozen at uniform."""
        epochs = self.section.warmup_epochs
        while self.epoch < epochs:
            started = time.perf_counter()
            loss = watched_epoch(self, looks_every(self.device), partial(self._warmup_epoch, report))
            self.epoch += 1
            yield self._record(epochs, loss, None, started)
        self.weights.finish()
        self.epoch = 0  # a search that follows begins at its own first epoch

    def _warmup_epoch(self, report: StepReport | None, every: int) -> float:
        """Train the weights on all their images once; returns the mean loss."""
        seed = derived_seed(self.seed, self.label, "warmup", self.epoch)
        generator = torch.Generator().manual_seed(seed)
        steps = steps_per_epoch(len(self.data.weights), self.data.batch_size)
        losses = LossMeter(self.device, every)
        with self.device.own_randomness(seed), self.device.processes.training(self.supernet.network):
            for step, batch in enumerate(self._weight_batches(seed)):
                place = step, steps, (self.epoch + step / steps) / self.section.warmup_epochs
                self._weight_step(batch, self._warmup_samples(generator), place, losses)
                if report:
                    report(step + 1, steps, losses.latest)
        self.weights.make_alike(self.supernet)
        return losses.sum() / steps

    def search(self, budget: Budget | None, report: StepReport | None = None) -> Iterator[EpochRecord]:
        """Train θ towards ``budget``; the weights stay frozen or alternate with it, as the job says."""
        loss_of = theta_loss(self.section, self.supernet, budget)
        epochs = self.section.epochs
        while self.epoch < epochs:
            started = time.perf_counter()
            temperature = exponential(self.section.temperature_start, self.section.temperature_end, self.epoch / epochs)
            run = partial(self._search_epoch, loss_of, temperature, report)
            loss = watched_epoch(self, looks_every(self.device), run)
            self.epoch += 1
            yield self._record(epochs, loss, temperature, started)
        self.weights.finish()

    def _search_epoch(self, loss_of: ThetaLoss, temperature: float, report: StepReport | None, every: int) -> float:
        """Train θ, and the weights where they alternate with it; returns the mean loss of θ."""
        seed = derived_seed(self.seed, self.label, self.epoch)
        generator = torch.Generator().manual_seed(seed)
        steps = self.steps
        weight_losses, theta_losses = LossMeter(self.device, every), LossMeter(self.device, every)
        weight_steps = steps_per_epoch(len(self.data.weights), self.data.batch_size)
        with self.device.own_randomness(seed), self.device.processes.training(self.supernet.network):
            for step, (kind, batch) in enumerate(self._schedule(seed)):
                progress = (self.epoch + step / steps) / self.section.epochs
                losses = weight_losses if kind == "weights" else theta_losses
                if kind == "weights":
                    place = weight_losses.count, weight_steps, progress
                    self._weight_step(batch, [self._drawn(temperature, generator)], place, weight_losses)
                else:
                    self._theta_step(batch, temperature, generator, loss_of, progress, theta_losses)
                if report:
                    report(step + 1, steps, losses.latest)
        self.weights.make_alike(self.supernet)
        return theta_losses.sum() / max(1, theta_losses.count)

    @property
    def steps(self) -> int:
        """Steps of one epoch of :meth:`search`."""
        theta = steps_per_epoch(len(self.data.theta), self.data.batch_size)
        if self.section.weight_updates == "frozen":
            return theta
        weights = steps_per_epoch(len(self.data.weights), self.data.batch_size)
        return weights + (theta if self.section.weight_updates == "epoch" else weights)

    def _schedule(self, seed: int) -> Iterator[tuple[str, tuple[Any, Any]]]:
        """The batches of one epoch, each with what it trains."""
        if self.section.weight_updates == "step":
            theta_batches = self._theta_batches(seed)
            for index, batch in enumerate(self._weight_batches(seed)):
                yield "weights", batch
                theta = next(theta_batches, None)
                if theta is None:  # θ has fewer images: go round again, shuffled anew
                    theta_batches = self._theta_batches(derived_seed(seed, index))
                    theta = next(theta_batches)
                yield "theta", theta
            return
        if self.section.weight_updates == "epoch":
            for batch in self._weight_batches(seed):
                yield "weights", batch
        for batch in self._theta_batches(seed):
            yield "theta", batch

    def _weight_batches(self, seed: int) -> Iterator[tuple[Any, Any]]:
        return training_batches(
            self.data.weights, self.data.batch_size, seed, self.data.augmentation, self.device, self.task
        )

    def _theta_batches(self, seed: int) -> Iterator[tuple[Any, Any]]:
        seed = derived_seed(seed, "theta")
        return training_batches(
            self.data.theta, self.data.batch_size, seed, self.data.augmentation, self.device, self.task
        )

    def _warmup_samples(self, generator: torch.Generator) -> list[Sample]:
        """What the weights are trained at in one step of the warm-up."""
        if self.section.warmup == "mixture":
            return [self._drawn(self.section.temperature_start, generator)]
        return [self.supernet.one_hot(cells) for cells in self.sandwich.draw(generator)]

    def _drawn(self, temperature: float, generator: torch.Generator) -> Sample:
        with torch.no_grad():
            return self.supernet.sample(temperature, self.section.sampling, generator)

    def _weight_step(
        self,
        batch: tuple[Any, Any],
        samples: Sequence[Sample],
        place: tuple[int, int, float],
        losses: LossMeter,
    ) -> None:
        """Train the weights on one batch, at all samples at once.

        ``place`` is the batch's number, the epoch's batches, and the progress in [0, 1).
        """

        def add_gradients(part: float) -> None:
            told = self._told(*batch)
            self.supernet.train()
            for sample in samples:
                given = *batch, told, *sample.parts
                own = partial(self._loss, len(samples))
                (loss,) = self.passes.train(("weights", len(samples)), own, given, part, self._lending)
                with self.supernet.sampled(sample):
                    losses.add(loss, self.supernet.network, batch, self.task.run)

        self.weights.step(*place, add_gradients)

    def _theta_step(
        self,
        batch: tuple[Any, Any],
        temperature: float,
        generator: torch.Generator,
        loss_of: ThetaLoss,
        progress: float,
        losses: LossMeter,
    ) -> None:
        def add_gradients(part: float) -> None:
            told = self._told(*batch)
            with frozen(self.supernet.weights):
                sample = self.supernet.sample(temperature, self.section.sampling, generator)
                given = *batch, told, *sample.parts
                self.supernet.train()
                task_loss = self.passes.differentiable("theta", partial(self._loss, 1), given, self._lending)
                loss = loss_of(task_loss, sample, progress)
            (loss * part).backward()
            with self.supernet.sampled(sample):
                losses.add(loss, self.supernet.network, batch, self.task.run)

        self.theta.step(0, 1, progress, add_gradients)

    def _told(self, x: Any, y: Any) -> Any:
        """What the teacher says of a batch, if there is one."""
        return self.passes.forward("teacher", self._told_by_teacher, (x, y)) if self.teacher else None

    def _told_by_teacher(self, x: Any, y: Any) -> Any:
        assert self.teacher is not None
        with self.device.computing():
            return self.teacher.told(self.training_task, x, y)

    def _lending(self, x: Any, y: Any, told: Any, *parts: Tensor) -> AbstractContextManager:
        return self.supernet.sampled(Sample(*parts))

    def _loss(self, count: int, x: Any, y: Any, told: Any, *parts: Tensor) -> tuple[Tensor]:
        """The loss on a batch of the mixture that is lent, one of ``count`` in a step."""
        task, weight = self.training_task, self.teacher.weight if self.teacher else 0.0
        with self.device.computing():
            outputs = outputs_of(task, self.supernet, x, y)
            return (taught(task, task.loss(outputs, y), outputs, told, weight) / count,)

    def _record(self, epochs: int, loss: float, temperature: float | None, started: float) -> EpochRecord:
        supernet = self.supernet
        with torch.no_grad():
            soft = supernet.theta.probabilities()
            expected = {name: supernet.expected_cost(name, soft).item() for name in supernet.table.costs}
            entropies = supernet.theta.entropies()
        cells = supernet.decode()
        names = [decision.name for decision in supernet.space.decisions]
        pairs = [supernet.space.pair(*cell) for cell in cells]
        searching = temperature is not None
        return EpochRecord(
            epoch=self.epoch,
            epochs=epochs,
            loss=loss,
            score=self._judge(soft),
            argmax_score=self._judge(supernet.one_hot(cells)) if searching else None,
            expected=expected,
            temperature=temperature,
            entropy=entropies.mean().item() if searching else None,
            decision_entropy=dict(zip(names, entropies.tolist(), strict=True)) if searching else {},
            bits=dict(zip(names, pairs, strict=True)) if searching else {},
            seconds=time.perf_counter() - started,
            weight_probabilities=by_width(names, supernet.space.weight_bits, soft.weights) if searching else {},
            activation_probabilities=by_width(names, supernet.space.activation_bits, soft.activations)
            if searching
            else {},
        )

    def _judge(self, sample: Sample) -> float:
        """The metric of the supernet under ``sample``, with the BatchNorm statistics of each batch."""
        supernet, images = self.supernet, self.data.validation
        batch_size = without_single(len(images), self.data.batch_size)
        supernet.eval()
        with self.weights.averaged(), batch_statistics(supernet.network), supernet.sampled(sample):
            return measure(supernet, images, batch_size, self.device, self.task).score

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Everything a later :meth:`restore` needs, as a snapshot: tensors and plain values."""
        with self.weights.averaged():
            tensors = {f"supernet.{name}": value.clone() for name, value in self.supernet.state_dict().items()}
        values: dict[str, Any] = {"epoch": self.epoch}
        for name, updates in (("weight", self.weights), ("theta", self.theta)):
            state, values[name] = updates.state(name)
            tensors.update(state)
        return tensors, values

    def restore(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        """Go on from what :meth:`state` returned."""
        self.supernet.load_state_dict(with_prefix(tensors, "supernet"))
        self.weights.restore(tensors, values["weight"], "weight")
        self.theta.restore(tensors, values["theta"], "theta")
        self.epoch = values["epoch"]


def theta_optimization(section: SearchSection) -> Optimization:
    """How θ is trained: Adam at a constant learning rate (DNAS, section 4.2)."""
    return Optimization(
        optimizer="Adam",
        schedule="constant",
        learning_rate=section.theta_learning_rate,
        weight_decay=section.theta_weight_decay,
    )


@contextmanager
def frozen(parameters: Iterable[nn.Parameter]) -> Iterator[None]:
    """Inside, these parameters want no gradients."""
    wanting = [parameter for parameter in parameters if parameter.requires_grad]
    for parameter in wanting:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in wanting:
            parameter.requires_grad_(True)
