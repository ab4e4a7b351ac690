"""What a switchable net costs: a training step, a switch, a load, memory; as ratios to a fixed net, in one run.

Run from the repository root, with the number of threads that you want::

    OMP_NUM_THREADS=1 python -m benchmarks.switchable_cost

ResNet-20, batch 64, 32x32, mixed profiles of 2 to 8 bits. Steps take turns, so that a noisy machine slows all alike;
the ratio is that of the medians to a quantization-aware training step of one fixed 4-bit net.
"""

from __future__ import annotations

import argparse
import multiprocessing
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median

import torch
from torch.nn import functional as F
from torchvision.models import mobilenet_v2, resnet18, resnet50

from dnas.config.job import FinaliseSection
from dnas.export.save import save_packed
from dnas.export.unpack import load
from dnas.quantization.calibration import calibrate
from dnas.quantization.conversion import QuantizerChoice, quantize_fixed
from dnas.switchable.net import SwitchableNet
from dnas.switchable.training import SwitchableTrainer, accumulate_gradients
from dnas.training.device import CPU
from dnas.training.loss_meter import LossMeter
from dnas.training.optimization import Optimization, weight_groups
from search_spaces.assignments import BitAssignment, LayerBits, ModelReference
from search_spaces.costs.shared import shared_size_bytes
from search_spaces.costs.table import CostTable, build_costs
from search_spaces.layers import LayerGraph
from search_spaces.models.zoo import resnet20
from search_spaces.network.graph import read_graph
from search_spaces.options import SpaceOptions
from search_spaces.spaces import build_space

CHOICE = QuantizerChoice("nested", "pact")
COUNTS = (2, 3, 4, 8, 16)
MODEL = {"source": "zoo:resnet20", "arguments": {}}


class Bench:
    """ResNet-20, a batch, and assignments of its layers."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.model = resnet20()
        self.graph = read_graph(self.model, (3, 32, 32))
        self.x, self.y = torch.randn(64, 3, 32, 32), torch.randint(0, 10, (64,))
        space = build_space(self.graph, SpaceOptions((4,), (4,), first_layer="search", last_layer="search"))
        self.table = CostTable(self.graph, space, build_costs())

    def assignment(self, name: str, bits: Callable[[int], int]) -> BitAssignment:
        layers = {spec.name: LayerBits(bits(i), bits(i), spec.out_channels) for i, spec in enumerate(self.graph.layers)}
        reference = ModelReference("zoo:resnet20", (3, 32, 32))
        provenance = {"quantizer": {"weights": CHOICE.weights, "activations": CHOICE.activations}}
        return BitAssignment(name, reference, layers, self.table.price(layers), {}, provenance)

    def mixed(self, count: int) -> dict[str, BitAssignment]:
        """Profiles whose layers have 2 to 8 bits, the first the widest."""
        return {
            f"p{n}": self.assignment(f"p{n}", lambda i, n=n: max(2, 8 - (n * 6) // count - (i * (n + 1)) % 3 * (n > 0)))
            for n in range(count)
        }

    def net(self, count: int) -> SwitchableNet:
        net = SwitchableNet(self.model, self.graph, self.mixed(count), CHOICE)
        net.calibrate(self.model, [self.x])
        return net

    def fixed_step(self) -> Callable[[], None]:
        layers = self.assignment("fixed", lambda i: 4).layers
        net = quantize_fixed(self.model, self.graph, layers, CHOICE).train()
        calibrate(net, [self.x])
        net.train()
        optimizer = torch.optim.SGD(weight_groups(net, Optimization(weight_decay=5e-4)), lr=0.01, momentum=0.9)

        def step() -> None:
            optimizer.zero_grad(set_to_none=True)
            F.cross_entropy(net(self.x), self.y).backward()
            optimizer.step()

        return step

    def switchable_step(self, count: int, **section: bool) -> Callable[[], None]:
        net, values = self.net(count).train(), FinaliseSection.model_validate(section)
        trainer = SwitchableTrainer(net, values, images=None)  # type: ignore[arg-type]  # only its choice is used
        generator = torch.Generator().manual_seed(0)

        def step() -> None:
            trainer.updates.optimizer.zero_grad(set_to_none=True)
            accumulate_gradients(net, trainer.chosen(generator), self.x, self.y, values, LossMeter(CPU, 1))
            trainer.updates.optimizer.step()

        return step


def seconds(function: Callable[[], object]) -> float:
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


def steps(bench: Bench, rounds: int) -> None:
    """A training step for so many profiles, beside a fixed net's, and beside all profiles in each step."""
    variants = {"fixed": bench.fixed_step()}
    variants |= {f"{count} profiles": bench.switchable_step(count) for count in COUNTS}
    variants |= {
        f"{count} profiles, all in each step": bench.switchable_step(count, all_profiles=True) for count in (4, 8)
    }
    times: dict[str, list[float]] = {name: [] for name in variants}
    for turn in range(rounds + 1):
        for name, step in variants.items():
            taken = seconds(step)
            if turn:  # the first round warms up
                times[name].append(taken)
    print("| training step | x fixed |\n|---|---|")
    for name, values in times.items():
        print(f"| {name} | {median(values) / median(times['fixed']):.2f} |")


def switching(bench: Bench) -> None:
    net, names = bench.net(8).eval(), [f"p{n}" for n in range(8)]
    count = 10_000
    taken = seconds(lambda: [net.use(names[n % 8]) for n in range(count)])
    print(f"\nswitch: {1e6 * taken / count:.2f} us")


def loading(bench: Bench, count: int = 5) -> None:
    """Load and memory of one file of several profiles, beside a file and a net for each."""
    net = bench.net(count).eval()
    with tempfile.TemporaryDirectory() as folder:
        shared = Path(folder) / "net"
        packed = save_packed(shared, net, model=MODEL)
        sizes = []
        for name, profile in net.profiles.items():
            path = Path(folder) / name
            sizes.append(
                save_packed(path, net.alone(name), bench.graph, profile.assignment, CHOICE, model=MODEL).tensor_bytes
            )
        whole = median(seconds(partial(load, shared, bench.model)) for _ in range(5))
        part = median(seconds(partial(load, shared, bench.model, name)) for name in net.profiles)
        single = median(seconds(partial(load, Path(folder) / name, bench.model)) for name in net.profiles)
    taken = packed.tensor_bytes
    print(f"file: {taken:,} bytes for {count} profiles, {taken / max(sizes):.3f}x the largest alone, ", end="")
    print(f"{taken / sum(sizes):.3f}x all of them")
    print(f"load: all profiles {1e3 * whole:.0f} ms, one of them {1e3 * part:.0f} ms, one alone {1e3 * single:.0f} ms")
    held = sum(tensor.nbytes for tensor in net.tensors().values())
    alone = sum(sum(t.nbytes for t in net.alone(name).state_dict().values()) for name in net.profiles)
    print(f"memory: {held:,} bytes of tensors in one net, {held / alone:.3f}x those of {count} nets")


def peak_bytes(kind: str, queue: multiprocessing.Queue) -> None:
    """What making and running five profiles of ResNet-18 adds to this process's peak memory."""
    model = resnet18().eval()
    graph, x = read_graph(model, (3, 64, 64)), torch.randn(1, 3, 64, 64)
    reference = ModelReference("torchvision:resnet18", (3, 64, 64))
    profiles = {f"b{b}": BitAssignment("b", reference, same_bits(graph, b)) for b in (2, 3, 4, 6, 8)}
    model(x)
    Path("/proc/self/clear_refs").write_text("5")  # the peak so far, that of the imports, is forgotten (Linux)
    before = memory_kib("VmRSS")
    if kind == "one net":
        shared = SwitchableNet(model, graph, profiles, CHOICE).eval()
        nets = [shared.view_of(name) for name in profiles]
    else:
        nets = [quantize_fixed(model, graph, item.layers, CHOICE).eval() for item in profiles.values()]
    with torch.inference_mode():
        for net in nets:
            net(x)
    queue.put(1024 * (memory_kib("VmHWM") - before))


def memory_kib(name: str) -> int:
    """A figure of this process from the kernel: VmRSS now, VmHWM the peak."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def same_bits(graph: LayerGraph, bits: int) -> dict[str, LayerBits]:
    return {spec.name: LayerBits(bits, bits, spec.out_channels) for spec in graph.layers}


def peaks() -> None:
    """Peak memory of one net of five profiles, and of five nets, each in a process of its own."""
    context, found = multiprocessing.get_context("spawn"), {}
    for kind in ("one net", "five nets"):
        queue = context.Queue()
        process = context.Process(target=peak_bytes, args=(kind, queue))
        process.start()
        found[kind] = queue.get(timeout=300)
        process.join()
    one, five = found.values()
    print(f"peak memory, ResNet-18, five profiles: {one / 1e6:.0f} MB in one net, {one / five:.2f}x that of five nets")


def counted() -> None:
    """The file of uniform 2, 3, 4, 6 and 8 bits over that of the largest, for larger nets; counted, not trained."""
    for build in (resnet18, resnet50, mobilenet_v2):
        graph = read_graph(build(), (3, 224, 224))
        profiles = [same_bits(graph, bits) for bits in (2, 3, 4, 6, 8)]
        ratio = shared_size_bytes(graph, profiles) / shared_size_bytes(graph, profiles[-1:])
        print(f"file of five uniform profiles, {build.__name__}: {ratio:.3f}x the largest alone")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=10, metavar="N", help="times that each step is run")
    arguments = parser.parse_args()
    bench = Bench()
    steps(bench, arguments.rounds)
    switching(bench)
    loading(bench)
    peaks()
    counted()


if __name__ == "__main__":
    main()
