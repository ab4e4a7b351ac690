"""Forward and backward passes of a training step, recorded once as a CUDA graph and replayed.

A GPU waits for the host where a step is thousands of small kernels: each must be launched. A graph is launched whole.
What is recorded is the pass from a batch to the gradients; drawing a batch and updating the weights stay outside, so
every optimizer works as it is. A recorded pass launches the same kernels, so results are the same bits.

The first passes of a kind run step by step and are watched: a network whose host reads from the device, draws random
numbers of its own or changes its modules would be frozen in what it did while it was recorded. Such a network goes on
step by step, and one warning says why.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from dnas.training.device import Device
from dnas.training.recording import CudaRecorder, Recorder, Run
from dnas.training.watching import host_state, noting_waits, randomness
from search_spaces.errors import first_sentence, kind_of

Compute = Callable[..., tuple[Any, ...]]
"""From inputs (tensors, or structures of them) to the loss (), and what else is to be kept of the pass, alike."""
Gradients = Callable[[Sequence[Any]], tuple[tuple[Any, ...], dict[int, Tensor]]]
Lending = Callable[..., AbstractContextManager]

_WATCHED = 2  # passes before the first is recorded; one of each other kind
_MOST = 64  # kinds of pass that are recorded: each holds the tensors of a pass


@dataclass(frozen=True)
class _Recording:
    """A recorded pass: replayed, it reads ``inputs`` and writes ``outputs`` and ``gradients`` (of what, by index)."""

    inputs: Sequence[Tensor]
    outputs: tuple[Any, ...]
    gradients: dict[int, Tensor]
    replay: Callable[[], None]

    def results(self) -> tuple[Any, ...]:
        """Copies of the outputs: recordings share their memory, and the next may write over them."""
        return cast(tuple[Any, ...], tree_map(lambda x: x.clone() if isinstance(x, Tensor) else x, self.outputs))


class Passes:
    """The passes of one network in training, recorded where the device can and ``recordable`` is true.

    ``beside`` are networks that passes run too, such as a teacher's.
    """

    def __init__(
        self,
        network: nn.Module,
        device: Device,
        recordable: bool = True,
        beside: Sequence[nn.Module] = (),
    ) -> None:
        self.network, self.device, self.beside = network, device, tuple(beside)
        self._recorder: Recorder | None = CudaRecorder(device.place) if recordable and device.records else None
        self._seen: dict[Hashable, int] = {}
        self._recordings: dict[Hashable, _Recording] = {}
        self._buffers: dict[nn.Parameter, Tensor] = {}  # the gradients that recorded passes add to

    def train(
        self,
        kind: Hashable,
        compute: Compute,
        inputs: Sequence[Any],
        part: float = 1.0,
        lending: Lending = lambda *inputs: nullcontext(),
    ) -> tuple[Any, ...]:
        """Add ``part`` of the loss's gradients to those of the parameters; returns what ``compute`` gives, detached.

        ``kind`` names all that ``compute`` depends on beside its inputs and the tensors of the network; ``lending`` is
        entered with the inputs until the gradients are there, as checkpointed modules run again for them.
        """

        def gradients(given: Sequence[Any]) -> tuple[tuple[Any, ...], dict[int, Tensor]]:
            wanting = [parameter for parameter in self.network.parameters() if parameter.requires_grad]
            with lending(*given):
                loss, *others = compute(*given)
                found = torch.autograd.grad(_scaled(loss, part), wanting, allow_unused=True)
            own = {id(p): (p, g) for p, g in zip(wanting, found, strict=True) if g is not None}
            torch._foreach_add_([self._buffers[p] for p, _ in own.values()], [g for _, g in own.values()])
            return detached((loss, *others)), {key: self._buffers[p] for key, (p, _) in own.items()}

        recording = self._recorded(("train", kind, part), gradients, inputs, self._make_buffers)
        if recording is None:
            with self._watched(), lending(*inputs):
                loss, *others = compute(*inputs)
                _scaled(loss, part).backward()
            return cast(tuple[Any, ...], detached((loss, *others)))
        self._adopt_gradients()
        recording.replay()
        for parameter, buffer in self._buffers.items():
            if id(parameter) in recording.gradients:
                parameter.grad = buffer
        return recording.results()

    def differentiable(
        self,
        kind: Hashable,
        compute: Compute,
        inputs: Sequence[Any],
        lending: Lending = lambda *inputs: nullcontext(),
    ) -> Tensor:
        """The loss, differentiable by those of the inputs (tensors) that want gradients, and by nothing else.

        The gradients are computed at once; ``lending`` is as in :meth:`train`.
        """

        def gradients(given: Sequence[Any]) -> tuple[tuple[Tensor, ...], dict[int, Tensor]]:
            wanting = [i for i, x in enumerate(given) if isinstance(x, Tensor) and x.requires_grad]
            with lending(*given):
                loss = compute(*given)[0]
                # The loss of a single candidate asks for no coefficient.
                reached = wanting if loss.requires_grad else []
                found = torch.autograd.grad(loss, [given[i] for i in reached], allow_unused=True) if reached else ()
            return (loss.detach(),), {i: g for i, g in zip(reached, found, strict=True) if g is not None}

        recording = self._recorded(("differentiable", kind), gradients, inputs, lambda: None)
        if recording is None:
            with self._watched():
                outputs, found = gradients([_as_leaf(x) if isinstance(x, Tensor) else x for x in inputs])
        else:
            recording.replay()
            outputs, found = recording.results(), {i: g.clone() for i, g in recording.gradients.items()}
        indices = sorted(found)
        known = [found[i] for i in indices]
        return cast(Tensor, _Known.apply(outputs[0], len(known), *known, *(inputs[i] for i in indices)))

    def forward(self, kind: Hashable, compute: Callable[..., Any], inputs: Sequence[Any]) -> Any:
        """What ``compute`` gives of these inputs, without gradients."""

        def outputs(given: Sequence[Any]) -> tuple[tuple[Any, ...], dict[int, Tensor]]:
            with torch.no_grad():
                return (compute(*given),), {}

        recording = self._recorded(("forward", kind), outputs, inputs, lambda: None)
        if recording is None:
            with self._watched():
                return outputs(inputs)[0][0]
        recording.replay()
        return recording.results()[0]

    def _recorded(
        self,
        kind: Hashable,
        gradients: Gradients,
        inputs: Sequence[Any],
        prepare: Callable[[], None],
    ) -> _Recording | None:
        """The recording of this kind of pass with these inputs written into it; None where it is not recorded."""
        if self._recorder is None:
            return None
        leaves, structure = tree_flatten(list(inputs))
        odd = [kind_of(leaf) for leaf in leaves if not self._can_be_held(leaf)]
        if odd:
            self._give_up(f"{odd[0]} among its inputs")
            return None
        wants = tuple(parameter.requires_grad for parameter in self.network.parameters())
        key = kind, str(structure), tuple(map(_form, leaves)), wants
        recording = self._recordings.get(key)
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        if recording is None:
            self._seen[key] = self._seen.get(key, 0) + 1
            if self._seen[key] <= (1 if self._recordings else _WATCHED) or len(self._recordings) >= _MOST:
                return None
            prepare()
            held = [_held(leaf) if isinstance(leaf, Tensor) else leaf for leaf in leaves]
            recording = self._record(lambda: gradients(tree_unflatten(held, structure)), held)
            if recording is None:
                return None
            self._recordings[key] = recording
        with torch.no_grad():
            for own, tensor in zip(recording.inputs, tensors, strict=True):
                own.copy_(tensor, non_blocking=True)
        return recording

    def _can_be_held(self, leaf: Any) -> bool:
        """Whether a recording can be given another value of this input."""
        if isinstance(leaf, Tensor):
            return leaf.device.type == self.device.place.type
        return leaf is None or isinstance(leaf, bool | int | str)

    def _record(self, run: Run, held: Sequence[Any]) -> _Recording | None:
        assert self._recorder is not None
        try:
            (outputs, found), replay = self._recorder(run)
        except RuntimeError as error:  # also too little memory: a graph holds all tensors of a pass
            self._give_up(first_sentence(_beginning(error)))
            return None
        return _Recording([x for x in held if isinstance(x, Tensor)], outputs, found, replay)

    def _give_up(self, reason: str) -> None:
        self._recorder = None
        self._recordings.clear()  # each holds the tensors of a pass, whose memory those step by step may need
        self._buffers.clear()
        warnings.warn(
            f"the training step cannot be recorded as a CUDA graph ({reason}); it runs step by step, which is slower "
            "and gives the same; cuda_graphs = false silences this",
            stacklevel=4,
        )

    @contextmanager
    def _watched(self) -> Iterator[None]:
        """Run a pass step by step, and give up recording where it does what a recording would not repeat."""
        if self._recorder is None:
            yield
            return
        before, waits = self._host_state(), list[str]()
        with noting_waits(self.device, waits):
            yield
        after = self._host_state()
        if waits:
            self._give_up("the host reads from the device within it")
        elif any(parameter._post_accumulate_grad_hooks for parameter in self.network.parameters()):
            self._give_up("hooks wait for gradients of single parameters")
        elif changed := next((what for what, value in before.items() if after.get(what) != value), None):
            self._give_up(f"it changes {changed}")

    def _host_state(self) -> dict[str, Any]:
        state = randomness()
        for number, network in enumerate((self.network, *self.beside)):
            of = f"of network {number} beside, " if number else ""
            state |= {f"{of}{key}": value for key, value in host_state(network, with_mode=not number).items()}
        return state

    def _make_buffers(self) -> None:
        """Hold gradients at fixed places: a recording adds to them there."""
        for parameter in self.network.parameters():
            if parameter.requires_grad and parameter not in self._buffers:
                self._buffers[parameter] = torch.zeros_like(parameter)

    @torch.no_grad()
    def _adopt_gradients(self) -> None:
        """Let what recorded passes add to be the gradients so far."""
        empty = [buffer for parameter, buffer in self._buffers.items() if parameter.grad is None]
        if empty:
            torch._foreach_zero_(empty)
        for parameter, buffer in self._buffers.items():
            if parameter.grad is not None and parameter.grad is not buffer:
                buffer.copy_(parameter.grad)
                parameter.grad = buffer


def _beginning(error: BaseException) -> BaseException:
    """The error that ended a recording: ending it raises another, which says only that there was one."""
    before = error.__context__
    return _beginning(before) if isinstance(before, RuntimeError) else error


class _Known(torch.autograd.Function):
    """A value whose gradients are known already."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, count: int, *known_and_inputs: Tensor) -> Tensor:
        ctx.save_for_backward(*known_and_inputs[:count])
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        known = ctx.saved_tensors
        return None, None, *(None for _ in known), *(grads[0] * gradient for gradient in known)


def _scaled(loss: Tensor, part: float) -> Tensor:
    return loss if part == 1 else loss * part


def detached(structure: Any) -> Any:
    """The structure with its tensors apart from what they were computed of."""
    return tree_map(lambda leaf: leaf.detach() if isinstance(leaf, Tensor) else leaf, structure)


def _as_leaf(x: Tensor) -> Tensor:
    return x.detach().requires_grad_(x.requires_grad)


def _held(x: Tensor) -> Tensor:
    """The tensor at a place of its own."""
    return x.detach().clone().requires_grad_(x.requires_grad)


def _form(leaf: Any) -> Hashable:
    """What a recording depends on of an input: all of it, but for the values of a tensor."""
    if not isinstance(leaf, Tensor):
        return repr(leaf)
    return leaf.shape, leaf.stride(), leaf.dtype, leaf.device, leaf.requires_grad
