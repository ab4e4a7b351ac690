"""What an event of the journal says in numbers over a course, by names that tell stage, net and figure."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from results.events import Epoch, Event, Finalist, FloatMeasured, Judged, Measured, Tested, Timed, Trial

_SEEDED = {"finetune": "seed", "finalise": "seed", "choice": "round"}
"""Stages that train a net several times, and what the number of an epoch's event counts there."""


@dataclass(frozen=True)
class Scalar:
    """A value at a step of its course; ``time`` in seconds since the epoch, None where it is now."""

    name: str
    value: float
    step: int
    time: float | None = None


def scalars_of(event: Event) -> list[Scalar]:
    """What an event says in numbers; nothing for most kinds.

    >>> scalars_of(Measured(assignment="search-1", seed=2, val=0.5))
    [Scalar(name='val/search-1/top1', value=0.5, step=2, time=None)]
    """
    told = _TELL.get(type(event))
    if told is None:
        return []
    place, step, figures = told(event)
    known = ((f"{place}/{name}", value) for name, value in figures if value is not None)
    return [Scalar(name, float(value), step, event.time) for name, value in known]


_Figures = Iterator[tuple[str, float | None]]
_Told = tuple[str, int, _Figures]


def _epoch(event: Epoch) -> _Told:
    counted = _SEEDED.get(event.stage)
    return f"{event.stage}/{event.run}" + (f"-{counted}{event.seed}" if counted else ""), event.epoch, _course(event)


def _course(event: Epoch) -> _Figures:
    yield "loss", event.loss
    yield event.metric, event.score
    yield f"argmax_{event.metric}", event.argmax_score
    yield "temperature", event.temperature
    yield "entropy", event.entropy
    yield "seconds", event.seconds
    yield from _each("expected", event.expected)
    yield from _each("entropy_of", event.decision_entropy)
    yield from _each(event.metric, event.profiles)


def _trial(event: Trial) -> _Told:
    trial = event.trial
    figures = (("loss", trial.loss), (trial.metric, trial.score), *_each("cost", trial.cost))
    return f"trial/{event.run}/{event.kind}", trial.proposal.number, iter(figures)


def _judged(event: Judged) -> _Told:
    return f"judged/{event.proposal}", event.round, iter((("loss", event.loss), (event.metric, event.score)))


def _finalist(event: Finalist) -> _Told:
    return f"finalist/{event.run}", event.number, iter((("loss", event.loss), (event.metric, event.score)))


def _measured(event: Measured) -> _Told:
    return f"val/{event.assignment}", event.seed, iter(((event.metric, event.val),))


def _tested(event: Tested) -> _Told:
    return f"test/{event.assignment}", event.seed, iter(((event.metric, event.test),))


def _timed(event: Timed) -> _Told:
    return f"timed/{event.assignment}", 0, iter((("latency_ms", event.latency_ms), ("spread", event.spread)))


def _float(event: FloatMeasured) -> _Told:
    values = ((f"val_{event.metric}", event.val), (f"test_{event.metric}", event.test))
    return "float", 0, iter(values)


def _each(name: str, values: Mapping[str, float]) -> _Figures:
    return ((f"{name}/{key}", value) for key, value in values.items())


_TELL: Mapping[type[Event], Callable[[Any], _Told]] = {
    Epoch: _epoch,
    Trial: _trial,
    Judged: _judged,
    Finalist: _finalist,
    Measured: _measured,
    Tested: _tested,
    Timed: _timed,
    FloatMeasured: _float,
}
