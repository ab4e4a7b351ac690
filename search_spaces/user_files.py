"""Opening files to read: nothing is waited for, whatever lies there."""

from __future__ import annotations

import errno
import os
import stat
from io import BufferedReader
from pathlib import Path


def open_regular(path: Path | str, *, follow: bool = True) -> BufferedReader:
    """Open a file to read; OSError for a pipe or a device, for which one would wait for ever, and for a folder.

    Links are followed unless ``follow`` is false.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | (0 if follow else os.O_NOFOLLOW))
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISREG(mode):
        return os.fdopen(descriptor, "rb")
    os.close(descriptor)
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    raise OSError(errno.EINVAL, "it is a pipe or a device; name a file")


def read_regular(path: Path | str) -> bytes:
    """The content of a file; OSError as :func:`open_regular`."""
    with open_regular(path) as file:
        return file.read()
