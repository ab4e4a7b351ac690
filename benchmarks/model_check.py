"""Take one unedited network through everything a search does, in miniature, and check each part.

Shared by ``benchmarks/coverage.py``, which prints a table over all networks, and ``tests/test_coverage.py``.
"""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from dataclasses import dataclass, field
from fnmatch import fnmatch
from typing import Any

import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

from dnas.config.job import CostsSection, SearchSection
from dnas.jobs.planning import cost_table
from dnas.quantization.calibration import calibrate, observing
from dnas.quantization.conversion import QuantizerChoice, quantize_fixed
from dnas.quantization.layers import QuantizedLayer
from dnas.search.losses import theta_loss
from dnas.search.supernet import Supernet
from dnas.training.optimization import Optimization, weight_groups
from search_spaces.allocation.program import Cells, check_reachable
from search_spaces.costs.budgets import Budget, parse_budget
from search_spaces.costs.table import CostTable
from search_spaces.errors import InputError
from search_spaces.layers import LayerGraph
from search_spaces.models.load import load_model
from search_spaces.network.graph import read_graph
from search_spaces.options import SpaceOptions
from search_spaces.spaces import PrecisionSpace, build_space

BITS = (2, 4, 8)
BATCH = 2
MOST_BYTES = 15e9
"""What a whole check may take of 16 GB by :func:`expected_bytes`; a larger network gets doctor alone."""

TIMM_MODELS = (
    "resnet18",
    "mobilenetv3_small_100",
    "efficientnet_b0",
    "convnext_atto",
    "vit_tiny_patch16_224",
    "regnety_002",
    "deit_tiny_patch16_224",
    "swin_tiny_patch4_window7_224",
    "mobilevit_xxs",
    "resnest14d",
    "mixer_s32_224",
)

# The smallest square input that the architecture accepts, where it is not 64 pixels.
_SIDES = {
    "torchvision:inception_v3": 96,
    "torchvision:maxvit_t": 224,
    "torchvision:vit_*": 224,
    "timm:*_224": 224,
}


class CheckFailed(Exception):
    """Something that must hold for every network does not hold for this one."""


@dataclass(frozen=True)
class Coverage:
    """What was found in one network and how far it was taken; MACs are those of one image of ``side`` pixels."""

    source: str
    side: int
    status: str
    parameters: int = 0
    layers: int = 0
    searched: int = 0
    unsupported: dict[str, int] = field(default_factory=dict)
    branches: int = 0
    couplings_unknown: str = ""
    macs: int = 0
    uncounted_macs: int = 0
    graph_seconds: float = 0.0
    step_seconds: float | None = None


def all_sources() -> list[str]:
    """Every network that the search is held to work on: torchvision's classifiers, and a list of timm's."""
    names = torchvision.models.list_models(module=torchvision.models)
    return [*(f"torchvision:{name}" for name in names), *(f"timm:{name}" for name in TIMM_MODELS)]


def input_side(source: str) -> int:
    """The smallest side in pixels of a square image that the network of ``source`` can read."""
    return next((side for pattern, side in _SIDES.items() if fnmatch(source, pattern)), 64)


def expected_bytes(model: nn.Module) -> int:
    """What a whole check takes at its peak: 9 tensors of all parameters, and 14 of the largest while it is quantized.

    Fitted to what was measured: 35 bytes for each parameter of Wide ResNet-101-2, 78 for each of VGG-11.
    """
    sizes = [parameter.numel() for parameter in model.parameters()]
    return 4 * (9 * sum(sizes) + 14 * max(sizes))


def check_model(source: str) -> Coverage:
    """Build the network of ``source`` and check it; raises whatever fails."""
    torch.manual_seed(0)
    return check_module(load_model(source).module, input_side(source), source)


def check_module(model: nn.Module, side: int, source: str = "") -> Coverage:
    """Search ``model`` in miniature; raises :class:`CheckFailed`, or whatever the engine raises, where it fails."""
    x = torch.randn(BATCH, 3, side, side)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    whole = expected_bytes(model) <= MOST_BYTES
    logits = _float_logits(model, x) if whole else None
    before = _fingerprint(model)

    started = time.perf_counter()
    graph = read_graph(model, (3, side, side))
    graph_seconds = time.perf_counter() - started
    space = build_space(graph, SpaceOptions(weight_bits=BITS, activation_bits=BITS))
    table = cost_table(graph, space, CostsSection(), per_channel=False)
    _check_costs(table)
    step_seconds = None
    if logits is not None:
        step_seconds, cells = _search_once(model, graph, space, table, x)
        _check_fixed(model, graph, space, cells, x, logits)
    _require(_fingerprint(model) == before, "the caller's model was changed")
    return Coverage(
        source=source,
        side=side,
        status="ok" if whole else "ok (doctor alone: too large for 16 GB)",
        parameters=parameters,
        layers=len(graph.layers) + len(graph.unsupported),
        searched=sum(len(decision.layers) for decision in space.decisions),
        unsupported=dict(Counter(graph.unsupported.values())),
        branches=len(graph.branches),
        couplings_unknown=graph.couplings_unknown,
        macs=graph.macs,
        uncounted_macs=graph.uncounted_macs,
        graph_seconds=graph_seconds,
        step_seconds=step_seconds,
    )


def reachable_budget(table: CostTable) -> Budget:
    """15 % of the fp32 size, or the least possible size where that is more."""
    budget = parse_budget({"size_bytes": "15%"}, table)
    try:
        check_reachable(table, budget)
    except InputError:
        cheapest = table.entries["size_bytes"].min(axis=(1, 2)).sum() + table.constants["size_bytes"]
        budget = Budget({"size_bytes": float(cheapest)}, "least size")
        check_reachable(table, budget)
    return budget


def _search_once(
    model: nn.Module, graph: LayerGraph, space: PrecisionSpace, table: CostTable, x: Tensor
) -> tuple[float, Cells]:
    """Calibrate a supernet, take one step of the weights and one of θ, and decode it; the seconds of both steps."""
    budget = reachable_budget(table)
    supernet = Supernet(model, graph, space, table)
    calibrate(supernet.network, [x])
    generator = torch.Generator().manual_seed(0)
    section = SearchSection(budgets=(dict(budget.limits),))
    loss_of = theta_loss(section, supernet, budget)
    weights = torch.optim.SGD(weight_groups(supernet.network, Optimization(weight_decay=5e-4)), lr=1e-3, momentum=0.9)
    theta = torch.optim.Adam(supernet.theta.parameters(), lr=0.05)
    labels = torch.arange(len(x))
    supernet.train()
    started = time.perf_counter()
    for optimizer in (weights, theta):
        optimizer.zero_grad(set_to_none=True)
        sample = supernet.sample(5.0, "gumbel", generator)
        with supernet.sampled(sample):
            loss = F.cross_entropy(supernet(x), labels)
        loss_of(loss, sample, 0.5).backward()
        # A head that starts at zero, as torchvision's vision transformers have, lets no gradient through until its
        # weights have taken their step: only then must θ get one.
        _check_gradients(supernet, reaches_theta=optimizer is theta)
        optimizer.step()
    seconds = time.perf_counter() - started
    cells = supernet.decode(budget)
    _require(budget.met_by(table.cells_cost(cells)), f"the decoded assignment exceeds {budget.label}")
    return seconds, cells


def _check_gradients(supernet: Supernet, *, reaches_theta: bool) -> None:
    for name, parameter in supernet.theta.named_parameters():
        _require(parameter.grad is not None, f"θ.{name} has no gradient")
        _require(bool(torch.isfinite(parameter.grad).all()), f"θ.{name} has a gradient that is not finite")
        _require(not reaches_theta or bool((parameter.grad != 0).any()), f"θ.{name} has a gradient of zero")
    for name, parameter in supernet.network.named_parameters():
        finite = parameter.grad is None or bool(torch.isfinite(parameter.grad).all())
        _require(finite, f"parameter '{name}' has a gradient that is not finite")


def _check_fixed(
    model: nn.Module, graph: LayerGraph, space: PrecisionSpace, cells: Cells, x: Tensor, logits: Tensor
) -> None:
    """The fixed net gives the float net's logits while nothing is quantized, and finite ones afterwards."""
    fixed = quantize_fixed(model, graph, space.layers_of(cells), QuantizerChoice()).eval()
    layers = [module for module in fixed.modules() if isinstance(module, QuantizedLayer)]
    _require(len(layers) == len(graph.layers), "a layer of the graph was not replaced")
    with torch.no_grad(), observing(layers):
        passed_through = fixed(x)
    difference = float((passed_through - logits).abs().max() / logits.abs().max().clamp_min(1e-12))
    _require(difference < 1e-4, f"unquantized, the fixed net differs from the model by {difference:.1e}")
    calibrate(fixed, [x])
    with torch.no_grad():
        _require(bool(torch.isfinite(fixed(x)).all()), "the fixed net's logits are not finite")


def _check_costs(table: CostTable) -> None:
    """Uniform bits cost more the wider they are, as ``dnas doctor`` shows them."""
    sizes = [table.uniform(bits)["size_bytes"] for bits in (*BITS, 32)]
    _require(sizes == sorted(set(sizes)), f"sizes at uniform bits do not increase: {sizes}")


def _float_logits(model: nn.Module, x: Tensor) -> Tensor:
    """What the unedited network answers in eval mode; its mode is put back."""
    model.eval()
    with torch.no_grad():
        logits = model(x)
    model.train()
    return logits


def _fingerprint(model: nn.Module) -> list[Any]:
    """Everything that the engine could change by accident: attributes, modes, hooks, identities and contents."""
    found: list[Any] = []
    for name, module in model.named_modules():
        plain = {key: value for key, value in vars(module).items() if isinstance(value, bool | int | float | str)}
        held = {key: len(value) for key, value in vars(module).items() if isinstance(value, dict)}
        found.append((name, type(module), sorted(vars(module)), plain, held))
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        digest = hashlib.sha256(tensor.detach().contiguous().view(-1).view(torch.uint8).numpy()).hexdigest()
        found.append((name, id(tensor), tensor.requires_grad, tensor.grad is None, digest))
    return found


def _require(holds: bool, sentence: str) -> None:
    if not holds:
        raise CheckFailed(sentence)
