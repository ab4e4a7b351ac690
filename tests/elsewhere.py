"""A device that is not there: tensors that lie on it compute, and do not mix with those of the CPU.

Its name is ``lazy``, one that autograd runs on the host; each tensor has its values beside it, on
the CPU. What a GPU refuses is refused: an operation on tensors of two devices, a generator of the CPU for numbers that
are drawn there, and to read values as numpy arrays. So a mistake about devices fails without a GPU, and where a host
would wait for a device can be counted.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_map

PLACE = torch.device("lazy")
_FLOAT64 = [True]
COPIES = {"copy_", "_to_copy", "_copy_from", "copy"}  # between devices, as their purpose is
INDEXES = {"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index"}  # take indices of the CPU, too

READS = {"_local_scalar_dense", "nonzero", "equal", "is_nonzero", "masked_select", "_unique2", "unique_consecutive"}


class Elsewhere(Tensor):
    """A tensor on the device that is not there."""

    values: Tensor

    @staticmethod
    def __new__(cls, values: Tensor) -> Elsewhere:
        made = Tensor._make_wrapper_subclass(
            cls,
            values.size(),
            strides=values.stride(),
            storage_offset=values.storage_offset(),
            dtype=values.dtype,
            device=PLACE,
        )
        made.values = values
        return made

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return computed(func, args, kwargs or {})

    def __repr__(self, *, tensor_contents: Any = None) -> str:
        return f"Elsewhere({self.values!r})"


def computed(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """The result of an operation, on the device where it belongs."""
    tensors = [value for value in _flat([*args, *kwargs.values()]) if isinstance(value, Tensor)]
    there, wanted = any(isinstance(tensor, Elsewhere) for tensor in tensors), kwargs.get("device")
    if not there and (wanted is None or torch.device(wanted) != PLACE):
        return func(*args, **kwargs)
    name = func._schema.name.partition("::")[2]
    if there and name not in COPIES:
        _refuse_mixing(name, tensors, args)
    goes_there = wanted is None or torch.device(wanted) == PLACE
    if goes_there and getattr(kwargs.get("generator"), "device", PLACE) != PLACE:
        raise RuntimeError(f"{name}: expected a generator of the device, found one of the CPU")
    inner = {key: _values(value) for key, value in kwargs.items() if key not in ("device", "pin_memory")}
    if wanted is not None:
        inner["device"] = torch.device("cpu")
    out = func(*map(_values, args), **inner)
    if goes_there and not _FLOAT64[-1] and any(getattr(each, "dtype", None) == torch.float64 for each in _flat([out])):
        raise TypeError(f"{name}: the device has no float64")
    if name == "copy_":
        return args[0]
    wrapped = _there(out) if goes_there else out
    return wrapped if name == "_to_copy" or not there else return_and_correct_aliasing(func, args, kwargs, wrapped)


def _flat(values: Any) -> list[Any]:
    found = []
    for value in values:
        if isinstance(value, (list, tuple)):
            found += _flat(value)
        else:
            found.append(value)
    return found


def _values(value: Any) -> Any:
    if isinstance(value, Elsewhere):
        return value.values
    return type(value)(map(_values, value)) if type(value) in (list, tuple) else value


def _there(out: Any) -> Any:
    if isinstance(out, Tensor):
        return Elsewhere(out)
    return type(out)(map(_there, out)) if type(out) in (list, tuple) else out


def _as_index(leaf: Any) -> Any:
    return torch.tensor(leaf) if isinstance(leaf, list) else leaf


def _refuse_mixing(name: str, tensors: list[Tensor], args: Any) -> None:
    """Raise where a tensor of the CPU that is no scalar takes part."""
    if name in INDEXES and isinstance(args[0], Elsewhere):
        return
    strangers = (tensor for tensor in tensors if not isinstance(tensor, Elsewhere) and tensor.ndim > 0)
    stranger = next((tensor for tensor in strangers if tensor.device.type == "cpu"), None)
    if stranger is not None:
        raise RuntimeError(
            f"{name}: expected all tensors on one device, found {PLACE} and cpu (shape {tuple(stranger.shape)})"
        )


class _Making(TorchDispatchMode):
    """Makes tensors on the device that are asked for there."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return computed(func, args, kwargs or {})


_READING = {torch.tensor, torch.as_tensor, Tensor.__getitem__, Tensor.__setitem__, Tensor.tolist, Tensor.numpy}


class _Reading(TorchFunctionMode):
    """Makes tensors of Python's numbers on the CPU first, which PyTorch would ask the device for."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func not in _READING:
            return func(*args, **kwargs)
        if func in (torch.tensor, torch.as_tensor) and kwargs.get("device") is not None:
            kwargs = dict(kwargs)
            place = torch.device(kwargs.pop("device"))
            return func(*args, **kwargs).to(place)
        if func in (Tensor.__getitem__, Tensor.__setitem__) and isinstance(args[0], Elsewhere):
            args = (args[0], tree_map(_as_index, args[1], is_leaf=lambda leaf: isinstance(leaf, list)), *args[2:])
        if func is Tensor.tolist and isinstance(args[0], Elsewhere):
            return args[0].values.tolist()
        if func is Tensor.numpy and isinstance(args[0], Elsewhere):
            raise TypeError("cannot convert a tensor of another device to numpy; copy it to the CPU first")
        return func(*args, **kwargs)


class Waits(TorchDispatchMode):
    """Counts where the host would wait for the device: to read a value of it, or to copy without going on meanwhile."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += _waits(func._schema.name.partition("::")[2], args, kwargs or {})
        return func(*args, **(kwargs or {}))


def _waits(name: str, args: Any, kwargs: dict[str, Any]) -> bool:
    if name in ("_to_copy", "copy_"):
        source, target = (args[0], kwargs.get("device")) if name == "_to_copy" else (args[1], args[0].device)
        crosses = target is not None and torch.device(target) != source.device
        return crosses and not kwargs.get("non_blocking") and not (name == "copy_" and any(args[2:]))
    there = any(isinstance(value, Elsewhere) for value in _flat(args))
    if name in INDEXES:
        return there and any(isinstance(index, Tensor) and index.device != PLACE for index in _flat([args[1]]))
    return there and name in READS


@contextmanager
def elsewhere(float64: bool = True) -> Iterator[torch.device]:
    """Inside, the device is there; without ``float64`` it computes in nothing wider than fp32, as MPS does."""
    _FLOAT64.append(float64)
    before = torch.__future__.get_swap_module_params_on_conversion()
    torch.__future__.set_swap_module_params_on_conversion(True)  # parameters stay the objects that they are
    try:
        with _Reading(), _Making():
            yield PLACE
    finally:
        _FLOAT64.pop()
        torch.__future__.set_swap_module_params_on_conversion(before)
