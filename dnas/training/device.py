"""Where and how exactly a network computes: one value that is handed to whatever trains or measures."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from dnas.quantization.randomness import ACCELERATORS, seeded
from dnas.training.processes import ALONE, Processes, launcher_number
from search_spaces.errors import InputError, JobError, check_type, first_sentence, nearest

Precision = Literal["fp32", "bf16"]


@dataclass(frozen=True)
class Device:
    """A device, the precision of training steps on it, the memory format of images, and who trains beside it.

    ``cuda_graphs``: training steps may be recorded as graphs, where the device is one of CUDA.

    Quantizers compute in fp32 whatever the precision, and so does every measurement: a figure is that of the network
    that is exported.
    """

    place: torch.device
    precision: Precision = "fp32"
    channels_last: bool = False
    processes: Processes = ALONE
    cuda_graphs: bool = True

    @classmethod
    def named(
        cls, name: str, precision: Precision | Literal["auto"] = "fp32", channels_last: bool | Literal["auto"] = False
    ) -> Device:
        """The device ``auto`` (CUDA where there is one, else the CPU), ``cpu``, ``mps``, ``xpu``, ``cuda``, ``cuda:1``.

        ``auto`` precision is bf16, and the memory format channels last, on CUDA where the device computes in bf16.
        Raises :class:`InputError` for a device that is not there, naming those that are.
        """
        there = available()
        if name == "auto":
            name = "cuda" if "cuda" in there else "cpu"
        if name == "cuda" and "LOCAL_RANK" in os.environ:  # each of a launcher's processes has a device of its own
            name = f"cuda:{launcher_number(os.environ, 'LOCAL_RANK')}"
        if name not in there:
            hint = nearest(name, there) if name.partition(":")[0] not in ACCELERATORS else ""
            raise InputError(f"device = '{name}' is not here{hint}; PyTorch finds {', '.join(there)}; or use auto")
        place = torch.device(name)
        asked = "auto" in (precision, channels_last)
        halves = asked and place.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        return cls(
            place,
            ("bf16" if halves else "fp32") if precision == "auto" else precision,
            halves if channels_last == "auto" else channels_last,
        )

    @classmethod
    def of(cls, value: Device | torch.device | str) -> Device:
        """The same device, or one in full precision at that place; a name is refused as in :meth:`named`."""
        if isinstance(value, Device):
            return value
        if isinstance(value, torch.device):
            return cls(value)
        check_type(value, str, "a device", "give a name such as 'cpu', a torch.device or a dnas.Device")
        return cls.named(value)

    def __str__(self) -> str:
        precision = "" if self.precision == "fp32" else f" in {self.precision}"
        layout = ", channels last" if self.channels_last else ""
        return f"{self.place}{precision}{layout}" + (f", {self.processes}" if self.processes.several else "")

    @property
    def records(self) -> bool:
        """Whether training steps can be recorded as graphs; statistics that processes share are sent by the host."""
        return self.cuda_graphs and self.place.type == "cuda" and not self.processes.synchronise_batchnorm

    def computing(self) -> AbstractContextManager:
        """Inside, the forward pass and the loss of a training step compute in this precision."""
        return torch.autocast(self.place.type, torch.bfloat16) if self.precision == "bf16" else nullcontext()

    def lay_out(self, *networks: nn.Module) -> None:
        """Bring the weights of 2-D convolutions to this memory format, in place; their values stay."""
        for parameter in (p for network in networks for p in network.parameters()) if self.channels_last else ():
            if parameter.ndim == 4:
                parameter.data = _channels_last(parameter.data)

    def laid_out(self, x: Tensor) -> Tensor:
        """Images (N, C, H, W) on this device in its memory format."""
        if not self.channels_last or x.ndim != 4:
            return x
        return _channels_last(x)

    def own_randomness(self, seed: int) -> AbstractContextManager[None]:
        """Give the code inside its own global random state (dropout uses it); put the caller's back afterwards.

        Of several processes each has another, since they see other images.
        """
        return seeded(seed + self.processes.rank, self.place)


def _channels_last(x: Tensor) -> Tensor:
    """The tensor (N, C, H, W) with its channels last, of one channel too: of it both formats are the same memory.

    PyTorch takes that for the other format, and a network of grey images would begin with it.
    """
    x = x.contiguous(memory_format=torch.channels_last)
    _, channels, height, width = x.shape
    return x.as_strided(x.shape, (channels * height * width, 1, channels * width, channels))


@contextmanager
def deterministic(wanted: bool) -> Iterator[None]:
    """Inside, operations give the same bits each time where that is ``wanted``.

    Raises :class:`JobError` for one that PyTorch cannot do so.
    """
    if not wanted:
        yield
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it cuBLAS refuses
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    benchmark = torch.backends.cudnn.benchmark
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False
    try:
        yield
    except JobError:
        raise
    except RuntimeError as error:
        if "deterministic" not in str(error):
            raise
        raise JobError(f"deterministic = true: {first_sentence(error)}; set deterministic = false") from error
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        torch.backends.cudnn.benchmark = benchmark


def widest(place: torch.device) -> torch.dtype:
    """The widest floating type that a device computes in."""
    return torch.float32 if place.type == "mps" else torch.float64


def widened(tensor: Tensor) -> Tensor:
    """The tensor in the widest floating type of its device, to add up many values."""
    return tensor.to(widest(tensor.device))


def available() -> list[str]:
    """The names of the devices that PyTorch finds here."""
    found = ["cpu"]
    for kind, those in (("cuda", torch.cuda), ("xpu", torch.xpu)):
        count = those.device_count() if those.is_available() else 0
        found += [kind, *(f"{kind}:{number}" for number in range(count))] if count else []
    return [*found, *(["mps"] if torch.backends.mps.is_available() else [])]


CPU = Device(torch.device("cpu"))
AnyDevice = Device | torch.device | str
"""What functions for use from Python take for a device; :meth:`Device.of` makes a Device of it."""
