"""The weight that a layer multiplies with, where its own code makes it of the one that it holds.

Such as weight standardisation. The code is not read: what it hands to PyTorch's convolutions and linear maps is seen,
and can be changed, as they are called.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from search_spaces.errors import one_line
from search_spaces.models.computed import current, reading, sources_of

PRODUCTS = frozenset(
    (F.linear, F.conv1d, F.conv2d, F.conv3d, F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)
)
"""What layers multiply their weights by, of PyTorch."""
Change = Callable[[Tensor], Tensor]


def memory(tensor: Tensor) -> int:
    """A number that all views of a tensor share; 0 for one that has no memory of its own."""
    try:
        return int(tensor.untyped_storage()._cdata)
    except RuntimeError:  # of a tensor without plain memory, such as a sparse one
        return 0


def is_standard(layer: nn.Module) -> bool:
    """Whether a layer does nothing of its own: its code is that of a class of PyTorch's."""
    kind = next(kind for kind in type(layer).__mro__ if kind.__module__.startswith("torch.nn.modules."))
    keys = ("forward", "_conv_forward")
    own = (getattr(type(layer), key, None) is not getattr(kind, key, None) for key in keys)
    return not any(own) and not vars(layer).keys() & {*keys}


def factors_of(args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[Any, Any]:
    """What such a product multiplies: the input and the weight among its arguments."""
    x, weight = (args[at] if len(args) > at else kwargs[key] for at, key in enumerate(("input", "weight")))
    return x, weight


class Products(TorchFunctionMode):
    """Inside it, the weights of convolutions and linear maps are what ``change`` makes of them."""

    def __init__(self, change: Change) -> None:
        super().__init__()
        self.change = change

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run one function, with another weight where it is such a product."""
        kwargs = kwargs or {}
        if func in PRODUCTS:
            by_place = len(args) > 1
            weight = self.change(args[1] if by_place else kwargs["weight"])
            args, kwargs = ((args[0], weight, *args[2:]), kwargs) if by_place else (args, {**kwargs, "weight": weight})
        return func(*args, **kwargs)


def changing(shape: Sequence[int], change: Change) -> Products:
    """Inside it, weights of ``shape`` in such products are what ``change`` makes of them."""
    return Products(lambda weight: change(weight) if weight.shape == tuple(shape) else weight)


class _Stop(BaseException):
    """Carries the weight out of a layer's code, which may catch other exceptions."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = weight


def _stop(weight: Tensor) -> Tensor:
    raise _Stop(weight)


@dataclass(frozen=True)
class Shapes:
    """Of a layer whose own code makes its weight: the shapes of one input (as the layer's record tells) and of it."""

    input: tuple[int, ...]
    weight: tuple[int, ...]


def multiplied_weight(layer: nn.Module, forward: Callable[[Tensor], Any], made: Shapes | None) -> Tensor:
    """The weight that ``forward``, the layer's own, multiplies with in eval mode; ``made`` where its code makes it."""
    weight = cast(Tensor, current(layer, "weight"))
    if made is None:
        return weight
    with reading(layer):
        try:
            with changing(made.weight, _stop):
                forward(weight.new_zeros(_batched(made.input, weight)))
        except _Stop as found:
            return found.weight
    raise RuntimeError("the layer multiplies with no weight of the shape of its own")


def _batched(input_shape: Sequence[int], weight: Tensor) -> tuple[int, ...]:
    """The shape of a batch: of one sample, or (where a network folds windows into the batch) as it is."""
    whole = weight.dim() > 2 and len(input_shape) == weight.dim()
    return tuple(input_shape) if whole else (1, *input_shape)


def read_making(layer: nn.Module, input_shape: Sequence[int]) -> tuple[str, frozenset[str]]:
    """Why the weight that ``layer``'s own code makes is not one weight ("" where it is), and what serves it alone.

    ``layer`` is a copy, which is changed; the names are those of parameters and buffers, but its weight, without which
    the layer gives the same once it has the weight. On the meta device nothing can be tried.
    """
    layer.eval()
    weight = cast(Tensor, current(layer, "weight"))
    if weight.is_meta:
        return "", frozenset()
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        x = torch.randn(_batched(input_shape, weight)).to(weight)
        try:
            first, second = (_weights(layer, given) for given in (x, 1 - 2 * x))
        except Exception as error:  # code of a foreign layer
            return f"its own code does not run on its input alone ({one_line(error)})", frozenset()
        if not first or any(not torch.equal(first[0], other) for other in (*first, *second)):
            return "its own code multiplies with several weights, or with one that depends on its input", frozenset()
        return _read_parts(layer, x, first[0])


def _weights(layer: nn.Module, x: Tensor) -> list[Tensor]:
    """All weights of the shape of its own that the layer multiplies with."""
    found: list[Tensor] = []

    def note(weight: Tensor) -> Tensor:
        found.append(weight)
        return weight

    with changing(cast(Tensor, layer.weight).shape, note):
        layer.forward(x)
    return found


def _read_parts(layer: nn.Module, x: Tensor, weight: Tensor) -> tuple[str, frozenset[str]]:
    """Which of the layer's tensors its output depends on when the weight is given: those that change it."""
    tensors = {name: t for name, t in (*layer.named_parameters(), *layer.named_buffers()) if t.is_floating_point()}
    own = {"weight", *sources_of(layer, ("weight",))} & tensors.keys()
    others = tensors.keys() - own - {"bias", *sources_of(layer, ("bias",))}
    expected = _output(layer, x, weight)

    def depends(names: Any) -> bool:
        with _changed([tensors[name] for name in names]):
            return not _same(_output(layer, x, weight), expected)

    if depends(own):
        return "its own code reads its weight beside the one that it multiplies with", frozenset()
    if others and depends(others):
        others = {name for name in others if not depends([name])}
    return "", frozenset(own - {"weight"}) | frozenset(others)


def _output(layer: nn.Module, x: Tensor, weight: Tensor) -> Any:
    current(layer, "weight")  # what hooks set
    with changing(weight.shape, lambda _: weight):
        return layer.forward(x)


def _same(actual: Any, expected: Any) -> bool:
    return isinstance(expected, Tensor) and isinstance(actual, Tensor) and torch.equal(actual, expected)


@contextmanager
def _changed(tensors: Sequence[Tensor]) -> Iterator[None]:
    """Give these tensors other values inside this context."""
    before = [tensor.clone() for tensor in tensors]
    for tensor in tensors:
        tensor.mul_(-1.25).add_(0.125)
    try:
        yield
    finally:
        for tensor, values in zip(tensors, before, strict=True):
            tensor.copy_(values)
