"""The packed runtime beside ONNX Runtime (fp32, int8) and OpenVINO (int8) on ResNet-18's layers, one thread.

    python -m benchmarks.packed_runtime [--rounds 60] [--whole] [--avx2]

Every engine runs every layer in turn, many rounds, and the best of each counts, for other work shares the processor.
Ratios are to ONNX Runtime's fp32 convolution, which chooses its instructions itself; so ``--avx2``, which compiles the
runtime without AVX-512, compares with an fp32 that has it. ``--whole`` runs the whole network and tells its memory.
"""

from __future__ import annotations

import argparse
import math
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import openvino
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn
from torchvision.models import resnet18

import dnas.runtime.net
from dnas import Runtime, calibrate, read_graph, save_packed
from dnas.quantization.conversion import QuantizerChoice, quantize_fixed
from dnas.runtime.compiled import FLAGS, library
from search_spaces.assignments import BitAssignment, LayerBits, ModelReference

WIDTHS = ((1, 1), (1, 2), (2, 2), (4, 4), (8, 8))
CHOICE = QuantizerChoice("nested", "pact", per_channel=True)
# (channels, filters, kernel, stride, size of the input) and how often ResNet-18 has it at 224 pixels.
LAYERS = {
    (3, 64, 7, 2, 224): 1,
    (64, 64, 3, 1, 56): 4,
    (64, 128, 3, 2, 56): 1,
    (128, 128, 3, 1, 28): 3,
    (128, 256, 3, 2, 28): 1,
    (256, 256, 3, 1, 14): 3,
    (256, 512, 3, 2, 14): 1,
    (512, 512, 3, 1, 7): 3,
    (64, 128, 1, 2, 56): 1,
    (256, 512, 1, 2, 14): 1,
}
Run = Callable[[], Any]


def packed(path: Path, model: nn.Module, shape: tuple[int, ...], bits: tuple[int, int]) -> Runtime:
    """The model with all its layers at these widths, as a packed file that runs."""
    graph = read_graph(model, shape)
    entries = {spec.name: LayerBits(*bits, spec.out_channels) for spec in graph.layers}
    network = quantize_fixed(model, graph, entries, CHOICE)
    calibrate(network, [torch.rand(1, *shape)])
    reference, told = ModelReference("benchmark", shape), {"quantizer": asdict(CHOICE)}
    save_packed(path, network.eval(), graph, BitAssignment("all", reference, entries, {}, {}, told), CHOICE)
    return Runtime(path, engine="c")


def float_model(model: nn.Module, shape: tuple[int, ...]) -> bytes:
    """The model as ONNX in fp32."""
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path = Path(folder) / "model.onnx"
        torch.onnx.export(model.eval(), (torch.rand(1, *shape),), path, dynamo=False, input_names=["x"])
        return path.read_bytes()


def int8_convolution(layer: nn.Conv2d, size: int) -> bytes:
    """One convolution with QuantizeLinear and DequantizeLinear around it, as runtimes take it for one of integers."""
    weight = layer.weight.detach().numpy()
    steps = (np.abs(weight).max((1, 2, 3)) / 127).astype(np.float32)
    codes = np.round(weight / steps[:, None, None, None]).astype(np.int8)
    constants = {
        "w": codes, "ws": steps, "wz": np.zeros(len(steps), np.int8), "xs": np.float32(1 / 255), "xz": np.uint8(0),
        "ys": np.float32(8 / 255), "yz": np.uint8(128),
    }  # fmt: skip
    (kernel, _), (stride, _), (pad, _) = layer.kernel_size, layer.stride, layer.padding
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "xs", "xz"], ["xq"]),
        helper.make_node("DequantizeLinear", ["xq", "xs", "xz"], ["xd"]),
        helper.make_node("DequantizeLinear", ["w", "ws", "wz"], ["wd"], axis=0),
        helper.make_node("Conv", ["xd", "wd"], ["c"], kernel_shape=[kernel] * 2, strides=[stride] * 2, pads=[pad] * 4),
        helper.make_node("QuantizeLinear", ["c", "ys", "yz"], ["yq"]),
        helper.make_node("DequantizeLinear", ["yq", "ys", "yz"], ["y"]),
    ]
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, dims)
        for name, dims in (("x", [1, layer.in_channels, size, size]), ("y", [1, layer.out_channels, None, None]))
    ]
    held = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "convolution", ends[:1], ends[1:], held)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9).SerializeToString()


def in_onnxruntime(model: bytes, x: np.ndarray) -> Run:
    """One thread, all optimizations."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return lambda: session.run(None, {"x": x})


def in_openvino(model: bytes, x: np.ndarray) -> Run:
    """One stream of one thread."""
    core = openvino.Core()
    options = {"INFERENCE_NUM_THREADS": 1, "NUM_STREAMS": 1}
    compiled = core.compile_model(core.read_model(model), "CPU", options)
    request = compiled.create_infer_request()
    return lambda: request.infer({0: x}, share_inputs=True)


def best_of(runs: Mapping[str, Run], rounds: int) -> dict[str, float]:
    """Milliseconds: the least of many rounds, in each of which everything runs once."""
    best = dict.fromkeys(runs, math.inf)
    for _ in range(rounds):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            best[name] = min(best[name], 1000 * (time.perf_counter() - start))
    return best


def layer_runs(folder: Path, shape: tuple[int, int, int, int, int]) -> dict[str, Run]:
    """One convolution in every engine."""
    channels, filters, kernel, stride, size = shape
    layer = nn.Conv2d(channels, filters, kernel, stride, kernel // 2, bias=False)
    x = np.random.default_rng(0).random((1, channels, size, size), dtype=np.float32)
    int8 = int8_convolution(layer, size)
    runs = {"fp32": in_onnxruntime(float_model(layer, (channels, size, size)), x)}
    runs |= {"ort int8": in_onnxruntime(int8, x), "openvino int8": in_openvino(int8, x)}
    for bits in WIDTHS:
        net = packed(folder / "layer", nn.Sequential(layer), (channels, size, size), bits)
        runs["W{}A{}".format(*bits)] = lambda net=net: net(x)
    return runs


def report_layers(rounds: int) -> None:
    """A table of ratios, and what all of ResNet-18's convolutions would take together."""
    total: dict[str, float] = {}
    for shape, count in LAYERS.items():
        with tempfile.TemporaryDirectory() as folder:
            best = best_of(layer_runs(Path(folder), shape), rounds)
        if not total:
            print("| layer | fp32 ms | " + " | ".join(list(best)[1:]) + " |")
            print("|" + "---|" * (len(best) + 1))
        total = {name: total.get(name, 0.0) + count * spent for name, spent in best.items()}
        print(_row("{}→{}, {}x{}/{}, {}".format(*shape[:3], *shape[2:]), best), flush=True)
    print(_row("all", total))


def _row(name: str, best: Mapping[str, float]) -> str:
    ratios = [f"{best['fp32'] / spent:.2f}x" for key, spent in best.items() if key != "fp32"]
    return f"| {name} | {best['fp32']:.3f} | " + " | ".join(ratios) + " |"


def report_whole(rounds: int) -> None:
    """ResNet-18: its time beside fp32, and the memory that the runtime takes beside the size of the profile."""
    torch.manual_seed(0)
    model, shape = resnet18(weights=None).eval(), (3, 224, 224)
    x = np.random.default_rng(0).random((1, *shape), dtype=np.float32)
    runs = {"fp32": in_onnxruntime(float_model(model, shape), x)}
    with tempfile.TemporaryDirectory() as folder:
        for bits in WIDTHS:
            path = Path(folder) / "net"
            net = packed(path, model, shape, bits)
            size = path.stat().st_size
            kept, other = (net.memory_bytes[key] for key in ("kept", "activations"))
            name = "W{}A{}".format(*bits)
            print(f"{name}: file {size:,} bytes, kept {kept:,} ({kept / size:.2f}x), activations {other:,}")
            runs[name] = lambda net=net: net(x)
        best = best_of(runs, rounds)
    print(" ".join(f"{name} {spent:.2f} ms ({best['fp32'] / spent:.2f}x)" for name, spent in best.items()))


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--whole", action="store_true")
    parser.add_argument("--avx2", action="store_true")
    told = parser.parse_args()
    torch.set_num_threads(1)
    if told.avx2:
        without = library((*FLAGS, "-mno-avx512f"))
        dnas.runtime.net.library = lambda: without
    (report_whole if told.whole else report_layers)(told.rounds)


if __name__ == "__main__":
    main()
