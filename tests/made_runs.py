"""Runs that no job made: every file that a page reads, in moments, with names of anybody's choice."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dnas.config.file import dump_job, load_job
from results.network import Network, NetworkLayer
from results.pareto import Estimate, FloatReference, FrontPoint, ParetoFront
from results.report.material import Material
from results.run.folder import Run
from results.run.status import RunStatus
from search_spaces.assignments import BitAssignment, LayerBits, ModelReference
from search_spaces.sensitivities import Sensitivities

LAYERS = ("stem", "block.first", "block.second", "head")
WIDTHS = (2, 4, 8)
WEIGHTS = 1000


def layer_costs(bits: Mapping[str, LayerBits]) -> dict[str, dict[str, float]]:
    """A cost of each layer that follows from its bits alone."""
    return {
        name: {
            "size_bytes": WEIGHTS * each.weight_bits / 8 * (number + 1),
            "bitops": float(1000 * each.weight_bits * each.activation_bits),
            "macs": 1000.0,
            "latency_ms": 0.125 * each.weight_bits + 0.5 * number,
        }
        for number, (name, each) in enumerate(bits.items())
    }


def made_assignment(
    name: str, widths: Sequence[int], layers: Sequence[str] = LAYERS, source: str = "zoo:made", **facts: Any
) -> BitAssignment:
    """An assignment of these widths of weights, in the order of the layers, and 8 bits for inputs."""
    bits = {layer: LayerBits(width, 8, 8) for layer, width in zip(layers, widths, strict=True)}
    costs = layer_costs(bits)
    total = {cost: sum(own[cost] for own in costs.values()) for cost in next(iter(costs.values()))}
    return BitAssignment(name, ModelReference(source, (3, 8, 8)), bits, total, {}, facts, costs)


def made_point(found: BitAssignment, val: float, **changes: Any) -> FrontPoint:
    """The point of an assignment: kind, budget and limits are those that it tells."""
    cost, origin = dict(found.cost), found.provenance
    facts = {"kind": origin.kind, "budget": origin.budget, "limits": origin.limits, "parent": origin.source}
    usual = [cost.pop(name) for name in ("size_bytes", "bitops", "macs")]
    told = {"assignment": found.id, "val": Estimate(val, 0.01, 2), "test": Estimate(val - 0.01, 0.02, 2)}
    size, bitops, macs = usual
    return FrontPoint(size_bytes=size, bitops=bitops, macs=macs, extra_costs=cost, **{**facts, **told, **changes})


def epochs(run: str, names: Sequence[str], count: int = 3, told: bool = True) -> list[dict[str, Any]]:
    """The epochs of a search that decides itself for 4 bits; of an earlier version where θ is not ``told``."""
    found = []
    for epoch in range(1, count + 1):
        share = epoch / (count + 1)
        rows = {name: {"2": (1 - share) / 2, "4": share, "8": (1 - share) / 2} for name in names}
        theta = {"weight_probabilities": rows, "activation_probabilities": {key: {"8": 1.0} for key in names}}
        found.append(
            {
                "event": "epoch",
                "stage": "search",
                "run": run,
                "epoch": epoch,
                "epochs": count,
                "loss": 1.0 / epoch,
                "top1": 0.5 + 0.1 * epoch,
                "argmax_top1": 0.4 + 0.1 * epoch,
                "expected": {"size_bytes": 9000.0 - 1000 * epoch},
                "budget": {"size_bytes": 7000.0},
                "temperature": 1.0 / epoch,
                "entropy": 1 - share,
                "decision_entropy": dict.fromkeys(names, 1 - share),
                "bits": {key: [4, 8] for key in names},
                **(theta if told else {}),
            }
        )
    return found


def trials(run: str, count: int = 4) -> list[dict[str, Any]]:
    """Trials of a search for ratios and of its control."""
    proposal = {"budget": 0, "limits": {"size_bytes": 5000.0}, "source": "model"}
    foretold = {"predicted_mean": 0.5, "predicted_std": 0.1}
    return [
        {
            "event": "trial",
            "run": run,
            "kind": kind,
            "trial": {
                "proposal": {**proposal, **foretold, "number": number},
                "cost": {"size_bytes": 4900.0},
                "loss": 1.0 / (1 + number),
            },
        }
        for kind in ("bayesian", "random")
        for number in range(count)
    ]


def made_network(layers: Sequence[str], source: str = "zoo:made") -> Network:
    """A chain with a shortcut past its second layer."""
    shape = (8, 8, 8)
    described = [
        NetworkLayer(name=n, kind="Conv2d", weight_shape=(8, 125), input_shape=shape, output_shape=shape, macs=1000)
        for n in layers
    ]
    first, second, *rest = layers
    flows = [("", first), (first, second), (first, ".add1"), (second, ".add1")]
    flows += list(zip((".add1", *rest), rest, strict=False))
    return Network(source=source, input_shape=(3, 8, 8), layers=tuple(described), flows=tuple(flows))


def made_sensitivities(layers: Sequence[str]) -> Sensitivities:
    """Increases of the loss that fall with the bits."""
    rows = {name: tuple(1.0 / (number + 1) / width**3 for width in WIDTHS) for number, name in enumerate(layers)}
    inputs = dict.fromkeys(layers, (0.0,))
    told = {"weight_bits": WIDTHS, "activation_bits": (8,), "images": 64, "probes": 2}
    return Sensitivities(kind="hessian", weights=rows, inputs=inputs, **told)


def made_run(folder: Path, layers: Sequence[str] = LAYERS, *, finished: bool = True, told: bool = True) -> Run:
    """A run with a search of two budgets, uniform controls, pruning and a switchable net; or one half done."""
    given = {
        "search-1": ([4, 2, 4, 8], {"kind": "search", "budget": "size_bytes 20%", "limits": {"size_bytes": 7000.0}}),
        "search-2": ([8, 4, 4, 8], {"kind": "search", "budget": "size_bytes 25%", "limits": {"size_bytes": 7600.0}}),
        "uniform-2": ([2] * 4, {"kind": "uniform"}),
        "uniform-8": ([8] * 4, {"kind": "uniform"}),
        "pool-1-theta": ([4, 2, 4, 8], {"kind": "proposal", "budget": "size_bytes 20%"}),
    }
    found = {id: made_assignment(id, widths, layers, **facts) for id, (widths, facts) in given.items()}
    profile = {"kind": "switchable", "net": "switchable-1", "profile": "search-1", "alone": "search-1"}
    found["switchable-1-search-1"] = made_assignment("switchable-1-search-1", [4, 2, 4, 8], layers, **profile)
    scores = dict(zip(found, (0.9, 0.938, 0.7, 0.94, 0, 0.88), strict=True))
    points = [made_point(item, scores[id]) for id, item in found.items() if scores[id]]
    reference = FloatReference(40000.0, 0.945, 0.94, {"bitops": 4_096_000.0, "macs": 4000.0})
    records = [{"event": "started", "version": 2}, {"event": "stage", "stage": "search"}]
    records += epochs("search-1", layers[1:-1], told=told)
    records += [{"event": "note", "text": "search-1: undecided: θ still has entropy"}]
    records += [{"event": "pool", "run": "search-1", "proposals": {"pool-1-theta": ["theta"]}, "images": 32}]
    judged = {"proposal": "pool-1-theta", "round": 1, "epochs": 1, "loss": 0.5, "top1": 0.8, "losses": [0.4, 0.6]}
    records += [{"event": "judged", **judged}]
    records += [{"event": "stage", "stage": "search", "state": "done"}, {"event": "stage", "stage": "prune"}]
    records += trials("prune-search-1")
    records += [{"event": "finished"}] if finished else []
    metrics = {"val_top1": {"mean": 0.9, "std": 0.01, "n": 2}}
    found["search-1"] = found["search-1"].with_metrics(**metrics)
    with Run.create(folder, dump_job(load_job("digits")), {"python": "3", "torch": "2"}) as run:
        for item in found.values():
            run.save_assignment(item)
        if finished:
            run.save_front(ParetoFront.from_points(points, reference=reference))
        if told:
            run.save_network(made_network(layers))
        run.save_sensitivities(made_sensitivities(layers))
        for record in records:
            run.journal.append(record)
    return Run.open(folder)


def made_material(count: int, layers: int) -> Material:
    """A run of so many measured assignments, each of its own bits."""
    names = [f"features.{number}.block.0" for number in range(layers)]
    widths = [[2, 4, 8][(at * (at + number) // 7) % 3] for number in range(count) for at in range(layers)]
    found = {
        f"sampled-1-epoch{number}-1": made_assignment(
            f"sampled-1-epoch{number}-1", widths[number * layers : (number + 1) * layers], names, kind="sampled"
        )
        for number in range(count)
    }
    points = [
        made_point(item, 0.5 + 0.4 * (number * 7919 % count) / count) for number, item in enumerate(found.values())
    ]
    front = ParetoFront.from_points(points, reference=FloatReference(1e6, 0.95))
    status = RunStatus("finished")
    return Material("large", "runs/large", "", {}, status, [], found, front, True, None, (), ())
