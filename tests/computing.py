"""What every process that runs tests sets up: one thread, the same random numbers, kernels that run on the CPU.

One thread, since the suite runs several processes, and small tensors gain nothing from more.
"""

import os
import sys
import warnings

import pytest
import torch
from hypothesis import settings

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # read when Triton is imported: kernels then run on the CPU

# Where others compute, an example may take any time. Every run draws others, so fifty are enough.
settings.register_profile("shared machine", deadline=None, max_examples=50)
settings.load_profile("shared machine")


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)
    torch.default_generator.manual_seed(0)  # so that no test depends on the ones before it


def copies_compute() -> bool:
    """Whether a forked copy of this process can train: none of a GPU's can, nor any once autograd has threads."""
    if sys.platform != "linux" or torch.cuda.is_available():
        return False
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forks beside threads: here they wait
        pid = os.fork()
    if not pid:
        try:
            torch.ones(1, requires_grad=True).sum().backward()
        except RuntimeError:
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
