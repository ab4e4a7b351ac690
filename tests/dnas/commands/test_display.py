from __future__ import annotations

import io
import math
from typing import Any

import pytest
from rich.console import Console

from dnas.commands.display import JobState, LiveDisplay, PlainDisplay, open_display, telling_line

EPOCH = {
    "event": "epoch",
    "stage": "search",
    "run": "size_bytes 12%",
    "epoch": 3,
    "epochs": 6,
    "loss": 0.5,
    "top1": 0.9,
    "argmax_top1": 0.8,
    "expected": {"size_bytes": 20480.0, "bitops": 3.0},
    "budget": {"size_bytes": 10240.0},
    "temperature": 2.5,
    "entropy": 0.75,
}


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def progress(fraction: float, **more: Any) -> dict[str, Any]:
    return {"event": "progress", "stage": "search", "run": "size_bytes 12%", "fraction": fraction, **more}


def test_an_epoch_is_told_in_words() -> None:
    state = JobState()
    state.update(EPOCH)
    assert state.title() == "search size_bytes 12%"
    assert state.facts() == {
        "epoch": "3/6",
        "loss": "0.5",
        "top-1": "90.00 % soft, 80.00 % argmax",
        "size_bytes": "20 of 10 KiB",
        "temperature": "2.5",
        "θ entropy": "0.75",
    }


TRIAL = {
    "event": "progress",
    "fraction": 0.43,
    "seconds_left": 13.0,
    "stage": "prune",
    "run": "prune-search-1",
    "trial": 12,
    "trials": 40,
    "loss": 0.41,
    "best": 0.33,
    "top1": 0.912,
    "expected": {"size_bytes": 31 * 1024},
    "budget": {"size_bytes": 32 * 1024},
}


def test_a_trial_of_pruning_is_told_in_words() -> None:
    clock, stream = Clock(), io.StringIO()
    display = PlainDisplay(stream, clock)
    display.report({**TRIAL, "trial": 11, "fraction": 0.0})
    clock.now += 10
    display.report(TRIAL)
    clock.now += 1
    display.report({**TRIAL, "trial": 13})
    clock.now += 1
    display.report({**TRIAL, "trial": 14, "run": "prune-search-1 (random)", "loss": math.nan, "top1": None})
    assert stream.getvalue().splitlines()[1:] == [
        "prune search-1: trial 12/40, size_bytes 31 of 32 KiB, loss 0.41, best 0.33, top-1 91.20 %; "
        "43 % done, 13 s left",
        "prune search-1 (random): trial 14/40, size_bytes 31 of 32 KiB, loss not finite, best 0.33; "
        "43 % done, 13 s left",
    ]


def test_a_finalist_of_pruning_forgets_the_trials() -> None:
    state = JobState()
    state.update(TRIAL)
    state.update({**EPOCH, "stage": "prune", "run": "search-1-pruned-1-finalist-1", "expected": None, "entropy": None})
    assert state.title() == "prune search-1-pruned-1-finalist-1"
    assert "trial" not in state.facts()
    assert state.facts()["epoch"] == "3/6"


def test_a_new_stage_forgets_the_figures_of_the_last() -> None:
    state = JobState()
    state.update(EPOCH)
    state.update({"event": "stage", "stage": "finetune", "state": "start"})
    assert state.facts() == {}
    state.update(
        {"event": "progress", "stage": "finetune", "run": "u4", "epoch": 1, "epochs": 2, "step": 3, "steps": 9}
    )
    assert state.facts() == {"epoch": "1/2 (step 3/9)"}


def test_events_without_figures_are_shown_too() -> None:
    state = JobState()
    state.update({**EPOCH, "argmax_top1": None, "budget": None, "temperature": None, "loss": None})
    assert state.facts() == {"epoch": "3/6", "top-1": "90.00 %", "size_bytes": "20 KiB", "θ entropy": "0.75"}
    for event in ("started", "finished", "failed", "unheard of"):
        state.update({"event": event})
        assert telling_line({"event": event}) == ""


def test_the_time_left_is_what_the_job_told_last() -> None:
    state = JobState()
    state.update(progress(0.25, seconds_left=None))
    assert state.seconds_left is None
    state.update(progress(0.5, seconds_left=12.5))
    state.update({"event": "note", "text": "slow"})
    assert state.seconds_left == 12.5


def test_plain_lines_come_at_most_every_two_seconds() -> None:
    clock, stream = Clock(), io.StringIO()
    with PlainDisplay(stream, clock) as display:
        display.report({"event": "stage", "stage": "search", "run": "size_bytes 12%", "state": "start"})
        display.report(progress(0.1))
        for epoch in (1, 2, 3):
            clock.now += 1.5
            display.report(progress(0.1 + 0.1 * epoch, seconds_left=12.4 - epoch))
            display.report({**EPOCH, "epoch": epoch})
        display.report({"event": "note", "text": "collapse"})
        display.report({"event": "measured", "assignment": "s1", "val_top1": 0.987})
        display.report({"event": "measured", "assignment": "u4", "val_top1": 0.5})
        display.report({"event": "stage", "stage": "search", "state": "done"})
    lines = stream.getvalue().splitlines()
    assert lines[0] == "search size_bytes 12%"
    assert [line.split(",")[0] for line in lines if "loss" in line] == [
        "search size_bytes 12%: epoch 1/6",
        "search size_bytes 12%: epoch 3/6",
    ]
    assert lines[-4].endswith("% done, 9 s left")
    assert lines[-3:] == ["note: collapse", "measured s1: 98.70 % on validation", "measured u4: 50.00 % on validation"]


def test_a_long_epoch_shows_signs_of_life() -> None:
    clock, stream = Clock(), io.StringIO()
    display = PlainDisplay(stream, clock)
    for step in range(100):
        clock.now += 1
        display.report(progress(step / 1000, epoch=1, epochs=2, step=step, steps=500))
    assert len(stream.getvalue().splitlines()) == 3


def test_the_live_panel_shows_everything() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=100)
    with LiveDisplay(console) as display:
        display.report({"event": "stage", "stage": "search", "run": "size_bytes 12%", "state": "start"})
        display.report(EPOCH)
        display.report(progress(0.42))
        display.report({"event": "note", "text": "[bold] stays as written"})
        with console.capture() as capture:
            console.print(display.render())
    shown = capture.get()
    for part in ("search size_bytes 12%", "3/6", "20 of 10 KiB", "0.75", "42 % done"):
        assert part in shown
    written = console.file.getvalue()  # type: ignore[attr-defined]
    assert "[bold] stays as written" in written


def test_what_is_no_terminal_gets_plain_lines(capsys: pytest.CaptureFixture[str]) -> None:
    for quiet_stdout in (False, True):
        with open_display(quiet_stdout) as display:
            display.report({"event": "note", "text": "hello"})
        out, err = capsys.readouterr()
        assert (out, err) == (("", "note: hello\n") if quiet_stdout else ("note: hello\n", ""))
