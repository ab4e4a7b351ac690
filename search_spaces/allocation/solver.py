"""One integer program by HiGHS (scipy.optimize.milp): silent, and honest about what it did not solve in time."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp

from search_spaces.errors import JobError

SECONDS = 60.0
_INFEASIBLE = 2  # scipy's status
_STDOUT = 1


def most_useful(
    utilities: np.ndarray, is_open: np.ndarray, constraints: Sequence[LinearConstraint]
) -> np.ndarray | None:
    """The 0/1 vector x (V,) of the largest ``utilities`` · x, 0 where not ``is_open``; None where there is none.

    A solution that is found but not proven to be the best within ``SECONDS`` is returned. Raises :class:`JobError`
    where until then neither a solution was found nor proven that there is none.
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
    return solution.x


def not_decided(why: str) -> JobError:
    """The error of an integer program without an answer."""
    return JobError(
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
