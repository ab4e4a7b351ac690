"""Several processes that train one network together: each on its rows of every batch, their gradients averaged.

Every process runs the whole job. What they could differ in is made one: gradients, losses and statistics are averaged,
measurements and choices are those of the first process, and so are the weights after each epoch. One sample of θ serves
all, as its noise is drawn from the same seed everywhere.

Gradients are averaged once for each update, over PyTorch's process group. Its DistributedDataParallel expects one
forward and one backward pass over the same parameters in each step; a step here may be several passes of different
profiles, and θ takes part in no forward pass.
"""

from __future__ import annotations

import math
import platform
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._pytree import tree_map

from dnas.data.image_sets import Part
from dnas.training.last_words import last_words
from search_spaces.errors import InputError, JobError, kind_of, out_of_memory

Item = TypeVar("Item")
Value = TypeVar("Value")


_CONNECTION = re.compile("gloo/|nccl|connection (closed|reset|refused)|TCPStore|DistStore", re.IGNORECASE)


LAUNCHER_REMEDY = "start the job with dnas ... --nproc-per-node N or with torchrun, which set it"


class ProcessLost(JobError):
    """Another process of this job has ended."""


@dataclass(frozen=True)
class Processes:
    """The processes of one training: how many, and which of them this is, from 0 on.

    ``synchronise_batchnorm``: statistics in training are those of the whole batch, not of a process's own rows.
    """

    rank: int = 0
    size: int = 1
    synchronise_batchnorm: bool = False

    @classmethod
    def here(cls, synchronise_batchnorm: bool = False) -> Processes:
        """Those of PyTorch's process group, or this one alone."""
        if not dist.is_initialized():
            return cls()
        return cls(dist.get_rank(), dist.get_world_size(), synchronise_batchnorm)

    def __str__(self) -> str:
        return f"{self.size} processes"

    @property
    def several(self) -> bool:
        """Whether there is any other."""
        return self.size > 1

    @property
    def normalise_together(self) -> bool:
        """Whether BatchNorms in training have the statistics of all processes' rows."""
        return self.several and self.synchronise_batchnorm

    def check_batch(self, batch_size: int, images: int) -> None:
        """Raise :class:`InputError` where a batch cannot be shared out evenly."""
        if batch_size % self.size:
            raise InputError(
                f"data.batch_size = {batch_size} cannot be shared out among {self.size} processes; take a multiple "
                f"of {self.size}, such as {math.ceil(batch_size / self.size) * self.size}"
            )
        if images < self.size:
            raise InputError(f"{images} images cannot be shared out among {self.size} processes; start fewer")

    @property
    def part(self) -> Part:
        """Its own part of every batch."""
        return Part(self.rank, self.size)

    def own_rows(self, batch: tuple[Tensor, Any]) -> tuple[Tensor, Any]:
        """Its own rows of a batch of images (N, C, H, W): theirs, and those of a list or of tensors of N targets."""
        x, targets = batch
        rows = self.part.rows(len(x))
        return x[rows], _rows_of(targets, rows)

    def batches(self, count: int, batch_size: int) -> Tensor:
        """Its own of ``count`` images, int64 (M,): whole batches, dealt out in turn.

        >>> [Processes(rank, 2).batches(5, 2).tolist() for rank in range(2)]
        [[0, 1, 4], [2, 3]]
        """
        dealt = torch.arange(count).split(batch_size)[self.rank :: self.size]
        return torch.cat(dealt) if dealt else torch.arange(0)

    def mean(self, values: Tensor) -> Tensor:
        """The mean over all processes; of one, the values themselves."""
        if not self.several:
            return values
        mean = values.clone()
        dist.all_reduce(mean)
        return mean / self.size

    def agreed(self, value: Value) -> Value:
        """The first process's value, so that no two go different ways over a last digit."""
        if not self.several:
            return value
        values = [value]
        dist.broadcast_object_list(values, 0)
        return values[0]

    def all_accept(self, make: Callable[[], Value]) -> Value:
        """What ``make`` gives here; where a process refuses, all end with the first :class:`InputError`."""
        if not self.several:
            return make()
        refusal, made = "", None
        try:
            made = make()
        except InputError as error:
            if out_of_memory(error):
                raise
            refusal = str(error)
        for rank, (host, sentence) in enumerate(self.gathered((platform.node(), refusal))):
            if sentence:
                raise InputError(sentence if rank == 0 else f"process {rank} on {host}: {sentence}")
        return cast(Value, made)

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Say in words that another process has ended, where that ends what is done inside."""
        try:
            yield
        except JobError:
            raise
        except (RuntimeError, KeyboardInterrupt) as error:
            lost = isinstance(error, RuntimeError) and _CONNECTION.search(str(error))
            words = last_words(self.size, patient=bool(lost)) if self.several else []
            if words or (self.several and lost):
                what = words[0] if words else "another process of this job ended without a word"
                raise ProcessLost(f"{what}; the run can be resumed, with any number of processes") from error
            raise

    def gathered(self, value: Value) -> list[Value]:
        """The values of all processes."""
        if not self.several:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def dealt_out(self, work: Callable[[Sequence[Item]], Iterable[Value]], items: Sequence[Item]) -> Iterator[Value]:
        """What ``work`` gives for each of the items, which the processes take in turn; in order, the same for all."""
        if not self.several:
            yield from work(items)
            return
        found = self.gathered(list(work(items[self.rank :: self.size])))
        yield from (found[number % self.size][number // self.size] for number in range(len(items)))

    @torch.no_grad()
    def average_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Replace gradients by their mean over all processes; one that is missing everywhere stays so."""
        if not self.several:
            return
        # On the host: asking the device would wait for it.
        present = torch.tensor([parameter.grad is not None for parameter in parameters], dtype=torch.int32)
        dist.all_reduce(present)
        somewhere = [p for p, count in zip(parameters, present.tolist(), strict=True) if count]
        for dtype in sorted({p.dtype for p in somewhere}, key=str):
            same = [p for p in somewhere if p.dtype == dtype]
            flat = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in same])
            parts = self.mean(flat).split([p.numel() for p in same])
            for parameter, part in zip(same, parts, strict=True):
                parameter.grad = part.view_as(parameter)

    @torch.no_grad()
    def make_alike(self, network: nn.Module) -> None:
        """Give every process the network of the first; BatchNorm's statistics are averaged first."""
        if not self.several:
            return
        for norm in network.modules():
            if isinstance(norm, _BatchNorm) and norm.running_mean is not None and norm.running_var is not None:
                norm.running_mean.copy_(self.mean(norm.running_mean))
                norm.running_var.copy_(self.mean(norm.running_var))
        seen = {id(tensor): tensor for tensor in [*network.parameters(), *network.buffers()]}
        for tensor in seen.values():
            dist.broadcast(tensor.data, 0)

    @contextmanager
    def training(self, network: nn.Module) -> Iterator[None]:
        """Inside, BatchNorms in train mode use the statistics of the whole batch, where that is asked for.

        Raises :class:`InputError` for a kind of BatchNorm that does more than to normalise.
        """
        found = dict(network.named_modules()) if self.normalise_together else {}
        norms = {name: module for name, module in found.items() if isinstance(module, _BatchNorm)}
        for name, norm in norms.items():
            if type(norm).forward is not _BatchNorm.forward:
                raise InputError(
                    f"synchronise_batchnorm: module '{name}' is {kind_of(norm)}, which does more than "
                    "BatchNorm; set synchronise_batchnorm = false"
                )
        for norm in norms.values():
            norm.forward = partial(_normalised_together, norm, self.size)  # type: ignore[method-assign]
        try:
            yield
        finally:
            for norm in norms.values():
                del norm.forward


ALONE = Processes()


def launcher_number(environment: Mapping[str, str], name: str, default: str = "") -> int:
    """A number that a launcher leaves in the environment; :class:`InputError` for what none would leave.

    >>> launcher_number({"LOCAL_RANK": "3"}, "LOCAL_RANK"), launcher_number({}, "LOCAL_RANK", "0")
    (3, 0)
    """
    text = environment.get(name, default)
    if not text.isdecimal() or (name.endswith("SIZE") and not int(text)):
        raise InputError(
            f"{name} = '{text}' in the environment is no number of a launcher; {LAUNCHER_REMEDY}, or unset it"
        )
    return int(text)


def _rows_of(targets: Any, rows: slice) -> Any:
    """Some of a list of structures, one for each image; else some rows of every tensor."""
    if isinstance(targets, list):
        return targets[rows]
    return tree_map(lambda leaf: leaf[rows] if isinstance(leaf, Tensor) and leaf.ndim else leaf, targets)


class _Sum(torch.autograd.Function):
    """The sum over all processes; the loss of each depends on it, so its gradient is the sum of theirs."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        """The tensors of all processes, added up."""
        total = x.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        """The gradients of all processes, added up."""
        total = gradient.contiguous().clone()
        dist.all_reduce(total)
        return total


def _normalised_together(norm: _BatchNorm, size: int, x: Tensor) -> Tensor:
    """What a BatchNorm gives for its rows x (N, C, ...) of a batch that ``size`` processes share evenly."""
    if not norm.training:
        return type(norm).forward(norm, x)
    others = [0, *range(2, x.ndim)]
    shape = [1, -1, *[1] * (x.ndim - 2)]
    mean = _Sum.apply(x.float().mean(others)) / size
    centred = x.float() - mean.view(shape)
    variance = _Sum.apply(centred.square().mean(others)) / size
    _note_statistics(norm, mean.detach(), variance.detach(), size * x.numel() // x.shape[1])
    y = centred * (variance + norm.eps).rsqrt().view(shape)
    return (y if norm.weight is None else y * norm.weight.view(shape) + norm.bias.view(shape)).to(x.dtype)


@torch.no_grad()
def _note_statistics(norm: _BatchNorm, mean: Tensor, variance: Tensor, count: int) -> None:
    """Move a BatchNorm's running statistics as its own forward pass does; the variance is without bias."""
    if norm.running_mean is None or norm.running_var is None or norm.num_batches_tracked is None:
        return
    norm.num_batches_tracked.add_(1)
    weight = 1.0 / float(norm.num_batches_tracked) if norm.momentum is None else norm.momentum
    norm.running_mean.lerp_(mean.to(norm.running_mean.dtype), weight)
    norm.running_var.lerp_((variance * count / (count - 1)).to(norm.running_var.dtype), weight)
