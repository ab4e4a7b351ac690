"""How long reading a network takes: CPU seconds of ``read_graph``, and how many plain runs on the meta device that is.

``python -m benchmarks.reading_time coat_lite_tiny mambaout_femto fastvit_t8 mobileone_s0`` (names of timm).
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

import timm
import torch

from search_spaces.network.graph import read_graph


def seconds(run: Callable[[], object]) -> float:
    """CPU seconds of one call."""
    start = time.process_time()
    run()
    return time.process_time() - start


def main() -> None:
    """Print a line for every network named."""
    torch.set_num_threads(1)
    read_graph(torch.nn.Sequential(torch.nn.Linear(2, 2)), (2,))  # what is loaded at first use
    for name in sys.argv[1:]:
        with torch.device("meta"):
            model, x = timm.create_model(name).eval(), torch.empty(1, *timm.get_pretrained_cfg(name).input_size)
        with torch.no_grad():
            model(x)
            plain = seconds(lambda model=model, x=x: model(x))  # type: ignore[misc]
        size = tuple(x.shape[1:])
        graph = read_graph(model, size)
        layers = len(graph.layers) + len(graph.unsupported)
        taken = seconds(lambda model=model, size=size: read_graph(model, size))  # type: ignore[misc]
        print(
            f"{name:16} {layers:4} layers  {taken:5.2f} s  {100 * taken / layers:5.2f} s per 100  {taken / plain:4.0f}x"
        )


if __name__ == "__main__":
    main()
