"""What a process of several leaves to be said before it ends: only the first one speaks to the user."""

from __future__ import annotations

import time
from datetime import timedelta

from torch.distributed.distributed_c10d import _get_default_store

_PATIENCE_SECONDS = 3.0  # for the sentence of another process that may have ended


def leave_word(rank: int, sentence: str) -> bool:
    """Leave ``sentence``, if any, to the first process; whether that ends too, which this waits for a little."""
    try:
        store = _get_default_store()
        if sentence:
            store.set(_word(rank), sentence)
        if rank:
            store.wait([_word(0)], timedelta(seconds=_PATIENCE_SECONDS))
    except RuntimeError:  # it goes on, or the launcher has gone
        return False
    return rank > 0


def last_words(size: int, patient: bool) -> list[str]:
    """What other processes left to be said before they ended."""
    until = time.monotonic() + (_PATIENCE_SECONDS if patient else 0)
    while True:
        try:
            store = _get_default_store()
            words = [store.get(_word(rank)).decode() for rank in range(1, size) if store.check([_word(rank)])]
        except (RuntimeError, ValueError):  # the launcher has gone, or there never was one
            return []
        if words or time.monotonic() >= until:
            return words
        time.sleep(_PATIENCE_SECONDS / 20)


def _word(rank: int) -> str:
    return f"dnas/last-word/{rank}"
