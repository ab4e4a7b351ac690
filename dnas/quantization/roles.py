"""What becomes of layers, in place: an object gets a class that is a subclass of a role and of the class it had.

So it stays the object it was, with its hooks, attributes, buffers and whoever holds it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

from torch import Tensor, nn
from torch.nn.utils import parametrize

from dnas.quantization.operations import operation_of
from search_spaces.models.computed import computes
from search_spaces.models.copies import copy_network
from search_spaces.network.calls import input_name

_CLASSES: dict[tuple[type[nn.Module], type[nn.Module]], type[nn.Module]] = {}


def _class_of(role: type[nn.Module], original: type[nn.Module]) -> type[nn.Module]:
    """The class of layers of class ``original`` in the given role."""
    if (role, original) not in _CLASSES:
        name = f"{role.__name__.removesuffix('Layer')}{original.__name__}"
        operation = operation_of(original)
        told = {
            "original_class": original,
            "_first_argument": input_name(original),
            "_operation": operation and staticmethod(operation),
            "__module__": role.__module__,
        }
        _CLASSES[role, original] = type(name, (role, original), told)
    return _CLASSES[role, original]


def become(layer: nn.Module, role: type[nn.Module]) -> nn.Module:
    """Make ``layer`` one of a subclass of ``role`` and of its own class, in place."""
    kind = type(layer)
    if parametrize.is_parametrized(layer):  # the class of its parametrized tensors stays in front
        base = _class_of(role, parametrize.type_before_parametrizations(layer))
        own = {key: value for key, value in vars(kind).items() if key not in ("__dict__", "__weakref__", "__doc__")}
        layer.__class__ = type(kind.__name__, (base,), own)
    else:
        layer.__class__ = _class_of(role, kind)
    return layer


def blank(*kinds: type[nn.Module]) -> nn.Module:
    """An object without attributes, for a copy to fill: of a class that had these roles, the last first."""
    *roles, kind = kinds
    for role in reversed(roles):
        kind = _class_of(role, kind)
    return kind.__new__(kind)


def reduced(layer: nn.Module, role: type[nn.Module], original: type[nn.Module]) -> Any:
    """What copies and pickles are made of: they name the classes, for the one made of them is in no module."""
    kinds = [role, original]
    while "original_class" in vars(kinds[-1]):
        made = kinds.pop()
        kinds += [made.__bases__[0], vars(made)["original_class"]]
    return blank, tuple(kinds), layer.__getstate__()


@contextmanager
def holding(layer: nn.Module, weight: Tensor) -> Iterator[None]:
    """Let the layer's own code find ``weight`` as its weight inside this context.

    What an object holds itself hides its parameters, but not the properties of a parametrized class.
    """
    found, kind = {"weight": weight}, type(layer)
    if parametrize.is_parametrized(layer):
        others = cast(nn.ModuleDict, layer.parametrizations).keys() - found.keys()
        found |= {key: getattr(layer, key) for key in others}
    before = {key: vars(layer)[key] for key in found if key in vars(layer)}
    vars(layer).update(found)
    layer.__class__ = parametrize.type_before_parametrizations(layer)
    try:
        yield
    finally:
        layer.__class__ = kind
        for key in found:
            vars(layer).pop(key)
        vars(layer).update(before)


_HOOKS = tuple(key for key in vars(nn.Module()) if key.endswith(("_hooks", "_with_kwargs", "_always_called")))


def has_hooks(module: nn.Module) -> bool:
    """Whether something is called before or after the module's own forward or backward, but what computes a tensor."""
    return any(not computes(hook) for key in _HOOKS for hook in vars(module)[key].values())


def copy_without_hooks(module: nn.Module, memo: dict[int, Any] | None = None) -> nn.Module:
    """A copy on which nothing hangs but what computes a tensor of it: a hook may hold the whole network."""
    hooks = {key: vars(module)[key] for key in _HOOKS}
    kept = {key: OrderedDict((at, hook) for at, hook in held.items() if computes(hook)) for key, held in hooks.items()}
    vars(module).update(kept)
    try:
        return copy_network(module, memo)
    finally:
        vars(module).update(hooks)
