"""The stage `search`: bits per layer for every budget, from a warm supernet, of the whole net or a pruned one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from functools import partial

import torch

from dnas.jobs.context import JobContext, Stage
from dnas.jobs.planning import Plan
from dnas.jobs.stages.measure import Measurer, inherit
from dnas.jobs.training import teacher_of
from dnas.quantization.calibration import calibrate
from dnas.search.budgets import in_search_order, search_budgets
from dnas.search.diagnosis import diagnose
from dnas.search.supernet import Supernet
from dnas.search.trainer import EpochRecord, SupernetTrainer
from dnas.training.schedules import derived_seed
from results.events import Epoch, Searched
from search_spaces.allocation.program import Cells, is_reachable, unreachable
from search_spaces.assignments import BitAssignment, LayerBits, kept_rows_of
from search_spaces.channels.slicing import pruned_graph, remove_filters
from search_spaces.costs.budgets import Budget
from search_spaces.costs.table import CostTable
from search_spaces.groups import kept_units
from search_spaces.models.copies import fresh_copy
from search_spaces.provenance import SAMPLED, SEARCH, Provenance
from search_spaces.spaces import Pair


class BitSearch:
    """One search for all budgets; ``base`` is the pruned assignment whose filters are left, None for all of them.

    A search of a pruned net starts from the weights of that net's first fine-tuning. Its names begin with "pruned-".
    """

    def __init__(self, context: JobContext, base: BitAssignment | None = None) -> None:
        self.context, self.base = context, base
        self.rows = kept_rows_of(base.layers) if base else {}
        self.prefix = "pruned-" if base else ""
        whole = context.plan
        self.kept = kept_units(whole.graph.channels, self.rows)
        self.plan = whole
        self._last: Epoch | None = None  # of the budget whose θ was trained last
        if self.kept:
            graph = pruned_graph(whole.graph, self.kept)
            table = CostTable(graph, whole.space, list(whole.table.costs.values()))
            self.plan = Plan(graph, whole.space, table, whole.budgets)

    def assignments(self) -> list[BitAssignment]:
        """Search for every budget; what is decoded already is not searched again."""
        context = self.context
        budgets: tuple[Budget | None, ...] = context.plan.budgets or (None,)
        searched = {event.run for event in context.events(Searched)}
        labels = {f"{self.prefix}search-{number}": budget for number, budget in enumerate(budgets, start=1)}
        monotone = context.config.search.monotone
        labels = in_search_order(labels, self.plan.table, monotone)
        for label, budget in list(labels.items()):
            if self.kept and budget and not is_reachable(self.plan.table, budget):
                context.tell_once([f"no {label}: {unreachable(self.plan.table, budget)}"])
                del labels[label]
        known = {label: self._widths(label) for label in labels if label in searched}
        context.progress.advance(context.work.search * context.config.search.epochs * len(known))
        if len(known) < len(labels) or self._warmup_is_lost():
            supernet = self._warm_supernet()
            train = partial(self._train, supernet)
            for label, cells in search_budgets(supernet, labels, train, monotone=monotone, known=known):
                self._found(supernet, label, labels[label], cells)
        else:
            context.progress.advance(context.work.warmup * context.config.search.warmup_epochs)
        found = map(context.run.assignment, context.decoded)
        return [a for a in found if a.provenance.kind in (SEARCH, SAMPLED) and a.provenance.run in labels]

    def _warmup_is_lost(self) -> bool:
        """Whether the warm supernet, which fine-tuning may start from, is not kept though it was warmed up."""
        warmed_up = self.context.config.search.warmup_epochs > 0
        return warmed_up and not self.context.run.has_checkpoint(f"{self.prefix}warmup")

    def _widths(self, label: str) -> list[Pair]:
        """The widths that were found under a label, read from its assignment."""
        return self.plan.space.pairs_of(self.context.run.assignment(label).layers)

    def _network(self) -> torch.nn.Module:
        """The float network to search: the job's, or what the pruned assignment leaves of it."""
        context = self.context
        if self.base is None:
            return context.network
        network = remove_filters(fresh_copy(context.network), context.plan.graph.channels, self.kept)
        inherit(network, Measurer(context).stored(self.base, 0).state_dict())
        return network

    def _warm_supernet(self) -> Supernet:
        """The supernet after its warm-up with θ frozen."""
        context, plan, section = self.context, self.plan, self.context.config.search
        supernet = Supernet(self._network(), plan.graph, plan.space, plan.table, context.choice, section.engine)
        supernet = supernet.to(context.device.place)
        calibrate(supernet.network, context.calibration_images())
        label = f"{self.prefix}warmup"
        stage = Stage("warmup", label, label, context.work.warmup)
        trainer = self._trainer(supernet, label)
        steps = context.steps(stage, trainer, section.warmup_epochs)
        for _ in context.resumed(stage, trainer, lambda: trainer.warmup(steps)):
            pass
        return supernet

    def _trainer(self, supernet: Supernet, label: str) -> SupernetTrainer:
        context, config = self.context, self.context.config
        return SupernetTrainer(
            supernet,
            config.search,
            context.search_data,
            seed=config.seed,
            label=label,
            device=context.device,
            teacher=teacher_of(context.network, config.search.distillation),
        )

    def _train(self, supernet: Supernet, label: str, budget: Budget | None) -> None:
        """Train θ for one budget."""
        context = self.context
        stage = Stage("search", label, label, context.work.search, budget=budget.limits if budget else {})
        trainer = self._trainer(supernet, label)
        steps = context.steps(stage, trainer, context.config.search.epochs)
        self._last = None
        for self._last in context.resumed(stage, trainer, lambda: trainer.search(budget, steps)):
            self._sample_architectures(supernet, label, self._last.epoch)

    def _found(self, supernet: Supernet, label: str, budget: Budget | None, cells: Cells) -> None:
        """Journal what was decoded for one budget."""
        context = self.context
        self._keep(label, SEARCH, cells, label, budget)
        if self._last:
            record = EpochRecord(**{field.name: getattr(self._last, field.name) for field in fields(EpochRecord)})
            context.tell_once(diagnose(label, record, supernet.decode(), self.plan.table, budget))
        context.journal(Searched(run=label))
        context.run.delete_checkpoint(label)

    def _sample_architectures(self, supernet: Supernet, label: str, epoch: int) -> None:
        """Draw architectures from P(θ), as DNAS does every few epochs (arXiv 1812.00090, section 4.2)."""
        section = self.context.config.search
        if not section.sample_every or epoch % section.sample_every:
            return
        generator = torch.Generator().manual_seed(derived_seed(self.context.config.seed, label, "draw", epoch))
        for number in range(1, section.samples + 1):
            name = f"{label.replace('search', 'sampled')}-epoch{epoch}-{number}"
            self._keep(name, SAMPLED, supernet.draw(generator), label, None)

    def _keep(self, name: str, kind: str, cells: Cells, run: str, budget: Budget | None) -> None:
        """Save and journal an assignment given as one cell per decision, with the filters that are left."""
        chosen: Mapping[str, LayerBits] = self.plan.space.layers_of(cells)
        layers = {layer: replace(bits, kept_channels=self.rows.get(layer)) for layer, bits in chosen.items()}
        made = Provenance(kind=kind, run=run, parent=self.base.id) if self.base else Provenance(kind=kind, run=run)
        self.context.keep(name, layers, made, budget)
