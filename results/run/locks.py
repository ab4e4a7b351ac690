"""One process writes to a run at a time: an exclusive ``flock`` that the kernel frees however the process ends."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
import weakref
from pathlib import Path

from search_spaces.errors import InputError, JobError

RETRIES = 3
RETRY_SECONDS = 0.02

_open_locks: weakref.WeakSet[FolderLock] = weakref.WeakSet()


class FolderLock:
    """The lock of a run folder, taken on construction and held until :meth:`release` or the end of the process.

    Raises :class:`InputError` naming the process that has it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor: int | None = None
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise JobError(f"cannot write {path}: {error.strerror}") from error
        try:
            _take(descriptor, path)
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        except OSError as error:
            os.close(descriptor)
            raise JobError(f"cannot lock {path}: {error.strerror}; put the run on another disk with --run") from error
        except InputError:
            os.close(descriptor)
            raise
        self._descriptor = descriptor
        _open_locks.add(self)

    def release(self) -> None:
        """Free the lock; the file stays, since removing it could free a lock that someone else just took."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    @property
    def held(self) -> bool:
        """Whether this object still holds the lock."""
        return self._descriptor is not None


def lock_holder(path: Path) -> int | None:
    """Return the process id that holds the lock at ``path`` (0 where it is not known), or None where it is free."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        text = os.pread(descriptor, 32, 0).strip()
        return int(text) if text.isdigit() else 0
    except OSError:
        return None
    finally:
        os.close(descriptor)
    return None


def _take(descriptor: int, path: Path) -> None:
    for attempt in range(RETRIES):
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        # A reader that asks who holds the lock has it for an instant; a writer has it for long.
        if attempt < RETRIES - 1:
            time.sleep(RETRY_SECONDS)
    holder = lock_holder(path) or 0
    who = "this process already works" if holder == os.getpid() else f"another process (pid {holder}) is working"
    raise InputError(f"{who} on this run ({path.parent}); wait for it or choose another folder with --run")


def _forget_in_child() -> None:
    # A forked data-loader worker that outlived a killed parent would otherwise keep the run locked.
    for lock in list(_open_locks):
        lock.release()


os.register_at_fork(after_in_child=_forget_in_child)
