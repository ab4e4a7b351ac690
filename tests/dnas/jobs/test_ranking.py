"""`dnas rank`: worked out once, kept in the run, gone on with, and refused before any training."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from dnas.commands.cli import app
from dnas.config.file import dump_job
from dnas.config.job import JobConfig
from dnas.jobs import ranking
from dnas.jobs.rank_requests import RankRequest
from dnas.jobs.ranking import rank_run
from dnas.search.ranking import rank_correlation
from results.events import Note
from results.ranking import Correlation, Ranked, Ranking
from results.run.folder import Run
from search_spaces.errors import InputError
from search_spaces.metrics import ACCURACY

MakeJob = Callable[..., JobConfig]


@pytest.fixture(scope="module")
def finished(smaller: MakeJob, carried_out: Callable[..., Run], tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Of a network whose budget has more than a few assignments."""
    return carried_out(smaller("model.arguments={width=4}"), tmp_path_factory.mktemp("ranked") / "run")


@pytest.fixture
def run_of(finished: Run, tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    shutil.copytree(finished.folder, folder)
    return folder


def ranked(folder: Path, told: list[str] | None = None, **asked: Any) -> Ranking:
    with Run.open(folder, write=True) as run:
        return rank_run(run, RankRequest(**{"assignments": 6, **asked}), (told if told is not None else []).append)


@pytest.mark.whole
def test_a_ranking_is_gone_on_with_and_kept(run_of: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = ranked(run_of)
    assert Run.open(run_of).ranking() == whole
    assert Ranking.read(json.loads(json.dumps(whole.to_json()))) == whole
    losses = [row.loss for row in whole.assignments if row.loss is not None]
    scores = [row.score for row in whole.assignments if row.score is not None]
    assert whole.correlation is not None
    assert whole.correlation.to_json() == rank_correlation(losses, scores)
    assert all(row.cost["size_bytes"] <= whole.limits["size_bytes"] for row in whole.assignments)

    (run_of / "ranking.json").unlink()
    monkeypatch.setattr(ranking, "_row_text", killed_at(3))
    with pytest.raises(KeyboardInterrupt):
        ranked(run_of)
    kept = Run.open(run_of).ranking()
    assert kept is not None
    assert len(kept.done) == 3
    monkeypatch.setattr(ranking, "_row_text", lambda found, place: "")
    told: list[str] = []
    assert ranked(run_of, told) == whole
    assert [text.split(":")[0] for text in told] == ["4 of 6", "5 of 6", "6 of 6"]
    told.clear()
    assert ranked(run_of, told) == whole
    assert told == []
    assert ranked(run_of, told, assignments=7).assignments[:6] == whole.assignments
    assert len(told) == 1


def killed_at(count: int) -> Callable[[Ranking, int], str]:
    def tell(found: Ranking, place: int) -> str:
        if len(found.done) == count:
            raise KeyboardInterrupt
        return ""

    return tell


@pytest.mark.whole
def test_another_question_or_a_damaged_file_is_worked_out_anew(run_of: Path) -> None:
    whole, told = ranked(run_of, assignments=5), list[str]()
    path = run_of / "ranking.json"
    for damage in ("{", path.read_text().replace('"images": ', '"images":  1')):
        path.write_text(damage)
        with pytest.raises(InputError, match=r"ranking.json"):
            Run.open(run_of).ranking()
        told.clear()
        assert ranked(run_of, told, assignments=5) == whole
        assert len(told) == 5
    for asked in ({"epochs": 0}, {"budget": {"size_bytes": "22%"}}):
        told.clear()
        other = ranked(run_of, told, assignments=5, **asked)
        assert len(told) == 5
        assert (other.epochs, other.limits) != (whole.epochs, whole.limits)


@pytest.mark.whole
def test_the_command_shows_and_the_run_tells_what_is_known(run_of: Path) -> None:
    result = CliRunner().invoke(app, ["rank", str(run_of), "--assignments", "5", "--epochs", "0"])
    assert result.exit_code == 0, result.output
    known = Run.open(run_of).ranking()
    assert known is not None
    assert known.told in result.stdout
    assert [line.split()[0] for line in result.stderr.splitlines()] == list("12345")
    lines = result.stdout.splitlines()
    assert lines[0].split()[:2] == ["size_bytes", "loss"]
    assert len(lines) == 8
    shown = CliRunner().invoke(app, ["show", str(run_of)])
    assert known.told in shown.stdout
    (run_of / "ranking.json").write_text("{")
    damaged = CliRunner().invoke(app, ["show", str(run_of)])
    assert (damaged.exit_code, known.told in damaged.stdout) == (0, False)
    assert f"dnas rank {run_of}" in damaged.stderr
    again = CliRunner().invoke(app, ["rank", str(run_of), "--assignments", "5", "--epochs", "0", "--json"])
    assert Ranking.read(json.loads(again.stdout)) == known


@pytest.mark.whole
def test_a_search_that_follows_tells_it_in_its_diagnosis(
    smaller: MakeJob, run_of: Path, tmp_path: Path, carried_out: Callable[..., Run]
) -> None:
    found = ranked(run_of, assignments=5)
    config = smaller()
    with Run.create(tmp_path / "again", dump_job(config), {}) as run:
        run.save_ranking(found)
    shutil.copy(tmp_path / "again" / "ranking.json", tmp_path / "ranking.json")
    shutil.rmtree(tmp_path / "again")

    def keep(event: Any) -> None:
        if event["event"] == "stage":
            shutil.copy(tmp_path / "ranking.json", tmp_path / "again" / "ranking.json")

    run = carried_out(config, tmp_path / "again", keep)
    notes = [event.text for event in run.journal.events() if isinstance(event, Note)]
    assert f"search-1: {found.told}" in notes


@pytest.mark.whole
@pytest.mark.parametrize(
    "settings",
    [
        pytest.param(["search.engine=branches", "space.weight_bits=[2,8]"], id="branches", marks=pytest.mark.slow),
        pytest.param(["search.warmup=sandwich", "finetune.start=supernet"], id="sandwich"),
        pytest.param(["search.warmup_epochs=0", "finetune.start=fresh"], id="not warmed up", marks=pytest.mark.slow),
        pytest.param(["space.weight_bits=[0,2,4,8]", "space.granularity=block"], id="skipping", marks=pytest.mark.slow),
        pytest.param(["search.loss=log_product", "search.budgets=[]"], id="no budgets"),
    ],
)
def test_every_kind_of_supernet_is_ranked(
    settings: list[str], smaller: MakeJob, tmp_path: Path, carried_out: Callable[..., Run]
) -> None:
    run = carried_out(smaller("model.arguments={width=4}", *settings), tmp_path / "run")
    if settings[-1] == "search.budgets=[]":
        with pytest.raises(
            InputError, match=r"the job has no budgets, not 1; name a number or an amount, as in --budget"
        ):
            ranked(run.folder)
    found = ranked(run.folder, assignments=5, epochs=0, budget={"bitops": "3%"})
    assert [row.finetuned for row in found.assignments] == [True] * 5
    assert found.correlation is not None


def told_of(tau: float | None, low: float | None = None, high: float | None = None) -> str:
    rows = [Ranked(bits={}, cost={}, loss=1.0, score=0.5, finetuned=True)] * 5
    return Ranking(
        supernet="", budget="12%", limits={}, images=1, epochs=1, metric=ACCURACY.to_json(), assignments=tuple(rows),
        correlation=Correlation(tau=tau, error=None if tau is None else 0.1, low=low, high=high, chance=None),
    ).told  # fmt: skip


def test_a_ranking_is_told_as_sure_as_it_is() -> None:
    where = r"(5 assignments within 12%, 1 epoch of fine-tuning each)"
    assert told_of(0.5, 0.2, 0.7).endswith(f"τ = 0.50 ± 0.10, 95% interval 0.20 to 0.70 {where}")
    assert told_of(0.1, -0.2, 0.4).endswith(f"{where}; it may be chance")
    assert told_of(-0.5, -0.7, -0.2).endswith(f"{where}; it ranks them the wrong way round")
    assert "cannot be told" in told_of(None)


REFUSED: list[tuple[list[str], str]] = [
    (["--assignments", "4"], "4 assignments tell nothing of a ranking; ask for 5 or more"),
    (["--epochs", "-1"], "epochs = -1 of fine-tuning is below 0"),
    (["--budget", "2"], "the job has the budgets 1 to 1, not 2"),
    (["--budget", "0"], "the job has the budgets 1 to 1, not 0"),
    (["--budget", "12%"], "--budget 12% is not of the form COST=AMOUNT"),
    (["--budget", "size_bytes=1%"], "the least possible is"),
    (["--budget", "sise_bytes=12%"], "unknown cost 'sise_bytes'"),
    (
        ["--budget", "size_bytes=100%"],
        "size_bytes 100% allows 1 assignment that spends it, not 12; name another budget",
    ),
]


@pytest.mark.parametrize(("words", "sentence"), REFUSED, ids=[" ".join(words) for words, _ in REFUSED])
def test_what_cannot_be_ranked_is_refused_in_a_sentence(run_of: Path, words: list[str], sentence: str) -> None:
    result = CliRunner().invoke(app, ["rank", str(run_of), *words])
    assert result.exit_code == 2
    assert sentence in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert not (run_of / "ranking.json").exists()


def test_a_run_without_a_warm_supernet_is_refused(run_of: Path, smaller: MakeJob, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["rank", str(tmp_path / "none")])
    assert (result.exit_code, "there is no run" in result.stderr) == (2, True)
    (run_of / "checkpoints" / "warmup.safetensors").unlink()
    with pytest.raises(InputError, match=r"has not warmed its supernet up; go on with: dnas resume"):
        ranked(run_of)
    for settings in (
        ["prune.enabled=true", "pipeline=['prune','search']"],
        ["compression=switchable", "finalise.profiles=['w4a4','w2a2']"],
    ):
        folder = tmp_path / settings[0]
        Run.create(folder, dump_job(smaller(*settings)), {}).close()
        with pytest.raises(InputError, match="has no supernet of it to rank by"):
            ranked(folder)
