"""The losses of an epoch: added up where the network computes, and read by the host only now and then.

Reading a value makes the host wait for all that the device still has to do, and the device for what comes after. So on
a device with a queue of its own the losses of some steps are looked at together. One that is not finite is found a few
steps late, by a network that it has destroyed since: the epoch is run again with a look at every step, and ends at the
first bad one with the layer to blame.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from dnas.quantization.layers import QuantizedLayer, TensorQuantizer
from dnas.training.device import Device, widened
from search_spaces.errors import JobError
from search_spaces.network.examples import run_on

Result = TypeVar("Result")
Run = Callable[[nn.Module, Any, Any], Any]
"""Runs a network on a batch of inputs, with its targets at hand."""

STEPS_BETWEEN_LOOKS = 20  # where a look waits for a device or for other processes


class NotFinite(JobError):
    """Some loss of the last steps is not finite; which one, and why, is not known."""


class LossMeter:
    """Adds up losses on ``device``; the host looks at them once in ``every`` additions. ``latest`` is what it saw."""

    def __init__(self, device: Device, every: int) -> None:
        self.every, self.latest, self.count, self.processes = every, 0.0, 0, device.processes
        self.total = widened(torch.zeros((), device=device.place))

    def add(self, loss: Tensor, network: nn.Module, batch: tuple[Any, Any], run: Run) -> None:
        """Add the loss () of ``network`` on a batch of inputs and targets, which ``run`` runs it on.

        Raises :class:`JobError` that names the first layer to blame when it is not finite, if every loss is looked
        at; else :class:`NotFinite`.
        """
        value = widened(loss.detach())
        self.total = self.total + value
        self.count += 1
        if self.count % self.every == 0:
            self.latest, total = self.processes.mean(torch.stack([value, self.total])).tolist()
            if not math.isfinite(total):
                raise self._error(value.item(), network, batch, run)

    def sum(self) -> float:
        """All that was added, a mean over processes; :class:`NotFinite` where that is no number."""
        total = self.processes.mean(self.total).item()
        if not math.isfinite(total):
            raise NotFinite(f"the loss became {total}")
        return total

    def _error(self, value: float, network: nn.Module, batch: tuple[Any, Any], run: Run) -> JobError:
        if self.every > 1:
            return NotFinite("a loss of the last steps is not finite")
        # Every process looks, for a forward pass may need them all; the first with a reason is heard.
        reason = f"the loss became {value}: {first_non_finite(network, *batch, run)}"
        reasons = self.processes.gathered("" if math.isfinite(value) else reason)
        return JobError(
            f"{next(filter(None, reasons), reason)}; the last good checkpoint is kept, "
            "lower the learning rate (`--set` on a new run) or check the data"
        )


def looks_every(device: Device) -> int:
    """How many steps the host lets pass between two looks at the losses."""
    return 1 if device.place.type == "cpu" and not device.processes.several else STEPS_BETWEEN_LOOKS


class Resumable(Protocol):
    """What trains epoch by epoch, and can go back to where it was between two of them."""

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors and plain values, as a snapshot."""

    def restore(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        """Go on from a snapshot."""


def watched_epoch(trainer: Resumable, every: int, run: Callable[[int], Result]) -> Result:
    """Run an epoch whose losses are looked at once in ``every`` steps; where one is not finite, again at every step."""
    if every == 1:
        return run(1)
    tensors, values = trainer.state()
    try:
        return run(every)
    except NotFinite:
        trainer.restore(tensors, values)
        return run(1)


def _run(network: nn.Module, inputs: Any, targets: Any) -> Any:
    return run_on(network, inputs)


def first_non_finite(network: nn.Module, inputs: Any, targets: Any = None, run: Run = _run) -> str:
    """Say which module first gives a value that is not finite on a batch of inputs, or that its targets are none."""
    blamed: list[str] = []
    handles = []

    def watch(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            if not blamed and isinstance(output, Tensor) and not output.isfinite().all():
                blamed.append(name)

        return hook

    for name, module in network.named_modules():
        is_leaf = not any(True for _ in module.children()) and not isinstance(module, TensorQuantizer)
        if is_leaf or isinstance(module, QuantizedLayer):
            handles.append(module.register_forward_hook(watch(name)))
    try:
        with torch.no_grad():
            run(network, inputs, targets)
    except Exception:
        pass  # a supernet outside its sample, code that minds NaN: the parameters below still tell
    finally:
        for handle in handles:
            handle.remove()
    bad = next((name for name, p in network.named_parameters() if not p.isfinite().all()), None)
    if not _are_finite(inputs):
        return "the input images hold values that are not finite"
    if blamed:
        return f"layer '{blamed[0]}' is the first whose output is not finite"
    if bad:
        return f"parameter '{bad}' is not finite"
    if not _are_finite(targets):
        return "every layer's output is finite, the targets of this batch are not"
    return "every layer's output is finite, the gradient is not"


def _are_finite(structure: Any) -> bool:
    return all(bool(leaf.isfinite().all()) for leaf in tree_leaves(structure) if isinstance(leaf, Tensor))
