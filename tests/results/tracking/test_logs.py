"""TensorBoard's own reader and MLflow's own client read what a run's journal says, whatever kills came between."""

from __future__ import annotations

import json
import shutil
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from dnas.config.file import dump_job, load_job
from results.events import Decoded, Epoch, Event, Finished, Measured, Started
from results.pareto import ParetoFront
from results.pictures.front import draw_fronts, save_figure
from results.run.folder import Run
from results.run.layout import MLFLOW, TENSORBOARD
from results.tracking.scalars import scalars_of
from results.tracking.tracker import open_trackers, tracked
from search_spaces.errors import InputError
from tests.made_runs import made_assignment, made_point

Told = dict[str, list[tuple[int, float]]]
pytestmark = pytest.mark.filterwarnings("ignore")  # of other people's packages

FOUND = made_assignment("search-1", [4, 2, 4, 8], kind="search")
COURSE: tuple[Event, ...] = (
    Started(version=2),
    *(Epoch(stage="search", run="search-1", epoch=n, loss=1 / n, expected={"size_bytes": 10.0 * n}) for n in (1, 2, 3)),
    Decoded(assignment="search-1", kind="search", run="search-1"),
    *(Measured(assignment="search-1", seed=n, val=0.5 + n / 8) for n in (0, 1, 2)),
    Finished(),
)


@pytest.fixture
def begun(tmp_path: Path) -> Run:
    return Run.create(tmp_path / "run", dump_job(load_job("digits", ["name=mine", "seed=7"])), {"python": "3"})


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """MLflow's store in a folder, and its client."""
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "server").as_uri())
    from results.tracking import mlflow_log

    return mlflow_log.MlflowClient()


def happens(run: Run, event: Event) -> dict[str, Any]:
    """What a job does at an event: files first, then the journal."""
    if isinstance(event, Decoded):
        run.save_assignment(FOUND)
    if isinstance(event, Finished):
        front = ParetoFront.from_points([made_point(FOUND, 0.625)])
        run.save_assignment(FOUND.with_metrics(val_top1={"mean": 0.625, "std": 0.1, "n": 3}))
        run.save_front(front)
        save_figure(draw_fronts({"run": front}), run.picture_path)
    run.journal.append(event.to_json())
    return event.to_json()


def goes_on(run: Run, names: Sequence[str], until: int = len(COURSE), copy: Path | None = None) -> list[str]:
    """Carry the course on; ``copy`` is then what a kill would leave. Returns the notes."""
    notes: list[str] = []
    note = lambda record: notes.append(record.get("text", ""))  # noqa: E731
    with tracked(open_trackers(names, run), note) as report:
        for event in COURSE[len(run.journal.records()) : until]:
            report(happens(run, event))
        if copy:
            shutil.copytree(run.folder, copy)
    run.close()
    return [text for text in notes if text]


def expected(run: Run) -> Told:
    found: Told = {}
    for event in run.journal.events():
        for scalar in scalars_of(event):
            found.setdefault(scalar.name, []).append((scalar.step, scalar.value))
    return found


def accumulator(run: Run) -> Any:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    return EventAccumulator(str(run.folder / TENSORBOARD), size_guidance={"scalars": 0, "tensors": 0, "images": 0})


def read_back(reader: Any) -> Told:
    reader.Reload()
    return {name: [(each.step, each.value) for each in reader.Scalars(name)] for name in reader.Tags()["scalars"]}


def near(found: Told, wanted: Told) -> bool:
    assert found.keys() == wanted.keys()
    return all(found[name] == [(n, pytest.approx(value)) for n, value in wanted[name]] for name in wanted)


@pytest.mark.whole
@pytest.mark.parametrize("until", [1, 2, 5, 7, len(COURSE)])
def test_tensorboard_reads_what_the_journal_says_after_a_kill_anywhere(until: int, begun: Run, tmp_path: Path) -> None:
    goes_on(begun, ["tensorboard"], until, tmp_path / "killed")
    run = Run.open(tmp_path / "killed", write=True)
    seen = accumulator(run)
    read_back(seen)
    goes_on(run, ["tensorboard"])
    fresh = accumulator(run)
    assert near(read_back(fresh), expected(run))
    assert near(read_back(seen), expected(run))  # one who has watched since before the kill sees nothing twice
    times = [event.time for event in run.journal.events() if isinstance(event, Epoch)]
    assert [each.wall_time for each in fresh.Scalars("search/search-1/loss")] == pytest.approx(times, abs=1)
    for _ in range(3):
        run = Run.open(run.folder, write=True)
        goes_on(run, ["tensorboard"])
    assert len(list((run.folder / TENSORBOARD).iterdir())) == 2


def test_tensorboard_shows_the_front_and_the_assignments(begun: Run) -> None:
    goes_on(begun, ["tensorboard"])
    reader = accumulator(begun)
    reader.Reload()
    text = {name: reader.Tensors(name)[0].tensor_proto.string_val[0].decode() for name in reader.Tags()["tensors"]}
    assert "| block.first | 2 | 8 | all |" in text["assignments/search-1/text_summary"]
    assert "| search-1 | search |" in text["front/text_summary"]
    [image] = reader.Images("front")
    assert image.encoded_image_string.startswith(b"\x89PNG")
    assert min(image.width, image.height) > 100


@pytest.mark.whole
@pytest.mark.parametrize("until", [1, 3, 7, len(COURSE)])
def test_mlflow_holds_what_the_journal_says_after_a_kill_anywhere(
    until: int, begun: Run, server: Any, tmp_path: Path
) -> None:
    goes_on(begun, ["mlflow"], until, tmp_path / "killed")
    run = Run.open(tmp_path / "killed", write=True)
    goes_on(run, ["mlflow"])
    experiment = server.get_experiment_by_name("mine")
    [found] = server.search_runs([experiment.experiment_id])
    assert (found.info.run_name, found.info.status) == ("run" if until > 1 else "killed", "FINISHED")
    names = found.data.metrics
    history = {name: server.get_metric_history(found.info.run_id, name) for name in names}
    told = {name: [(each.step, each.value) for each in values] for name, values in history.items()}
    assert near(told, expected(run))
    assert (found.data.params["seed"], found.data.params["name"]) == ("7", "mine")
    kept = tmp_path / "kept"
    server.download_artifacts(found.info.run_id, "", str(kept.absolute())) if kept.mkdir() is None else None
    files = {str(path.relative_to(kept)): path.read_bytes() for path in kept.rglob("*") if path.is_file()}
    wanted = ["assignments/search-1.json", "environment.json", "front.csv", "front.json", "front.png", "job.toml"]
    assert sorted(files) == wanted
    assert all(files[name] == (run.folder / name).read_bytes() for name in wanted)
    assert json.loads(files["assignments/search-1.json"])["metrics"]["val_top1"]["mean"] == 0.625


@pytest.mark.whole
def test_a_run_that_a_server_took_in_part_is_found_and_told_the_rest(
    begun: Run, server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*given: Any, **named: Any) -> None:
        raise OSError("the disk of the server is full")

    with monkeypatch.context() as patch:
        patch.setattr("mlflow.tracking.MlflowClient.log_artifact", refuse)
        assert any("is told no more" in text for text in goes_on(begun, ["mlflow"]))
    goes_on(begun, ["mlflow"])
    experiment = server.get_experiment_by_name("mine")
    [found] = server.search_runs([experiment.experiment_id])
    assert found.info.status == "FINISHED"
    assert found.data.params["seed"] == "7"
    assert {each.path for each in server.list_artifacts(found.info.run_id)} >= {"job.toml", "environment.json"}


@pytest.mark.whole
def test_a_job_that_is_refused_leaves_nothing_at_the_server(begun: Run, server: Any) -> None:
    with pytest.raises(InputError), tracked(open_trackers(["mlflow"], begun), lambda record: None):
        raise InputError("the job cannot work")
    assert [experiment.name for experiment in server.search_experiments()] in ([], ["Default"])
    assert not (begun.folder / MLFLOW).exists()


def test_a_server_that_nobody_answers_at_is_told(begun: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{free.getsockname()[1]}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    sentence = rf"^log.mlflow = true: {address} cannot be used \(.*refused.*\); start a server there, or name another"
    with pytest.raises(InputError, match=sentence) as refused:
        open_trackers(["mlflow"], begun)
    assert len(str(refused.value)) < 300


@pytest.mark.parametrize("name", ["tensorboard", "mlflow"])
def test_a_log_whose_extra_is_missing_is_told_with_the_line_that_installs_it(
    name: str, begun: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("results.tracking.tracker.find_spec", lambda asked: None if asked == name else sys)
    sentence = rf"^log.{name} = true needs {name}, which is not installed: pip install 'dnas\[{name}\]'$"
    with pytest.raises(InputError, match=sentence):
        open_trackers([name], begun)


def test_a_log_that_breaks_is_told_once_and_ends_no_job(begun: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from results.tracking.tensorboard_log import TensorboardLog

    def full(*given: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(TensorboardLog, "scalars", full)
        [note] = goes_on(begun, ["tensorboard"])
    assert note.startswith("TensorBoard is told no more (OSError: [Errno 28] No space left on device); dnas resume")
    run = Run.open(begun.folder, write=True)
    goes_on(run, ["tensorboard"])
    assert near(read_back(accumulator(run)), expected(run))


def test_a_link_in_the_place_of_the_folder_is_not_written_through(begun: Run, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (begun.folder / TENSORBOARD).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InputError, match="is a link"):
        open_trackers(["tensorboard"], begun)
    assert not list((tmp_path / "elsewhere").iterdir())
