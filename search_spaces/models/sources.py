"""What a network is named by, and what is told of a name or a file of weights that is not there: without torch."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path
from typing import TYPE_CHECKING

from search_spaces.errors import InputError, nearest, unreadable
from search_spaces.registry import Lazy
from search_spaces.user_files import open_regular

if TYPE_CHECKING:
    from torch import nn

KNOWN_SOURCES = ("zoo", "torchvision", "timm")
"""What comes before the name of a network of a known package; everything else is code of the user's."""
ZOO: Mapping[str, Callable[..., nn.Module]] = Lazy(
    {
        **{
            name: f"search_spaces.models.zoo:{name}"
            for name in ("resnet20", "resnet32", "resnet44", "resnet56", "resnet110", "tiny_resnet", "mobilenet_v1")
        },
        **{name: f"search_spaces.models.dense_zoo:{name}" for name in ("tiny_segmenter", "tiny_ssd")},
    }
)
"""The small zoo: what makes each network, loaded when it is asked for."""


def require_known(source: str, known: Collection[str]) -> None:
    """Raise :class:`InputError` with the nearest name for a ``package:NAME`` whose package knows other names alone."""
    package, _, name = source.partition(":")
    if name not in known:
        raise InputError(f"model '{source}': {package} has no model '{name}'{nearest(name, known)}")


def check_model(source: str, checkpoint: Path | None) -> None:
    """Refuse a network that the zoo does not have, and weights that cannot be read."""
    if source.startswith("zoo:"):
        require_known(source, ZOO)
    if checkpoint is not None:
        with opened_weights(checkpoint):
            pass


@contextmanager
def opened_weights(path: Path) -> Iterator[BufferedReader]:
    """A file of weights to read from; :class:`InputError` where that cannot be done."""
    try:
        with open_regular(path) as file:
            yield file
    except OSError as error:
        raise InputError(f"checkpoint '{path}' cannot be read: {unreadable(error)}") from error
