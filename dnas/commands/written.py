"""What a command line says in texts of its own: budgets, shapes, keys of a job; read without waiting for torch."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from dnas.config.fields import Amount
from search_spaces.errors import InputError


@dataclass(frozen=True)
class Crew:
    """Who carries tasks out, and where, as the command line says; the job's own keys where it does not."""

    workers: str | None = None
    executor: str | None = None
    device: str | None = None

    @property
    def overrides(self) -> list[str]:
        """The keys of the job that it replaces."""
        given = {"workers": self.workers, "executor": self.executor, "device": self.device}
        return [f"{key}={value}" for key, value in given.items() if value is not None]


def input_shape_of(text: str | None) -> tuple[int, ...] | None:
    """Read ``3,224,224`` or ``3x224x224``; None stays None."""
    if text is None:
        return None
    sides = text.replace("x", ",").split(",")
    if not all(side.strip().isdecimal() and int(side) > 0 for side in sides):
        raise InputError(f"--input-shape {text} is not a shape without a batch dimension, such as 3,224,224")
    return tuple(map(int, sides))


def budget_of(text: str) -> dict[str, Amount]:
    """Read ``size_bytes=12%`` or ``size_bytes=12%,bitops=5%``."""
    limits: dict[str, Amount] = {}
    for part in text.split(","):
        name, sign, amount = part.partition("=")
        if not sign:
            raise InputError(f"--budget {text} is not of the form COST=AMOUNT, such as size_bytes=12%")
        if name.strip() in limits:
            raise InputError(f"--budget {text} limits {name.strip()} twice; give one amount for each cost")
        limits[name.strip()] = amount.strip()
    return limits


def prune_overrides(budgets: Sequence[str], trials: int | None, settings: Sequence[str]) -> list[str]:
    """The keys of ``[prune]`` that the options of `dnas prune` replace."""
    overrides = [f"prune.{setting}" for setting in settings]
    overrides += [f"prune.budgets=[{', '.join(map(_budget_table, budgets))}]"] if budgets else []
    return overrides + ([f"prune.trials={trials}"] if trials is not None else [])


def finalise_overrides(profiles: str | None, settings: Sequence[str]) -> list[str]:
    """The keys of ``[finalise]`` that the options of `dnas finalise` replace."""
    overrides = [f"finalise.{setting}" for setting in settings]
    if profiles is None:
        return overrides
    names = [name.strip() for name in profiles.split(",") if name.strip()]
    if not names:
        raise InputError("no profile is named; give some, such as front or w4a4")
    return [*overrides, f"finalise.profiles={json.dumps(names)}"]


def _budget_table(text: str) -> str:
    """``70%`` as a limit on the size, ``size_bytes=70%,macs=60%`` as it says; as a TOML table."""
    limits = budget_of(text if "=" in text else f"size_bytes={text}")
    return "{" + ", ".join(f"{json.dumps(cost)} = {json.dumps(amount)}" for cost, amount in limits.items()) + "}"
