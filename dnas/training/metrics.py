"""Figures that another library gathers over batches, such as the metrics of torchmetrics, named by their class."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from dnas.config.job import MetricSection
from dnas.data.described import described
from search_spaces.errors import InputError, one_line
from search_spaces.metrics import Metric
from search_spaces.registry import import_callable, importable_working_directory

_PERCENT = "%"


class Meter(Protocol):
    """Gathers a figure over batches, as those of torchmetrics do."""

    def update(self, outputs: Any, targets: Any) -> Any:
        """Take note of one batch."""

    def compute(self) -> Any:
        """The figure over all batches, a number or a tensor of one element."""


@dataclass(frozen=True)
class Gauge:
    """A metric, and what makes a fresh meter for it."""

    metric: Metric
    make: Callable[[], Meter]

    def on(self, place: torch.device) -> Meter:
        """A fresh meter where outputs are computed."""
        meter = self.make()
        if hasattr(meter, "sync_on_compute"):  # torchmetrics would put the processes together, which measure the same
            meter.sync_on_compute = False
        return meter.to(place) if hasattr(meter, "to") else meter

    def read(self, meter: Meter) -> float:
        """The figure of a meter; :class:`InputError` where it is no single number."""
        found = meter.compute()
        try:
            return float(found)
        except (TypeError, ValueError, RuntimeError) as error:
            hint = "; give it average = 'macro'" if isinstance(found, Tensor) else ""
            raise InputError(f"metric '{self.metric.name}' gives {described(found)}, not one number{hint}") from error


def gauges_of(sections: Mapping[str, MetricSection]) -> dict[str, Gauge]:
    """The gauges that a job names; :class:`InputError` for a class that is not there, or cannot be made."""
    return {name: _gauge(name, section) for name, section in sections.items()}


def _gauge(name: str, section: MetricSection) -> Gauge:
    with importable_working_directory():
        found = import_callable(section.kind, f"metric {name}")
        if isinstance(found, type):
            _check_meter(name, section, found)
        made = partial(found, **section.arguments)
        try:
            meter = made()
        except Exception as error:  # a library's, or the user's own code
            raise InputError(
                f"metric {name} = '{section.kind}' cannot be made: {one_line(error)}; what it needs goes into "
                f"task.metrics.{name}.arguments"
            ) from error
    _check_meter(name, section, meter)
    scale = 100.0 if section.unit == _PERCENT else 1.0
    return Gauge(Metric(name, _direction(name, section, meter), scale, section.unit), made)


def _check_meter(name: str, section: MetricSection, meter: Any) -> None:
    missing = [method for method in ("update", "compute") if not callable(getattr(meter, method, None))]
    if missing:
        raise InputError(
            f"metric {name} = '{section.kind}' has no {' and no '.join(missing)}; name a class as those of torchmetrics"
        )


def _direction(name: str, section: MetricSection, meter: Meter) -> Literal["larger", "smaller"]:
    """Which way is better: as the job says, else as the class itself does."""
    larger = getattr(meter, "higher_is_better", None)
    if section.direction:
        return section.direction
    if larger is None:
        raise InputError(
            f"metric {name} = '{section.kind}' does not say whether larger or smaller is better; set "
            f"task.metrics.{name}.direction"
        )
    return "larger" if larger else "smaller"
