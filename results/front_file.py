"""What front.json holds, as types: read once, refused in one sentence; later versions may add keys."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any

from pydantic import Field

from search_spaces.metrics import ACCURACY, Metric
from search_spaces.records import Amount, Count, Figure, Record, read_as

SCHEMA = "dnas.front/1"
Share = Annotated[float, Field(strict=True, gt=0, le=1)]


class EstimateEntry(Record):
    """A mean over ``n`` seeds with the sample standard deviation."""

    mean: Figure
    std: Amount
    n: Count


class PointEntry(Record):
    """A measured assignment; ``val`` and ``test`` stand under the name of their metric."""

    assignment: str
    kind: str
    size_bytes: Amount
    bitops: Amount
    macs: Amount
    extra_costs: dict[str, Amount] = Field(default_factory=dict)
    val: EstimateEntry
    test: EstimateEntry | None
    on_front: bool = False
    feasible: bool = True
    budget: str | None = None
    limits: dict[str, Figure] = Field(default_factory=dict)
    parent: str | None = None
    kept_filters: Share | None = None


class FloatEntry(Record):
    """The network as it came."""

    size_bytes: Amount
    val: Figure | None = None
    test: Figure | None = None
    costs: dict[str, Amount] = Field(default_factory=dict)


class FrontFile(Record):
    """The whole file; its points are read one by one, by their metric."""

    x: str
    metric: Any = None
    points: list[Any]
    float: Any
    preprocessing: Any = None

    @property
    def measured_by(self) -> Metric:
        """The metric of all points; files of before metrics could be chosen have none."""
        return ACCURACY if self.metric is None else Metric.read(self.metric)

    def entries(self) -> Iterator[PointEntry]:
        """The points, in order."""
        metric = self.measured_by
        for number, entry in enumerate(self.points):
            yield read_as(PointEntry, _by_field(entry, metric), f"points[{number}]: ")

    def reference(self) -> FloatEntry | None:
        """The network as it came, where the file tells of it."""
        return None if self.float is None else read_as(FloatEntry, _by_field(self.float, self.measured_by), "float: ")


def _by_field(entry: Any, metric: Metric) -> Any:
    """The values of an entry under the names of our fields."""
    names = {f"{split}_{metric.name}": split for split in ("val", "test")}
    return {names.get(key, key): value for key, value in entry.items()} if isinstance(entry, Mapping) else entry
