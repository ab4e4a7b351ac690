"""One command in several processes of this machine: they are started here, and all run the same command line."""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from uuid import uuid4

import torch
import typer
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from dnas.commands.exits import LAUNCHER_VARIABLE
from search_spaces.errors import InputError, JobError

OPTION = "--nproc-per-node"
_PROCESSES_OF_A_CORE = 4
_INTERRUPTED = (128 + signal.SIGINT, 128 + signal.SIGTERM)


def run_in_processes(count: int) -> None:
    """Run this command line in ``count`` processes by PyTorch's launcher; ends with the exit code of the first.

    Raises :class:`InputError` within a process that some launcher started already, and for more of them than could run.
    """
    if "RANK" in os.environ:
        raise InputError(f"this process is one of a launcher's already; leave out {OPTION}")
    _check_count(count, os.cpu_count() or 1, torch.cuda.device_count())
    os.environ.setdefault("GLOO_SOCKET_IFNAME", loopback())  # the host's own name need not lead back to it
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // count)))
    logging.disable()  # the launcher tells of failures in tracebacks
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=count,
        run_id=uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,  # a job that ended is resumed, not begun again
        monitor_interval=0.1,
    )
    with TemporaryDirectory() as folder:
        os.environ[LAUNCHER_VARIABLE] = folder
        try:
            elastic_launch(config, sys.executable)("-m", "dnas", *without_option(sys.argv[1:]))
        except ChildFailedError as error:
            by_time = sorted(error.failures.items(), key=lambda item: item[1].timestamp)
            raise typer.Exit(_told_once({rank: failure.exitcode for rank, failure in by_time}, Path(folder))) from None
        except SignalException as error:
            raise typer.Exit(_told_once({0: 128 + error.sigval}, Path(folder))) from None


def _check_count(count: int, cores: int, devices: int) -> None:
    """Refuse what would bring the machine down before any process could say so."""
    most = max(devices, _PROCESSES_OF_A_CORE * cores)
    if count > most:
        raise InputError(
            f"{OPTION} {count} is too many for this machine, which has {cores} cores and {devices} CUDA devices; start "
            f"one for each device, and {most} at most"
        )


def loopback() -> str:
    """The network interface that leads back to this machine, such as ``lo`` or ``lo0``."""
    names = [name for _, name in socket.if_nameindex()]
    return next((name for name in names if name.startswith("lo")), names[0])


def without_option(arguments: Sequence[str]) -> list[str]:
    """The command line of each process.

    >>> without_option(["search", "digits", "--nproc-per-node", "2", "--seed", "1"])
    ['search', 'digits', '--seed', '1']
    """
    kept: list[str] = []
    skip = False
    for argument in arguments:
        if not skip and not argument.startswith(f"{OPTION}=") and argument != OPTION:
            kept.append(argument)
        skip = argument == OPTION
    return kept


def _told_once(codes: Mapping[int, int], folder: Path) -> int:
    """Say why processes ended, which have these exit codes in this order and left words in a folder; returns the code.

    What the first process says counts, unless it was interrupted, as the launcher does to those that are left.
    """
    words = {int(path.name): path.read_text(encoding="utf-8").split(" ", 1) for path in folder.iterdir()}
    told = [(int(code), sentence) for code, sentence in (words[rank] for rank in (0, *codes) if rank in words)]
    errors = [each for each in told if each[0] not in _INTERRUPTED]
    others = {rank: code for rank, code in codes.items() if code not in _INTERRUPTED}
    if not errors and others.get(0, 0) > 0:
        return others[0]  # it wrote by itself what was wrong
    if not errors and others:
        rank, code = next(iter(others.items()))
        why = f"was ended by signal {-code}" if code < 0 else f"ended with code {code}"
        raise JobError(f"process {rank} {why}; the run can be resumed, with any number of processes")
    code, sentence = (errors or told or [(next(iter(codes.values())), "interrupted")])[0]
    print(sentence, file=sys.stderr)
    return code
