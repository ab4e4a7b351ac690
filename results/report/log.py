"""The journal of a run as lines for a person."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from results.events import (
    Decoded,
    Epoch,
    Event,
    Failed,
    Finalist,
    FloatMeasured,
    Judged,
    Lost,
    Measured,
    Note,
    StageEvent,
    Tested,
    Timed,
    Trial,
)
from results.units import amount_text
from search_spaces.metrics import metric_named

MOST_LINES = 200


def log_lines(events: Sequence[Event], most: int = MOST_LINES) -> list[str]:
    """The last lines of a journal, one an event, each with its time (UTC)."""
    return [_line(event) for event in events[-most:]]


def _line(event: Event) -> str:
    words = _words(event)
    if event.time is None:
        return words
    try:
        return f"{datetime.fromtimestamp(event.time, UTC):%H:%M:%S}  {words}"
    except (ValueError, OverflowError, OSError):
        return words


def _words(event: Event) -> str:
    tell = _TOLD.get(type(event))
    return tell(event) if tell else event.tag


def _epoch(event: Epoch) -> str:
    loss = "" if event.loss is None else f", loss {event.loss:.4g}"
    score = "" if event.score is None else f", {metric_named(event.metric).text(event.score)}"
    return f"{event.stage} {event.run}: epoch {event.epoch} of {event.epochs or '?'}{loss}{score}"


def _measured(event: Measured) -> str:
    reached = metric_named(event.metric).text(event.val)
    return f"measured {event.assignment}, seed {event.seed}: {reached} on validation"


def _tested(event: Tested) -> str:
    return f"tested {event.assignment}, seed {event.seed}: {metric_named(event.metric).text(event.test)}"


def _timed(event: Timed) -> str:
    return f"timed {event.assignment} in {event.where}: {amount_text('latency_ms', event.latency_ms)}"


def _float(event: FloatMeasured) -> str:
    return f"float network: {metric_named(event.metric).text(event.val)} on validation"


def _judged(event: Judged) -> str:
    loss = "diverged" if event.loss is None else f"loss {event.loss:.4g}"
    return f"judged {event.proposal}, round {event.round}: {loss}"


def _trial(event: Trial) -> str:
    found = event.trial
    loss = found.failed or ("failed" if found.loss is None else f"loss {found.loss:.4g}")
    return f"{event.run}, {event.kind} trial {found.proposal.number + 1}: {loss}"


_TOLD: Mapping[type[Event], Callable[[Any], str]] = {
    Epoch: _epoch,
    StageEvent: lambda event: f"stage {event.stage}: {event.state}",
    Note: lambda event: event.text,
    Measured: _measured,
    Tested: _tested,
    Timed: _timed,
    FloatMeasured: _float,
    Decoded: lambda event: f"found {event.assignment}",
    Judged: _judged,
    Trial: _trial,
    Finalist: lambda event: f"{event.run}, finalist {event.number + 1}: loss {event.loss:.4g}",
    Lost: lambda event: f"{event.file} is {event.why}: it is made again",
    Failed: lambda event: f"failed: {event.message}",
}
"""What a line says of each kind of event; of any other, its tag."""
