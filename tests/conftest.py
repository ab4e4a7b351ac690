"""The surroundings of all tests: what a machine has or lacks changes none of them."""

import atexit
import gc
import importlib
import os
import shutil
import sys
import tempfile

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.pop("COLUMNS", None)  # the width of the terminal that started the tests must not fold what they read

os.environ["XDG_STATE_HOME"] = tempfile.mkdtemp()  # the key that marks runs as this user's
import pytest

atexit.register(shutil.rmtree, os.environ["XDG_STATE_HOME"], ignore_errors=True)

# Where nobody keeps what is compiled, each process that a test starts would compile the packages again.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

os.fsync = lambda file: None  # no test loses power: waiting for the disk took a third of what tests that keep runs take
gc.disable()  # until everything is imported and collected: all of it stays, and looking through it takes seconds


def pytest_sessionstart(session: pytest.Session) -> None:
    if not hasattr(session.config, "workerinput") and session.config.getoption("numprocesses", None):
        return  # it hands the tests out to others, who would wait while it imports PyTorch
    session.config.pluginmanager.register(importlib.import_module("tests.computing"))


def pytest_collection_finish() -> None:
    gc.freeze()
    gc.enable()
