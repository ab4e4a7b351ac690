"""What a step of the search costs, as ratios to the same network's plain fp32 training step, in one run.

Run from the repository root, with the number of threads that you want::

    OMP_NUM_THREADS=2 python -m benchmarks.step_cost [--channels-last] [--device cuda] [--mixed-precision]

ResNet-20, batch 128, 32x32. The variants take turns, step by step, so that a noisy machine slows all of them alike;
the ratio is that of the medians. A supernet epoch trains the weights on 80 % of the images and θ on 20 %, so its step
is the mean of the two kinds in these shares. Memory is the peak above what was held before the step.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from statistics import median

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dnas.quantization.calibration import calibrate
from dnas.quantization.conversion import QuantizerChoice, quantize_fixed
from dnas.quantization.mixture import compiled_mixture
from dnas.search.supernet import Supernet
from search_spaces.assignments import LayerBits
from search_spaces.costs.table import CostTable, build_costs
from search_spaces.models.zoo import resnet20
from search_spaces.network.graph import read_graph
from search_spaces.options import SpaceOptions
from search_spaces.spaces import build_space

Step = Callable[[], None]
THETA_SHARE = 0.2
CANDIDATES = {2: (2, 4), 3: (2, 4, 8), 7: (1, 2, 3, 4, 5, 6, 8)}


class Bench:
    """The network, one batch, and the steps that are compared."""

    def __init__(self, device: torch.device, channels_last: bool, mixed_precision: bool) -> None:
        torch.manual_seed(0)
        self.device, self.mixed_precision = device, mixed_precision
        self.format = torch.channels_last if channels_last else torch.contiguous_format
        self.model = resnet20().train()
        self.x = self._placed(torch.randn(128, 3, 32, 32))
        self.y = torch.randint(0, 10, (128,), device=device)
        self.graph = read_graph(self.model, (3, 32, 32))

    def _placed(self, thing: Tensor | nn.Module):
        return thing.to(self.device, memory_format=self.format)

    def loss(self, network: Callable[[Tensor], Tensor]) -> Tensor:
        enabled = self.mixed_precision
        with torch.autocast(self.device.type, torch.bfloat16, enabled=enabled) if enabled else nullcontext():
            return F.cross_entropy(network(self.x).float(), self.y)

    def fp32(self) -> Step:
        network = self._placed(resnet20()).train()

        def step() -> None:
            network.zero_grad(set_to_none=True)
            self.loss(network).backward()

        return step

    def fixed(self, bits: int, choice: QuantizerChoice) -> Step:
        layers = {layer.name: LayerBits(bits, bits) for layer in self.graph.layers}
        network = self._placed(quantize_fixed(self.model, self.graph, layers, choice)).train()
        calibrate(network, [self.x])

        def step() -> None:
            network.zero_grad(set_to_none=True)
            self.loss(network).backward()

        return step

    def supernet(self, candidates: int, choice: QuantizerChoice, engine: str = "composite") -> tuple[Step, Step]:
        bits = CANDIDATES[candidates]
        space = build_space(self.graph, SpaceOptions(weight_bits=bits, activation_bits=bits))
        table = CostTable(self.graph, space, build_costs())
        supernet = self._placed(Supernet(self.model, self.graph, space, table, choice, engine)).train()
        calibrate(supernet.network, [self.x])
        generator = torch.Generator().manual_seed(0)

        def weight_step() -> None:
            supernet.zero_grad(set_to_none=True)
            with torch.no_grad():
                sample = supernet.sample(1.0, "gumbel", generator)
            with supernet.sampled(sample):
                self.loss(supernet).backward()

        def theta_step() -> None:
            supernet.zero_grad(set_to_none=True)
            for parameter in supernet.weights:
                parameter.requires_grad_(False)
            sample = supernet.sample(1.0, "gumbel", generator)
            with supernet.sampled(sample):
                loss = self.loss(supernet)
            (loss + 1e-9 * supernet.expected_cost("size_bytes", sample)).backward()
            for parameter in supernet.weights:
                parameter.requires_grad_(True)

        return weight_step, theta_step


def timed(step: Step, device: torch.device) -> float:
    started = time.perf_counter()
    step()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started


def take_turns(steps: dict[str, Step], rounds: int, device: torch.device) -> dict[str, float]:
    """Median seconds of each step over ``rounds`` rounds in which every step runs once."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds):
        for name, step in steps.items():
            seconds[name].append(timed(step, device))
    return {name: median(values) for name, values in seconds.items()}


def peak_bytes(step: Step, device: torch.device) -> int:
    """Peak memory of one step above what is held before it (resident memory on a CPU under Linux)."""
    gc.collect()
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        step()
        return torch.cuda.max_memory_allocated(device) - before
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    before = _status("VmRSS")
    step()
    return _status("VmHWM") - before


def _status(key: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key))
    return 1024 * int(line.split()[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--channels-last", action="store_true")
    parser.add_argument("--mixed-precision", action="store_true", help="bfloat16 autocast for every variant")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--eager", action="store_true", help="do not compile the mixture")
    parser.add_argument("--branches", action="store_true", help="time the branches engine (slow) as well")
    parser.add_argument("--weights", default="lsq")
    parser.add_argument("--activations", default="pact")
    options = parser.parse_args()
    device = torch.device(options.device)
    bench = Bench(device, options.channels_last, options.mixed_precision)
    choice = QuantizerChoice(options.weights, options.activations)
    steps = {"fp32": bench.fp32(), "fixed, 4 bit": bench.fixed(4, choice)}
    for candidates in (2, 7):
        name = f"supernet {candidates}x{candidates}"
        steps[f"{name}, weights"], steps[f"{name}, θ"] = bench.supernet(candidates, choice)
    if options.branches:
        steps["branches 2x2, weights"], steps["branches 2x2, θ"] = bench.supernet(2, choice, "branches")
        steps["branches 3x3, weights"], steps["branches 3x3, θ"] = bench.supernet(3, choice, "branches")
    with compiled_mixture(not options.eager) as compiled:
        started = time.perf_counter()
        for step in steps.values():
            step()
            step()
        first = time.perf_counter() - started
        seconds = take_turns(steps, options.rounds, device)
        memory = {name: peak_bytes(step, device) for name, step in steps.items()}
    report(seconds, memory, first, compiled, options)


def report(seconds: dict, memory: dict, first: float, compiled: bool, options: argparse.Namespace) -> None:
    kind = "compiled" if compiled else "eager"
    layout = "channels_last" if options.channels_last else "contiguous"
    print(f"{kind} mixture, {layout}, {options.device}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    print(f"first two steps of everything, compilation included: {first:.1f} s")
    for name in seconds:
        if name.endswith(", θ"):
            continue
        total, peak, label = seconds[name], memory[name], name
        if name.endswith(", weights"):
            label = name.removesuffix(", weights")
            theta = seconds[f"{label}, θ"]
            total = (1 - THETA_SHARE) * seconds[name] + THETA_SHARE * theta
            peak = max(peak, memory[f"{label}, θ"])
            parts = f"   weights {seconds[name] / seconds['fp32']:.2f}, θ {theta / seconds['fp32']:.2f}"
        else:
            parts = ""
        ratio, share = total / seconds["fp32"], peak / memory["fp32"]
        print(f"{label:15} {1e3 * total:7.1f} ms   {ratio:5.2f} x fp32   memory {share:4.2f} x{parts}")


if __name__ == "__main__":
    main()
