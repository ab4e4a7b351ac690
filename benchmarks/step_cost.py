"""What a training step costs, as ratios to the same network's plain float step, in one run.

Run from the repository root, with the number of threads that you want::

    OMP_NUM_THREADS=2 python -m benchmarks.step_cost
    python -m benchmarks.step_cost --device cuda --precision bf16 --network resnet50

A step is what a job runs: forward, backward and update of one batch, by its own trainers. On CUDA each variant is
timed recorded as a graph and step by step; the ratios are to the float step recorded in the same way, and to the plain
float step that a user would write. The variants take turns, so that a noisy machine slows all alike; the ratio is that
of the medians. A supernet epoch trains the weights on 80 % of the images and θ on 20 %, so its step is the mean of the
two in these shares. Memory is the peak above what was held before the step, run step by step.

``--whole`` times a second way as well: torch.compile makes the network one graph, in which quantizers are fused with
the BatchNorms and activations beside them, the float network's too. A job does not do so: other fused sums end in other
last digits than those of the exported net.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from dnas.config.job import FinaliseSection, SearchSection
from dnas.config.training import TrainingSection
from dnas.data.image_sets import MemoryImages
from dnas.quantization.calibration import calibrate
from dnas.quantization.conversion import QuantizerChoice, quantize_fixed
from dnas.quantization.mixture import compiled_mixture
from dnas.search.images import SearchData
from dnas.search.supernet import Supernet
from dnas.search.trainer import SupernetTrainer
from dnas.switchable.net import SwitchableNet
from dnas.switchable.training import SwitchableTrainer
from dnas.training.device import Device
from dnas.training.loss_meter import STEPS_BETWEEN_LOOKS, LossMeter
from dnas.training.memory import keep_freed_memory
from dnas.training.trainer import Trainer
from search_spaces.assignments import BitAssignment, LayerBits, ModelReference
from search_spaces.costs.table import CostTable, build_costs
from search_spaces.models.copies import fresh_copy
from search_spaces.models.load import load_model
from search_spaces.network.graph import read_graph
from search_spaces.options import SpaceOptions
from search_spaces.spaces import build_space

Step = Callable[[], None]


@dataclass(frozen=True)
class Way:
    """How steps are run: ``recorded`` as CUDA graphs, of a network that is compiled as a ``whole``."""

    name: str = ""
    recorded: bool = False
    whole: bool = False


RECORDED, STEP_BY_STEP = Way("recorded", recorded=True), Way("step by step")
THETA_SHARE = 0.2
CANDIDATES = {2: (2, 4), 7: (1, 2, 3, 4, 5, 6, 8)}
NETWORKS = {"resnet20": ("zoo:resnet20", 32, 128, 10), "resnet50": ("torchvision:resnet50", 224, 64, 1000),
            "vit_s": ("timm:vit_small_patch16_224", 224, 64, 1000)}  # fmt: skip


class Bench:
    """The network, one batch, and the steps that are compared."""

    def __init__(self, network: str, device: Device, choice: QuantizerChoice, batch_size: int | None = None) -> None:
        torch.manual_seed(0)
        self.source, size, batch, classes = NETWORKS[network]
        batch = batch_size or batch
        self.device, self.choice = device, choice
        self.model = load_model(self.source).module.train()
        self.x = device.laid_out(torch.randn(batch, 3, size, size).to(device.place))
        self.y = torch.randint(0, classes, (batch,), device=device.place)
        self.graph = read_graph(self.model, (3, size, size))
        self.images = MemoryImages(torch.rand(4, 3, size, size), torch.arange(4), (0.5,) * 3, (0.5,) * 3)

    def _device(self, way: Way) -> Device:
        return replace(self.device, cuda_graphs=way.recorded)

    def _losses(self) -> LossMeter:
        return LossMeter(self.device, STEPS_BETWEEN_LOOKS)

    def plain(self) -> Step:
        """The loop that a user writes, with this precision."""
        network = self._float().train()
        self.device.lay_out(network)
        optimizer = torch.optim.SGD(network.parameters(), lr=1e-3, momentum=0.9)

        def step() -> None:
            optimizer.zero_grad(set_to_none=True)
            with self.device.computing():
                loss = F.cross_entropy(network(self.x), self.y)
            loss.backward()
            optimizer.step()

        return step

    def _trained(self, network: nn.Module, way: Way) -> Step:
        trainer = Trainer(
            network.train(), TrainingSection(learning_rate=1e-3), images=self.images, device=self._device(way)
        )
        if way.whole:
            network.compile(fullgraph=True)
        return self._step_of(trainer)

    def _step_of(self, trainer: Trainer) -> Step:
        losses = self._losses()

        def step() -> None:
            trainer.updates.step(0, 1, 0.0, partial(trainer._gradients, self.x, self.y, losses))

        return step

    def _float(self) -> nn.Module:
        return fresh_copy(self.model).to(self.device.place)

    def float(self, way: Way) -> Step:
        return self._trained(self._float(), way)

    def fixed(self, bits: int, way: Way) -> Step:
        layers = {layer.name: LayerBits(bits, bits) for layer in self.graph.layers}
        network = quantize_fixed(self.model, self.graph, layers, self.choice).to(self.device.place)
        calibrate(network, [self.x])
        return self._trained(network, way)

    def supernet(self, candidates: int, way: Way, engine: Any = "composite") -> tuple[Step, Step]:
        bits = CANDIDATES[candidates]
        space = build_space(self.graph, SpaceOptions(weight_bits=bits, activation_bits=bits))
        table = CostTable(self.graph, space, build_costs())
        supernet = Supernet(self.model, self.graph, space, table, self.choice, engine).to(self.device.place).train()
        calibrate(supernet.network, [self.x])
        section = SearchSection(learning_rate=1e-3)
        data = SearchData(self.images, self.images, self.images, 4, None)
        trainer = SupernetTrainer(supernet, section, data, device=self._device(way))
        if way.whole:
            supernet.network.compile(fullgraph=True)
        generator, batch, losses = torch.Generator().manual_seed(0), (self.x, self.y), self._losses()

        def weight_step() -> None:
            with torch.no_grad():
                sample = supernet.sample(1.0, "gumbel", generator)
            trainer._weight_step(batch, [sample], (0, 1, 0.0), losses)

        def cost(loss: torch.Tensor, sample: Any, progress: Any) -> torch.Tensor:
            return loss + 1e-9 * supernet.expected_cost("size_bytes", sample).float()

        def theta_step() -> None:
            trainer._theta_step(batch, 1.0, generator, cost, 0.0, losses)

        return weight_step, theta_step

    def switchable(self, profiles: int, way: Way) -> Step:
        """Profiles whose layers have 2 to 8 bits, the first the widest."""
        reference = ModelReference(self.source, tuple(self.x.shape[1:]))

        def bits(profile: int, layer: int) -> int:
            return max(2, 8 - (profile * 6) // profiles - (layer * (profile + 1)) % 3 * (profile > 0))

        def assignment(profile: int) -> BitAssignment:
            layers = enumerate(self.graph.layers)
            own = {spec.name: LayerBits(bits(profile, i), bits(profile, i), spec.out_channels) for i, spec in layers}
            return BitAssignment(f"p{profile}", reference, own)

        assignments = {f"p{profile}": assignment(profile) for profile in range(profiles)}
        choice = QuantizerChoice("nested", self.choice.activations)
        net = SwitchableNet(self.model, self.graph, assignments, choice).to(self.device.place)
        net.calibrate(self._float(), [self.x])
        trainer = SwitchableTrainer(
            net.train(), FinaliseSection(learning_rate=1e-3), images=self.images, device=self._device(way)
        )
        trainer._begin(0)
        return self._step_of(trainer)


def timed(step: Step, device: Device) -> float:
    started = time.perf_counter()
    step()
    _wait(device)
    return time.perf_counter() - started


def _wait(device: Device) -> None:
    if device.place.type == "cuda":
        torch.cuda.synchronize(device.place)


def per_step(step: Step, device: Device, steps: int) -> float:
    """Seconds a step takes in a row of ``steps``, of which the host waits for the last only: as in an epoch."""
    return timed(lambda: [step() for _ in range(steps)] and None, device) / steps


def take_turns(steps: dict[str, Step], rounds: int, device: Device) -> dict[str, float]:
    """Median seconds of each step over ``rounds`` rounds in which all take turns."""
    row = 10 if device.place.type == "cuda" else 1
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds):
        for name, step in steps.items():
            seconds[name].append(per_step(step, device, row))
    return {name: median(values) for name, values in seconds.items()}


def peak_bytes(step: Step, device: Device) -> int:
    """Peak memory of one step above what is held before it (resident memory on a CPU under Linux)."""
    gc.collect()
    if device.place.type == "cuda":
        before = torch.cuda.memory_allocated(device.place)
        torch.cuda.reset_peak_memory_stats(device.place)
        step()
        return torch.cuda.max_memory_allocated(device.place) - before
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    before = _status("VmRSS")
    step()
    return _status("VmHWM") - before


def _status(key: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key))
    return 1024 * int(line.split()[1])


def kernels(step: Step) -> int:
    """Launches of one step."""
    activities = [torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities, acc_events=True) as profile:
        step()
        torch.cuda.synchronize()
    return sum(event.count for event in profile.key_averages() if event.device_type == torch.autograd.DeviceType.CUDA)


def variants(bench: Bench, options: argparse.Namespace, way: Way) -> dict[str, Step]:
    """The steps to compare, by name; those of a supernet are two."""
    steps = {"float": bench.float(way), "fixed, 4 bit": bench.fixed(4, way)}
    for candidates in options.candidates:
        name = f"supernet {candidates}x{candidates}"
        steps[f"{name}, weights"], steps[f"{name}, θ"] = bench.supernet(candidates, way)
    if options.branches and not way.whole:
        steps["branches 2x2, weights"], steps["branches 2x2, θ"] = bench.supernet(2, way, "branches")
    for profiles in options.profiles if not way.whole else ():
        steps[f"{profiles} profiles"] = bench.switchable(profiles, way)
    return steps


def ways(options: argparse.Namespace, on_cuda: bool) -> list[Way]:
    """How steps are timed."""
    found = [RECORDED, *([] if options.no_steps else [STEP_BY_STEP])] if on_cuda else [Way()]
    return [*found, *([Way("compiled whole", recorded=on_cuda, whole=True)] if options.whole else [])]


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", choices=NETWORKS, nargs="+", default=["resnet20"])
    parser.add_argument("--batch", type=int, help="images of a batch")
    parser.add_argument("--channels-last", action="store_true")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--candidates", type=int, nargs="*", default=[2, 7], choices=CANDIDATES)
    parser.add_argument("--profiles", type=int, nargs="*", default=[], help="switchable nets of so many profiles")
    parser.add_argument("--eager", action="store_true", help="on a CPU: do not compile the mixture")
    parser.add_argument("--no-steps", action="store_true", help="on CUDA: recorded steps only")
    parser.add_argument("--whole", action="store_true", help="time networks that are compiled whole as well")
    parser.add_argument("--branches", action="store_true", help="time the branches engine (slow) as well")
    parser.add_argument("--weights", default="lsq")
    parser.add_argument("--activations", default="pact")
    return parser


def main() -> None:
    options = parser().parse_args()
    device = Device.named(options.device, options.precision, options.channels_last)
    for network in options.network:
        compare(network, device, options)


def compare(network: str, device: Device, options: argparse.Namespace) -> None:
    bench = Bench(network, device, QuantizerChoice(options.weights, options.activations), options.batch)
    on_cuda = device.place.type == "cuda"
    layout = "channels_last" if options.channels_last else "contiguous"
    where = torch.cuda.get_device_name(device.place) if on_cuda else f"{torch.get_num_threads()} threads"
    print(f"{network}, batch {len(bench.x)}, {options.precision}, {layout}, {where}, torch {torch.__version__}")
    timed_ways = ways(options, on_cuda)
    keep_freed_memory()
    with compiled_mixture(not (options.eager or on_cuda)) as compiled:
        if not on_cuda:
            print(f"{'compiled' if compiled else 'eager'} mixture")
        steps = {"plain": bench.plain()}
        for way in timed_ways:
            steps |= {f"{name}|{way.name}": step for name, step in variants(bench, options, way).items()}
        started = time.perf_counter()
        for step in steps.values():
            for _ in range(1 + 3 * max([1, *options.profiles]) if on_cuda else 2):  # until every pass is recorded
                step()
        _wait(device)
        print(f"first steps of everything, compilation included: {time.perf_counter() - started:.1f} s", flush=True)
        seconds = take_turns(steps, options.rounds, device)
        memory = {
            name: peak_bytes(step, device) for name, step in unrecorded(bench, options, steps, timed_ways).items()
        }
    for way in timed_ways:
        launches = {name: kernels(step) for name, step in of_way(steps, way).items()} if way.recorded else {}
        report(of_way(seconds, way), seconds["plain"], {} if way.whole else memory, launches, way.name)


def unrecorded(
    bench: Bench, options: argparse.Namespace, steps: dict[str, Step], timed_ways: list[Way]
) -> dict[str, Step]:
    """Steps whose memory can be seen: a graph that is replayed takes none anew."""
    own = next((way for way in timed_ways if not (way.recorded or way.whole)), None)
    if own is not None:
        return of_way(steps, own)
    found = variants(bench, options, STEP_BY_STEP)
    for step in found.values():
        step()  # the optimizer's own memory is not of every step
    return found


def of_way(values: dict, way: Way) -> dict:
    """The values of the variants that ran in one way, by variant."""
    return {name.partition("|")[0]: value for name, value in values.items() if name.endswith(f"|{way.name}")}


def report(seconds: dict, plain: float, memory: dict, launches: dict, mode: str) -> None:
    print(f"{mode + ':' if mode else ''} plain loop {1e3 * plain:.2f} ms")
    for name in seconds:
        if name.endswith(", θ"):
            continue
        label, total, parts = name.removesuffix(", weights"), seconds[name], ""
        peak = memory.get(name, 0)
        if name.endswith(", weights"):
            theta = seconds[f"{label}, θ"]
            total = (1 - THETA_SHARE) * total + THETA_SHARE * theta
            peak = max(peak, memory.get(f"{label}, θ", 0))
            parts = f"   weights {seconds[name] / seconds['float']:.2f}, θ {theta / seconds['float']:.2f}"
        share = f"   memory {peak / memory['float']:4.2f} x" if memory else ""
        count = f"   {launches[name]} kernels" if name in launches else ""
        print(f"{label:15} {1e3 * total:8.2f} ms   {total / seconds['float']:5.2f} x float   "
              f"{total / plain:5.2f} x plain{share}{parts}{count}")  # fmt: skip


if __name__ == "__main__":
    main()
