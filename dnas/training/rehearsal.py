"""One step before the first: what cannot be trained on these images is refused before any training, and told why."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._pytree import tree_leaves

from dnas.data.augmentation import Augmentation
from dnas.data.checks import check_splits, first_images, named_splits
from dnas.data.described import described
from dnas.data.image_sets import DataSplits, ImageSet
from dnas.training.checkpointing import refuse_reentrant
from dnas.training.device import CPU, Device
from dnas.training.passes import detached
from dnas.training.processes import Processes
from dnas.training.target_losses import check_losses
from dnas.training.task import CLASSIFICATION, Task, outputs_of, placed_by
from search_spaces.errors import InputError, one_line, out_of_memory, told_as
from search_spaces.models.copies import fresh_copy
from search_spaces.models.load import check_finite
from search_spaces.network.examples import rows_of

FEW_IMAGES = 5
_IMAGES = 2  # the fewest that BatchNorm can learn from


def rehearse(
    network: nn.Module,
    data: DataSplits,
    training: Mapping[str, ImageSet],
    batch_size: int,
    *,
    augmentation: Augmentation | None = None,
    device: Device = CPU,
    trains: bool = True,
    searches: bool = False,
    curved: bool = False,
    teachers: int = 0,
    task: Task = CLASSIFICATION,
) -> None:
    """Run one step of measuring and one of training on two images, on a copy; the network is left untouched.

    Then the network is run without gradients on as many images as each kind of batch will have, full and last ones.
    ``training`` names the sets whose batches BatchNorm will take its statistics from; ``trains`` says whether any
    weights will be trained, ``searches`` whether θ will, ``curved`` whether second derivatives will be taken,
    ``teachers`` how many networks will teach another at once. Raises
    :class:`InputError` for splits that cannot be used, a weight that is not finite, a network in which nothing can be
    trained, batches of one image under BatchNorm, labels without an output, outputs that are not logits (N, classes),
    outputs without a row for each image of some batch, targets whose loss is NaN, checkpoints that θ cannot be trained
    through, operations without a second derivative, and whatever the network's own code raises.
    """
    check_splits(data)
    check_finite(network)
    twin = fresh_copy(network).to(device.place).train()
    if trains and not any(parameter.requires_grad for parameter in twin.parameters()):
        raise InputError(
            "the network has no parameter that requires a gradient, so there is nothing to train; call "
            "requires_grad_(True) on what is to be trained"
        )
    _check_batches(twin, training, batch_size, device.processes)
    with _told_of_check(task, "check_targets"):
        task.check_targets(named_splits(data), twin)
    with device.own_randomness(0):
        few = min(_IMAGES, _rows(data.train, batch_size, device.processes))
        images, targets = first_images("training", data.train, few, augmentation, device.place)
        if augmentation is not None and not bool(images.isfinite().all()):
            raise InputError(
                "the augmentation makes values that are not finite of training images; correct data.transforms"
            )
        x, y = placed_by(task, (images, targets), device)
        with torch.no_grad():
            measured = _outputs(task, twin.eval(), x, y, "eval")
        outputs = _outputs(task, twin.train(), x, y, "training")
        with _told_of_check(task, "check"):
            task.check(named_splits(data), measured)
            task.check(named_splits(data), outputs)
        loss = _loss(task, outputs, y, device)
        if teachers:
            _check_teaching(task, outputs, teachers)
        if trains:
            _check_gradient(loss)
        if curved:
            _check_curvature(task, twin, x, y)
        if searches:
            refuse_reentrant(twin, x, partial(task.run, targets=y))
        _check_rows(task, twin, named_splits(data), training, batch_size, augmentation, device)
        check_losses(task, named_splits(data), (images, measured), partial(_of_one, task, twin, device), device)


def _of_one(task: Task, twin: nn.Module, device: Device, name: str, images: ImageSet) -> tuple[Any, Any]:
    """What the task reads for the single image of a set, and its target."""
    with torch.no_grad():
        batch = placed_by(task, first_images(name, images, 1, device=device.place), device)
        return _outputs(task, twin.eval(), *batch, "eval"), batch[1]


def few_images(data: DataSplits) -> list[str]:
    """A sentence for each split that is too small for its figures to mean much."""
    return [
        f"there are only {len(split)} {name} images, so one of them is {100 / len(split):.0f} % of every figure; "
        "use more data"
        for name, split in named_splits(data).items()
        if len(split) < FEW_IMAGES
    ]


def _rows(images: ImageSet, batch_size: int, processes: Processes) -> int:
    """How many images a process trains on at once; where BatchNorms see those of all, as many as they need."""
    own = min(batch_size, len(images)) // processes.size
    return max(own, _IMAGES) if processes.normalise_together else own


def _check_batches(twin: nn.Module, training: Mapping[str, ImageSet], batch_size: int, processes: Processes) -> None:
    """Refuse batches of one image where BatchNorm would take its statistics from them."""
    norms = [name for name, module in twin.named_modules() if isinstance(module, _BatchNorm) and module.training]
    smallest = min(training, key=lambda name: len(training[name]))
    if not norms or _rows(training[smallest], batch_size, processes) >= _IMAGES:
        return
    if processes.several:
        raise InputError(
            f"each of {processes} has one image of a batch for {smallest}, which BatchNorm (module '{norms[0]}') has "
            "no statistics from; start fewer, use larger batches and more data, or set synchronise_batchnorm = true"
        )
    if batch_size < _IMAGES:
        raise InputError(
            f"batch_size = {batch_size} trains with one image per batch, which BatchNorm (module '{norms[0]}') has no "
            "statistics from; set data.batch_size to 2 or more"
        )
    raise InputError(
        f"there is only 1 image for {smallest}, which BatchNorm (module '{norms[0]}') has no statistics from; use more "
        "data (data.train_limit, data.validation_fraction, search.theta_fraction)"
    )


def batch_sizes(images: int, batch_size: int) -> set[int]:
    """How many images the batches of a set have, the last one too.

    >>> batch_sizes(10, 4), batch_sizes(8, 4), batch_sizes(3, 4)
    ({2, 4}, {4}, {3})
    """
    return {min(images, batch_size), images % batch_size} - {0}


def _check_rows(
    task: Task,
    twin: nn.Module,
    measured: Mapping[str, ImageSet],
    training: Mapping[str, ImageSet],
    batch_size: int,
    augmentation: Augmentation | None,
    device: Device,
) -> None:
    """Run the network on each number of images that is measured at once, and on each that it is trained on."""
    whole = {size: name for name, images in measured.items() for size in batch_sizes(len(images), batch_size)}
    steps = {_rows(images, batch_size, device.processes): name for name, images in training.items()}
    with torch.no_grad():
        for size, name in whole.items():
            batch = placed_by(task, first_images(name, measured[name], size, device=device.place), device)
            _outputs(task, twin.eval(), *batch, "eval")
        for size, name in steps.items():
            batch = placed_by(task, first_images(name, training[name], size, augmentation, device.place), device)
            _outputs(task, twin.train(), *batch, "training")


def _outputs(task: Task, twin: nn.Module, inputs: Any, targets: Any, mode: str) -> Any:
    """What the task reads of the network's outputs; :class:`InputError` where it fails or does not fit the images."""
    images = rows_of(inputs)
    with told_as(
        lambda reason: (
            f"the network fails in {mode} mode on {_shapes(inputs)}: {reason}; correct its forward pass, or the data"
        )
    ):
        given: Any = task.run(twin, inputs, targets)
    told = f"the network returns {described(given)} in {mode} mode for {images} image{'s' if images > 1 else ''}"
    wanted = f"a tensor with a row for each image, such as logits (N, classes), here ({images}, classes)"
    try:
        outputs = task.outputs(given)
    except InputError as error:
        raise InputError(f"{told}; wrap it so that it returns {wanted}, or name a task that reads it") from error
    except Exception as error:  # the user's own task
        raise InputError(f"{told}, which the task cannot read: {one_line(error)}") from error
    leaves = tree_leaves(outputs)
    tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
    if not leaves or any(leaf.ndim < 1 or len(leaf) != images or leaf.is_complex() for leaf in tensors):
        raise InputError(f"{told}; wrap it so that it returns {wanted}")
    if any(leaf.isnan().any() for leaf in tensors):
        raise InputError(
            f"{told} that holds NaN before any training; correct its forward pass, its weights or the data"
        )
    return outputs


def _shapes(inputs: Any) -> str:
    if isinstance(inputs, Tensor):
        return f"images of shape {tuple(inputs.shape)}"
    return f"inputs of shapes {', '.join(str(tuple(x.shape)) for x in tree_leaves(inputs) if isinstance(x, Tensor))}"


def _loss(task: Task, outputs: Any, targets: Any, device: Device) -> Tensor:
    """The loss and the metric of a batch, tried; what the user's own task raises is told in a sentence."""
    name = type(task).__name__
    failing = told_as(lambda reason: f"task {name} fails on a batch of training images: {reason}")
    with failing, warnings.catch_warnings():
        warnings.filterwarnings("error", "Using a target size")  # rows (N, 1) less targets (N,) are (N, N)
        loss, total = task.loss(outputs, targets), task.loss_sum(outputs, targets)
        warnings.simplefilter("ignore")  # of metrics that are undefined for so few images
        for gauge in task.gauges:
            meter = gauge.on(device.place)
            with torch.no_grad():
                meter.update(detached(outputs), targets)
            gauge.read(meter)
    if not isinstance(loss, Tensor) or loss.ndim:
        raise InputError(f"the loss of task {name} is {described(loss)}; give the mean over the batch, one number")
    if not isinstance(total, Tensor) or total.ndim:
        raise InputError(f"the loss_sum of task {name} is {described(total)}; give the sum over the batch, one number")
    if loss.isnan():
        infinite = any(leaf.isinf().any() for leaf in tree_leaves(outputs) if isinstance(leaf, Tensor))
        why = (
            "for the outputs hold inf; correct the network's forward pass, its weights or the data"
            if infinite
            else "though the outputs are not; correct the targets of these images, or the loss"
        )
        raise InputError(f"the loss of task {name} is NaN on training images before any training, {why}")
    return loss


def _check_teaching(task: Task, outputs: Any, teachers: int) -> None:
    """Refuse a task that cannot say how far outputs are from a teacher's, here from themselves."""
    name = type(task).__name__
    with told_as(lambda reason: f"task {name} cannot compare outputs with a teacher's: {reason}"):
        given = task.comparable(detached(outputs))
        teaching = task.ensemble([given] * teachers) if teachers > 1 else given
        found = task.divergence(task.comparable(outputs), teaching)
    if not isinstance(found, Tensor) or found.ndim:
        raise InputError(f"the divergence of task {name} is {described(found)}; give one number, a tensor without rows")


def _told_of_check(task: Task, method: str) -> AbstractContextManager[None]:
    return told_as(lambda reason: f"{method} of task {type(task).__name__} fails: {reason}")


def _check_curvature(task: Task, twin: nn.Module, inputs: Any, targets: Any) -> None:
    """Refuse operations without a second derivative, such as those that cut regions out of features."""
    weights = [parameter for parameter in twin.parameters() if parameter.requires_grad]
    try:
        with sdpa_kernel(SDPBackend.MATH):  # the fused attention kernels have none, and are not used for it
            loss = task.loss(outputs_of(task, twin, inputs, targets), targets)
            found = torch.autograd.grad(loss, weights, create_graph=True, allow_unused=True)
            slopes = [slope.sum() for slope in found if slope is not None and slope.requires_grad]
            torch.autograd.grad(slopes, weights, allow_unused=True)
    except RuntimeError as error:
        if out_of_memory(error):
            raise
        raise InputError(
            f"the network has no second derivatives, of which controls.ilp is made ({one_line(error)}); set "
            "controls.ilp = false (controls.measured_ilp needs none) and choice.programs = 0"
        ) from error


def _check_gradient(loss: Tensor) -> None:
    with told_as(
        lambda reason: (
            f"the loss cannot be differentiated: {reason}; the output must depend on parameters that require a "
            "gradient, without torch.no_grad or detach between them"
        )
    ):
        loss.backward()
