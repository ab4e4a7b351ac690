"""Watch a network while it really runs: every tensor operation, and chosen modules as one call each.

Nothing is traced symbolically, so a condition on shapes, a loop or a function of any library is followed like any
other code. On a network whose parameters are on the meta device a run takes neither memory nor arithmetic.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection
from contextlib import ExitStack
from dataclasses import fields, is_dataclass
from typing import Any, Protocol, Self, cast

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from search_spaces.channels.meta_operations import run_on_meta
from search_spaces.models.multiplied import PRODUCTS, factors_of, memory


class NetworkCall(Protocol):
    """What a network is run on."""

    @property
    def tensors(self) -> list[Tensor]:
        """All tensors among the arguments."""

    def run(self, model: nn.Module) -> Any:
        """Call ``model``."""


class WatchedRun(TorchDispatchMode):
    """One forward pass, told call by call to the methods that a subclass gives.

    ``whole`` names the modules that are told as one call, with nothing of what they do inside; ``opened`` layers with
    code of their own, of which all is told that they do, and the product with their weight as their call.
    """

    def __init__(self, network: nn.Module, whole: Collection[str], opened: Collection[str] = ()) -> None:
        super().__init__()
        self.network, self.whole, self.opened = network, set(whole) - set(opened), set(opened)
        self._inside = 0
        self._open: list[tuple[str, nn.Module]] = []
        self._alive: list[Tensor] = []

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """A network that copies a module as it runs copies its hooks: the run is told of the copy by the same."""
        return self

    def operation(self, function: Any, args: Any, kwargs: Any, output: Any) -> None:
        """One tensor operation outside the whole modules."""

    def call(self, name: str, module: nn.Module, inputs: list[Any], output: Any) -> Any:
        """One call of a whole module; what this returns, where it is not None, takes the place of the output."""

    def run(self, call: NetworkCall) -> Any:
        """Run the network in eval mode and without gradients; what it gives."""
        names = {module: name for name, module in self.network.named_modules() if name in self.whole}
        with ExitStack() as stack:
            for module, name in names.items():
                stack.callback(module.register_forward_pre_hook(self._enter).remove)
                hook = module.register_forward_hook(self._leave(name), with_kwargs=True, prepend=True)
                stack.callback(hook.remove)
            for name in self.opened:
                stack.callback(self._watch_inside(name, self.network.get_submodule(name)))
            stack.enter_context(torch.no_grad())
            if self.opened:
                stack.enter_context(_Products(self))
            stack.enter_context(self)
            return call.run(self.network)

    def _enter(self, module: nn.Module, inputs: Any) -> None:
        self._inside += 1

    def _leave(self, name: str) -> Any:
        def hook(module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
            if self._inside == 1:
                self._keep((args, kwargs, output))
                with _disable_current_modes():  # what it works out itself is no part of the run
                    output = self.call(name, module, [*args, *kwargs.values()], output)
            self._inside -= 1
            return output

        return hook

    def _watch_inside(self, name: str, module: nn.Module) -> Callable[[], None]:
        """Note which layer runs; what this gives ends it."""
        before = module.register_forward_pre_hook(lambda *_: self._open.append((name, module)))
        after = module.register_forward_hook(lambda *_: self._open.pop() and None, prepend=True, always_call=True)

        def remove() -> None:
            before.remove()
            after.remove()

        return remove

    def product(self, function: Any, args: Any, kwargs: Any) -> Any:
        """One product that PyTorch is asked for: the call of an open layer where it is one with its weight."""
        x, weight = factors_of(args, kwargs)
        name, module = self._open[-1] if self._open else ("", None)
        if self._inside or module is None or memory(weight) != memory(cast(Tensor, module.weight)):
            return function(*args, **kwargs)
        self._inside += 1
        try:
            output = function(*args, **kwargs)
        finally:
            self._inside -= 1
        self._keep((args, kwargs, output))
        with _disable_current_modes():
            self.call(name, module, [x], output)
        return output

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run one operation, and tell it."""
        output = run_on_meta(func, args, kwargs or {})
        if not self._inside:
            self._keep((args, kwargs or {}, output))
            self.operation(func, args, kwargs or {}, output)
        return output

    def _keep(self, values: Any) -> None:
        """Keep tensors alive, so that no later one takes the id of an earlier one."""
        self._alive.extend(tensors(values))


class _Products(TorchFunctionMode):
    """Tells a run the products that PyTorch is asked for, before they become operations."""

    def __init__(self, run: WatchedRun) -> None:
        super().__init__()
        self.run = run

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return (self.run.product if func in PRODUCTS else _plainly)(func, args, kwargs or {})


def _plainly(function: Any, args: Any, kwargs: Any) -> Any:
    return function(*args, **kwargs)


def tensors(values: Any) -> list[Tensor]:
    """All tensors in nested tuples, lists, dictionaries and plain objects."""
    found: list[Tensor] = []
    waiting, seen = [values], set()
    while waiting:
        value = waiting.pop()
        if isinstance(value, Tensor):
            found.append(value)
        elif id(value) not in seen:
            seen.add(id(value))
            waiting.extend(reversed(_parts(value)))
    return found


def _parts(value: Any) -> list[Any]:
    if isinstance(value, (tuple, list)):
        return list(value)
    if isinstance(value, dict):
        return list(value.values())
    if value is None or isinstance(value, (int, float, str)):
        return []
    if is_dataclass(value) and not isinstance(value, type):
        return [getattr(value, each.name, None) for each in fields(value)]
    is_plain = hasattr(value, "__dict__") and not callable(value) and not inspect.ismodule(value)
    return list(vars(value).values()) if is_plain else []
