"""How much is done is a share of what was planned; how long the rest takes is learned, kind by kind."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from dnas.execution.executors import Lost
from dnas.jobs.bench import Tally
from dnas.jobs.progress import Progress, in_all, times

WORKS = st.lists(st.dictionaries(st.sampled_from("abc"), st.floats(0, 1e6)), min_size=1, max_size=4)


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


class Told:
    """A progress on a clock of its own, and what it told last."""

    def __init__(self, *stages: Mapping[str, float]) -> None:
        self.clock, self.last = Clock(), dict[str, Any]()
        self.progress = Progress(self.last.update, self.clock)
        self.progress.plan(stages)

    def steps(self, kind: str, units: float, seconds: float, count: int = 1) -> float:
        """Take so many steps; returns the seconds that are left then."""
        for _ in range(count):
            self.clock.now += seconds
            self.progress.step(kind, units, stage=kind)
        left = self.last["seconds_left"]
        return math.nan if left is None else float(left)


def test_the_share_done_is_that_of_all_planned_units() -> None:
    told = Told({"a": 40.0}, {"a": 20.0, "b": 40.0})
    with told.progress.within(0):
        told.steps("a", 10, 1.0)
        assert told.last == {"event": "progress", "fraction": 0.1, "seconds_left": None, "stage": "a"}
        told.progress.recall({"a": 20.0})
        assert told.progress.fraction == 0.3
    assert told.progress.fraction == 30 / 90  # the rest of the stage was not needed
    with told.progress.within(1):
        told.progress.correct(-0.5, {"b": 40.0})
        assert told.progress.fraction == 30 / 70
        told.progress.replan({"b": 30.0})
        assert told.progress.fraction == 0.5
        told.steps("b", 30, 1.0)
    assert told.progress.fraction == 1.0


def test_each_kind_takes_what_its_own_units_took() -> None:
    # Fine-tuning takes thrice as long per unit as the search; both are known at the end of the first stage.
    told = Told({"search": 10_000.0, "tune": 10_000.0}, {"search": 10_000.0, "tune": 90_000.0})
    with told.progress.within(0):
        told.steps("search", 100, 1.0, count=100)
        told.steps("tune", 100, 3.0, count=100)
    assert told.progress.seconds_left == pytest.approx(100 + 900 * 3, rel=0.15)


def test_a_kind_that_has_not_begun_is_taken_to_go_at_the_pace_of_the_others() -> None:
    told = Told({"a": 1000.0, "b": 3000.0})
    left = told.steps("a", 100, 1.0, count=10)
    assert left == pytest.approx(30)


def test_what_comes_before_the_first_step_of_a_kind_is_not_what_the_others_take() -> None:
    told = Told({"a": 10_000.0})
    assert math.isnan(told.steps("a", 100, 600.0))  # a compilation
    assert told.steps("a", 100, 1.0, count=9) == pytest.approx(90)


def test_what_an_earlier_process_did_took_no_time_of_this_one() -> None:
    told = Told({"a": 10_000.0})
    told.clock.now += 50
    told.progress.recall({"a": 5_000.0})
    assert told.steps("a", 100, 2.0, count=10) == pytest.approx(80)


@pytest.mark.parametrize("seed", range(20))
def test_the_time_left_is_honest_after_a_fifth_of_a_job(seed: int) -> None:
    """Jobs whose kinds take per unit what was thought but for a fifth, their steps twice or half of it."""
    draw = random.Random(seed)
    pace = {kind: 0.001 * draw.uniform(0.82, 1.22) for kind in ("pretrain", "search", "tune", "test")}
    stages = [{kind: 1000.0 * draw.randint(10, 60)} for kind in pace]
    total = sum(pace[kind] * units for stage in stages for kind, units in stage.items())
    told = Told(*stages)
    for number, stage in enumerate(stages):
        with told.progress.within(number):
            for kind, units in stage.items():
                for _ in range(int(units / 100)):
                    left = told.steps(kind, 100, 100 * pace[kind] * draw.uniform(0.5, 1.5))
                    truth = total - told.clock.now
                    if told.clock.now > 0.2 * total and truth > 0.05 * total:
                        assert truth / 1.5 < left < truth * 1.5


@example([{"a": 1.0}], [("a", 0.0, 0.0), ("a", 5e-324, 1.0)])
@given(WORKS, st.lists(st.tuples(st.sampled_from("abcd"), st.floats(0, 1e6), st.floats(0, 1e6)), max_size=9))
def test_any_steps_give_a_share_and_no_negative_time(
    works: list[dict[str, float]], steps: list[tuple[str, float, float]]
) -> None:
    told = Told(*works)
    with told.progress.within(len(works) - 1):
        for kind, units, seconds in steps:
            left = told.steps(kind, units, seconds)
            assert 0 <= told.last["fraction"] <= 1
            assert math.isnan(left) or 0 <= left < math.inf


def test_works_add_up() -> None:
    assert in_all() == {}
    assert in_all({"a": 1.0, "b": 2.0}, times(3, {"b": 1.0}), {"c": 0.5}) == {"a": 1.0, "b": 5.0, "c": 0.5}


def test_what_is_done_ahead_is_taken_from_the_stages_that_it_belongs_to() -> None:
    told: list[Any] = []
    progress = Progress(told.append, clock=lambda: 0.0)
    progress.plan([{"search": 10.0}, {"finetune": 6.0}, {"finetune": 4.0}])
    with progress.within(0):
        progress.step("finetune", 8.0, ahead=True)  # the whole second stage, and half of the third
        assert progress.fraction == pytest.approx(8 / 20)
        progress.step("search", 10.0)
    assert progress.fraction == pytest.approx(18 / 20)
    with progress.within(1):
        progress.replan({"finetune": 7.0})  # in all: there is one more to do
        assert progress.fraction == pytest.approx(18 / 21)
        progress.recall({"finetune": 1.0})
    with progress.within(2):
        progress.step("finetune", 2.0, stage="measure")
        assert told[-1]["fraction"] == progress.fraction == pytest.approx(1.0)
    progress.tell()
    assert told[-1] == told[-2]


def test_what_a_task_does_again_after_its_process_died_counts_once() -> None:
    told = Told({"train": 20.0}, {"test": 20.0})
    tally, shares = Tally(told.progress), []
    messages: list[tuple[str, Any]] = [
        ("one", {"recall": {"train": 2.0}}),  # by a process before this one
        ("one", {"steps": {"train": 3.0}, "fields": {}}),
        ("ahead", {"steps": {"test": 10.0}, "fields": {}}),
        ("one", Lost("one", "its process was ended by SIGKILL")),
        ("one", {"recall": {"train": 4.0}}),
        ("one", {"steps": {"train": 1.0}, "fields": {}}),
        ("one", {"steps": {"train": 4.0}, "fields": {}}),
        ("one", Lost("one", "its process was ended by SIGKILL")),
        ("one", {"steps": {"train": 10.0}, "fields": {}}),  # its checkpoint is gone as well
        ("other", {"steps": {"train": 10.0}, "fields": {}}),
        ("ahead", {"steps": {"test": 10.0}, "fields": {}}),
    ]
    with told.progress.within(0):
        for task, message in messages:
            told.clock.now += 1.0
            tally.hear(task, message, task != "ahead")
            shares.append(told.progress.fraction)
    assert shares == [n / 40 for n in (2, 5, 15, 15, 15, 15, 19, 19, 20, 30, 40)]
    tally.hear("one", None, True)
    assert told.last["fraction"] == 1.0
