"""How fast exported nets run in their runtimes, as ratios to the fp32 ONNX file of the same network, in one run.

Run from the repository root; the quietest machine tells most::

    python -m benchmarks.exported_speed --network resnet18

One image at a time on one thread. The files take turns, so that a noisy machine slows all alike; a ratio is that of the
medians, and of the fastest tenth, above 1 where the exported file is faster. Weights are random: times do not depend on
them. ``mixed`` draws 8, 4
or 2 bits for each layer's weights and 8 or 4 for its inputs.
"""

from __future__ import annotations

import argparse
import random
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import onnx
import torch
from torch import nn

from dnas.export.graph_export import export_graph
from dnas.export.onnx import OnnxFormat
from dnas.export.runtimes import onnxruntime_session, openvino_net
from dnas.export.stored import StoredNet
from dnas.export.targets import find_target
from dnas.quantization.calibration import calibrate
from dnas.quantization.conversion import QuantizerChoice, quantize_fixed
from search_spaces.assignments import BitAssignment, LayerBits, ModelReference
from search_spaces.costs.table import CostTable, build_costs
from search_spaces.layers import LayerGraph
from search_spaces.models.load import load_model
from search_spaces.network.graph import read_graph
from search_spaces.options import SpaceOptions
from search_spaces.spaces import build_space

NETWORKS = {"resnet20": ("zoo:resnet20", 32), "resnet18": ("torchvision:resnet18", 224),
            "mobilenet_v3": ("torchvision:mobilenet_v3_small", 224)}  # fmt: skip
TARGETS = (("openvino", "openvino", None), ("onnxruntime", "onnxruntime", None), ("onnxruntime", "onnxruntime", 8),
           ("onnxruntime", "generic", None))  # fmt: skip
Run = Callable[[], Any]
Name = tuple[str, str]


def stored(network: nn.Module, graph: LayerGraph, pairs: dict[str, tuple[int, int]], x: torch.Tensor) -> StoredNet:
    choice = QuantizerChoice("lsq", "pact", per_channel=True)
    layers = {spec.name: LayerBits(*pairs[spec.name], spec.out_channels) for spec in graph.layers}
    fixed = quantize_fixed(network, graph, layers, choice)
    calibrate(fixed, [x])
    table = CostTable(graph, build_space(graph, SpaceOptions(first_layer="search")), build_costs())
    assignment = BitAssignment("speed", ModelReference("own", graph.input_shape), layers, table.price(layers))
    return StoredNet(fixed.eval(), graph, assignment, choice, images=x)


def runner(runtime: str, model: Any, x: np.ndarray) -> Run:
    if runtime == "openvino":
        compiled = openvino_net(model)
        return lambda: compiled([x])
    session = onnxruntime_session(model, optimized=True)
    return lambda: session.run(None, {"input": x})


def times(runs: dict[Name, Run], rounds: int) -> dict[Name, list[float]]:
    """Milliseconds of each, taking turns."""
    found: dict[Name, list[float]] = {name: [] for name in runs}
    for round in range(rounds + 3):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            if round >= 3:
                found[name].append(1000 * (time.perf_counter() - start))
    return found


def fp32_file(network: nn.Module, x: torch.Tensor) -> Any:
    program = torch.onnx.export(network, (x,), dynamo=True, opset_version=21, input_names=["input"], verbose=False)
    return program.model_proto  # type: ignore[union-attr]


def widths(graph: LayerGraph) -> dict[str, dict[str, tuple[int, int]]]:
    draw = random.Random(0)
    names = [spec.name for spec in graph.layers]
    uniform = {f"W{bits}A{bits}": {name: (bits, bits) for name in names} for bits in (8, 4)}
    return {**uniform, "mixed": {name: (draw.choice((8, 4, 2)), draw.choice((8, 4))) for name in names}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--network", choices=NETWORKS, default="resnet20")
    parser.add_argument("--rounds", type=int, default=40)
    options = parser.parse_args()
    torch.manual_seed(0)
    source, size = NETWORKS[options.network]
    network = load_model(source).module.eval()
    graph, x = read_graph(network, (3, size, size)), torch.randn(4, 3, size, size)
    image = x[:1].numpy()
    fp32 = fp32_file(network, x[:1])
    runs = {("fp32", runtime): runner(runtime, fp32, image) for runtime in ("openvino", "onnxruntime")}
    told: dict[Name, tuple[int, str]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for words, pairs in widths(graph).items():
            net = stored(network, graph, pairs, x)
            for runtime, target, residual_bits in TARGETS:
                path = Path(folder) / "net.onnx"
                file = export_graph(path, OnnxFormat(find_target(target), residual_bits), net)
                key = f"{words}, --target {target}" + (" --residual-bits 8" if residual_bits else "")
                runs[key, runtime] = runner(runtime, onnx.load(path), image)
                integers = sum(layer.runs == "integers" for layer in file.layers.values())
                told[key, runtime] = (file.file_bytes, f"{integers} of {len(file.layers)}" if target == runtime else "")
    found = times(runs, options.rounds)
    print(f"{source}, {size} pixels, one image, one thread; medians of {options.rounds}\n")
    print("| runtime | file | KB | layers in integers | ms | 10 % to 90 % | times faster than fp32 | at the 10 % |")
    print("|---|---|---|---|---|---|---|---|")
    for (words, runtime), ms in sorted(found.items(), key=lambda item: (item[0][1], item[0][0] != "fp32")):
        low, high = np.percentile(ms, (10, 90))
        size, integers = told.get((words, runtime), (len(fp32.SerializeToString()), ""))
        ratios = [pick(found["fp32", runtime]) / pick(ms) for pick in (median, lambda all: np.percentile(all, 10))]
        cells = (runtime, words, f"{size / 1000:.0f}", integers, f"{median(ms):.2f}", f"{low:.2f}–{high:.2f}")
        print("| " + " | ".join((*cells, f"{ratios[0]:.2f}", f"{ratios[1]:.2f}")) + " |")


if __name__ == "__main__":
    main()
