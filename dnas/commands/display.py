"""What a running job shows: a live panel in a terminal, plain lines elsewhere; both from the same facts."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Protocol, Self, TextIO

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from results.units import scaled_unit, share_text
from search_spaces.metrics import ACCURACY, Metric, metric_named

Event = Mapping[str, Any]
Clock = Callable[[], float]

SECONDS_BETWEEN_LINES = 2.0
SECONDS_BETWEEN = {"epoch": SECONDS_BETWEEN_LINES, "trial": SECONDS_BETWEEN_LINES, "progress": 30.0}
PRUNE = "prune"


class Display(Protocol):
    """Shows the events of a job while its context is entered; an event is a journal record or a ``progress``."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def report(self, event: Event) -> None:
        """Take note of one event and show it."""
        ...


def open_display(quiet_stdout: bool = False) -> Display:
    """Return a live display where stdout is a terminal; plain lines elsewhere, on stderr if ``quiet_stdout``."""
    console = Console()
    if console.is_interactive and not quiet_stdout:
        return LiveDisplay(console)
    return PlainDisplay(sys.stderr if quiet_stdout else sys.stdout)


@dataclass
class JobState:
    """What is known of a running job, from its events."""

    stage: str = ""
    label: str = ""
    fraction: float = 0.0
    seconds_left: float | None = None
    values: dict[str, Any] = field(default_factory=dict)

    def update(self, event: Event) -> None:
        """Take over what an event tells; a new stage or run forgets the last one's figures."""
        place = (event.get("stage", self.stage), event.get("run") or "")
        if event["event"] in ("stage", "epoch", "progress"):
            if place != (self.stage, self.label):
                self.stage, self.label = place
                self.values.clear()
            self.values.update((key, value) for key, value in event.items() if key not in ("event", "time"))
        self.fraction = float(event.get("fraction", self.fraction))
        self.seconds_left = event.get("seconds_left", self.seconds_left)

    def title(self) -> str:
        """The stage and what it works on."""
        label = self.label.removeprefix(f"{PRUNE}-") if self.stage == PRUNE else self.label
        return self.stage if label in ("", self.stage) else f"{self.stage} {label}"

    def facts(self) -> dict[str, str]:
        """Return what to show, in words, by name; only what is known."""
        values = self.values
        metric = metric_named(values.get("metric", ACCURACY.name))
        costs = _costs(values.get("expected"), values.get("budget"))
        trial = values.get("trial")
        shown = {
            "epoch": _epoch(values),
            "trial": "" if trial is None else f"{trial}/{values.get('trials') or '?'}",
            **({} if trial is None else costs),
            "loss": _number(values.get("loss"), "{:.4g}"),
            "best": _number(values.get("best"), "{:.4g}"),
            metric.label: _figures(metric, values),
            "by profile": _profiles(metric, values.get("profiles")),
            **({} if trial is not None else costs),
            "temperature": _number(values.get("temperature"), "{:.3g}"),
            "θ entropy": _number(values.get("entropy"), "{:.2f}"),
        }
        return {name: text for name, text in shown.items() if text}


def telling_line(event: Event) -> str:
    """Return the sentence of an event that is shown once and stays: a stage, a note, a measurement; else ''."""
    kind = event["event"]
    if kind == "stage" and event.get("state", "start") == "start":
        return f"{event['stage']} {event.get('run') or ''}".strip()
    if kind == "note":
        return f"note: {event.get('text', '')}"
    if kind == "measured":
        label = event.get("assignment") or event.get("id") or event.get("run") or ""
        metric = metric_named(event.get("metric", ACCURACY.name))
        value = event.get(f"val_{metric.name}")
        seed = f" (seed {event['seed']})" if event.get("seed") is not None else ""
        return f"measured {label}{seed}" + (f": {metric.told(value)} on validation" if value is not None else "")
    if kind == "lost":
        return f"{event['file']} is {event['why']}: it is made again"
    if kind == "resumed":
        return "resumed from the journal"
    return ""


class PlainDisplay:
    """Lines on a stream: stages, notes, measurements; one per epoch or trial, but no more than one in two seconds."""

    def __init__(self, stream: TextIO, clock: Clock = time.monotonic) -> None:
        self.stream = stream
        self.state = JobState()
        self._clock = clock
        self._last_line = clock() - SECONDS_BETWEEN_LINES

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None

    def report(self, event: Event) -> None:
        """Print the event's line, if it has one and it is time for one."""
        self.state.update(event)
        line = telling_line(event)
        if line:
            self._print(line)
        kind = event["event"]
        if kind in ("trial", "progress"):  # the journal's record of a trial comes first and knows less
            kind = "trial" if kind == "progress" and "trial" in event else "progress"
        wait = SECONDS_BETWEEN.get(kind)
        if wait is not None and self._clock() - self._last_line >= wait:
            self._last_line = self._clock()
            facts = ", ".join(f"{name} {text}" for name, text in self.state.facts().items())
            self._print(f"{self.state.title()}: {facts}; {share_text(self.state.fraction, self.state.seconds_left)}")

    def _print(self, line: str) -> None:
        print(line, file=self.stream, flush=True)


class LiveDisplay:
    """A panel that is redrawn in place and gone at the end; notes and measurements scroll by above it."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.state = JobState()
        self._live = Live(
            console=console, get_renderable=self.render, refresh_per_second=4, transient=True, redirect_stdout=False
        )

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()

    def report(self, event: Event) -> None:
        """Take note of an event; the panel shows it within a quarter of a second."""
        self.state.update(event)
        line = telling_line(event)
        if line and event["event"] != "stage":
            self.console.print(Text(line))

    def render(self) -> RenderableType:
        """Return the panel as it is now."""
        grid = Table.grid(padding=(0, 2))
        grid.add_row("stage", self.state.title() or "starting")
        for name, text in self.state.facts().items():
            grid.add_row(name, text)
        bar = Table.grid(padding=(0, 2))
        words = share_text(self.state.fraction, self.state.seconds_left)
        bar.add_row(ProgressBar(total=1.0, completed=self.state.fraction, width=40), words)
        return Group(grid, bar)


def _epoch(values: Mapping[str, Any]) -> str:
    # One look-up each: the live panel is drawn by another thread than the one that takes events.
    epoch, epochs, step, steps = (values.get(name) for name in ("epoch", "epochs", "step", "steps"))
    if epoch is None:
        return ""
    return f"{epoch}/{epochs or '?'}" + (f" (step {step}/{steps})" if steps else "")


def _number(value: float | None, pattern: str) -> str:
    if value is None:
        return ""
    return pattern.format(value) if math.isfinite(value) else "not finite"


def _figures(metric: Metric, values: Mapping[str, Any]) -> str:
    """The metric of the mixture and of its argmax, as far as they are known."""
    soft, argmax = values.get(metric.name, values.get("score")), values.get(f"argmax_{metric.name}")
    shown = "" if soft is None else metric.text(soft) if math.isfinite(soft) else "not finite"
    return shown if argmax is None else f"{shown} soft, {metric.text(argmax)} argmax".removeprefix(" soft, ")


def _profiles(metric: Metric, scores: Mapping[str, float] | None) -> str:
    """The metric of every profile of a switchable net."""
    return ", ".join(f"{name} {metric.number(value, 1)}" for name, value in (scores or {}).items())


def _costs(expected: Mapping[str, float] | None, budget: Mapping[str, float] | None) -> dict[str, str]:
    """Each budgeted cost as expected, beside its limit; the first cost alone where there is no budget."""
    expected, budget = expected or {}, budget or {}
    shown = {}
    for name in [name for name in expected if name in budget] or list(expected)[:1]:
        limit = budget.get(name)
        unit = scaled_unit(name, max(expected[name], limit or 0.0))
        of = "" if limit is None else f" of {limit / unit.divisor:.4g}"
        shown[name] = f"{expected[name] / unit.divisor:.4g}{of} {unit.symbol}".rstrip()
    return shown
