"""The joint alternative to Bayesian optimization: filters at 0 bits inside a differentiable mixture, at equal cost.

Every channel group of a trained quantized net gets a choice of kept shares; its filters are masked by the mixture of
the choices (Gumbel-softmax), the choices are trained on training images against a hinge on the expected size, decoded,
and moved onto the budget. It may pass as many images forward and backward as the trials of Bayesian optimization do.

    python -m benchmarks.joint_pruning RUN ASSIGNMENT [--trials 40] [--seeds 3]
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bayesopt.proposers import make_proposer
from bayesopt.trials import best_trials, run_trials
from benchmarks.pruning import opened
from dnas.jobs.stages.measure import Measurer
from dnas.jobs.stages.prune_plan import Pruning
from dnas.jobs.stages.prune_trials import PruningObjective, TrialNets
from dnas.jobs.stages.pruning import removal_orders
from dnas.quantization.calibration import batch_statistics
from dnas.training.trainer import Measurement

SHARES = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3)
START, END, PENALTY, RATE = 5.0, 0.5, 4.0, 0.05
BACKWARD = 3.0  # a training step costs about three forward passes


class Mixture:
    """Masks of all groups as mixtures of their kept shares."""

    def __init__(self, pruning: Pruning, objective: PruningObjective) -> None:
        self.pruning, self.objective = pruning, objective
        self.groups = pruning.groups.groups
        least = 1 - pruning.section.max_ratio
        self.counts = [
            torch.tensor([max(pruning.section.min_keep, round(max(s, least) * g.units)) for s in SHARES]).double()
            for g in self.groups
        ]
        self.masks = []
        for group, counts in zip(self.groups, self.counts, strict=True):
            place = torch.empty(group.units)
            place[list(objective.orders[group.name])] = torch.arange(group.units, 0, -1).float()
            self.masks.append((place[None] <= counts[:, None]).float())  # (K, U): the last of the order stay
        self.logits = nn.Parameter(torch.zeros(len(self.groups), len(SHARES)))

    def shares(self, temperature: float, generator: torch.Generator) -> Tensor:
        noise = -torch.log(-torch.log(torch.rand(self.logits.shape, generator=generator).clamp(1e-9, 1 - 1e-9)))
        return torch.softmax((self.logits + noise) / temperature, dim=1)

    @contextmanager
    def applied(self, network: nn.Module, shares: Tensor) -> Iterator[None]:
        """Multiply what every layer reads by the mixed masks, after its quantizer."""
        masks: dict[str, Tensor] = {}
        for group, mask, share in zip(self.groups, self.masks, shares, strict=True):
            mixed = torch.cat([share @ mask, torch.ones(1)])  # the last for channels of no group
            for layer, units in group.columns.items():
                own = mixed[torch.tensor(units)]
                masks[layer] = masks[layer] * own if layer in masks else own
        handles = []
        for layer, mask in masks.items():
            module = network.get_submodule(layer)
            reads = getattr(module, "quantize_input", None)
            shape = (1, -1, 1, 1) if module.weight.dim() == 4 else (-1,)

            def masked(x: Tensor, mask: Tensor = mask, shape: tuple[int, ...] = shape) -> Tensor:
                return x * mask.view(shape)

            if reads is not None:
                handles.append(reads.register_forward_hook(lambda m, i, o, masked=masked: masked(o)))
            else:
                handles.append(module.register_forward_pre_hook(lambda m, i, masked=masked: (masked(i[0]),)))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def expected_bytes(self, shares: Tensor) -> Tensor:
        """Weights of every layer at the expected numbers of filters and inputs."""
        kept = {g.name: s.double() @ c for g, s, c in zip(self.groups, shares, self.counts, strict=True)}
        total = torch.zeros((), dtype=torch.float64)
        for spec in self.pruning.context.job.plan.graph.layers:
            size = torch.tensor(float(spec.weight_elements), dtype=torch.float64)
            for part in ("rows", "columns"):
                size = size * self._left(part, spec.name, kept)
            total = total + size * self.pruning.parent.layers[spec.name].weight_bits / 8
        return total

    def _left(self, part: str, layer: str, kept: Mapping[str, Tensor]) -> Tensor | float:
        places = [(g, getattr(g, part)[layer]) for g in self.groups if layer in getattr(g, part)]
        if not places:
            return 1.0
        width = len(places[0][1])
        gone = sum((1 - kept[g.name] / g.units) * sum(unit >= 0 for unit in units) for g, units in places)
        return 1 - gone / width


def joint(
    pruning: Pruning, objective: PruningObjective, limits: Mapping[str, float], images: float, seed: int
) -> Measurement:
    """Train the mixture for so many image passes and measure what it decodes to."""
    torch.manual_seed(seed)
    mixture, generator = Mixture(pruning, objective), torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam([mixture.logits], lr=RATE)
    context, network = pruning.context, objective.network
    batch_size = context.job.config.data.batch_size
    steps = max(1, round(images / BACKWARD / batch_size))
    full = mixture.expected_bytes(torch.eye(len(SHARES))[:1].expand(len(mixture.groups), -1)).item()
    target = limits["size_bytes"] / pruning.parent.cost["size_bytes"]
    done = 0
    while done < steps:
        for x, y in context.job.data.train.batches(batch_size, seed=seed + done, augmentation=context.job.augmentation):
            temperature = START * (END / START) ** (done / steps)
            shares = mixture.shares(temperature, generator)
            with batch_statistics(network), mixture.applied(network, shares):
                loss = F.cross_entropy(network(x), y)
            over = mixture.expected_bytes(torch.softmax(mixture.logits, 1)) / full - target
            loss = loss + PENALTY * over.clamp_min(0).float() / target
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            done += 1
            if done == steps:
                break
    chosen = mixture.logits.argmax(1).tolist()
    counts = [int(c[k]) for c, k in zip(mixture.counts, chosen, strict=True)]
    repaired = pruning.space.repair(pruning.space.point(counts), limits)
    return objective(pruning.space.named(repaired))


def bayesian(
    pruning: Pruning, objective: PruningObjective, limits: Mapping[str, float], trials: int, seed: int
) -> Measurement:
    proposer = make_proposer("scikit-optimize", pruning.space, [limits], seed=seed, total=trials)
    found = list(run_trials(proposer, lambda asked: map(objective, asked), total=trials))
    return objective(best_trials(found, limits, 1)[0].counts)


def told(name: str, found: Sequence[Measurement]) -> str:
    cells = []
    for values in ([m.loss for m in found], [100 * m.top1 for m in found]):
        spread = statistics.stdev(values) if len(values) > 1 else math.nan
        cells.append(f"{statistics.mean(values):.3f} ± {spread:.3f}")
    return f"| {name} | " + " | ".join(cells) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run")
    parser.add_argument("assignment")
    parser.add_argument("--trials", type=int, default=40)
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    context, pruning = opened(arguments.run, arguments.assignment)
    network = Measurer(context).stored(pruning.parent, 0)
    orders = removal_orders(context.job, network, pruning.parent, pruning.section)
    objective = TrialNets(context, pruning.section).objective(arguments.assignment, orders)
    for parameter in objective.network.parameters():
        parameter.requires_grad_(False)
    a_trial = len(objective.images) + sum(len(x) for x in objective.batchnorm_images)
    for budget in pruning.budgets:
        limits, seeds = budget.limits, range(arguments.seeds)
        print(
            f"{arguments.assignment} at {budget.label}, {arguments.trials} trials or as many images, before fine-tuning"
        )
        print("| | loss | top-1 % |\n|---|---|---|")
        print(told("one ratio", [objective(pruning.space.named(pruning.space.uniform(limits)))]))
        found = [bayesian(pruning, objective, limits, arguments.trials, seed) for seed in seeds]
        print(told("Bayesian optimization", found), flush=True)
        found = [joint(pruning, objective, limits, arguments.trials * a_trial, seed) for seed in seeds]
        print(told("0 bits in the mixture", found), flush=True)


if __name__ == "__main__":
    main()
