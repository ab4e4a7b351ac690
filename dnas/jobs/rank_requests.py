"""What `dnas rank` asks for; refused before torch is loaded as far as it needs none."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from dnas.config.fields import Amount
from dnas.config.job import JobConfig
from dnas.search.evidence import LEAST_ASSIGNMENTS
from search_spaces.errors import InputError


@dataclass(frozen=True)
class RankRequest:
    """How many ``assignments`` within which budget: that of the job by its number from 1, or one of its own.

    ``epochs`` of fine-tuning each; None: as many as the job gives its nets.
    """

    assignments: int = 12
    budget: int | Mapping[str, Amount] = 1
    epochs: int | None = None

    def __post_init__(self) -> None:
        if self.assignments < LEAST_ASSIGNMENTS:
            raise InputError(
                f"{self.assignments} assignments tell nothing of a ranking; ask for {LEAST_ASSIGNMENTS} or more"
            )
        if self.epochs is not None and self.epochs < 0:
            raise InputError(f"epochs = {self.epochs} of fine-tuning is below 0")

    def check(self, config: JobConfig, folder: Path) -> None:
        """Refuse the job of the run in ``folder`` where it has no such budget, or no supernet of the whole network."""
        if config.order[:1] != ("search",):
            raise InputError(
                f"{folder} does not search the bits of the whole network, so it has no supernet of it to rank by"
            )
        count = len(config.search.budgets)
        if isinstance(self.budget, int) and not 1 <= self.budget <= count:
            has = f"has the budgets 1 to {count}" if count else "has no budgets"
            raise InputError(
                f"the job {has}, not {self.budget}; name a number or an amount, as in --budget size_bytes=12%"
            )
