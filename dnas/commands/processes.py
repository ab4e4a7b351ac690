"""One command in several processes of this machine: they are started here, and all run the same command line."""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
from collections.abc import Sequence
from uuid import uuid4

import torch
import typer
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from dnas.commands.exits import DONE
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
    try:
        elastic_launch(config, sys.executable)("-m", "dnas", *without_option(sys.argv[1:]))
    except ChildFailedError as error:
        raise typer.Exit(_exit_code(error)) from None
    except SignalException as error:
        raise typer.Exit(128 + error.sigval) from None


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


def _exit_code(error: ChildFailedError) -> int:
    """The first process's own exit code, which has told why; else what ended another is told here."""
    own = error.failures[0].exitcode if 0 in error.failures else DONE
    if own > 0 and own not in _INTERRUPTED:  # the launcher interrupts those that are left
        return own
    rank, failure = error.get_first_failure()
    if failure.exitcode in _INTERRUPTED:
        return int(failure.exitcode)
    why = f"was ended by signal {-failure.exitcode}" if failure.exitcode < 0 else f"ended with code {failure.exitcode}"
    raise JobError(f"process {rank} {why}; the run can be resumed, with any number of processes")
