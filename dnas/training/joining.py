"""Joining the processes that a launcher started together, by what it says in the environment."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
import torch.distributed as dist

from dnas.training.last_words import leave_word
from dnas.training.processes import ALONE, LAUNCHER_REMEDY, Processes, ProcessLost, launcher_number
from search_spaces.errors import InputError, ToldElsewhere, one_line

_IN_USE = re.compile("EADDRINUSE|address already in use", re.IGNORECASE)


@contextmanager
def joined() -> Iterator[Processes]:
    """Inside, this process belongs to those that a launcher such as torchrun started with it; else it is alone.

    Only the first process speaks. Another that ends with an error leaves its sentence to it, and raises
    :class:`ToldElsewhere` where the first ends as well. Raises :class:`InputError` for an environment that no launcher
    leaves.
    """
    if not several(os.environ):
        yield ALONE
        return
    _begin_group()
    processes = Processes.here()
    try:
        with processes.watched():
            yield processes
    except BaseException as error:
        told_itself = isinstance(error, KeyboardInterrupt | ProcessLost)  # of these the first is told itself
        word = "" if told_itself else f"process {processes.rank} on {platform.node()} ended: {one_line(error)}"
        if leave_word(processes.rank, word):
            raise ToldElsewhere(one_line(error)) from error
        raise
    dist.destroy_process_group()


def several(environment: Mapping[str, str]) -> bool:
    """Whether a launcher started more processes than this one; raises :class:`InputError` for what none would say.

    >>> several({}), several({"WORLD_SIZE": "1"})
    (False, False)
    """
    size = launcher_number(environment, "WORLD_SIZE", "1")
    if size == 1:
        return False
    missing = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if not environment.get(name)]
    if missing:
        raise InputError(
            f"WORLD_SIZE = {size} in the environment goes with {missing[0]}, which is not set; "
            f"{LAUNCHER_REMEDY}, or unset WORLD_SIZE"
        )
    rank, port = launcher_number(environment, "RANK"), launcher_number(environment, "MASTER_PORT")
    if rank >= size:
        raise InputError(
            f"RANK = {rank} is none of the {size} processes of WORLD_SIZE, which count from 0; "
            f"{LAUNCHER_REMEDY}, or unset WORLD_SIZE"
        )
    if port >= 2**16:
        raise InputError(f"MASTER_PORT = {port} is no port, which are below {2**16}; choose a free one")
    return True


def _begin_group() -> None:
    try:
        dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
    except dist.DistNetworkError as error:
        if not _IN_USE.search(str(error)):
            raise
        address, port = os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"]
        raise InputError(
            f"MASTER_PORT = {port} at {address} is in use by another program; choose a free one, or let torchrun find "
            "it, as with --standalone"
        ) from error
