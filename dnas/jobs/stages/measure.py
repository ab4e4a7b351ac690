"""From an assignment to a figure: a fixed quantized net, fine-tuned and measured over several seeds."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from dnas.data.image_sets import ImageSet
from dnas.jobs.context import JobContext, Stage
from dnas.jobs.stages.squantizer import as_measured, settle
from dnas.jobs.stored_nets import stored_net
from dnas.jobs.training import teacher_of
from dnas.quantization.calibration import calibrate, recalibrate_batchnorm
from dnas.quantization.conversion import quantize_fixed
from dnas.quantization.sparsity import delayed
from dnas.training.schedules import derived_seed
from dnas.training.trainer import Measurement, Trainer, evaluate, inputs_of, with_prefix
from results.events import Measured, Tested
from results.pareto import Estimate, FrontPoint
from results.pictures.prune_data import kept_share
from search_spaces.assignments import BitAssignment, kept_rows_of
from search_spaces.channels.slicing import remove_filters
from search_spaces.costs.budgets import Budget
from search_spaces.errors import InputError
from search_spaces.groups import kept_units
from search_spaces.models.copies import fresh_copy
from search_spaces.models.load import load_model
from search_spaces.provenance import Profile

BATCHNORM_BATCHES = 30


class Measurer:
    """Fine-tunes and measures the assignments of one job; equal assignments are measured once."""

    def __init__(self, context: JobContext) -> None:
        self.context = context
        self._first_with: dict[str, str] = {}

    def measure_all(self, assignments: Sequence[BitAssignment]) -> list[FrontPoint]:
        """Measure every assignment; see :meth:`measure`."""
        equal = sum(self._first(assignment) != assignment.id for assignment in assignments)
        self.context.progress.drop(equal * self.work * self.context.config.finetune.seeds)
        return [self.measure(assignment) for assignment in assignments]

    def measure(self, assignment: BitAssignment) -> FrontPoint:
        """Accuracy of the assignment on validation, over the job's seeds, as a point of the front."""
        first = self._first(assignment)
        values = [self._measure_seed(assignment, first, seed) for seed in range(self.seeds_of(assignment))]
        estimate = Estimate.from_values(values)
        if self.context.config.compression == "squantizer":
            assignment = as_measured(assignment, self.context)
        metrics = {"val_top1": {"mean": estimate.mean, "std": estimate.std, "n": estimate.n}}
        if first != assignment.id:
            metrics["same_as"] = first  # type: ignore[assignment]
        self.context.run.save_assignment(assignment.with_metrics(**metrics))
        origin = assignment.provenance
        cost = dict(assignment.cost)
        filters = {spec.name: spec.out_channels for spec in self.context.plan.graph.layers}
        return FrontPoint(
            assignment=assignment.id,
            kind=origin.kind,
            size_bytes=cost.pop("size_bytes"),
            bitops=cost.pop("bitops"),
            macs=cost.pop("macs"),
            val_top1=estimate,
            feasible=Budget(origin.limits, "").met_by(assignment.cost),
            budget=origin.budget,
            extra_costs=cost,
            limits=origin.limits,
            parent=origin.source,
            kept_filters=kept_share(assignment.layers, filters),
        )

    def _first(self, assignment: BitAssignment) -> str:
        """The id of the first assignment with the same bits in every layer; one sparse or shared is like no other."""
        if any(bits.sparse for bits in assignment.layers.values()) or assignment.provenance.net:
            return assignment.id
        kept = sorted(kept_rows_of(assignment.layers).items())
        key = json.dumps([sorted(assignment.pairs.items()), kept, assignment.provenance.parent])
        return self._first_with.setdefault(key, assignment.id)

    def _measure_seed(self, assignment: BitAssignment, first: str, seed: int) -> float:
        context = self.context
        for known in context.events(Measured):
            if known.seed == seed and known.assignment == first:
                if assignment.id == first and not assignment.provenance.net:  # that is the work of its net
                    context.progress.advance(self.work)
                return known.val_top1
        network = self._trained(assignment, seed)
        top1 = evaluate(network, context.data.val, context.config.data.batch_size, context.device).top1
        kind = assignment.provenance.kind
        context.journal(Measured(assignment=assignment.id, kind=kind, seed=seed, val_top1=top1))
        return top1

    @property
    def work(self) -> float:
        """Work of one fine-tuning."""
        return self.context.work.finetune * self.context.config.finetune.epochs

    def seeds_of(self, assignment: BitAssignment) -> int:
        """How many nets are trained of an assignment: what its switchable net says, or the job."""
        origin = assignment.provenance
        return origin.seeds if isinstance(origin, Profile) else self.context.config.finetune.seeds

    def _trained(self, assignment: BitAssignment, seed: int) -> nn.Module:
        """The fixed net, fine-tuned as far as it has not been already, in eval mode."""
        context = self.context
        network = self._fixed(assignment, seed)
        trainer = Trainer(
            network,
            context.config.finetune,
            images=context.data.train,
            batch_size=context.config.data.batch_size,
            augmentation=context.augmentation,
            seed=derived_seed(context.config.seed, seed),
            label="finetune",  # not the assignment's name: equal assignments must train equally
            device=context.device,
            on_progress=delayed(network, context.config.squantizer.delay),
            teacher=teacher_of(context.network, context.config.finetune.distillation),
        )
        stage = Stage("finetune", assignment.id, f"{assignment.id}-seed{seed}", context.work.finetune, seed)
        context.train(trainer, stage)
        settle(network, assignment, context)
        recalibrate_batchnorm(network, self.batchnorm_images())
        context.run.save_checkpoint(f"net-{assignment.id}-seed{seed}", network.state_dict(), {"seed": seed})
        context.run.delete_checkpoint(stage.checkpoint)
        return network.eval()

    def _fixed(self, assignment: BitAssignment, seed: int) -> nn.Module:
        """The quantized net before fine-tuning, calibrated."""
        context = self.context
        if assignment.provenance.parent:
            return self._from_parent(assignment, assignment.provenance.parent, seed)
        model = self.starting_model(context.config.finetune.start, seed)
        network = quantize_fixed(model, context.plan.graph, assignment.layers, context.choice).to(context.device.place)
        calibrate(network, context.calibration_images())
        return network

    def starting_model(self, start: str, seed: int) -> nn.Module:
        """The float network to start from: the job's, the supernet's weights in it, or a new initialization."""
        context = self.context
        if start == "fresh":
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(derived_seed(context.config.seed, "fresh", seed))
                section = context.config.model
                return load_model(section.source, arguments=section.arguments).module.to(context.device.place)
        if start == "pretrained":
            return context.network
        warm = context.run.load_checkpoint("warmup")
        if warm is None:
            raise InputError("the checkpoint 'warmup' is gone, which starting from the supernet needs; restore it")
        network = fresh_copy(context.network)
        inherit(network, with_prefix(warm[0], "supernet.network"))
        return network

    def _from_parent(self, assignment: BitAssignment, name: str, seed: int) -> nn.Module:
        """The parent's trained net: without the filters that this assignment removes, or at other bits."""
        context, graph = self.context, self.context.plan.graph
        parent = context.run.assignment(name)
        network, rows = self.stored(parent, seed), kept_rows_of(assignment.layers)
        if assignment.pairs == parent.pairs and not kept_rows_of(parent.layers):
            return remove_filters(network, graph.channels, kept_units(graph.channels, rows))
        other = quantize_fixed(context.network, graph, assignment.layers, context.choice).to(context.device.place)
        inherit(other, network.state_dict())
        calibrate(other, context.calibration_images())
        return other

    def batchnorm_images(self, count: int = BATCHNORM_BATCHES) -> list[Tensor]:
        """Training images as the net was trained on them: clean ones have other statistics, and cost accuracy."""
        context = self.context
        batches = context.data.train.batches(
            context.config.data.batch_size,
            seed=derived_seed(context.config.seed, "batchnorm"),
            augmentation=context.augmentation,
            device=context.device.place,
        )
        return inputs_of(batches, count)

    def test(self, assignment: BitAssignment) -> list[float]:
        """Accuracy on the test split for every seed; journaled, so that it is read once."""
        context, values = self.context, []
        known = {(event.assignment, event.seed): event.test_top1 for event in context.events(Tested)}
        for seed in range(self.seeds_of(assignment)):
            key = (assignment.id, seed)
            if key not in known:
                top1 = self.measure_again(assignment, seed, context.data.test).top1
                context.journal(Tested(assignment=assignment.id, seed=seed, test_top1=top1))
                known[key] = top1
            values.append(known[key])
        return values

    def measure_again(self, assignment: BitAssignment, seed: int, images: ImageSet) -> Measurement:
        """Measure the stored net of an assignment and seed on ``images``."""
        batch_size = self.context.config.data.batch_size
        return evaluate(self.stored(assignment, seed), images, batch_size, self.context.device)

    def stored(self, assignment: BitAssignment, seed: int) -> nn.Module:
        """The measured net of an assignment and seed, in eval mode."""
        context = self.context
        found = stored_net(context.run, context.network, context.plan.graph, assignment, context.choice, seed)
        return found.to(context.device.place)


def inherit(network: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Copy what two quantized versions of one network have in common: weights, biases, BatchNorm."""
    own = network.state_dict()
    shared = {k: v for k, v in tensors.items() if k in own and own[k].shape == v.shape and ".quantize_" not in k}
    network.load_state_dict({**own, **shared})
