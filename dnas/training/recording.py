"""CUDA graphs of what a function launches.

See :mod:`dnas.training.passes`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

Run = Callable[[], Any]
Recorder = Callable[[Run], tuple[Any, Callable[[], None]]]
"""Records what a function launches; returns what it returned, and what launches it all again."""


class CudaRecorder:
    """Records CUDA graphs that share their memory, since no two run at once."""

    def __init__(self, place: torch.device) -> None:
        self._place = place
        self._pool: Any = None
        self._stream: Any = None

    def __call__(self, run: Run) -> tuple[Any, Callable[[], None]]:
        """See :data:`Recorder`."""
        with torch.cuda.device(self._place):  # whose stream is the one that is recorded
            graph = torch.cuda.CUDAGraph()
            self._stream = self._stream or torch.cuda.Stream(self._place)
            # Other threads, which pin memory for the next batches, may go on.
            with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
                given = run()
            self._pool = graph.pool()

        def replay() -> None:
            with torch.cuda.device(self._place):
                graph.replay()

        return given, replay
