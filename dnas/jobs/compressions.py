"""What a job does, by its key `compression`: a new one is a room of its own, above this one, and a line here."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from dnas.config.job import JobConfig
from search_spaces.assignments import BitAssignment, LayerBits
from search_spaces.costs.stored import stored_prices
from search_spaces.costs.table import CostTable
from search_spaces.options import SpaceOptions
from search_spaces.registry import Lazy


class Compression(ABC):
    """What of a job's plan, stages and nets is a compression's own; it keeps nothing itself.

    ``job`` is a :class:`dnas.jobs.job.Job`, ``context`` a :class:`dnas.jobs.context.JobContext`, ``measurer`` a
    :class:`dnas.jobs.stages.measure.Measurer`: all of them ask here, so they are not imported.
    """

    def options(self, config: JobConfig) -> SpaceOptions:
        """Which layers get which bits."""
        return config.space

    def check_costs(self, config: JobConfig, table: CostTable) -> None:  # noqa: B027 - most have nothing to refuse
        """Raise :class:`InputError` for budgets of its own that cannot be."""

    def prices(self, table: CostTable, layers: Mapping[str, LayerBits]) -> dict[str, float]:
        """All costs of an assignment of the job."""
        return stored_prices(table, layers)

    @abstractmethod
    def stages(self, context: Any, measurer: Any) -> list[Any]:
        """The stages that make and measure assignments, after pretraining and before what was asked for later."""

    @abstractmethod
    def introduction(self, job: Any) -> tuple[str, str]:
        """What the job works on, and how, for the first sentence that the user reads."""

    def on_progress(self, network: nn.Module, job: Any) -> Callable[[float], None] | None:
        """What is told before each step of fine-tuning how far the training is, in [0, 1), if anything is."""
        return None

    def settle(self, network: nn.Module, assignment: BitAssignment, job: Any) -> None:  # noqa: B027
        """Set what has to be set right after fine-tuning, before BatchNorm is estimated anew."""

    def as_measured(self, assignment: BitAssignment, context: Any) -> BitAssignment:
        """The assignment with what its trained nets take."""
        return assignment


COMPRESSIONS: Mapping[str, type[Compression]] = Lazy(
    {
        "search": "dnas.jobs.stages.pipeline:SearchCompression",
        "squantizer": "dnas.squantizer.compression:SquantizerCompression",
        "switchable": "dnas.jobs.stages.pipeline:SwitchableCompression",
    }
)


def compression_of(config: JobConfig) -> Compression:
    """The compression of a job."""
    return COMPRESSIONS[config.compression]()
