"""The endings of files that are read, and what is said of files with others."""

from __future__ import annotations

import mimetypes
import os
from collections import Counter
from collections.abc import Collection, Iterable

_KINDS = mimetypes.MimeTypes()
"""What endings stand for by Python's own table alone: no file of the machine changes what is told."""
_MORE_PICTURES = frozenset((".avif", ".dng", ".exr", ".heic", ".heif", ".jfif", ".jp2", ".jxl", ".npy", ".tga"))
_MOST_ENDINGS = 5


def visible(path: str) -> bool:
    """Whether a file is none that is hidden by its name."""
    return not os.path.basename(path).startswith(".")  # noqa: PTH119 - a million files


def ending(path: str) -> str:
    """The ending of a file's name, in lower case."""
    return os.path.splitext(path)[1].lower()  # noqa: PTH122 - a million files


def is_picture(suffix: str) -> bool:
    """Whether files of this ending are pictures to whoever wrote them, be they read here or not.

    >>> is_picture(".gif"), is_picture(".txt")
    (True, False)
    """
    return suffix in _MORE_PICTURES or (_KINDS.guess_type(f"a{suffix}")[0] or "").startswith("image/")


def counted(suffixes: Iterable[str]) -> str:
    """How many files there are of each ending, the most first, of a few of them.

    >>> counted([".gif", ".heic", ".gif"])
    '2 .gif, 1 .heic'
    """
    found = Counter(suffix or "without an ending" for suffix in suffixes).most_common()
    others = sum(count for _, count in found[_MOST_ENDINGS:])
    return ", ".join(f"{count} {suffix}" for suffix, count in found[:_MOST_ENDINGS]) + (
        f", {others} others" if others else ""
    )


def told_unread(read: Collection[str], suffixes: Iterable[str]) -> str:
    """Which endings are read, and what lies there instead: what follows a sentence on an empty folder.

    >>> told_unread([".png", ".bmp"], [".gif"])
    'files that end in .bmp, .png are read, and it holds others: 1 .gif'
    """
    listed, there = f"files that end in {', '.join(sorted(read))} are read", counted(suffixes)
    return f"{listed}, and it holds {f'others: {there}' if there else 'no file'}"
