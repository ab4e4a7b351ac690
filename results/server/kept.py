"""What was read of a run, kept until the run changes: a large one takes seconds to read."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from threading import Lock
from typing import Generic, TypeVar

Found = TypeVar("Found")


class Kept(Generic[Found]):
    """Of ``most`` runs, those that were asked for last; of all without it. Several threads may ask."""

    def __init__(self, most: int | None = None) -> None:
        self.most = most
        self._found: OrderedDict[str, tuple[str, Found]] = OrderedDict()
        self._busy: dict[str, Lock] = {}
        self._own = Lock()

    def get(self, name: str, version: str, read: Callable[[], Found]) -> Found:
        """What ``read`` gives of a run, read again only in another version of it; others are not waited for."""
        with self._own:
            busy = self._busy.setdefault(name, Lock())
        with busy:
            with self._own:
                known = self._found.get(name)
            found = known[1] if known and known[0] == version else read()
            with self._own:
                self._found[name] = version, found
                self._found.move_to_end(name)
                while self.most is not None and len(self._found) > self.most:
                    self._found.popitem(last=False)
        return found
