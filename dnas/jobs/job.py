"""What a job works on: its network, data and plan, made without any training and never changed."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dnas.config.job import JobConfig
from dnas.data.augmentation import Augmentation
from dnas.data.image_sets import DataSplits, ImageSet
from dnas.data.load import input_shape_of, load_data
from dnas.data.transforms import transform_of
from dnas.jobs.planning import Plan, compilation_pays, plan_job
from dnas.jobs.training import check_training, finetune_teacher
from dnas.quantization.conversion import QuantizerChoice
from dnas.quantization.mixture import has_kernels
from dnas.search.images import SearchData
from dnas.training.device import CPU, Device
from dnas.training.distillation import Teacher
from dnas.training.processes import LAUNCHER_REMEDY, Processes, launcher_number
from dnas.training.schedules import derived_seed
from dnas.training.task import Task, placed_by, task_of
from dnas.training.trainer import Measurement, inputs_of, measure
from search_spaces.assignments import ModelReference
from search_spaces.errors import InputError
from search_spaces.models.load import LoadedModel, load_model
from search_spaces.network.examples import Example


@dataclass(frozen=True)
class Job:
    """What every stage reads: nothing of it changes while the job runs, but for the weights that are trained.

    ``network`` is the float network of ``loaded``, on the device. ``augmentation`` is that of fine-tuning;
    ``search_data`` are the images of the search. ``compiles`` says whether the mixture of candidates is compiled.
    """

    config: JobConfig
    task: Task
    device: Device
    choice: QuantizerChoice
    loaded: LoadedModel
    network: nn.Module
    data: DataSplits
    plan: Plan
    reference: ModelReference
    augmentation: Augmentation | None
    search_data: SearchData
    compiles: bool

    @classmethod
    def of(cls, config: JobConfig) -> Job:
        """Load and plan a job; :class:`InputError` for an unknown model, a budget out of reach, missing data."""
        _check_start(config)
        task = task_of(config.task)
        check_training(config, task)
        device, section = device_of(config), config.quantizer
        if device.place.type == "cuda":
            torch.cuda.set_device(device.place)  # for libraries that ask for the current one
        choice = QuantizerChoice(section.weights, section.activations, section.per_channel)
        data = load_splits(config)  # before the network, whose weights may have to be fetched
        loaded = load_network(config)
        plan = plan_job(config, loaded.module, example_of(data, task), task.exact_layers)
        reference = ModelReference(
            config.model.source, data.input_shape, loaded.checkpoint_sha256, plan.graph.signature
        )
        reference.to_json()  # refused now, not after the search, where no file can hold what the network is called with
        _check_widths(config, plan, choice)
        augmentation, search_data = _images(config, data)
        device.processes.check_batch(config.data.batch_size, min(len(search_data.weights), len(search_data.theta)))
        pays = compilation_pays(config, plan, len(data.train))
        return cls(
            config=config,
            task=task,
            device=device,
            choice=choice,
            loaded=loaded,
            network=loaded.module.to(device.place),
            data=data,
            plan=plan,
            reference=reference,
            augmentation=augmentation,
            search_data=search_data,
            compiles=not has_kernels(device.place) and {"on": True, "off": False}.get(config.search.compile, pays),
        )

    @property
    def teacher(self) -> Teacher | None:
        """Whom every net learns from in fine-tuning, beside the labels."""
        return finetune_teacher(self.network, self.config, self.task)

    @property
    def mixture(self) -> str:
        """How the mixture of candidates is computed, for the user to read."""
        return (
            "fused mixture" if has_kernels(self.device.place) else f"{'compiled' if self.compiles else 'eager'} mixture"
        )

    def measured(self, network: nn.Module, images: ImageSet) -> Measurement:
        """Measure a network, as it is, by the job's task."""
        return measure(network, images, self.config.data.batch_size, self.device, self.task)

    def calibration_images(self) -> list[Any]:
        """The first training batches, without augmentation."""
        batches = self.data.train.batches(
            self.config.data.batch_size, seed=derived_seed(self.config.seed, "calibration"), device=self.device.place
        )
        return inputs_of(batches, self.config.quantizer.calibration_batches, self.device, self.task)

    def batchnorm_images(self, count: int) -> list[Any]:
        """Training images as the net was trained on them: clean ones have other statistics, and cost accuracy."""
        batches = self.data.train.batches(
            self.config.data.batch_size,
            seed=derived_seed(self.config.seed, "batchnorm"),
            augmentation=self.augmentation,
            device=self.device.place,
        )
        return inputs_of(batches, count, self.device, self.task)

    def labelled_batches(self, purpose: str, count: int) -> list[tuple[Any, Any]]:
        """The first ``count`` training batches, inputs and targets, in an order of their own, not augmented."""
        seed = derived_seed(self.config.seed, purpose)
        batches = self.data.train.batches(self.config.data.batch_size, seed=seed, device=self.device.place)
        return [self.task.placed(batch, self.device) for _, batch in zip(range(count), batches, strict=False)]


def example_of(data: DataSplits, task: Task) -> Example:
    """What the task calls a network with: the shape of an image, or the inputs of the first one where they are more."""
    batch = next(iter(data.train.subset(torch.arange(1)).batches(1)))
    inputs, _ = placed_by(task, batch, CPU)
    return data.input_shape if isinstance(inputs, Tensor) else inputs


def device_of(config: JobConfig) -> Device:
    """Where a job computes, together with the processes that were started with this one."""
    here, devices = launcher_number(os.environ, "LOCAL_WORLD_SIZE", "1"), torch.cuda.device_count()
    takes_own = config.device in ("auto", "cuda") and torch.cuda.is_available()
    if takes_own and here > devices:
        raise InputError(
            f"{here} processes were started on {platform.node()}, which has {devices} CUDA "
            f"device{'s' if devices > 1 else ''}; start as many, or set device = 'cpu'"
        )
    device = Device.named(config.device, config.precision, config.channels_last)
    processes = Processes.here(config.synchronise_batchnorm)
    if takes_own and processes.several and "LOCAL_RANK" not in os.environ:
        raise InputError(
            f"{processes} were started without LOCAL_RANK in the environment, so all of a machine would take one "
            f"device; {LAUNCHER_REMEDY}"
        )
    if processes.several and config.device.startswith(("cuda:", "mps", "xpu")):
        raise InputError(
            f"device = '{config.device}' is one for {processes}; write cuda, and each takes its own, or cpu"
        )
    return replace(device, processes=processes, cuda_graphs=config.cuda_graphs)


def _images(config: JobConfig, data: DataSplits) -> tuple[Augmentation | None, SearchData]:
    """The augmentation of fine-tuning, and the images of the search (which never uses cutout)."""
    section = config.data
    transforms = tuple(transform_of(each.kind, each.arguments) for each in section.transforms)
    full = Augmentation(section.crop_padding, section.flip, section.cutout, transforms)
    light = replace(full, cutout=0)
    nothing = Augmentation()
    search_data = SearchData.split(
        data.train,
        data.val,
        config.search.theta_fraction,
        section.batch_size,
        None if light == nothing else light,
        seed=config.seed,
    )
    return None if full == nothing else full, search_data


def _check_widths(config: JobConfig, plan: Plan, choice: QuantizerChoice) -> None:
    """Refuse widths that the job's quantizers do not have, or cannot mix where the job searches."""
    if config.compression != "search":
        return
    space, weights, activations = plan.space, choice.of_weights(), choice.of_activations()
    pairs = [pair for bits in config.controls.uniform for pair in space.uniform(bits).values()]
    used = {(bits.weight_bits, bits.activation_bits) for bits in pairs} | set(space.fixed.values())
    used |= {(w, a) for w in space.weight_bits if w for a in space.activation_bits}
    for weight_bits, activation_bits in sorted(used):
        weights.check(weight_bits)
        activations.check(activation_bits)
    if "search" in config.order:
        choice.check_mixture(space.weight_bits, space.activation_bits)


def _check_start(config: JobConfig) -> None:
    """Refuse fine-tuning from a supernet that has no weights to give."""
    key = "finetune.start = 'supernet'" if config.finetune.start == "supernet" else "choice.from_supernet"
    if config.finetune.start != "supernet" and not (config.chooses and config.choice.from_supernet):
        return
    if config.search.engine != "composite":
        raise InputError(
            f"{key} needs search.engine = 'composite': of many branches none is the net's own; use "
            "finetune.start = 'pretrained' or 'fresh', and choice.from_supernet = false"
        )
    if not config.search.warmup_epochs:
        raise InputError(f"{key} needs search.warmup_epochs of at least 1")


def load_network(config: JobConfig) -> LoadedModel:
    """The job's network, freshly made: its initial weights depend on the job's seed alone."""
    checkpoint = Path(config.model.checkpoint).expanduser() if config.model.checkpoint else None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derived_seed(config.seed, "initial weights"))
        return load_model(config.model.source, arguments=config.model.arguments, checkpoint=checkpoint)


def data_shape(config: JobConfig) -> tuple[int, int, int]:
    """The shape (C, H, W) of the job's images, without reading them all; InputError where they alone could tell it."""
    section = config.data
    return input_shape_of(section.source, Path(section.root).expanduser() if section.root else None, section.image_size)


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
        decode=section.decode,
    )
