"""What a network is trained for: how its outputs are read, its loss, and the metric that decides.

Nothing else in the engine knows classes or accuracy. A task of one's own is a subclass of :class:`Task`, named as
``package.module:Class`` or handed over; docs/extending.md shows one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from copy import copy
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._pytree import tree_leaves, tree_map

from dnas.config.job import TaskSection
from dnas.data.checks import check_classes
from dnas.data.described import described
from dnas.data.image_sets import ImageSet
from dnas.training.device import Device, widened
from dnas.training.metrics import Gauge, Meter, gauges_of
from search_spaces.channels.running import tensors
from search_spaces.errors import InputError, check_type, nearest, one_line, told_as
from search_spaces.metrics import ACCURACY, Metric
from search_spaces.network.examples import rows_of, run_on
from search_spaces.registry import Lazy, Registry, called, importable_working_directory


class Task:
    """What a network is trained for. A subclass sets ``metric`` and has :meth:`loss` and :meth:`values`.

    ``metric`` decides; ``beside`` it others are measured. ``exact_layers`` are patterns over the names of layers that
    stay in fp32 unless the job says otherwise, ``auxiliary_layers`` over those that only serve training.

    *Inputs* are what a network is called with: images (N, C, H, W), or several arguments, by name in a dict or by
    position in a tuple. *Outputs* are what :meth:`outputs` makes of what it returns: a tensor
    with a row for each image, or a structure of such. *Targets* are as the data have them: a tensor (N, ...), or a list
    of N structures of tensors.
    """

    metric: Metric
    beside: tuple[Gauge, ...] = ()
    exact_layers: tuple[str, ...] = ()
    auxiliary_layers: tuple[str, ...] = ()

    def placed(self, batch: tuple[Tensor, Any], device: Device) -> tuple[Any, Any]:
        """Inputs and targets of one batch, images (N, C, H, W) and targets, where the network computes."""
        x, targets = batch
        return device.laid_out(x.to(device.place)), moved(targets, device.place)

    def run(self, network: Callable[..., Any], inputs: Any, targets: Any = None) -> Any:
        """What the network gives for inputs; one that computes its losses itself reads the targets too."""
        return run_on(network, inputs)

    def outputs(self, given: Any) -> Any:
        """What the loss and the metric read of what the network returned; in fp32 at least."""
        if not isinstance(given, Tensor):
            raise InputError(f"the network returns {described(given)}; the task must say which tensor of it counts")
        return in_fp32(given)

    def loss(self, outputs: Any, targets: Any) -> Tensor:
        """The mean loss of the images of a batch."""
        raise InputError(f"the task {type(self).__name__} has no loss; write loss(outputs, targets)")

    def loss_sum(self, outputs: Any, targets: Any) -> Tensor:
        """The sum of the losses of the images of a batch."""
        return self.loss(outputs, targets) * rows_of(outputs)

    def values(self, outputs: Any, targets: Any) -> Tensor:
        """The metric of each image (N,), where it is a mean over images; else override :meth:`meter`."""
        raise InputError(f"the task {type(self).__name__} says nothing of its metric; write values(outputs, targets)")

    def meter(self) -> Meter:
        """What gathers the metric over all batches of a measurement."""
        return MeanMeter(self)

    @property
    def gauges(self) -> tuple[Gauge, ...]:
        """All that is measured, what decides first."""
        return Gauge(self.metric, self.meter), *self.beside

    def comparable(self, outputs: Any) -> Any:
        """What of the outputs a net learns from a teacher's: tensors of the same shapes for all of its copies.

        All of them; of a structure with other values, or of a class that PyTorch does not know, a list of its floats.
        """
        if all(isinstance(leaf, Tensor) and leaf.is_floating_point() for leaf in tree_leaves(outputs)):
            return outputs
        return [tensor for tensor in tensors(outputs) if tensor.is_floating_point()]

    def divergence(self, outputs: Any, told: Any) -> Tensor:
        """How far what is comparable is from a teacher's: the mean squared difference, where a task says no other.

        Of several tensors it is the mean of theirs.
        """
        pairs = zip(tree_leaves(outputs), tree_leaves(told), strict=True)
        found = [F.mse_loss(own, other) for own, other in pairs]
        return torch.stack(found).mean() if found else torch.zeros(())

    def ensemble(self, outputs: Sequence[Any]) -> Any:
        """What is comparable of several networks as that of one teacher: the mean of each tensor."""
        return tree_map(lambda *each: torch.stack(each).mean(0), *outputs)

    def smoothed(self, amount: float) -> Task:
        """The same task with this much label smoothing in its loss."""
        raise InputError(f"label_smoothing = {amount}: the task {type(self).__name__} has no labels to smooth")

    def check_targets(self, sets: Mapping[str, ImageSet], network: nn.Module) -> None:
        """Raise :class:`InputError` where targets of a named set are none that the network can be run with."""

    def check(self, sets: Mapping[str, ImageSet], outputs: Any) -> None:
        """Raise :class:`InputError` where outputs of the network on N images do not fit the targets of a named set."""


def moved(structure: Any, place: torch.device) -> Any:
    """The structure with its tensors on a device."""
    return tree_map(lambda leaf: leaf.to(place) if isinstance(leaf, Tensor) else leaf, structure)


def in_fp32(outputs: Tensor) -> Tensor:
    """The tensor in fp32 at least, in which losses are computed."""
    return outputs if outputs.dtype == torch.float64 else outputs.float()


class MeanMeter:
    """The mean of a task's values over all images."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self.total: Tensor | float = 0.0
        self.images = 0

    def update(self, outputs: Any, targets: Any) -> None:
        """Add the values of one batch."""
        values = self.task.values(outputs, targets)
        rows = [rows_of(each) for each in (outputs, targets)]
        if not isinstance(values, Tensor) or not values.ndim or values[0].numel() != 1 or len(values) not in rows:
            images = max(rows)
            raise InputError(
                f"the values of task {type(self.task).__name__} are {described(values)} for {images} "
                f"image{'s' if images > 1 else ''}; give one number for each, a tensor of shape ({images},)"
            )
        self.total = self.total + widened(values).sum()
        self.images += len(values)

    def compute(self) -> float:
        """The mean."""
        return float(self.total) / self.images


@dataclass(frozen=True)
class Classification(Task):
    """One class per image: logits (N, classes), cross-entropy, and the part of images whose largest logit is right."""

    label_smoothing: float = 0.0
    metric = ACCURACY

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The mean cross-entropy."""
        return F.cross_entropy(outputs, targets, label_smoothing=self.label_smoothing)

    def loss_sum(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The sum of the cross-entropies."""
        return F.cross_entropy(outputs, targets, label_smoothing=self.label_smoothing, reduction="sum")

    def values(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """1 where the largest logit is that of the label, else 0."""
        return outputs.argmax(1) == targets

    def divergence(self, outputs: Tensor, told: Tensor) -> Tensor:
        """The KL divergence of the prediction from the teacher's, at temperature 1."""
        return F.kl_div(outputs.log_softmax(1), told.log_softmax(1), log_target=True, reduction="batchmean")

    def ensemble(self, outputs: Sequence[Tensor]) -> Tensor:
        """The logarithm of the mean prediction."""
        return torch.stack([logits.softmax(1) for logits in outputs]).mean(0).log()

    def smoothed(self, amount: float) -> Self:
        """Take ``amount`` of the probability from the label and share it out among all classes."""
        return replace(self, label_smoothing=amount)

    def check(self, sets: Mapping[str, ImageSet], outputs: Tensor) -> None:
        """Refuse labels without an output, and outputs that are not logits (N, classes)."""
        check_classes(sets, outputs)


CLASSIFICATION = Classification()
MakeTask = Callable[..., Task]
"""Makes a task of keyword arguments."""


_OTHERS: Mapping[str, MakeTask] = Lazy(
    {
        "detection": "dnas.training.task_detection:Detection",
        "segmentation": "dnas.training.task_segmentation:Segmentation",
        "regression": "dnas.training.task_values:Regression",
        "multilabel": "dnas.training.task_values:MultiLabel",
    }
)


def _classification() -> Task:
    return CLASSIFICATION


def _other(name: str) -> MakeTask:
    return lambda **arguments: _OTHERS[name](**arguments)


def _own(source: str, found: Any) -> MakeTask:
    return (lambda: found) if isinstance(found, Task) else called(source, found, "task", [Task])


TASKS: Registry[MakeTask] = Registry(
    "task", {"classification": _classification, **{name: _other(name) for name in _OTHERS}}, _own
)

AnyTask = Task | TaskSection | str
"""What functions for use from Python take for a task; :func:`task_of` makes a Task of it."""


def task_of(given: AnyTask) -> Task:
    """The task itself, that of a job's ``[task]``, or that of a name, ours or ``package.module:Class``.

    Raises :class:`InputError` for one that cannot be made or does not say what decides.
    """
    if isinstance(given, str):
        TASKS.find(given)  # which says what is wrong with it
        return task_of(TaskSection(kind=given))
    if isinstance(given, TaskSection):
        return _measuring(_checked(_made(given), f"task '{given.kind}'"), given)
    if isinstance(given, type):
        raise InputError(f"task {given.__name__} is a class; give {given.__name__}(...), a task made of it")
    check_type(given, Task, "a task", "give one of dnas.Task, its name, or job.task")
    return _checked(given, f"task {type(given).__name__}")


def _made(section: TaskSection) -> Any:
    make = TASKS.find(section.kind)
    with importable_working_directory():
        try:
            return make(**section.arguments)
        except Exception as error:  # the user's own code
            raise InputError(f"task '{section.kind}' cannot be made: {one_line(error)}") from error


def _checked(task: Any, name: str) -> Task:
    if not isinstance(task, Task):
        raise InputError(f"{name} gives {described(task)}, not a dnas.Task")
    if not isinstance(getattr(task, "metric", None), Metric):
        raise InputError(f"{name} has no metric; set metric = dnas.Metric('NAME', 'smaller')")
    for key in ("exact_layers", "auxiliary_layers"):
        patterns = getattr(task, key)
        if not isinstance(patterns, (tuple, list)) or not all(isinstance(pattern, str) for pattern in patterns):
            raise InputError(f"{name}: {key} is {patterns!r}; give patterns in a tuple, such as ('head.*',)")
    return task


def _measuring(task: Task, section: TaskSection) -> Task:
    """The task with the metrics that a job names measured too, and one of them or its own deciding."""
    own = task.metric.name
    gauges = {gauge.metric.name: gauge for gauge in task.gauges}
    for name in section.metrics:
        if name in gauges:
            raise InputError(f"task.metrics.{name}: the task measures a '{name}' itself; choose another name")
    gauges |= gauges_of(section.metrics)
    chosen = own if section.metric is None else section.metric
    if chosen not in gauges:
        raise InputError(f"task.metric = '{chosen}' is none of {', '.join(gauges)}{nearest(chosen, gauges)}")
    first = gauges.pop(chosen)
    said: dict[str, Any] = {} if section.exact_layers is None else {"exact_layers": section.exact_layers}
    if section.metrics or chosen != own:
        said |= {"metric": first.metric, "meter": first.make, "beside": tuple(gauges.values())}
    changed = copy(task) if said else task
    for name, value in said.items():
        object.__setattr__(changed, name, value)  # a task may be frozen
    return changed


def placed_by(task: Task, batch: tuple[Tensor, Any], device: Device) -> tuple[Any, Any]:
    """Inputs and targets of a batch; what the user's own task raises is told in a sentence."""
    with told_as(lambda reason: f"task {type(task).__name__} cannot place a batch: {reason}"):
        placed = task.placed(batch, device)
    if not isinstance(placed, tuple | list) or len(placed) != 2:
        raise InputError(
            f"task {type(task).__name__} places a batch as {described(placed)}; placed(batch, device) returns "
            "(inputs, targets)"
        )
    return placed[0], placed[1]


def outputs_of(task: Task, network: Callable[..., Any], inputs: Any, targets: Any = None) -> Any:
    """What the task reads of what a network gives; :class:`InputError` where it is no row for each image (N, ...)."""
    outputs = task.outputs(task.run(network, inputs, targets))
    images = rows_of(inputs)
    if isinstance(outputs, Tensor) and (outputs.ndim < 1 or len(outputs) != images):
        told = f"the network returns {described(outputs)} for a batch of {images}"
        raise InputError(f"{told}; wrap it so that it returns a row for each image")
    return outputs


def told_of_given(what: str) -> AbstractContextManager[None]:
    """Inside it, what a network's or a task's code raises on inputs that a caller gave is told in a sentence."""
    return told_as(lambda reason: f"{what}: {reason}; give inputs and targets as in training")


def smoothed(task: Task, amount: float) -> Task:
    """The task as it is trained; label smoothing has no part in what is measured."""
    found = task.smoothed(amount) if amount else task
    if not isinstance(found, Task):
        raise InputError(
            f"label_smoothing = {amount}: smoothed of task {type(task).__name__} returns {described(found)}, not a task"
        )
    return found
