"""The two ways a job can end early, each with one sentence for the person who runs it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """Something the user gave is wrong: the sentence names the thing, the value and the next step (exit code 2)."""


class JobError(RuntimeError):
    """The input was fine but the job could not go on, such as a NaN loss or a full disk (exit code 1)."""


def nearest(value: str, choices: Iterable[str]) -> str:
    """Return ``"; did you mean 'X'?"`` for the choice nearest to ``value``, or an empty string.

    >>> nearest("epoch", ["epochs", "seed"])
    "; did you mean 'epochs'?"
    >>> nearest("zzz", ["epochs", "seed"])
    ''
    """
    found = difflib.get_close_matches(value, list(choices), n=1, cutoff=0.6)
    return f"; did you mean '{found[0]}'?" if found else ""
