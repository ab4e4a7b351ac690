"""A stand-in for CUDA graphs on the CPU: operations are written down once and done again on the same tensors.

As on a GPU, what is recorded leaves nothing changed but the tape itself, and a value that the host reads ends it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

WRITES_UNTOLD = {"running_mean", "running_var"}  # by BatchNorm, whose schema does not say so
READS = {"aten::_local_scalar_dense", "aten::nonzero", "aten::equal"}


class Tape(TorchDispatchMode):
    """Writes down every operation inside it, in order, with the tensors it reads and writes."""

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[tuple[Any, Any, Any, list[Tensor]]] = []
        self._made: set[int] = set()
        self._before: list[tuple[Tensor, Tensor]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func._schema.name in READS:
            raise RuntimeError(f"{func._schema.name}: operation not permitted when stream is capturing")
        self._note_writes(func, args, kwargs or {})
        out = func(*args, **(kwargs or {}))
        fresh = _fresh(func, out)
        self._made |= {tensor.untyped_storage().data_ptr() for tensor in fresh}
        self.steps.append((func, args, kwargs or {}, fresh))
        return out

    def _note_writes(self, func: Any, args: Any, kwargs: Any) -> None:
        for number, argument in enumerate(func._schema.arguments):
            writes = argument.alias_info is not None and argument.alias_info.is_write
            if not writes and argument.name not in WRITES_UNTOLD:
                continue
            given = args[number] if number < len(args) else kwargs.get(argument.name)
            for tensor in given if isinstance(given, list | tuple) else [given]:
                if isinstance(tensor, Tensor) and tensor.untyped_storage().data_ptr() not in self._made:
                    self._before.append((tensor.detach(), tensor.detach().clone()))

    def undo(self) -> None:
        """Put back what was written: a recording computes nothing."""
        for tensor, value in reversed(self._before):
            tensor.copy_(value)
        self._before.clear()

    def replay(self) -> None:
        with torch.no_grad():
            for func, args, kwargs, fresh in self.steps:
                for own, new in zip(fresh, _fresh(func, func(*args, **kwargs)), strict=True):
                    own.copy_(new)


def _fresh(func: Any, out: Any) -> list[Tensor]:
    """The results that are no views of, and no other names for, what was given."""
    outs = out if isinstance(out, tuple | list) else [out]
    returns = func._schema.returns
    if len(returns) == 1 and len(outs) > 1:  # a list of tensors
        returns = [returns[0]] * len(outs)
    return [o for o, r in zip(outs, returns, strict=False) if isinstance(o, Tensor) and r.alias_info is None]


class TapeRecorder:
    """Records passes on tapes; counts them and their replays."""

    def __init__(self) -> None:
        self.recordings = self.replays = 0
        self._outputs: list[tuple[Tensor, ...]] = []

    def __call__(self, run: Callable[[], Any]) -> tuple[Any, Callable[[], None]]:
        tape = Tape()
        try:
            with tape:
                given = run()
        finally:
            tape.undo()
        own = self.recordings
        self._outputs.append(given[0])
        self.recordings += 1

        def replay() -> None:
            self.replays += 1
            for outputs in (*self._outputs[:own], *self._outputs[own + 1 :]):
                for output in outputs:  # whose memory this recording may use
                    output.fill_(float("nan"))
            tape.replay()

        return given, replay
