"""What a run folder may make us import: all of it where this user started the job here, or with ``--trust``."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from results.run.layout import is_run
from results.run.origin import mark_own, names_in, own_names, requested_names, unproven
from search_spaces.errors import InputError
from search_spaces.registry import REACHING_OUT, importing_only


@contextmanager
def trusting(folder: Path, trust: bool, words: Iterable[str] = ()) -> Iterator[None]:
    """Let a command import what the run in ``folder`` names, where this user trusts it.

    ``words`` are what the user wrote on the command line, whose names are the user's own. A folder that is trusted is
    marked as this user's. Of several processes the first decides.
    """
    if int(os.environ.get("RANK", "0")) or not is_run(folder):
        yield
        return
    given = {name for word in words for name in names_in(word)}
    if trust:
        mark_own(folder, given | requested_names(folder))
        yield
        return
    allowed = own_names(folder)
    why = f"{unproven(folder)}; read it as you would read a script, then add --trust"
    accepted = bool(allowed and given - allowed)
    reaching = REACHING_OUT if allowed else frozenset()
    try:
        with importing_only(allowed | given | reaching, why):
            yield
    except InputError:
        accepted = False
        raise
    finally:
        if accepted:  # and so part of the run, which may go on from here
            mark_own(folder, allowed | given)
