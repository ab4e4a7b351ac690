"""A trial is the smaller net with BatchNorm re-estimated, on the same images each time, whoever tries it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bayesopt.proposers import Proposal
from dnas.config.job import JobConfig
from dnas.data.image_sets import MemoryImages
from dnas.jobs.context import JobContext
from dnas.jobs.stages.prune_trials import PruningObjective, TrialNets, Trials, tried_together, try_filters
from dnas.quantization.calibration import calibrate
from dnas.quantization.conversion import QuantizerChoice, quantize_fixed
from dnas.training.device import CPU, Device
from results.events import Measured
from results.run.folder import Run
from search_spaces.assignments import LayerBits
from search_spaces.channels.slicing import remove_filters
from tests.known import known_graph
from tests.toys import SHAPE, Net, images, inputs, trained

ORDERS = {"stem": (4, 1, 0, 2, 3), "first": (0, 1, 2, 3, 4)}
STATISTICS = [inputs(12, seed=3), inputs(12, seed=4)]
SETTINGS = (
    "prune.enabled=false",
    "controls.ilp=false",
    "pipeline=['search']",
    "search.warmup_epochs=0",
    "search.epochs=0",
)


def net() -> nn.Module:
    model = trained(Net(channels=5))
    graph = known_graph(model, SHAPE)
    quantized = quantize_fixed(model, graph, {s.name: LayerBits(3, 3) for s in graph.layers}, QuantizerChoice())
    calibrate(quantized, STATISTICS)
    return quantized.eval()


def objective(network: nn.Module, measured_on: MemoryImages | None = None, device: Device = CPU) -> PruningObjective:
    groups = known_graph(Net(channels=5), SHAPE).channels
    options: dict[str, Any] = {"images": measured_on or images(30), "batch_size": 7, "device": device}
    return PruningObjective(network, groups, ORDERS, batchnorm_images=STATISTICS, **options)


def by_hand(network: nn.Module, kept: dict[str, tuple[int, ...]], measured_on: MemoryImages) -> tuple[float, float]:
    """Loss and accuracy of the smaller net whose BatchNorms have the mean of their batches' statistics."""
    smaller = remove_filters(network, known_graph(Net(channels=5), SHAPE).channels, kept)
    norms = [module for module in smaller.modules() if isinstance(module, nn.BatchNorm2d)]
    seen: dict[nn.Module, list[tuple[Tensor, Tensor]]] = {norm: [] for norm in norms}

    def note(norm: nn.Module, given: Any, output: Tensor) -> None:
        seen[norm].append((given[0].mean((0, 2, 3)), given[0].var((0, 2, 3))))

    handles = [norm.register_forward_hook(note) for norm in norms]
    with torch.no_grad():
        for norm in norms:
            norm.train()
        for x in STATISTICS:
            smaller(x)
        for norm in norms:
            norm.eval()
            norm.running_mean, norm.running_var = (
                torch.stack(found).mean(0) for found in zip(*seen[norm], strict=True)
            )
        for handle in handles:
            handle.remove()
        (whole,) = measured_on.batches(len(measured_on))
        logits = smaller(whole[0])
    return float(F.cross_entropy(logits, whole[1])), float((logits.argmax(1) == whole[1]).float().mean())


@pytest.mark.parametrize("counts", [{"stem": 5, "first": 5}, {"stem": 3, "first": 1}, {"stem": 1, "first": 4}])
def test_a_trial_is_what_the_smaller_net_measures_by_hand(counts: dict[str, int]) -> None:
    network, measured_on = net(), images(30, seed=5)
    found = objective(network, measured_on)(counts)
    kept = {name: tuple(sorted(order[len(order) - counts[name] :])) for name, order in ORDERS.items()}
    loss, top1 = by_hand(network, kept, measured_on)
    assert found.loss == pytest.approx(loss, rel=1e-4)
    assert found.top1 == pytest.approx(top1)
    assert found.images == 30


def test_trials_leave_the_net_alone_and_repeat_themselves() -> None:
    network = net()
    before = copy.deepcopy(network.state_dict())
    tried = objective(network)
    several = [{"stem": n, "first": 6 - n} for n in (2, 3, 4, 2)]
    found = [tried(counts) for counts in several]
    assert found == list(tried_together(tried, several))
    assert found[0] == found[3]
    assert len({one.loss for one in found}) == 3
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_losses_are_rounded_so_that_the_number_of_threads_cannot_lead_astray() -> None:
    loss = objective(net())({"stem": 3, "first": 3}).loss
    assert loss == float(f"{loss:.6g}")
    assert loss != float(f"{loss:.5g}")


def test_a_net_that_diverged_measures_as_it_is() -> None:
    network = net()
    with torch.no_grad():
        network.get_submodule("head").bias.fill_(float("nan"))
    assert str(objective(network)({"stem": 3, "first": 3}).loss) == "nan"


@pytest.fixture(scope="module")
def finished(
    smaller: Callable[..., JobConfig], carried_out: Callable[..., Run], tmp_path_factory: pytest.TempPathFactory
) -> tuple[JobConfig, Run]:
    config = smaller(*SETTINGS)
    return config, carried_out(config, tmp_path_factory.mktemp("trials") / "run")


def test_the_images_are_the_same_in_every_process_and_each_class_has_its_share(finished: tuple[JobConfig, Run]) -> None:
    config, run = finished
    made = []
    for count in (10, 10, None, 10_000):
        context = JobContext(config, Run.open(run.folder), lambda event: None)
        section = config.prune.model_copy(update={"proxy_images": count, "batchnorm_batches": 2})
        orders = {group.name: tuple(range(group.units)) for group in context.job.plan.graph.channels.groups}
        made.append(TrialNets(context, section).objective("uniform-4", orders))
    assert [len(one.images) for one in made] == [10, 10, 20, 20]
    assert torch.equal(made[0].images.labels, made[1].images.labels)
    per_class = torch.bincount(context.job.data.val.labels, minlength=10) / 2
    assert (torch.bincount(made[0].images.labels, minlength=10) - per_class).abs().max() < 1
    assert len(made[0].batchnorm_images) == 2
    counts = {name: max(1, len(order) // 2) for name, order in made[0].orders.items()}
    assert made[0](counts) == made[1](counts) != made[2](counts) == made[3](counts)


def test_trials_of_an_assignment_are_those_of_its_objective(finished: tuple[JobConfig, Run]) -> None:
    config, run = finished
    context = JobContext(config, Run.open(run.folder), lambda event: None)
    orders = {group.name: tuple(reversed(range(group.units))) for group in context.job.plan.graph.channels.groups}
    asked = [{name: max(1, len(order) - less) for name, order in orders.items()} for less in (1, 2)]
    section = config.prune.model_copy(update={"batchnorm_batches": 1, "proxy_images": 12})
    tried = TrialNets(context, section).objective("uniform-4", orders)
    trials = Trials(context, run.assignment("uniform-4"), orders, section, "prune-uniform-4")
    proposals = [Proposal(n, 0, {}, counts, (), "random") for n, counts in enumerate(asked)]
    assert list(trials.measured("random", proposals)) == [tried(counts) for counts in asked]
    assert [event.to_json() for event in context.log.events(Measured)]  # read, and nothing was added
    other = Trials(context, run.assignment("uniform-4"), orders, section, "prune-uniform-4-3")  # pruned once more
    made = {each.task(what, try_filters, asked[0], 1.0).id for each in (trials, other) for what in ("one", "two")}
    assert len(made) == 4
