"""The search in two calls, for use from Python: bits for a model and data at hand, and one assignment fine-tuned.

A job (:func:`dnas.run_job`) does the same with a run folder, controls, several seeds and a report.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from dnas.config.fields import Amount
from dnas.config.job import FinetuneSection, SearchSection
from dnas.data.augmentation import Augmentation
from dnas.data.given import GivenSplits, data_splits
from dnas.jobs.job import example_of
from dnas.jobs.planning import read_budgets
from dnas.quantization.calibration import calibrate, recalibrate_batchnorm
from dnas.quantization.conversion import QuantizerChoice, apply
from dnas.search.budgets import in_search_order, search_budgets
from dnas.search.images import SearchData
from dnas.search.supernet import Supernet
from dnas.search.trainer import SupernetTrainer
from dnas.training.device import CPU, AnyDevice, Device
from dnas.training.distillation import Teacher, finetune_weight
from dnas.training.rehearsal import rehearse
from dnas.training.task import CLASSIFICATION, AnyTask, smoothed, task_of
from dnas.training.trainer import Measurement, Trainer, evaluate, inputs_of
from search_spaces.assignments import BitAssignment, ModelReference
from search_spaces.costs.budgets import Budget
from search_spaces.costs.table import CostTable, build_costs
from search_spaces.errors import InputError, check_type, check_whole
from search_spaces.models.copies import fresh_copy
from search_spaces.network.graph import read_graph
from search_spaces.options import SpaceOptions
from search_spaces.provenance import SEARCH, Provenance, Quantizers
from search_spaces.spaces import build_space

_CALIBRATION_BATCHES, _BATCHNORM_BATCHES = 4, 30


def search_bits(
    model: nn.Module,
    data: GivenSplits,
    budgets: Sequence[Mapping[str, Amount] | Budget] | Mapping[str, Amount] | Budget,
    *,
    space: SpaceOptions | None = None,
    quantizers: QuantizerChoice | None = None,
    section: SearchSection | None = None,
    batch_size: int = 128,
    augmentation: Augmentation | None = None,
    seed: int = 0,
    device: AnyDevice = CPU,
    task: AnyTask = CLASSIFICATION,
    latency: Path | str | None = None,
) -> list[BitAssignment]:
    """Search the bits of a trained ``model`` under each budget, such as ``{"size_bytes": "12%"}``.

    Returned is what θ says; a job (:func:`run_job`) goes on from there and chooses by measuring among that and others.

    ``data`` are splits, as of :func:`dnas.load_data`, or what people have at hand: a DataLoader, a dataset of torch, or
    several of them as (training, validation). ``task`` says what the model is trained for: a :class:`dnas.Task`, its
    name, or ``job.task``. ``latency`` is a latency table, for budgets on ``latency_ms``. The model is left untouched.
    Raises :class:`InputError`, before any training, for a budget that cannot be met, and for a network or data that
    cannot be trained.
    """
    data, device, task = data_splits(data), Device.of(device), task_of(task)
    _check_given(batch_size, seed, augmentation)
    quantizers = quantizers or QuantizerChoice()
    check_type(quantizers, QuantizerChoice, "the quantizers", "give QuantizerChoice(weights=..., activations=...)")
    graph = read_graph(model, example_of(data, task))
    precision_space = build_space(graph, space or SpaceOptions())
    table = CostTable(graph, precision_space, build_costs(quantizers.per_channel, latency))
    limits = read_budgets([budgets] if isinstance(budgets, Mapping | Budget) else budgets, table)
    if not limits:
        raise InputError("there is no budget to search under; give one, such as {'size_bytes': '12%'}")
    section = section or SearchSection()
    check_type(section, SearchSection, "the section of a search", "give SearchSection(epochs=...) or job.search")
    labels = {f"search-{number}": budget for number, budget in enumerate(limits, start=1)}
    ordered = in_search_order(labels, table, section.monotone)
    images = SearchData.split(data.train, data.val, section.theta_fraction, batch_size, augmentation, seed=seed)
    sets = {"the weights": images.weights, "θ": images.theta, "validation": images.validation}
    trains = section.warmup_epochs > 0
    smoothed(task, section.label_smoothing)
    rehearse(
        model,
        data,
        sets,
        batch_size,
        augmentation=augmentation,
        device=device,
        trains=trains,
        searches=True,
        teachers=int(section.distillation > 0),
        task=task,
    )
    reference = ModelReference(type(model).__name__, data.input_shape, signature=graph.signature)
    reference.to_json()  # refused now, not after the search, where no file can hold what the network is called with
    supernet = Supernet(model, graph, precision_space, table, quantizers, section.engine).to(device.place)
    batches = images.weights.batches(batch_size, device=device.place)
    calibrate(supernet.network, inputs_of(batches, _CALIBRATION_BATCHES, device, task))
    teacher = _teacher(model, section.distillation, device)
    options: dict[str, Any] = {"seed": seed, "device": device, "teacher": teacher, "task": task, "budgets": limits}
    trainer = partial(SupernetTrainer, supernet, section, images, **options)
    for _ in trainer(label="warmup").warmup():
        pass

    def train(label: str, budget: Budget) -> None:
        for _ in trainer(label=label).search(budget):
            pass

    found: dict[str, BitAssignment] = {}
    for label, cells in search_budgets(supernet, ordered, train, monotone=section.monotone):
        layers = precision_space.layers_of(cells)
        chosen = Quantizers(**asdict(quantizers))
        made = Provenance(kind=SEARCH, budget=labels[label].label, seed=seed, quantizer=chosen)
        found[label] = BitAssignment(label, reference, layers, table.price(layers), {}, made)
    return [found[label] for label in labels]


def finetune(
    model: nn.Module,
    assignment: BitAssignment,
    data: GivenSplits,
    section: FinetuneSection | None = None,
    *,
    batch_size: int = 128,
    augmentation: Augmentation | None = None,
    seed: int = 0,
    device: AnyDevice = CPU,
    task: AnyTask = CLASSIFICATION,
) -> tuple[nn.Module, Measurement]:
    """Apply ``assignment`` to a copy of a trained ``model``, fine-tune it, and measure it on the validation split.

    The model itself teaches the net (``section.distillation``).

    ``data`` and ``task`` are as for :func:`search_bits`. Returns the quantized net in eval mode and its figures. Raises
    :class:`InputError` when the assignment was made for another network, and for data that cannot be trained on.
    """
    data, device, task, section = data_splits(data), Device.of(device), task_of(task), section or FinetuneSection()
    _check_given(batch_size, seed, augmentation)
    check_type(section, FinetuneSection, "the section of a fine-tuning", "give FinetuneSection(...) or job.finetune")
    sets = {"training": data.train}
    trains = section.epochs > 0
    smoothed(task, section.label_smoothing)
    rehearse(
        model,
        data,
        sets,
        batch_size,
        augmentation=augmentation,
        device=device,
        trains=trains,
        teachers=int(trains and finetune_weight(section, task) > 0),
        task=task,
    )
    network = apply(model, assignment, example=example_of(data, task)).to(device.place)
    batches = data.train.batches(batch_size, seed=seed, augmentation=augmentation, device=device.place)
    images = inputs_of(batches, _BATCHNORM_BATCHES, device, task)
    calibrate(network, images[:_CALIBRATION_BATCHES])
    trainer = Trainer(
        network,
        section,
        images=data.train,
        batch_size=batch_size,
        augmentation=augmentation,
        seed=seed,
        device=device,
        teacher=_teacher(model, finetune_weight(section, task), device),
        task=task,
    )
    for _ in trainer.epochs():
        pass
    recalibrate_batchnorm(network, images)
    return network.eval(), evaluate(network, data.val, batch_size, device, task)


def _check_given(batch_size: int, seed: int, augmentation: Augmentation | None) -> None:
    """Refuse numbers that are none before any training."""
    check_whole(batch_size, "batch_size", least=1)
    check_whole(seed, "seed")
    if augmentation is not None:
        check_type(augmentation, Augmentation, "an augmentation", "give Augmentation(crop_padding=..., ...)")


def _teacher(model: nn.Module, weight: float, device: Device) -> Teacher | None:
    return Teacher(fresh_copy(model).to(device.place), weight) if weight else None
