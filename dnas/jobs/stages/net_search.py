"""The searches of one net, the whole one or a pruned one: a warm supernet, and θ for every budget."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor

from dnas.execution.tasks import JobTask
from dnas.jobs.context import JobContext, Place
from dnas.jobs.job import Job
from dnas.jobs.log import ASSIGNMENT
from dnas.jobs.planning import Plan
from dnas.jobs.progress import FORWARD_QUANTIZED, TRAIN_SUPERNET
from dnas.jobs.stages.measure import Measurer, inherit
from dnas.jobs.stages.search_names import SEARCHING, WARMUP, drawn_ids, found_ids, search_labels
from dnas.jobs.training import teacher_of
from dnas.quantization.calibration import calibrate
from dnas.search.budgets import in_search_order
from dnas.search.diagnosis import diagnose
from dnas.search.records import EpochRecord
from dnas.search.sandwich import warmup_passes
from dnas.search.supernet import Supernet
from dnas.search.trainer import SupernetTrainer
from dnas.training.schedules import derived_seed
from dnas.training.trainer import with_prefix
from results.events import Searched
from results.run.layout import checkpoint_file
from search_spaces.allocation.program import Cells, is_reachable, unreachable
from search_spaces.assignments import BitAssignment, LayerBits, kept_rows_of
from search_spaces.channels.slicing import pruned_graph, remove_filters
from search_spaces.costs.budgets import Budget
from search_spaces.costs.table import CostTable
from search_spaces.errors import InputError
from search_spaces.fields import Pair
from search_spaces.groups import kept_units
from search_spaces.models.copies import fresh_copy
from search_spaces.provenance import PROPOSAL, SAMPLED, SEARCH, Provenance


def warmup_units(job: Job) -> float:
    """Units of one epoch of the warm-up, with its measurement."""
    data = job.search_data
    passes = warmup_passes(job.config.search)
    return TRAIN_SUPERNET * passes * len(data.weights) + FORWARD_QUANTIZED * len(data.validation)


def search_units(job: Job) -> float:
    """Units of one epoch of a search, which is measured soft and at the likeliest assignment."""
    data = job.search_data
    weights, theta = len(data.weights), len(data.theta)
    images = {"frozen": theta, "epoch": weights + theta, "step": 2 * weights}[job.config.search.weight_updates]
    return TRAIN_SUPERNET * images + 2 * FORWARD_QUANTIZED * len(data.validation)


class NetSearch:
    """The searches of one net: the whole one, or what the pruned assignment ``base`` leaves of it."""

    def __init__(self, context: JobContext, base: BitAssignment | None) -> None:
        self.context, self.job, self.base = context, context.job, base
        self.rows = kept_rows_of(base.layers) if base else {}
        whole = self.job.plan
        self.kept = kept_units(whole.graph.channels, self.rows)
        self.plan = whole
        if self.kept:
            graph = pruned_graph(whole.graph, self.kept)
            table = CostTable(graph, whole.space, list(whole.table.costs.values()))
            self.plan = Plan(graph, whole.space, table, whole.budgets)

    def assignments(self) -> list[BitAssignment]:
        """Search for every budget; what is decoded already is not searched again."""
        context, log = self.context, self.context.log
        section, labels = self.job.config.search, self._labels()
        for label, budget in list(labels.items()):
            if budget and not self._can_meet(label):
                log.tell_once([f"no {label}: {unreachable(self.plan.table, budget)}"])
                del labels[label]
        left = self._left(labels)
        context.progress.recall({SEARCHING: search_units(self.job) * section.epochs * (len(labels) - len(left))})
        if left or self._warmup_is_lost():
            self._search(labels, left)
        else:
            context.progress.recall({WARMUP: warmup_units(self.job) * section.warmup_epochs})
        found = map(log.run.assignment, log.decoded)
        return [a for a in found if a.provenance.kind in (SEARCH, SAMPLED, PROPOSAL) and a.provenance.run in labels]

    def _labels(self) -> dict[str, Budget | None]:
        """The searches by name, in the order in which their results bound each other."""
        labels = search_labels(self.job, self.base is not None)
        return in_search_order(labels, self.plan.table, self.job.config.search.monotone)

    def _can_meet(self, label: str) -> bool:
        """Whether this net can meet the budget of a search."""
        budget = search_labels(self.job, self.base is not None)[label]
        return not (self.kept and budget) or is_reachable(self.plan.table, budget)

    def _left(self, labels: Iterable[str]) -> list[str]:
        """Those of the searches that are not done."""
        done = {event.run for event in self.context.log.events(Searched)}
        return [label for label in labels if label not in done]

    def _search(self, labels: Mapping[str, Budget | None], left: Collection[str]) -> None:
        """Warm up, and train θ for every budget that is left; where one bounds the next, one after the other."""
        context, monotone = self.context, self.job.config.search.monotone
        context.tasks.announce(self.tasks())
        for task in self._warmup_tasks():
            context.outcome(task)
        bound: list[Pair] | None = None
        for label, budget in labels.items():
            if label in left:
                self._found(label, budget, context.outcome(self._task(label, bound)))
            bound = self._widths(label) if monotone else None

    def tasks(self) -> list[JobTask]:
        """What is known beforehand of what is left to be trained."""
        left = [label for label in self._left(self._labels()) if self._can_meet(label)]
        if not left and not self._warmup_is_lost():
            return []
        searches = [] if self.job.config.search.monotone else [self._task(label, None) for label in left]
        return [*self._warmup_tasks(), *searches]

    def _warmup_tasks(self) -> list[JobTask]:
        """The training of the supernet's weights, if there is any."""
        epochs = self.job.config.search.warmup_epochs
        if not epochs:
            return []
        name, work = self._warmup_name, warmup_units(self.job) * epochs
        writes = (checkpoint_file(name),)
        return [JobTask(name, warm_up, {"base": self._base_id}, self.job.config.seed, work, self._reads, writes)]

    def _task(self, label: str, bound: list[Pair] | None) -> JobTask:
        """The training of θ for one budget."""
        work = search_units(self.job) * self.job.config.search.epochs
        inputs = {"label": label, "base": self._base_id, "bound": bound}
        reads, writes = [*self._reads], (checkpoint_file(label),)
        for warmup in self._warmup_tasks():
            reads += warmup.writes
        return JobTask(f"θ of {label}", train_theta, inputs, self.job.config.seed, work, tuple(reads), writes)

    @property
    def _base_id(self) -> str | None:
        return self.base.id if self.base else None

    @property
    def _reads(self) -> tuple[str, ...]:
        """The files that the network to search comes from."""
        if self.base is None:
            return self.context.reads_float
        return (*self.context.reads_float, *Measurer(self.context).net_files(self.base.id, 0))

    @property
    def _warmup_name(self) -> str:
        return f"pruned-{WARMUP}" if self.base else WARMUP

    def _warmup_is_lost(self) -> bool:
        """Whether the warm supernet, which fine-tuning may start from, is not kept though it was warmed up."""
        return self.job.config.search.warmup_epochs > 0 and not self.context.log.run.has_checkpoint(self._warmup_name)

    def _widths(self, label: str) -> list[Pair]:
        """The widths that were found under a label, read from its assignment."""
        return self.plan.space.pairs_of(self.context.log.run.assignment(found_ids(self.job, label)[0]).layers)

    def _network(self) -> torch.nn.Module:
        """The float network to search: the job's, or what the pruned assignment leaves of it."""
        job = self.job
        if self.base is None:
            return job.network
        network = remove_filters(fresh_copy(job.network), job.plan.graph.channels, self.kept)
        inherit(network, Measurer(self.context).stored(self.base, 0).state_dict())
        return network

    def _cold_supernet(self) -> Supernet:
        """The supernet before its warm-up, calibrated."""
        plan, job = self.plan, self.job
        supernet = Supernet(self._network(), plan.graph, plan.space, plan.table, job.choice, job.config.search.engine)
        supernet = supernet.to(job.device.place)
        calibrate(supernet.network, job.calibration_images())
        return supernet

    def _made_supernet(self) -> tuple[Supernet, dict[str, Tensor]]:
        """The supernet, which many tasks share, and its tensors before any of them."""

        def make() -> tuple[Supernet, dict[str, Tensor]]:
            supernet = self._cold_supernet()
            return supernet, {name: value.clone() for name, value in supernet.state_dict().items()}

        return self.context.last_made(("supernet", self._base_id), make)

    def warm_up(self) -> None:
        """Train the weights of the supernet with θ frozen."""
        context, job, label = self.context, self.job, self._warmup_name
        supernet, cold = self._made_supernet()
        supernet.load_state_dict(cold)
        place = Place(WARMUP, label, label, WARMUP, warmup_units(job))
        trainer = self._trainer(supernet, label)
        steps = context.steps(place, trainer, job.config.search.warmup_epochs)
        context.carry_on(place, trainer, lambda: trainer.warmup(steps))

    def warm_supernet(self) -> Supernet:
        """The supernet after its warm-up with θ frozen."""
        supernet, cold = self._made_supernet()
        saved = self.context.log.run.load_checkpoint(self._warmup_name)
        if saved is None and self.job.config.search.warmup_epochs:
            raise InputError(f"the checkpoint '{self._warmup_name}' is gone; resume to make it again")
        supernet.load_state_dict(with_prefix(saved[0], "supernet") if saved else cold)
        return supernet

    def _trainer(self, supernet: Supernet, label: str) -> SupernetTrainer:
        job, config = self.job, self.job.config
        return SupernetTrainer(
            supernet,
            config.search,
            job.search_data,
            seed=config.seed,
            label=label,
            device=job.device,
            teacher=teacher_of(job.network, config.search.distillation),
            task=job.task,
            budgets=self._reachable,
        )

    @property
    def _reachable(self) -> list[Budget]:
        """The budgets that this net can meet."""
        return [budget for budget in self.plan.budgets if is_reachable(self.plan.table, budget)]

    def train_theta(self, label: str, bound: Sequence[Pair] | None) -> dict[str, Any]:
        """Train θ for one budget; returns the ``cells`` decoded, those ``drawn``, and ``sentences`` on the training."""
        context, job, supernet = self.context, self.job, self.warm_supernet()
        budget = search_labels(job, self.base is not None)[label]
        limits = budget.limits if budget else {}
        place = Place(SEARCHING, label, label, SEARCHING, search_units(job), budget=limits)
        trainer = self._trainer(supernet, label)
        steps = context.steps(place, trainer, job.config.search.epochs)
        last = context.carry_on(
            place,
            trainer,
            lambda: trainer.search(budget, steps),
            lambda epoch: self._sampled(supernet, label, epoch.epoch),
        )
        cells = supernet.decode(budget, bound)
        generator = torch.Generator().manual_seed(derived_seed(job.config.seed, label, "proposals"))
        drawn = [supernet.draw(generator, budget) for _ in found_ids(job, label)[1:]]
        sentences: list[str] | None = None
        if last:
            record = EpochRecord(**{field.name: getattr(last, field.name) for field in fields(EpochRecord)})
            sentences = diagnose(label, record, supernet.decode(), self.plan.table, budget, job.task.metric)
        return {"cells": cells, "drawn": drawn, "sentences": sentences}

    def _sampled(self, supernet: Supernet, label: str, epoch: int) -> Iterator[dict[str, Any]]:
        """Architectures drawn from P(θ), as DNAS does every few epochs (arXiv 1812.00090, section 4.2)."""
        generator = torch.Generator().manual_seed(derived_seed(self.job.config.seed, label, "draw", epoch))
        for name in drawn_ids(label, self.job.config.search, epoch):
            yield {ASSIGNMENT: self._made(name, SAMPLED, supernet.draw(generator), label, None).to_json()}

    def _found(self, label: str, budget: Budget | None, theta: Mapping[str, Any]) -> None:
        """Journal what was found for one budget."""
        log = self.context.log
        found, *draws = found_ids(self.job, label)
        kind = SEARCH if found == label else PROPOSAL
        log.keep_made(self._made(found, kind, theta["cells"], label, budget))
        for name, cells in zip(draws, theta["drawn"], strict=True):
            log.keep_made(self._made(name, PROPOSAL, cells, label, budget))
        if theta["sentences"] is not None:
            log.tell_once([*theta["sentences"], *self._ranked(label)])
        log.write(Searched(run=label))
        log.run.delete_checkpoint(label)

    def _ranked(self, label: str) -> list[str]:
        """How well the supernet of the whole net ranks, where the run was asked for it."""
        with suppress(InputError):  # damaged: the job does not need it
            found = None if self.base else self.context.log.run.ranking()
            return [f"{label}: {found.told}"] if found and found.correlation else []
        return []

    def _made(self, name: str, kind: str, cells: Cells, run: str, budget: Budget | None) -> BitAssignment:
        """An assignment given as one cell per decision, with the filters that are left."""
        chosen: Mapping[str, LayerBits] = self.plan.space.layers_of(cells)
        layers = {layer: replace(bits, kept_channels=self.rows.get(layer)) for layer, bits in chosen.items()}
        made = Provenance(kind=kind, run=run, parent=self.base.id) if self.base else Provenance(kind=kind, run=run)
        return self.context.log.made(name, layers, made, budget)


def warm_up(context: JobContext, seed: int, base: str | None) -> None:
    """Warm the supernet of the network up, or of what the assignment ``base`` leaves of it."""
    _search_of(context, base).warm_up()


def train_theta(
    context: JobContext, seed: int, label: str, base: str | None, bound: Sequence[Pair] | None
) -> dict[str, Any]:
    """Train θ for the budget of a label; nothing that is decoded is wider than ``bound``."""
    return _search_of(context, base).train_theta(label, bound)


def _search_of(context: JobContext, base: str | None) -> NetSearch:
    return NetSearch(context, context.log.run.assignment(base) if base else None)
