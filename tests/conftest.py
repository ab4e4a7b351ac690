"""One thread per test process: the suite runs several processes, and small tensors gain nothing from more."""

import atexit
import gc
import os
import shutil
import sys
import tempfile

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.pop("COLUMNS", None)  # the width of the terminal that started the tests must not fold what they read

os.environ["XDG_STATE_HOME"] = tempfile.mkdtemp()  # the key that marks runs as this user's
import pytest
import torch
from hypothesis import settings

atexit.register(shutil.rmtree, os.environ["XDG_STATE_HOME"], ignore_errors=True)

# Where nobody keeps what is compiled, each process that a test starts would compile the packages again.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # read when Triton is imported: kernels then run on the CPU

settings.register_profile("shared machine", deadline=None)  # where others compute, an example may take any time
settings.load_profile("shared machine")
os.fsync = lambda file: None  # no test loses power: waiting for the disk took a third of what tests that keep runs take
gc.disable()  # until everything is imported and collected: all of it stays, and looking through it takes seconds


def pytest_collection_finish() -> None:
    gc.freeze()
    gc.enable()


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)
    torch.default_generator.manual_seed(0)  # so that no test depends on the ones before it
