"""Which costs the budgets of a run's job limit, read from its job file alone."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from results.run.folder import Run
from search_spaces.errors import InputError

SIZE = "size_bytes"
"""The cost of a front whose job searches for no budget."""


@dataclass(frozen=True)
class LimitedCosts:
    """``front``: the cost that the job's front will be over; ``told``: those to tell of a net, by its budgets."""

    front: str = SIZE
    told: tuple[str, ...] = (SIZE,)


def limited_costs(run: Run) -> LimitedCosts:
    """What the job of a run limits; the size alone where its job file limits nothing or cannot be read."""
    try:
        job = tomllib.loads(run.job_toml())
    except (InputError, tomllib.TOMLDecodeError):
        return LimitedCosts()
    kind = job.get("compression", "search")
    if kind == "search" and "search" not in job.get("pipeline", ("search",)):
        return LimitedCosts()
    names = _limited(job.get(str(kind)))
    if not names:
        return LimitedCosts()
    return LimitedCosts(names[0] if kind == "search" else SIZE, names)


def _limited(section: Any) -> tuple[str, ...]:
    """The costs of a section's budgets, in the order in which they are written."""
    budgets = section.get("budgets") if isinstance(section, Mapping) else None
    entries = budgets if isinstance(budgets, list) else []
    return tuple(dict.fromkeys(name for entry in entries if isinstance(entry, Mapping) for name in entry))
