"""The session on a GPU, without one: its commands are ones that there are, and no step takes the others' time."""

from __future__ import annotations

import time
from argparse import Namespace
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from benchmarks import feed, gpu_session, gpu_wheels, proof, step_cost
from benchmarks.gpu_session import PARTS, ROOT, Step, planned, session
from dnas.commands.cli import app
from dnas.config.file import load_job


def plan(data: Path | None, only: tuple[str, ...] = PARTS, **options: Any) -> list[Step]:
    given = {"device": "cuda", "tiny": False, "wheels": None, "data": data, "only": only, **options}
    return planned(Namespace(**given), Path("temporary"))


@pytest.mark.whole
def test_every_step_has_its_time_and_leaves_what_it_printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_session, "SECONDS_TO_END", 0.2)
    monkeypatch.setattr(gpu_session, "LEAST_SECONDS", 0.01)
    hangs = (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('begun', flush=True); time.sleep(60)"
    )
    steps = [
        Step("a", 30, ("-c", "print('before'); raise SystemExit(3)")),
        Step("b", 1.5, ("-c", hangs)),
        Step("a", 30, ("-c", "import sys; print('after', file=sys.stderr)")),
    ]
    started = time.monotonic()
    lines = session(steps, tmp_path / "results", 60, {})
    assert time.monotonic() - started < 20
    assert [line.split(" after")[0] for line in lines] == [
        "a: ended with code 3",
        "b: was stopped",
        "a: ended with code 0",
    ]
    a, b = ((tmp_path / "results" / f"{name}.txt").read_text() for name in "ab")
    assert a.index("before") < a.index("[ended with code 3") < a.index("after") < a.index("[ended with code 0")
    assert "begun" in b
    assert (tmp_path / "results" / "summary.txt").read_text().splitlines() == lines


def test_two_commands_of_less_than_ten_minutes_do_it_all(tmp_path: Path) -> None:
    """As the page on GPUs says; what another call left in the summary stays there."""
    page = (ROOT / "docs" / "gpu.md").read_text(encoding="utf-8")
    calls = [line.split("--only ")[1] for line in page.splitlines() if line.startswith("python") and "--only" in line]
    parts, minutes = zip(*(call.split(" --minutes ") for call in calls), strict=True)
    assert sorted(" ".join(parts).split()) == sorted(PARTS)
    assert max(map(float, minutes)) <= 8.5  # what runs then has a minute more to end
    assert sum(map(float, minutes)) <= 13
    for name in "ab":
        session([Step(name, 30, ("-c", "print(1)"))], tmp_path, 60, {})
    assert [line[0] for line in (tmp_path / "summary.txt").read_text().splitlines()] == ["a", "b"]


def test_where_no_time_is_left_only_what_shows_the_others_runs(tmp_path: Path) -> None:
    steps = [Step("a", 30, ("-c", "print(1)")), Step("a", 30, ("-c", "print(2)"), brief=True)]
    lines = session(steps, tmp_path, 1, {})
    assert "left out, as no time is left" in lines[0]
    assert "ended with code 0" in lines[1]


@pytest.mark.parametrize("tiny", [False, True])
def test_the_benchmarks_know_what_they_are_asked_for(tiny: bool) -> None:
    parsers = {"benchmarks.step_cost": step_cost.parser(), "benchmarks.feed": feed.parser()}
    asked = [step.words for step in plan(None, tiny=tiny) if step.words[1] in parsers]
    assert len(asked) == (3 if tiny else 6)
    for _, module, *words in asked:
        parsers[module].parse_args(words)


@pytest.mark.parametrize("tiny", [False, True])
def test_the_jobs_are_ones_that_can_be_loaded(tiny: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    (tmp_path / "train").mkdir()
    commands = [step.words[2:] for step in plan(tmp_path, tiny=tiny) if step.words[:2] == ("-m", "dnas")]
    searches = [words for words in commands if words[0] == "search"]
    assert len(searches) == len(commands) / 2 == 1
    for words in searches:
        job = load_job(words[1], [setting for flag, setting in pairwise(words) if flag == "--set"])
        assert job.device == "cuda"
        assert tiny or (len(job.search.budgets) == 4 and job.data.train_limit is None)
    assert CliRunner().invoke(app, ["show", "--help"]).exit_code == 0
    for step in plan(tmp_path, ("proof",), tiny=tiny)[1:]:
        settings = step.words[step.words.index("--set") + 1 :]
        assert load_job(proof.JOB, [*proof.PROOFS["weights"], *settings]).data.train_limit == 50000


def test_at_most_eight_files_come_of_a_session(tmp_path: Path) -> None:
    """Few enough to be taken along wherever results are copied from."""
    (tmp_path / "train.zip").touch()
    steps = plan(tmp_path, wheels=tmp_path)
    assert {step.part for step in steps} == {"environment", *PARTS}
    assert len({step.part for step in steps}) + 1 <= 8
    assert [step.part for step in plan(tmp_path, ("suite",))] == ["environment", "suite"]


def test_wheels_are_of_all_that_is_imported_and_not_there() -> None:
    """Without an index: what is installed here says what it needs."""
    found = gpu_wheels.needed("3.12", ["numpy", "SciPy", "scikit_learn", "hypothesis"])
    assert {"pydantic", "pydantic-core", "annotated-types", "scikit-optimize", "pyaml", "pytest", "pluggy"} < set(found)
    assert not {"torch", "torchvision", "triton", "numpy", "scipy", "scikit-learn", "sortedcontainers"} & set(found)
    assert not {"tomli", "exceptiongroup", "colorama"} & set(found)  # for other Pythons and systems
    assert found["pydantic"] == version("pydantic")
