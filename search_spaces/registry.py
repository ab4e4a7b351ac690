"""Things of one kind by name, ours and the user's: quantizers, costs, exporters, data, tasks, proposers, controls.

A new one of ours is one file and one line in its registry. One of the user's own is named ``package.module:name`` and
needs no registration: the name is imported where it is asked for.
"""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from contextvars import ContextVar
from pathlib import Path
from typing import Any, Generic, TypeVar, cast

from search_spaces.errors import InputError, kind_of, nearest, one_line
from search_spaces.returned import refuse_borrowed, refuse_other, refuse_pythons_own

Thing = TypeVar("Thing")
_EXTRAS = ("mlflow", "onnx", "optuna", "ray", "submitit", "tensorboard", "timm", "torchmetrics")
FETCHING = frozenset(
    (
        *("pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "weights", "weights_backbone", "checkpoint_path"),
        "cache_dir",
    )
)
"""Arguments of networks that say where weights come from."""
DOWNLOAD, CLUSTER, QUEUE = "data.download", "ray.address", "submitit.cluster"
REACHING_OUT = frozenset((DOWNLOAD, CLUSTER, QUEUE))
"""Keys of a job by which it fetches data, takes what other machines send, and hands jobs to a queue."""
_allowed: ContextVar[tuple[Set[str], str] | None] = ContextVar("_allowed", default=None)
_OFTEN_MEANT = ("zoo", "torchvision", "timm", "imagefolder")


class Registry(Mapping[str, Thing], Generic[Thing]):
    """Things by name; iterates over the names of ours, in order.

    ``kind`` names one in sentences ("weight quantizer"). ``own`` turns what ``package.module:name`` names into a
    thing; it is given the source and the object, and raises :class:`InputError` for what is no such thing.
    """

    def __init__(self, kind: str, things: Mapping[str, Thing], own: Callable[[str, Any], Thing]) -> None:
        self.kind, self._things, self._own = kind, dict(things), own

    def find(self, source: str) -> Thing:
        """Ours of that name, or the user's; :class:`InputError` with the nearest name otherwise."""
        if source in self._things:
            return self._things[source]
        if ":" not in source:
            known = f"{', '.join(self)} and package.module:name"
            raise InputError(f"unknown {self.kind} '{source}'; known are {known}{nearest(source, self)}")
        with importable_working_directory():
            return self._own(source, imported(source, self.kind))

    def __getitem__(self, name: str) -> Thing:
        return self._things[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._things)

    def __len__(self) -> int:
        return len(self._things)


class Lazy(Mapping[str, Thing], Generic[Thing]):
    """Things of ours by name, each named ``package.module:name`` and imported when it is first asked for.

    So a room can use what a room above it offers, and need not wait for it either.
    """

    def __init__(self, sources: Mapping[str, str]) -> None:
        self._sources = dict(sources)

    def __getitem__(self, name: str) -> Thing:
        module, _, thing = self._sources[name].partition(":")
        return cast(Thing, getattr(importlib.import_module(module), thing))

    def __iter__(self) -> Iterator[str]:
        return iter(self._sources)

    def __len__(self) -> int:
        return len(self._sources)

    def __contains__(self, name: object) -> bool:
        return name in self._sources


def imported(source: str, what: str) -> Any:
    """The object of the user's that ``package.module:name`` names; ``what`` it is for opens the error sentence.

    Raises :class:`InputError` where the module cannot be imported, has no such name or is of Python's own library, and
    inside :func:`importing_only` for any other name. Enter :func:`importable_working_directory` around this, and
    around a call of what it returns.
    """
    allowed = _allowed.get()
    if allowed is not None and source not in allowed[0]:
        raise InputError(f"{what} '{source}' is code, and {allowed[1]}")
    refuse_pythons_own(source, source.partition(":")[0], what)
    found = loaded(source, what)
    refuse_borrowed(source, found, what)
    return found


def loaded(source: str, what: str) -> Any:
    """As :func:`imported`, for names that our own code holds."""
    module_name, _, name = source.partition(":")
    if not module_name or not name:
        raise InputError(f"{what} '{source}' is not of the form package.module:name")
    try:
        module = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:  # the user's own code runs here, and may fail in any way
        hint = _extra(error) or nearest(module_name, _OFTEN_MEANT)
        raise InputError(f"{what} '{source}': cannot import module '{module_name}': {one_line(error)}{hint}") from error
    if not hasattr(module, name):
        hint = nearest(name, [key for key in vars(module) if not key.startswith("_")])
        raise InputError(f"{what} '{source}': module '{module_name}' has no '{name}'{hint}")
    return getattr(module, name)


@contextlib.contextmanager
def importing_only(names: Set[str], otherwise: str) -> Iterator[None]:
    """Inside, of the user's code only these names are imported; ``otherwise`` ends the sentence of the refusal."""
    token = _allowed.set((names, otherwise))
    try:
        yield
    finally:
        _allowed.reset(token)


def refuse_reaching_out(key: str, what: str) -> None:
    """Raise :class:`InputError` where a job's ``key`` leads to other machines, inside :func:`importing_only`.

    Unless it is one of the names there. ``what`` begins the sentence.
    """
    allowed = _allowed.get()
    if allowed is not None and key not in allowed[0]:
        raise InputError(f"{what}, as {key} says, and {allowed[1]}")


def import_limits() -> tuple[Set[str], str] | None:
    """What :func:`importing_only` was given, for another process to enter it too; None outside."""
    return _allowed.get()


def refuse_fetching(source: str, arguments: Mapping[str, Any]) -> None:
    """Raise :class:`InputError` for arguments that fetch or read weights, inside :func:`importing_only`."""
    allowed = _allowed.get()
    named = [key for key, value in arguments.items() if key in FETCHING and value]
    if allowed is not None and named and source not in allowed[0]:
        raise InputError(f"model '{source}' is to fetch what its argument '{named[0]}' says, and {allowed[1]}")


def _extra(error: BaseException) -> str:
    """How to install what is missing, where that is an extra of ours."""
    missing = (error.name or "").partition(".")[0] if isinstance(error, ModuleNotFoundError) else ""
    return f"; pip install 'dnas[{missing}]'" if missing in _EXTRAS else ""


def import_callable(source: str, what: str, makes: Iterable[Any] = ()) -> Callable[..., Any]:
    """The callable that ``package.module:callable`` names; raises as :func:`imported` and :func:`called`."""
    return called(source, imported(source, what), what, makes)


def called(source: str, found: Any, what: str, makes: Iterable[Any] = ()) -> Callable[..., Any]:
    """``found``, which ``source`` names, where it is callable and may return one of the classes ``makes``.

    :class:`InputError` otherwise, before it is called.
    """
    if not callable(found):
        name = source.partition(":")[2]
        raise InputError(f"{what} '{source}': '{name}' is {kind_of(found)}, not a callable")
    refuse_other(source, found, what, makes)
    return found


@contextlib.contextmanager
def importable_working_directory() -> Iterator[None]:
    """Let modules of the current directory be imported first, as ``python -m`` would, while the block runs."""
    entry = str(Path.cwd())
    sys.path.insert(0, entry)
    importlib.invalidate_caches()
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):
            sys.path.remove(entry)


@contextlib.contextmanager
def hidden_working_directory() -> Iterator[None]:
    """Let no module of the current directory be imported while the block runs, however Python was started.

    For packages that are named by us: a file of somebody else may lie there under their name.
    """
    here, before = str(Path.cwd()), list(sys.path)
    sys.path[:] = [entry for entry in sys.path if entry not in ("", here)]
    try:
        yield
    finally:
        sys.path[:] = before
