"""Processes that read batches of images, and stay for the next epoch.

PyTorch's DataLoader starts its processes anew for every epoch, unless all epochs are those of one DataLoader. So the
batches that an epoch wants are handed to a loader that is there already, and what they depend on travels with them.
"""

from __future__ import annotations

import signal
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import joblib
import torch
from torch.utils.data import DataLoader, Dataset

from search_spaces.errors import InputError, JobError

Read = Callable[[Sequence[Any]], Any]
"""From what is wanted of a batch to the batch; two that are equal read the same."""
_KEPT = 3  # training, measuring, and a second set of images that is trained on in turn with the first


class Loaders:
    """Loaders of ``workers`` processes each; as many as epochs are read at once, and of several ways to read."""

    def __init__(self, workers: int = 0) -> None:
        self.workers = min(workers, joblib.cpu_count())  # those that this process may use
        self._idle: list[_Loader] = []
        # A DataLoader that Python's garbage collector ends together with its queues waits five seconds for processes
        # that no longer hear it. So it is held from outside until these Loaders are gone, and ends by itself then.
        weakref.finalize(self, self._idle.clear)

    def batches(self, read: Read, wanted: Iterable[Sequence[Any]], pinned: bool = False) -> Iterator[Any]:
        """Yield ``read`` of each of the ``wanted`` batches, in their order; ``pinned`` where a device fetches them.

        Raises the :class:`InputError` that ``read`` raises, :class:`JobError` where a process dies.
        """
        loader = self._taken(read, pinned)
        loader.requests.wanted = wanted
        try:
            for batch in loader.loader:
                if isinstance(batch, _Refusal):
                    raise InputError(batch.sentence)
                yield batch
        except RuntimeError as error:
            if "DataLoader worker" not in str(error):
                raise
            loader.broken = True
            raise JobError(
                "a process that reads images died (out of memory?); resume, with fewer data.workers if it dies again"
            ) from error
        finally:
            loader.requests.wanted = ()
            if not loader.broken:
                self._idle.append(loader)
                del self._idle[:-_KEPT]

    def _taken(self, read: Read, pinned: bool) -> _Loader:
        """A loader that nobody reads from."""
        for loader in self._idle:
            if loader.pinned == pinned and loader.read == read:
                self._idle.remove(loader)
                return loader
        return _Loader(read, self.workers, pinned)

    def __reduce__(self) -> tuple[Any, ...]:
        """A copy, in this process or another, starts processes of its own."""
        return Loaders, (self.workers,)


class _Loader:
    """A DataLoader for epochs one after the other."""

    def __init__(self, read: Read, workers: int, pinned: bool) -> None:
        self.read, self.pinned, self.broken = read, pinned, False
        self.requests = _Requests()
        self.loader: DataLoader[Any] = DataLoader(
            _Reading(read),
            batch_sampler=self.requests,
            num_workers=workers,
            persistent_workers=workers > 0,
            collate_fn=_as_it_is,
            worker_init_fn=_leave_interruptions,
            pin_memory=pinned,
            generator=torch.Generator(),  # without its own, the loader would advance the global one
        )


class _Requests:
    """What is wanted of each batch of the next epoch."""

    wanted: Iterable[Sequence[Any]] = ()

    def __iter__(self) -> Iterator[Any]:
        return iter(self.wanted)


class _Refusal:
    """An InputError on its way to another process, where its type would be wrapped."""

    def __init__(self, error: InputError) -> None:
        self.sentence = str(error)


class _Reading(Dataset[Any]):
    """A whole batch at once, as DataLoaders ask for it."""

    def __init__(self, read: Read) -> None:
        self.read = read

    def __getitems__(self, wanted: Sequence[Any]) -> Any:
        try:
            return self.read(wanted)
        except InputError as error:
            return _Refusal(error)


def _leave_interruptions(worker: int) -> None:
    """Let Ctrl-C, which a terminal sends to all processes, be handled by the one that ends the others."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _as_it_is(batch: Any) -> Any:
    return batch
