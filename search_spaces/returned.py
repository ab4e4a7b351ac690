"""What a callable that a job names returns, as far as that can be told before it is called."""

from __future__ import annotations

import importlib.util
import inspect
import sys
import sysconfig
import types
import typing
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

from search_spaces.errors import InputError

_STANDARD_LIBRARY = Path(sysconfig.get_path("stdlib"))


def refuse_other(source: str, found: Any, what: str, makes: Iterable[Any]) -> None:
    """Raise :class:`InputError` where a call of ``found`` is known to return none of the classes ``makes``."""
    told, wanted = _told_types(found), tuple(makes)
    if told and wanted and not any(_may_be(each, kind) for each in told for kind in wanted):
        raise InputError(
            f"{what} '{source}' makes a {told[0].__name__}, not a {wanted[0].__name__}, so it is not called; name "
            "another package.module:name"
        )


def refuse_pythons_own(source: str, module: str, what: str) -> None:
    """Raise :class:`InputError` for a module of Python's own library, before it is imported.

    None of it makes a network, data or a figure; what is there runs programs, and acts when it is imported.
    """
    if _is_pythons(module):
        raise InputError(
            f"{what} '{source}' is of Python's own library, which makes none; name a package.module:name of your own "
            "or of a package that is installed"
        )


def refuse_borrowed(source: str, found: Any, what: str) -> None:
    """The same of a function that another module has from there."""
    if inspect.isroutine(found) and isinstance(found.__module__, str):
        refuse_pythons_own(source, found.__module__, what)


def _is_pythons(module: str) -> bool:
    """Whether the name is that of a module of Python's own, and no file of the user's stands before it."""
    top = module.partition(".")[0]
    if top not in sys.stdlib_module_names:
        return False
    try:
        spec = importlib.util.find_spec(top)
    except (ImportError, ValueError):
        return True
    origin = spec.origin if spec else None
    return origin in (None, "built-in", "frozen") or Path(origin).is_relative_to(_STANDARD_LIBRARY)


def _told_types(found: Any) -> tuple[type, ...]:
    """The classes of what a call gives; empty where that is not told.

    A class makes objects of its own unless it says how it makes them; a function has an annotation, which a decorator
    around it may have outdated.
    """
    if isinstance(found, partial):
        return _told_types(found.func)
    if isinstance(found, type):
        makes_itself = not any("__new__" in vars(base) for base in found.__mro__[:-1])
        return (found,) if makes_itself and type(found).__call__ is type.__call__ else ()
    if not isinstance(found, types.FunctionType) or hasattr(found, "__wrapped__") or inspect.isgeneratorfunction(found):
        return ()
    try:
        hint = typing.get_type_hints(found).get("return", Any)
    except Exception:  # names that are there for type checkers only
        return ()
    parts = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)
    classes = [typing.get_origin(part) or part for part in parts]
    known = all(isinstance(each, type) and each is not Any for each in classes)
    return tuple(classes) if known else ()


def _may_be(told: type, wanted: Any) -> bool:
    """Whether an object of one class may be one of the other."""
    try:
        return issubclass(told, wanted) or issubclass(wanted, told)
    except TypeError:  # a protocol with more than methods
        return True
