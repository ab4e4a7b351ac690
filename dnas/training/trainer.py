"""Training and measuring one network: a flat loop over epochs that yields a record and can stop at any of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from dnas.config.training import TrainingSection
from dnas.data.augmentation import Augmentation
from dnas.data.given import GivenImages, image_set
from dnas.data.image_sets import Batched, ImageSet
from dnas.training.damping import Damping
from dnas.training.device import CPU, AnyDevice, Device, widened
from dnas.training.distillation import Teacher, taught_loss
from dnas.training.loss_meter import LossMeter, looks_every, watched_epoch
from dnas.training.metrics import Meter
from dnas.training.optimization import Updates
from dnas.training.passes import Passes
from dnas.training.schedules import derived_seed
from dnas.training.task import CLASSIFICATION, AnyTask, MeanMeter, Task, outputs_of, smoothed, task_of, told_of_given
from search_spaces.errors import InputError, JobError, check_type, check_whole, kind_of
from search_spaces.metrics import ACCURACY, Metric, Scored
from search_spaces.models.load import check_finite
from search_spaces.network.examples import call_of, rows_of

StepReport = Callable[[int, int, float], None]
"""(steps done, steps of this epoch, loss)"""


@dataclass(frozen=True)
class Measurement(Scored):
    """What decides (``score``, under its metric's name too) and the mean loss over ``images`` images.

    ``beside`` are the other metrics of the task by name; each is an attribute too.
    """

    _names: ClassVar[Mapping[str, str]] = {"{}": "score"}

    score: float
    loss: float
    images: int
    metric: Metric = ACCURACY
    beside: Mapping[str, float] = field(default_factory=dict)

    def __getattr__(self, name: str) -> Any:
        others = self.__dict__.get("beside", {})
        return others[name] if name in others else super().__getattr__(name)


@dataclass(frozen=True)
class EpochResult:
    """One epoch of training: its number from 1 on, and the mean training loss."""

    epoch: int
    loss: float

    def to_json(self) -> dict[str, Any]:
        """The record as plain values."""
        return asdict(self)


def evaluate(
    network: Callable[[Tensor], Any],
    images: GivenImages,
    batch_size: int = 256,
    device: AnyDevice = CPU,
    task: AnyTask = CLASSIFICATION,
) -> Measurement:
    """Measure ``network`` in eval mode on ``images``, in order, without gradients; its modules keep their modes.

    Raises :class:`InputError` for weights that are not finite (a quantizer would hide them), and where the loss is NaN
    for images that are not, :class:`JobError` where the network makes it so of finite ones.
    """
    if not callable(network):
        raise InputError(f"a network cannot be {kind_of(network)}; give a torch.nn.Module")
    images, device, task = image_set(images), Device.of(device), task_of(task)
    check_whole(batch_size, "batch_size", least=1)
    if isinstance(network, nn.Module):
        check_finite(network)
    _check_fit(network, images, device, task)
    measured = measure(network, images, batch_size, device, task)
    if math.isnan(measured.loss):
        _explain_nan(images, batch_size)
    return measured


def _check_fit(network: Callable[[Tensor], Any], images: ImageSet, device: Device, task: Task) -> None:
    """Refuse targets that do not fit what the network gives for the first images."""
    if isinstance(network, nn.Module):
        task.check_targets({"given": images}, network)
    first = images.subset(torch.arange(min(2, len(images))))
    with torch.no_grad(), _in_eval_mode(network):
        batch = task.placed(next(iter(first.batches(2, device=device.place))), device)
        with told_of_given("the network does not run on the given images"):
            outputs = outputs_of(task, network, *batch)
        task.check({"given": images}, outputs)


def measure(
    network: Callable[[Tensor], Any],
    images: ImageSet,
    batch_size: int,
    device: Device,
    task: Task,
    on_batch: Callable[[Tensor, int], None] = lambda loss_sum, images: None,
) -> Measurement:
    """As :func:`evaluate`, but a net that diverged measures as it is: it must not end a job of many.

    Several processes share the batches out where all that is measured are means, which can be put together.
    ``on_batch`` is told the summed loss and the images of each batch that is measured here.
    """
    gauges, processes = task.gauges, device.processes
    meters = [gauge.on(device.place) for gauge in gauges]
    shares = processes.several and all(isinstance(meter, MeanMeter) for meter in meters)
    loss: Tensor | float = 0.0
    with torch.no_grad(), _in_eval_mode(network):
        part = images.subset(processes.batches(len(images), batch_size)) if shares else images
        for batch in part.batches(batch_size, device=device.place) if len(part) else ():
            x, y = task.placed(batch, device)
            outputs = outputs_of(task, network, x, y)
            for meter in meters:
                meter.update(outputs, y)
            batch_loss = widened(task.loss_sum(outputs, y))
            on_batch(batch_loss, rows_of(x))
            loss = loss + batch_loss
    if shares:
        loss = _put_together(meters, loss, device)
    count = len(images)
    score, *others = (gauge.read(meter) for gauge, meter in zip(gauges, meters, strict=True))
    beside = dict(zip((gauge.metric.name for gauge in task.beside), others, strict=True))
    return processes.agreed(Measurement(score, float(loss) / count, count, task.metric, beside))


def _put_together(meters: Sequence[Meter], loss: Tensor | float, device: Device) -> Tensor:
    """Add up the means of all processes, each of its own images; returns the sum of their losses."""
    means = [meter for meter in meters if isinstance(meter, MeanMeter)]
    own = [loss, *(meter.total for meter in means), *(meter.images for meter in means)]
    values = torch.stack([widened(torch.as_tensor(value, device=device.place)) for value in own])
    whole = device.processes.mean(values) * device.processes.size
    for index, meter in enumerate(means):
        meter.total, meter.images = whole[1 + index], round(float(whole[1 + len(means) + index]))
    return whole[0]


@contextmanager
def _in_eval_mode(network: Callable[[Tensor], Any]) -> Iterator[None]:
    """Let every module of a network be in eval mode while the block runs; a plain function is left as it is."""
    modes = {m: m.training for m in network.modules()} if isinstance(network, nn.Module) else {}
    try:
        for module in modes:
            module.training = False
        yield
    finally:
        for module, training in modes.items():
            module.training = training


def _explain_nan(images: ImageSet, batch_size: int) -> None:
    """Raise an error that names what made a loss NaN: such a network would be measured by chance."""
    first = 1
    for x, _ in images.batches(batch_size):
        bad = (~x.isfinite()).reshape(len(x), -1).any(1)
        if bad.any():
            raise InputError(
                f"image {first + int(bad.nonzero()[0])} holds values that are not finite; "
                "remove it, or check how images are normalised"
            )
        first += len(x)
    raise JobError("the loss is NaN though weights and images are finite: a layer of the network overflows")


class Trainer:
    """Trains a network as its section says, one resumable epoch at a time.

    ``on_progress`` is told the part of the training that is done, in [0, 1), before each step, and may change the
    network, whose steps are then not recorded; ``teacher`` is a network to learn from beside the labels. With a moving
    average of the weights, that is what is measured after each epoch and what the network has in the end.
    Every epoch draws its randomness from (seed, label, epoch) alone; with :meth:`state` restored, the remaining
    epochs are bit for bit those of an uninterrupted run (on a CPU with the same number of threads).
    """

    def __init__(
        self,
        network: nn.Module,
        section: TrainingSection,
        *,
        images: GivenImages,
        batch_size: int = 128,
        augmentation: Augmentation | None = None,
        seed: int = 0,
        label: str = "training",
        device: AnyDevice = CPU,
        on_progress: Callable[[float], None] | None = None,
        teacher: Teacher | None = None,
        task: AnyTask = CLASSIFICATION,
    ) -> None:
        self.on_progress, self.teacher = on_progress, teacher
        check_type(section, TrainingSection, "the section of a training", "give FinetuneSection(...) or job.finetune")
        self.task = task_of(task)
        self.training_task = smoothed(self.task, section.label_smoothing)
        self.network, self.section, self.images = network, section, image_set(images)
        self.batch_size, self.augmentation = batch_size, augmentation
        self.seed, self.label, self.device = seed, label, Device.of(device)
        beside = [teacher.network] if teacher else []
        self.device.lay_out(network, *beside)
        self.updates = Updates(network, section, self.device.processes)
        self.passes = Passes(network, self.device, recordable=on_progress is None, beside=beside)
        self.damping = Damping(network, section, self.device.place)
        self.epoch = 0

    def epochs(self, report: StepReport | None = None) -> Iterator[EpochResult]:
        """Train the epochs that are left, yielding after each."""
        while self.epoch < self.section.epochs:
            loss = watched_epoch(self, looks_every(self.device), partial(self._one_epoch, report))
            self.epoch += 1
            yield EpochResult(self.epoch, loss)
        self.updates.finish()

    def _one_epoch(self, report: StepReport | None, every: int) -> float:
        """Train one epoch, whose losses the host looks at once in ``every`` steps; returns their mean."""
        seed = derived_seed(self.seed, self.label, self.epoch)
        steps = steps_per_epoch(len(self.images), self.batch_size)
        losses = LossMeter(self.device, every)
        self.damping.begin(self.epoch, self.section.epochs)
        self._begin(seed)
        with self.device.own_randomness(seed), self.device.processes.training(self.network):
            self.network.train()
            for step, (x, y) in enumerate(
                training_batches(self.images, self.batch_size, seed, self.augmentation, self.device, self.task)
            ):
                progress = (self.epoch + step / steps) / self.section.epochs
                if self.on_progress:
                    self.on_progress(progress)
                self.updates.step(step, steps, progress, partial(self._gradients, x, y, losses))
                if report:
                    report(step + 1, steps, losses.latest)
        self.updates.make_alike(self.network)
        return losses.sum() / steps

    def _begin(self, seed: int) -> None:
        """What a kind of training does before each epoch, whose seed this is."""

    def _gradients(self, x: Any, y: Any, losses: LossMeter, part: float) -> None:
        """Add ``part`` of the gradients of the loss on a batch of inputs and targets, and the loss itself."""
        (loss,) = self.passes.train("images", self._loss, (x, y), part)
        losses.add(loss, self.network, (x, y), self.task.run)

    def _loss(self, x: Any, y: Any) -> tuple[Tensor]:
        with self.device.computing():
            loss = taught_loss(self.training_task, self.network, x, y, self.teacher)
            return (self.damping.added_to(loss),)

    def _tensors(self) -> Mapping[str, Tensor]:
        """The state of the network."""
        return self.network.state_dict()

    def _load(self, tensors: Mapping[str, Tensor]) -> None:
        self.network.load_state_dict(tensors)

    def measured(self, images: ImageSet) -> dict[str, Any]:
        """Accuracy on ``images`` of the network as it is now, or of its averaged weights."""
        self.network.eval()
        with self.updates.averaged():
            return {"score": measure(self.network, images, self.batch_size, self.device, self.task).score}

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Everything a later :meth:`restore` needs, as a snapshot: tensors and plain values."""
        with self.updates.averaged():
            tensors = {f"network.{name}": value.clone() for name, value in self._tensors().items()}
        others, values = self.updates.state("optimizer")
        return {**tensors, **others}, {"epoch": self.epoch, "optimizer": values}

    def restore(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        """Go on from what :meth:`state` returned."""
        self._load(with_prefix(tensors, "network"))
        self.updates.restore(tensors, values["optimizer"], "optimizer")
        self.epoch = values["epoch"]


def training_batches(
    images: ImageSet,
    batch_size: int,
    seed: int,
    augmentation: Augmentation | None,
    device: Device,
    task: Task = CLASSIFICATION,
) -> Iterator[tuple[Any, Any]]:
    """Shuffled, augmented batches; a short last batch is left out where there is a full one (BatchNorm needs many).

    Of several processes each has its own rows of every batch.
    """
    drop_last, processes = len(images) >= batch_size, device.processes
    options: dict[str, Any] = {
        "seed": seed,
        "augmentation": augmentation,
        "device": device.place,
        "drop_last": drop_last,
    }
    if not processes.several:
        return (task.placed(batch, device) for batch in images.batches(batch_size, **options))
    if isinstance(images, Batched):  # which reads no more than is needed
        return (task.placed(batch, device) for batch in images.batches(batch_size, **options, part=processes.part))
    return (task.placed(processes.own_rows(batch), device) for batch in images.batches(batch_size, **options))


def steps_per_epoch(images: int, batch_size: int) -> int:
    """Number of batches that :func:`training_batches` yields."""
    return max(1, images // batch_size)


def with_prefix(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors named ``prefix.REST``, under REST."""
    return {name[len(prefix) + 1 :]: value for name, value in tensors.items() if name.startswith(f"{prefix}.")}


def inputs_of(
    batches: Iterable[tuple[Tensor, Any]], most: int, device: Device = CPU, task: Task = CLASSIFICATION
) -> list[Any]:
    """The inputs of the first ``most`` batches, but for a last one of a single image, useless to BatchNorm."""
    inputs = [task.placed(batch, device)[0] for _, batch in zip(range(most), batches, strict=False)]
    calls = [call_of(x) if isinstance(x, tuple | list) else x for x in inputs]  # a tuple is elsewhere a batch
    return [x for x in calls if rows_of(x) > 1] or calls


def without_single(images: int, batch_size: int) -> int:
    """The batch size nearest above that leaves no last batch of one image, which has no batch statistics.

    >>> without_single(10, 4), without_single(9, 4), without_single(1, 4)
    (4, 5, 4)
    """
    return next((size for size in range(batch_size, images) if images % size != 1), max(batch_size, images))
