"""What a latency table is worth: a mixed net found under a budget in ms, and pruned nets, beside fp32 and W8A8.

Run from the repository root, with a table that was made there::

    dnas bench-latency torchvision:resnet18 --runtime openvino --out latency.json
    python -m benchmarks.latency latency.json

The mixed net is the integer program's under ``--budget`` of fp32, which loses least by the training-free sensitivities.
Weights are random: times do not depend on them. A pruned net keeps three quarters of every group, in multiples of 8 or
five filters fewer. All nets take turns; a ratio is that of the 10 % quantiles, above 1 where the net is faster than in
fp32.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from dnas.latency.clock import take_turns
from dnas.latency.engines import EIGHT, FLOAT, clock_of, find_engine
from dnas.latency.nets import NetMaker
from dnas.latency.places import Place
from dnas.latency.sums import predicted_ms
from dnas.quantization.conversion import QuantizerChoice
from dnas.search.sensitivity import sensitivities
from search_spaces.allocation.program import allocate
from search_spaces.assignments import LayerBits
from search_spaces.costs.latency import LatencyTable, read_table
from search_spaces.costs.table import CostTable, build_costs
from search_spaces.groups import kept_rows
from search_spaces.layers import LayerGraph
from search_spaces.models.load import load_model
from search_spaces.network.graph import read_graph
from search_spaces.options import SpaceOptions
from search_spaces.spaces import build_space

Layers = Mapping[str, LayerBits]
PAIRS = (EIGHT, FLOAT)


def mixed_net(network: nn.Module, graph: LayerGraph, path: Path, budget: str) -> Layers:
    """The net that loses least within the budget."""
    space = build_space(graph, SpaceOptions(pairing="pairs", pairs=PAIRS, first_layer="search", last_layer="search"))
    table = CostTable(graph, space, build_costs(latency=path))
    images = torch.randn(2, *graph.input_shape, generator=torch.Generator().manual_seed(0))
    worth = -sensitivities(network, space, QuantizerChoice(), [(images, torch.tensor([0, 1]))], probes=2)
    return space.layers_of(allocate(worth, table, {"latency_ms": budget}))


def pruned(graph: LayerGraph, layers: Layers, odd: int) -> Layers:
    """Three quarters of every group, in multiples of 8, and ``odd`` filters fewer."""
    kept = {g.name: tuple(range(max(1, 8 * round(0.75 * g.units / 8) - odd))) for g in graph.channels.groups}
    rows = kept_rows(graph.channels, kept)
    return {name: replace(bits, kept_channels=rows.get(name)) for name, bits in layers.items()}


def nets_of(network: nn.Module, graph: LayerGraph, maker: NetMaker, path: Path, budget: str) -> dict[str, Layers]:
    in_fp32, in_8_bits = maker.uniform(FLOAT), maker.uniform(EIGHT)
    mixed = mixed_net(network, graph, path, budget)
    return {
        "fp32": in_fp32,
        "W8A8": in_8_bits,
        f"mixed, {budget}": mixed,
        "fp32, pruned to multiples of 8": pruned(graph, in_fp32, 0),
        "fp32, pruned by 5 more": pruned(graph, in_fp32, 5),
        "W8A8, pruned to multiples of 8": pruned(graph, in_8_bits, 0),
        "W8A8, pruned by 5 more": pruned(graph, in_8_bits, 5),
    }


def report(table: LatencyTable, graph: LayerGraph, nets: Mapping[str, Layers], maker: NetMaker, rounds: int) -> None:
    place = Place(table.device, table.threads)
    load = find_engine(table.runtime, place).loader(maker.stored(maker.uniform(EIGHT)), place)
    image = maker.images[:1].numpy()
    runs = {name: load(maker.stored(layers), image) for name, layers in nets.items()}
    times = take_turns(runs, rounds, clock_of(place))
    print(f"{table.model} in {table.where}, {table.processor}; {rounds} rounds\n")
    print("| net | layers in 8 bits | ms predicted | ms | median | spread | times faster than fp32 |")
    print("|---|---|---|---|---|---|---|")
    for name, timing in times.items():
        eight = sum(bits.weight_bits == 8 for bits in nets[name].values())
        found = predicted_ms(table, graph, nets[name])
        cells = (f"{eight} of {len(nets[name])}", f"{found:.2f}", f"{timing.ms:.2f}", f"{timing.median_ms:.2f}")
        ratio = times["fp32"].ms / timing.ms
        print("| " + " | ".join((name, *cells, f"{100 * timing.spread:.0f} %", f"{ratio:.2f}")) + " |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("table", type=Path)
    parser.add_argument("--budget", default="50% of fp32")
    parser.add_argument("--rounds", type=int, default=40)
    options = parser.parse_args()
    torch.manual_seed(0)
    table = read_table(options.table)
    network = load_model(table.model).module.eval()
    graph = read_graph(network, table.input_shape)
    maker = NetMaker(network, graph)
    report(table, graph, nets_of(network, graph, maker, options.table, options.budget), maker, options.rounds)


if __name__ == "__main__":
    main()
