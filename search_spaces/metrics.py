"""What a network is judged by: the name of a figure, which way is better, and how it is written."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar, Literal

from search_spaces.errors import InputError, check_type, one_line

_SMALLEST, _LARGEST = 1e-30, 1e30
_ROUNDING = 1e-12  # what adding up in another order can change, relative to the figures
_COMPARED_DIGITS = 12
_TAKEN = ("loss", "epoch", "epochs", "seed", "seconds", "images", "mean", "std", "n")


@dataclass(frozen=True)
class Metric:
    """A figure of merit; in files it is ``val_NAME`` and ``test_NAME``.

    It is shown times ``scale``, with ``unit``; ``title`` stands over columns and beside axes.

    >>> Metric("mae", "smaller").better(0.1, 0.2), ACCURACY.text(0.125)
    (True, '12.50 %')
    """

    name: str
    direction: Literal["larger", "smaller"] = "larger"
    scale: float = 1.0
    unit: str = ""
    title: str = ""

    def __post_init__(self) -> None:
        for word in ("name", "unit", "title"):
            check_type(getattr(self, word), str, f"the {word} of a metric", "give text")
        if (
            isinstance(self.scale, bool)
            or not isinstance(self.scale, (int, float))
            or not _SMALLEST <= abs(self.scale) <= _LARGEST
        ):
            raise InputError(f"metric '{self.name}': scale = {self.scale!r} is not a number to show a figure by")
        if not re.fullmatch(r"[a-z][a-z0-9_]*", self.name) or self.name in _TAKEN:
            raise InputError(
                f"'{self.name}' cannot name a metric: take small letters, digits and '_', "
                f"and none of {', '.join(_TAKEN)}"
            )
        if self.direction not in ("larger", "smaller"):
            raise InputError(f"metric '{self.name}': direction '{self.direction}' is not 'larger' or 'smaller'")

    @staticmethod
    def difference(value: float, other: float) -> float:
        """``value`` less ``other``; 0 where only the order of adding up tells two means apart.

        >>> (0.5 + 0.575) / 2 - (0.55 + 0.525) / 2, Metric.difference((0.5 + 0.575) / 2, (0.55 + 0.525) / 2)
        (-1.1102230246251565e-16, 0.0)
        """
        return 0.0 if math.isclose(value, other, rel_tol=_ROUNDING) else value - other

    @staticmethod
    def compared(value: float) -> float:
        """``value`` as it is ranked: means that only the order of adding up tells apart are one.

        >>> (0.5 + 0.575) / 2 == (0.55 + 0.525) / 2
        False
        >>> Metric.compared((0.5 + 0.575) / 2) == Metric.compared((0.55 + 0.525) / 2)
        True
        """
        return float(f"{value:.{_COMPARED_DIGITS}g}")

    @property
    def label(self) -> str:
        """The title, or the name where there is none."""
        return self.title or self.name

    def gain(self, value: float) -> float:
        """The value with the sign that makes larger better."""
        return value if self.direction == "larger" else -value

    def better(self, value: float, other: float) -> bool:
        """Whether ``value`` beats ``other``."""
        return self.gain(value) > self.gain(other)

    def number(self, value: float, digits: int = 2) -> str:
        """The value as it is shown, without its unit: so many digits of a percentage, four significant of another."""
        return f"{self.scale * value:.{digits}f}" if self.unit == "%" else f"{self.scale * value:.4g}"

    def text(self, value: float, digits: int = 2) -> str:
        """The value as it is shown, with its unit."""
        return f"{self.number(value, digits)} {self.unit}".rstrip()

    def told(self, value: float) -> str:
        """The value with the metric's name, where it is not an accuracy, which stands for itself.

        >>> Metric("mae", "smaller").told(0.25), MEAN_IOU.told(0.5), ACCURACY.told(0.5)
        ('mae 0.25', '50.00 % mIoU', '50.00 %')
        """
        if self.name == ACCURACY.name:
            return self.text(value)
        return f"{self.text(value)} {self.label}" if self.unit else f"{self.label} {self.text(value)}"

    @property
    def heading(self) -> str:
        """What stands over a column of values: the name, and the unit; of an accuracy the unit alone."""
        if self.name == ACCURACY.name:
            return self.unit
        return f"{self.label} {self.unit}" if self.unit else self.name

    def to_json(self) -> dict[str, Any]:
        """As a JSON object; :meth:`read` leads back."""
        return asdict(self)

    @classmethod
    def read(cls, data: Any) -> Metric:
        """Read what :meth:`to_json` wrote; keys of later versions are passed over."""
        check_type(data, Mapping, "a metric", "give an object with its name")
        known = {each.name: data[each.name] for each in fields(cls) if each.name in data}
        if "name" not in known:
            raise InputError("a metric has no name")
        return cls(**known)


def metric_of(metrics: Mapping[str, Any]) -> Metric:
    """The metric that the ``metrics`` of an assignment were measured by."""
    return Metric.read(metrics["metric"]) if "metric" in metrics else ACCURACY


def validation_of(metrics: Mapping[str, Any]) -> Mapping[str, float] | None:
    """Mean, standard deviation and number of seeds on validation images; None before they are measured."""
    return metrics.get(f"val_{metric_of(metrics).name}")


def check_metrics(metrics: Mapping[str, Any]) -> None:
    """Raise :class:`InputError` where the ``metrics`` of a file hold a figure that nothing can have measured."""
    try:
        told = validation_of(metrics)
        if told is None:
            return
        mean, std, count = told["mean"], told["std"], told["n"]
        check_figure(metric_of(metrics), mean)
        sound = math.isfinite(std) and std >= 0 and count >= 1 and int(count) == count
    except (KeyError, TypeError, ValueError, OverflowError, AttributeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"its metrics are damaged ({one_line(error)})") from error
    if not sound:
        raise InputError(f"its metrics are damaged (a standard deviation of {std} over {count} seeds)")


def check_figure(metric: Metric, value: float) -> None:
    """Raise :class:`InputError` for a figure that is not finite, and for an accuracy beyond 100 %."""
    if not math.isfinite(value) or (metric == ACCURACY and not 0 <= value <= 1):
        raise InputError(f"a {metric.label} of {metric.text(value)} cannot have been measured")


def metric_named(name: str) -> Metric:
    """The metric of that name, as far as a file that holds the name alone can tell."""
    return _OURS.get(name) or Metric(name)


ACCURACY = Metric("top1", "larger", 100.0, "%", "top-1")
"""The part of images whose most likely class is theirs, in [0, 1]; what files without a metric hold."""
MEAN_PRECISION = Metric("map50_95", "larger", 100.0, "%", "mAP 50:95")
"""Of boxes: COCO's mean average precision over ten thresholds of overlap, in [0, 1]."""
MEAN_IOU = Metric("miou", "larger", 100.0, "%", "mIoU")
"""Of maps of classes: the mean over classes of intersection over union, in [0, 1]."""
PIXEL_ACCURACY = Metric("pixel_accuracy", "larger", 100.0, "%", "pixel accuracy")
LABEL_PRECISION = Metric("mean_average_precision", "larger", 100.0, "%", "mAP")
"""Of several labels an image: the mean over classes of the average precision, in [0, 1]."""
_OURS = {metric.name: metric for metric in (ACCURACY, MEAN_PRECISION, MEAN_IOU, PIXEL_ACCURACY, LABEL_PRECISION)}


class Scored:
    """A record whose fields also answer to the name of its metric: ``top1`` or ``val_top1`` of a classification.

    ``_names`` maps such a name, with {} in the place of the metric's, to the field.
    """

    _names: ClassVar[Mapping[str, str]]

    def __getattr__(self, name: str) -> Any:
        metric = self.__dict__.get("metric", ACCURACY)
        for pattern, own in type(self)._names.items():
            if name == pattern.format(metric.name):
                return getattr(self, own)
        raise AttributeError(f"{type(self).__name__} has no '{name}'")
