"""One process writes to a run at a time: a lock that the kernel frees however the process ends, and who holds it."""

from __future__ import annotations

import contextlib
import os
import platform
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from filelock import FileLock, Timeout

from results.files import read_text, refuse_special, write_text
from search_spaces.errors import InputError, JobError, quoted

OWNER = ".owner"
PATIENCE_SECONDS = 0.1  # a reader that asks who holds the lock has it for an instant; a writer has it for long


@dataclass(frozen=True)
class Owner:
    """The process that writes to a run, its host, and when it began as the system counts; 0 and "" where not known.

    >>> str(Owner(12, "mill"))
    'pid 12 on mill'
    """

    pid: int = 0
    host: str = ""
    began: str = field(default="", compare=False)

    def __str__(self) -> str:
        return f"pid {self.pid or 'unknown'}" + (f" on {self.host}" if self.host else "")

    @classmethod
    def here(cls) -> Self:
        """The process that asks."""
        return cls(os.getpid(), platform.node(), _began(os.getpid()))

    @classmethod
    def read(cls, path: Path) -> Self:
        """The owner that the file names, as far as it does."""
        try:
            pid, host, began, *_ = [*read_text(path).split("\n"), "", ""]
        except InputError:
            return cls()
        return cls(int(pid) if pid.isdecimal() else 0, host.strip(), began.strip())

    @property
    def is_elsewhere(self) -> bool:
        """Whether it is known to be on another host."""
        return bool(self.host) and self.host != platform.node()

    def may_live(self) -> bool:
        """Whether the process may be there, not another one of its number; of one on another host that is not known."""
        if not self.pid or self.host != platform.node():
            return bool(self.pid)
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return False
        except (OSError, OverflowError):
            pass  # somebody else's
        began = _began(self.pid)
        return not (self.began and began) or self.began == began


def _began(pid: int) -> str:
    """When a process began, in ticks since the system did; "" where the system does not tell."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""


class FolderLock:
    """The lock of a run folder, taken on construction and held until :meth:`release` or the end of the process.

    Raises :class:`InputError` naming the process that has it. That of a process that ended on this host is free. One on
    another host may be there without a lock that this host sees, or have died with one: ``take_over`` says it died.
    """

    def __init__(self, path: Path, *, take_over: bool = False) -> None:
        self.path = path
        refuse_special(path)
        self._lock = FileLock(path, thread_local=False)
        try:
            self._acquire(take_over)
        except Timeout as error:
            raise InputError(_refusal(path)) from error
        if self._owner.is_elsewhere and not take_over:
            self._lock.release()
            raise InputError(_refusal(path))
        here = Owner.here()
        try:
            write_text(path.with_name(OWNER), f"{here.pid}\n{here.host}\n{here.began}\n")
        except (InputError, JobError):
            self._lock.release()
            raise

    def _acquire(self, take_over: bool) -> None:
        try:
            self._lock.acquire(timeout=PATIENCE_SECONDS, poll_interval=PATIENCE_SECONDS / 5)
        except Timeout:
            # The owner is read only now: another process may just have taken the run over, and lives.
            if not (take_over and self._owner.is_elsewhere):
                raise
            self.path.unlink(missing_ok=True)  # its server keeps the lock of the old file for a host that is gone
            self._acquire(take_over=False)
        except OSError as error:
            raise JobError(
                f"cannot lock {self.path}: {error.strerror}; put the run, or a copy of it, where it can be written"
            ) from error

    @property
    def _owner(self) -> Owner:
        return Owner.read(self.path.with_name(OWNER))

    def release(self) -> None:
        """Free the lock; its file stays, since removing it could free a lock that someone else just took."""
        if self.held:
            with contextlib.suppress(OSError):
                self.path.with_name(OWNER).unlink(missing_ok=True)
            self._lock.release()

    @property
    def held(self) -> bool:
        """Whether this object still holds the lock; a forked child does not."""
        return self._lock.is_locked


def lock_holder(path: Path) -> Owner | None:
    """Return the process that holds the lock at ``path``, or None where it is free.

    Where this process may not write, and so cannot try the lock, the owner counts while it may be alive.
    """
    refuse_special(path)
    if not path.exists():
        return None
    try:
        with FileLock(path, thread_local=False).acquire(blocking=False):
            return None
    except Timeout:
        return Owner.read(path.with_name(OWNER))
    except OSError:
        owner = Owner.read(path.with_name(OWNER))
        return owner if owner.may_live() else None


def _refusal(path: Path) -> str:
    owner = Owner.read(path.with_name(OWNER))
    if owner.is_elsewhere:
        return (
            f"another process ({owner}) is or was working on this run ({path.parent}), and whether it ended cannot be "
            "told from here; end it there, or where it is gone add --take-over"
        )
    if owner == Owner.here():
        return f"this process already works on this run ({path.parent}); close it first, or choose another folder"
    return (
        f"another process ({owner}) is working on this run ({path.parent}); wait for it, or end it with: "
        f"dnas stop {quoted(path.parent)}"
    )
