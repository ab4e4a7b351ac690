"""One integer program by HiGHS (scipy.optimize.milp): silent, and honest about what it did not solve in time."""

from __future__ import annotations

import ctypes
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import NamedTuple

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp

from search_spaces.errors import JobError

SECONDS = 60.0
_PROVEN, _INFEASIBLE = 0, 2  # scipy's status
_STDOUT = 1


class NotProven(UserWarning):
    """A choice of bits is the best that was found in the solver's time; it is not proven that none is better."""


class NotDecided(JobError):
    """The solver's clock ran out before it was known whether there is a solution."""


class Solution(NamedTuple):
    """A 0/1 vector (V,), and whether it is proven to be the best."""

    x: np.ndarray
    proven: bool


def most_useful(utilities: np.ndarray, is_open: np.ndarray, constraints: Sequence[LinearConstraint]) -> Solution | None:
    """The 0/1 vector x (V,) of the largest ``utilities`` · x, 0 where not ``is_open``; None where there is none.

    What was found by the end of ``SECONDS`` is returned, proven or not. Raises :class:`NotDecided` where until then
    neither a solution was found nor proven that there is none.
    """
    with _silent_stdout():
        solution = milp(
            -utilities,
            constraints=constraints,
            integrality=np.ones(utilities.size),
            bounds=Bounds(0, is_open.astype(float)),
            options={"mip_rel_gap": 1e-9, "time_limit": SECONDS},
        )
    # All variables are bounded: "unbounded or infeasible" is infeasible.
    if solution.x is None and solution.status != _INFEASIBLE and "infeasible" not in solution.message:
        raise not_decided(f"the solver stopped after {SECONDS:g} s or less ({solution.message.split('.')[0]})")
    return None if solution.x is None else Solution(solution.x, solution.status == _PROVEN)


def warn_not_proven(what: str) -> None:
    """Warn that a solution was taken which may not be the best."""
    warnings.warn(
        f"{what} is the best that was found in {SECONDS:g} s, not proven to be the best there is; offer fewer bits or "
        "let layers share a choice for one that is",
        NotProven,
        stacklevel=3,
    )


def not_decided(why: str) -> NotDecided:
    """The error of an integer program without an answer."""
    return NotDecided(
        f"whether a choice of bits meets the budget is not decided: {why}; offer fewer bits, let layers share a choice "
        "(space.granularity, groups or ties), or change the budget"
    )


@contextmanager
def _silent_stdout() -> Iterator[None]:
    """Keep what C code prints off standard output: HiGHS writes debug lines to it, whatever it is told."""
    try:
        kept = os.dup(_STDOUT)
    except OSError:  # there is no standard output
        yield
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    _flush_c()
    os.dup2(nowhere, _STDOUT)
    try:
        yield
    finally:
        _flush_c()  # C keeps lines back where standard output is no terminal
        os.dup2(kept, _STDOUT)
        os.close(kept)
        os.close(nowhere)


def _flush_c() -> None:
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).fflush(None)
