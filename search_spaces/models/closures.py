"""Functions that a network keeps, as hooks or attributes, and what they keep in turn.

``copy.deepcopy`` takes functions as they are: a hook of a copy would write into the original what the copy then looks
for in itself. So a copy gets functions of its own, which find its parts where the original's find the original's.
"""

from __future__ import annotations

import copy
import functools
import operator
import weakref
from collections import deque
from types import BuiltinMethodType, CellType, FunctionType, MethodType, MethodWrapperType, ModuleType
from typing import Any, cast

from torch import Tensor, nn

_PLAIN = (bool, int, float, complex, str, bytes, type(None), type, ModuleType, Tensor, nn.Module)
"""Nothing inside them is looked for: a module that is no part of the network, such as a teacher, stays what it is."""
_LEAVES = {bool, int, float, str, type(None)}
_BOUND = (MethodType, BuiltinMethodType, MethodWrapperType)
FUNCTIONS = (FunctionType, *_BOUND, functools.partial)
_GROUPS = (list, tuple, set, frozenset, deque)
_REGISTERED = ("_parameters", "_buffers", "_modules")
_DEPTH = 5
"""So far functions in objects in lists are followed, and no further: anything may hang on a network."""
_LARGEST = 10_000
"""Longer lists and dictionaries hold data."""


def is_proxy(value: Any) -> bool:
    """Whether this is a proxy, of which nothing else can be asked once what it stands for is gone."""
    return type(value) in weakref.ProxyTypes


def kept_by(value: Any) -> list[Any]:
    """What a function, or an object that may hold some, keeps."""
    if is_proxy(value) or isinstance(value, _PLAIN):
        return []
    if type(value) is weakref.ref:
        return [value()]
    if isinstance(value, FunctionType):
        cells = (cell.cell_contents for cell in value.__closure__ or () if _is_filled(cell))
        return [*cells, *(value.__defaults__ or ()), *(value.__kwdefaults__ or {}).values(), *vars(value).values()]
    if isinstance(value, _BOUND):
        return [value.__self__, *([value.__func__] if isinstance(value, MethodType) else [])]
    if isinstance(value, functools.partial):
        return [value.func, *value.args, *value.keywords.values()]
    if isinstance(value, dict):
        return [*value, *value.values()] if len(value) <= _LARGEST else []
    if isinstance(value, _GROUPS):
        return list(value) if len(value) <= _LARGEST else []
    return list(getattr(value, "__dict__", {}).values())


def _is_filled(cell: CellType) -> bool:
    try:
        return cell.cell_contents is not cell
    except ValueError:  # of a name that nothing was assigned to yet
        return False


def rebind_functions(twin: nn.Module, copies: dict[int, Any]) -> None:
    """Let the functions that ``twin`` keeps find its own parts; ``copies`` maps ids of originals to what they became.

    What functions alone keep is copied where a part of the network is in it, and added to ``copies``.
    """
    rebinding = _Rebinding(copies)
    for module in twin.modules():
        for key, value in list(vars(module).items()):
            if type(value) in _LEAVES or key in _REGISTERED or (isinstance(value, dict) and not value):
                continue
            if (found := rebinding.inside(value, _DEPTH)) is not value:
                vars(module)[key] = found


class _Rebinding:
    def __init__(self, copies: dict[int, Any]) -> None:
        self.copies = copies
        self.own = {id(made) for made in copies.values()}
        self.made = frozenset(self.own)
        self.dry: dict[int, tuple[int, Any]] = {}  # how deep something was looked into in vain; kept, so that ids stay

    def inside(self, value: Any, depth: int) -> Any:
        """What a copy holds, with functions of its own; lists and objects are changed in place."""
        if not depth or is_proxy(value) or isinstance(value, _PLAIN):
            return value
        if isinstance(value, FUNCTIONS):
            return self.rebound(value)
        if type(value) is tuple:
            found = [self.inside(part, depth - 1) for part in value]
            return value if all(map(operator.is_, found, value)) else tuple(found)
        if id(value) not in self.own:
            return value
        self.own.remove(id(value))  # once is enough
        if isinstance(value, (set, deque)):
            parts = [self.inside(part, depth - 1) for part in value] if len(value) <= _LARGEST else []
            if not all(map(operator.is_, parts, value)):
                value.clear()
                (value.update if isinstance(value, set) else value.extend)(parts)
            return value
        held: Any = value if isinstance(value, (dict, list)) else getattr(value, "__dict__", {})
        if len(held) > _LARGEST:
            return value
        for key in range(len(held)) if isinstance(held, list) else list(held):
            found = self.inside(held[key], depth - 1)
            if found is not held[key]:
                held[key] = found
        return value

    def leads(self, value: Any, depth: int = _DEPTH) -> bool:
        """Whether a value is, or keeps, what was copied."""
        if id(value) in self.copies:
            return True
        if depth <= self.dry.get(id(value), (0, None))[0]:
            return False
        self.dry[id(value)] = depth, value  # what leads back to it is no new way
        found = any(type(part) not in _LEAVES and self.leads(part, depth - 1) for part in kept_by(value))
        if found:
            self.dry.clear()  # what led back to this one was not in vain
        return found

    def rebound(self, value: Any) -> Any:
        """What stands for a value in the copy: the value itself where nothing that was copied is in it."""
        if id(value) in self.copies:
            return self.copies[id(value)]
        if id(value) in self.made and not isinstance(value, FUNCTIONS):
            return self.inside(value, _DEPTH)  # a copy already, which others hold as well
        if not self.leads(value):
            return value
        if type(value) is weakref.ref:
            there = self.copies.get(id(value()))
            return value if there is None else weakref.ref(there)
        if isinstance(value, FunctionType):
            return self._function(value)
        if isinstance(value, MethodType):
            return MethodType(self.rebound(value.__func__), self.rebound(value.__self__))
        if isinstance(value, _BOUND):
            return getattr(self.rebound(value.__self__), value.__name__)
        if isinstance(value, functools.partial):
            named = {key: self.rebound(each) for key, each in value.keywords.items()}
            made = functools.partial(self.rebound(value.func), *map(self.rebound, value.args), **named)
            vars(made).update({key: self.rebound(each) for key, each in vars(value).items()})
            return made
        if isinstance(value, (tuple, frozenset)):
            return self._of_many(value)
        return self._holder(value)

    def _function(self, function: FunctionType) -> FunctionType:
        before = function.__closure__ or ()
        cells = tuple(map(self._cell, before))
        made = FunctionType(function.__code__, function.__globals__, function.__name__, None, cells or None)
        self.copies[id(function)] = functools.update_wrapper(made, function, updated=())
        vars(made).pop("__wrapped__", None)
        for cell, old in zip(cells, before, strict=True):
            if cell is not old and not _is_filled(cell):
                cell.cell_contents = self.rebound(old.cell_contents)
        if function.__defaults__ is not None:
            made.__defaults__ = tuple(map(self.rebound, function.__defaults__))
        if function.__kwdefaults__ is not None:
            made.__kwdefaults__ = {key: self.rebound(each) for key, each in function.__kwdefaults__.items()}
        vars(made).update({key: self.rebound(each) for key, each in vars(function).items()})
        return made

    def _cell(self, cell: CellType) -> CellType:
        """A cell for the copy where what it holds is another there; functions that share a cell go on sharing it."""
        if not _is_filled(cell) or not self.leads(cell.cell_contents):
            return cell
        return cast(CellType, self.copies.setdefault(id(cell), CellType()))

    def _of_many(self, value: Any) -> Any:
        parts = map(self.rebound, value)
        return value._make(parts) if hasattr(value, "_make") else type(value)(parts)

    def _holder(self, value: Any) -> Any:
        """A list, a dictionary or an object of what is in the copy."""
        try:
            made = copy.copy(value)
        except Exception:  # code of a foreign object
            return value
        if made is value:  # there is one of it, such as a logger
            return value
        self.copies[id(value)] = made
        if isinstance(made, dict):
            found = [(self.rebound(key), self.rebound(each)) for key, each in value.items()]
            made.clear()
            made.update(found)
        elif isinstance(made, _GROUPS):
            group = cast(Any, made)
            group.clear()
            (group.update if isinstance(made, set) else group.extend)([self.rebound(each) for each in value])
        else:
            vars(made).update({key: self.rebound(each) for key, each in vars(value).items()})
        return made
