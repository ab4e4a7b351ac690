"""The runtimes whose latencies can be measured, by name: what each needs, and how a net runs in it."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import platform
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn

from dnas.export.onnx_residuals import RESIDUAL_BITS
from dnas.export.runtimes import need_runtime, onnxruntime_session, openvino_net
from dnas.export.save import save_packed
from dnas.export.stored import StoredNet
from dnas.export.targets import find_target
from dnas.latency.clock import Clock
from dnas.latency.places import DEVICES, RUNTIMES, Place, check_place
from dnas.latency.templates import Template, exported
from dnas.runtime.net import Runtime
from search_spaces.errors import InputError
from search_spaces.fields import Pair
from search_spaces.layers import FLOAT_BITS

FLOAT: Pair = (FLOAT_BITS, FLOAT_BITS)
EIGHT: Pair = (8, 8)
Run = Callable[[], Any]
Loader = Callable[[StoredNet, np.ndarray], Run]
"""A net, and the ``image`` (1, C, H, W) that each call runs it on; :class:`InputError` for a net that cannot be run."""


class Engine(Protocol):
    """A runtime."""

    @property
    def name(self) -> str:
        """What a user calls it."""

    @property
    def pairs(self) -> tuple[Pair, ...]:
        """The (weight, activation) widths that it has code of its own for."""

    @property
    def narrower(self) -> tuple[Pair, ...]:
        """Others that people would try: they are measured in whole nets only, to tell whether they give anything."""

    def version(self) -> str:
        """The version of the runtime; :class:`InputError` with the install command where it is missing."""

    def check(self, place: Place) -> None:
        """Raise :class:`InputError` where it cannot run there."""

    def load(self, net: StoredNet, image: np.ndarray, place: Place) -> Run:
        """A call that runs ``net`` on ``image`` (1, C, H, W); :class:`InputError` for a net that it cannot run."""

    def loader(self, base: StoredNet, place: Place) -> Loader:
        """What loads nets like ``base``, all of whose layers are quantized: of other widths and filters."""


@dataclass(frozen=True)
class OnnxRuntimeEngine:
    """ONNX Runtime, with the file that ``dnas export --target onnxruntime --residual-bits 8`` writes."""

    name: str = "onnxruntime"
    pairs: tuple[Pair, ...] = (EIGHT, FLOAT)
    narrower: tuple[Pair, ...] = ((4, 4), (4, 8), (8, FLOAT_BITS))

    def version(self) -> str:
        """That of the package."""
        return str(need_runtime(self.name).__version__)

    def check(self, place: Place) -> None:
        """A GPU needs another build of the package."""
        if place.device != "cpu" and _PROVIDERS[place.device] not in need_runtime(self.name).get_available_providers():
            raise InputError(
                f"onnxruntime was built without {place.device}; pip install onnxruntime-gpu, or take --device cpu"
            )

    def load(self, net: StoredNet, image: np.ndarray, place: Place) -> Run:
        """A session with all optimizations."""
        return self._session(exported(net, find_target(self.name), RESIDUAL_BITS), image, place)

    def loader(self, base: StoredNet, place: Place) -> Loader:
        """Sessions from one trace."""
        template = Template(base, find_target(self.name), RESIDUAL_BITS)
        return lambda net, image: template.loaded(net, lambda model: self._session(model, image, place))

    def _session(self, model: Any, image: np.ndarray, place: Place) -> Run:
        provider = _PROVIDERS[place.device]
        session = onnxruntime_session(model, optimized=True, threads=place.threads, provider=provider)
        feeds = {session.get_inputs()[0].name: image}
        return lambda: session.run(None, feeds)


@dataclass(frozen=True)
class OpenVinoEngine:
    """OpenVINO's CPU plugin, with the file that ``dnas export --target openvino`` writes."""

    name: str = "openvino"
    pairs: tuple[Pair, ...] = (EIGHT, FLOAT)
    narrower: tuple[Pair, ...] = ((4, 4), (4, 8), (8, FLOAT_BITS))

    def version(self) -> str:
        """That of the package, without its build."""
        return str(need_runtime(self.name).__version__).split("-")[0]

    def check(self, place: Place) -> None:
        """Only the CPU plugin is asked."""
        _only_cpu(self.name, place)

    def load(self, net: StoredNet, image: np.ndarray, place: Place) -> Run:
        """A compiled model with one request."""
        return self._request(exported(net, find_target(self.name), None), image, place)

    def loader(self, base: StoredNet, place: Place) -> Loader:
        """Compiled models from one trace."""
        template = Template(base, find_target(self.name), None)
        return lambda net, image: template.loaded(net, lambda model: self._request(model, image, place))

    def _request(self, model: Any, image: np.ndarray, place: Place) -> Run:
        request = openvino_net(model, place.threads).create_infer_request()
        return lambda: request.infer([image], share_inputs=True, share_outputs=True)


@dataclass(frozen=True)
class TorchEngine:
    """PyTorch itself, which runs quantized layers in fp32: what is saved are pruned filters."""

    name: str = "torch"
    pairs: tuple[Pair, ...] = (FLOAT,)
    narrower: tuple[Pair, ...] = (EIGHT,)

    def version(self) -> str:
        """That of PyTorch."""
        return str(torch.__version__)

    def check(self, place: Place) -> None:
        """A GPU must be there."""
        if place.device != "cpu" and not torch.cuda.is_available():
            raise InputError(f"there is no {place.device} device here; take --device cpu")

    def load(self, net: StoredNet, image: np.ndarray, place: Place) -> Run:
        """The network as it is."""
        network = net.network.to(place.device).eval()
        x = torch.from_numpy(image).to(place.device)
        return lambda: _in_torch(network, x, place)

    def loader(self, base: StoredNet, place: Place) -> Loader:
        """One by one."""
        return partial(self.load, place=place)


@dataclass(frozen=True)
class PackedEngine:
    """The packed file's own runtime (docs/runtime.md), on one thread."""

    name: str = "packed"
    pairs: tuple[Pair, ...] = (*((w, a) for w in (1, 2, 4, 8) for a in (1, 2, 4, 8)), FLOAT)
    narrower: tuple[Pair, ...] = ()

    def version(self) -> str:
        """That of this package, which it is part of."""
        try:
            return importlib.metadata.version("dnas")
        except importlib.metadata.PackageNotFoundError:
            return "from its sources"

    def check(self, place: Place) -> None:
        """It has no threads."""
        _only_cpu(self.name, place)
        if place.threads != 1:
            raise InputError(f"the packed runtime runs on one thread, and not on {place.threads}; take --threads 1")

    def load(self, net: StoredNet, image: np.ndarray, place: Place) -> Run:
        """The net from its packed file, in C."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "net.dnas"
            save_packed(path, net.network, net.graph, net.assignment, net.choice)
            runtime = Runtime(path, engine="c")
        return lambda: runtime(image)

    def loader(self, base: StoredNet, place: Place) -> Loader:
        """One by one."""
        return partial(self.load, place=place)


_ALL: tuple[Engine, ...] = (OnnxRuntimeEngine(), OpenVinoEngine(), TorchEngine(), PackedEngine())
ENGINES: dict[str, Engine] = dict(zip(RUNTIMES, _ALL, strict=True))
_PROVIDERS = dict(zip(DEVICES, ("CPUExecutionProvider", "CUDAExecutionProvider"), strict=True))


def find_engine(name: str, place: Place) -> Engine:
    """The runtime of that name, which can run there; :class:`InputError` otherwise."""
    check_place(name, place)
    engine = ENGINES[name]
    engine.version()
    engine.check(place)
    return engine


def clock_of(place: Place) -> Clock:
    """The clock of a place: on one thread of a CPU that of the process alone, which other work does not lengthen."""
    return time.process_time if place == Place() else time.perf_counter


def processor_name(place: Place) -> str:
    """What computes, in the words of its maker."""
    if place.device != "cpu":
        return str(torch.cuda.get_device_name())
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())


def _only_cpu(name: str, place: Place) -> None:
    if place.device != "cpu":
        raise InputError(f"{name} is measured on the CPU alone; take --device cpu, or --runtime torch")


def _in_torch(network: nn.Module, x: torch.Tensor, place: Place) -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(place.threads)
    try:
        with torch.inference_mode():
            found = network(x)
            if place.device != "cpu":
                torch.cuda.synchronize()
            return found
    finally:
        torch.set_num_threads(before)
