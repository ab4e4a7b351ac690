from __future__ import annotations

import importlib.metadata
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner, Result

from dnas.commands import cli, launching, plotting
from dnas.config.job import JobConfig
from dnas.jobs import run as jobs
from results.pareto import Estimate, FloatReference, FrontPoint, ParetoFront
from results.run.folder import Run
from search_spaces.assignments import BitAssignment, LayerBits, ModelReference
from search_spaces.errors import InputError, JobError
from search_spaces.metrics import ACCURACY, Metric

LAYERS = ("conv1", *(f"layer{n}.0.conv{m}" for n in (1, 2, 3) for m in (1, 2)), "linear")
EPOCH = {
    "event": "epoch",
    "stage": "search",
    "run": "search-1",
    "seed": 0,
    "epoch": 1,
    "epochs": 1,
    "loss": 0.5,
    "top1": 0.9,
    "argmax_top1": 0.8,
    "expected": {"size_bytes": 9000.0},
    "budget": {"size_bytes": 8000.0},
    "temperature": 1.0,
    "entropy": 0.5,
    "decision_entropy": {"layer1.0.conv1": 0.5},
    "bits": {"layer1.0.conv1": [4, 4]},
}


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DNAS_TRACEBACK", raising=False)


def dnas(*arguments: str) -> Result:
    return CliRunner().invoke(cli.app, list(arguments))


def refused(*arguments: str, code: int = 2) -> str:
    result = dnas(*arguments)
    assert result.exit_code == code
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    lines = result.stderr.splitlines()
    assert lines
    return lines[-1]


def assignment(name: str, bits: int) -> BitAssignment:
    layers = {layer: LayerBits(bits, bits) for layer in LAYERS}
    return BitAssignment(name, ModelReference("zoo:tiny_resnet", (1, 8, 8)), layers, {"size_bytes": 1000.0 * bits})


def fake_job(config: JobConfig, run: Run, report: Callable[[Any], None], request: Any = None) -> ParetoFront:
    for record in ({"event": "started"}, {"event": "stage", "stage": "search", "state": "start"}, EPOCH):
        run.journal.append(record)
        report(record)
        report({"event": "progress", "stage": "search", "run": "search-1", "fraction": 0.5})
    points = []
    for name, kind, bits in (("search-1", "search", 4), ("uniform-2", "uniform", 2), ("uniform-8", "uniform", 8)):
        run.save_assignment(assignment(name, bits))
        points.append(FrontPoint(name, kind, 1000.0 * bits, 1e6 * bits, 1e5, Estimate(0.9 + bits / 100, 0.01, 2)))
    front = ParetoFront.from_points(points, reference=FloatReference(32000.0, 0.99))
    run.save_front(front)
    run.picture_path.write_bytes(b"a picture")
    run.journal.append({"event": "finished"})
    return front


@pytest.fixture
def finished(monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(jobs, "run_job", fake_job)
    result = dnas("search", "--seed", "7", "--device", "cpu", "--set", "search.epochs=1")
    assert result.exit_code == 0, result.output
    return Path("runs/digits")


def raising(error: BaseException) -> Callable[..., Any]:
    def run_job(config: JobConfig, run: Run, report: Callable[[Any], None], request: Any = None) -> ParetoFront:
        raise error

    return run_job


def test_help_does_not_wait_for_heavy_imports() -> None:
    code = (
        "import sys, dnas, dnas.commands.cli\n"
        "sys.argv = ['dnas', '--help']\n"
        "try:\n    dnas.commands.cli.main()\nexcept SystemExit as error:\n    assert not error.code\n"
        "print([name for name in ('torch', 'pydantic', 'matplotlib', 'numpy') if name in sys.modules])"
    )
    root = str(Path(cli.__file__).parents[1])
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": root}, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"
    for command_name in (
        "init",
        "presets",
        "doctor",
        "search",
        "resume",
        "status",
        "show",
        "plot",
        "export",
        "evaluate",
    ):
        assert command_name in done.stdout


def plain_words(text: str) -> str:
    return " ".join(re.sub(r"[│╭╮╰╯─\n]", " ", text).split())


@pytest.mark.parametrize("name", sorted(typer.main.get_command(cli.app).commands))  # type: ignore[attr-defined]
def test_help_shows_every_word_that_was_written(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "500")
    command = typer.main.get_command(cli.app).commands[name]  # type: ignore[attr-defined]
    shown = plain_words(dnas(name, "--help").stdout)
    for text in [command.help, *(getattr(parameter, "help", None) for parameter in command.params)]:
        assert text is None or plain_words(text) in shown


def whole_words(text: str) -> set[str]:
    return set(plain_words(text).replace(",", " ").split())


@pytest.mark.parametrize("columns", [40, 60, 79, 80, 100])
def test_help_cuts_no_word_in_a_narrow_terminal(columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    app: Any = typer.main.get_command(cli.app)
    for name, command in {"": app, **app.commands}.items():
        shown = dnas(*[name] if name else [], "--help").stdout
        texts = [command.help, command.epilog, *(o for each in command.params for o in each.opts if o.startswith("-"))]
        texts += [getattr(each, "help", None) for each in command.params]
        texts += [] if name else [text for own, each in app.commands.items() for text in (own, each.help)]
        for text in filter(None, texts):
            assert whole_words(text) <= whole_words(shown), (name, text)
        assert all(len(line) <= columns or len(line.split()) == 1 for line in shown.splitlines())


def test_version_and_what_the_environment_can_ask_for() -> None:
    assert dnas("--version").stdout == f"dnas {importlib.metadata.version('dnas')}\n"
    shown = plain_words(dnas("--help").stdout)
    assert "Exit codes: 0 done, 2 wrong input, 1 failure, 130 or 143 interrupted" in shown
    assert "DNAS_TRACEBACK=1" in shown


def test_public_names_are_there() -> None:
    import dnas as package

    for name in package.__all__:
        assert getattr(package, name) is not None
        assert name in dir(package)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = package.nothing


def test_init_writes_a_job_that_can_be_searched(tmp_path: Path) -> None:
    assert dnas("init", "mine.toml").exit_code == 0
    assert "exists already" in refused("init", "mine.toml")
    assert "no folder" in refused("init", "nowhere/mine.toml")
    assert "'digits' is the name of a preset, and dnas search takes that" in refused("init", "digits")
    assert not Path("digits").exists()
    assert dnas("doctor", "--job", "mine.toml").exit_code == 0


def test_presets_are_listed() -> None:
    names = json.loads(dnas("presets", "--json").stdout)
    assert next(iter(names)) == "digits"
    shown = dnas("presets").stdout
    assert all(name in shown and description in shown for name, description in names.items())


def test_search_creates_a_run_and_shows_its_front(finished: Path) -> None:
    job = (finished / "job.toml").read_text()
    for line in ("seed = 7", 'device = "cpu"', "epochs = 1"):
        assert line in job
    result = dnas("resume", "digits")
    assert result.exit_code == 0
    assert "is finished" in result.stderr
    for part in ("uniform-2", "assignment", "take ", "all that was measured", "dnas show runs/digits"):
        assert part in result.stdout


def test_search_prints_json_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "run_job", fake_job)
    result = dnas("search", "--run", "here", "--json")
    data = json.loads(result.stdout)
    assert data["run"] == "here"
    assert len(data["front"]["points"]) == 3
    assert data["verdicts"]
    assert "search search-1: epoch 1/1" in result.stderr


def test_a_second_search_is_refused(finished: Path) -> None:
    assert "dnas resume runs/digits" in refused("search")
    assert "unknown" not in refused("search", "--set", "search.epoch=3")


def test_a_job_refused_at_once_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "run_job", raising(InputError("out of reach")))
    assert refused("search") == "error: out of reach"
    assert not Path("runs/digits").exists()
    Path("mine").mkdir()
    refused("search", "--run", "mine")
    assert list(Path("mine").iterdir()) == []


@pytest.mark.parametrize(
    ("error", "code", "sentence"),
    [
        (JobError("the loss is NaN"), 1, r"error: the loss is NaN \(run it again with DNAS_TRACEBACK=1.*"),
        (ZeroDivisionError("by\nzero"), 1, r"error: ZeroDivisionError: by zero \(run it again.*"),
        (KeyboardInterrupt(), 130, "interrupted; go on with: dnas resume runs/digits"),
    ],
)
def test_how_a_job_ends(error: BaseException, code: int, sentence: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "run_job", raising(error))
    assert re.fullmatch(sentence, refused("search", code=code))
    assert Path("runs/digits/job.toml").exists()
    monkeypatch.setattr(jobs, "run_job", fake_job)
    assert dnas("resume", "digits").exit_code == 0


def test_a_traceback_is_shown_on_request(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DNAS_TRACEBACK", "1")
    result = dnas("show", "nothing")
    assert result.exit_code == 2
    assert "Traceback" in result.stderr


@pytest.mark.whole
def test_a_closed_pipe_is_quiet() -> None:
    root = str(Path(cli.__file__).parents[1])
    script = f"{sys.executable} -m dnas.commands.cli presets | true; exit ${{PIPESTATUS[0]}}"
    environment = {**os.environ, "PYTHONPATH": root}
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, env=environment, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_status_tells_of_all_runs(finished: Path) -> None:
    assert "finished" in dnas("status").stdout
    rows = json.loads(dnas("status", "--json", "digits").stdout)
    assert [(row["run"], row["state"], row["epoch"]) for row in rows] == [("runs/digits", "finished", 1)]
    assert "did you mean 'digits'?" in refused("status", "digit")


def test_status_without_a_run() -> None:
    result = dnas("status")
    assert (result.exit_code, result.stdout) == (0, "")
    assert "there is no run in runs" in result.stderr
    assert json.loads(dnas("status", "--json").stdout) == []


def test_show_a_run_and_an_assignment(finished: Path) -> None:
    shown = dnas("show", "digits").stdout
    assert "bits (weights/inputs)" in shown
    assert "4/4" in shown
    assert len(json.loads(dnas("show", str(finished), "--json").stdout)["front"]["points"]) == 3
    shown = dnas("show", "digits", "search").stdout
    assert all(layer in shown for layer in LAYERS)
    assert "in all: size_bytes" in shown
    data = json.loads(dnas("show", "digits", "search-1", "--json").stdout)
    assert data["layers"]["conv1"]["weight_bits"] == 4
    # 36 weights of 4 bits, their scale and that of the input, and a folded BatchNorm of 4 channels.
    assert data["layer_costs"]["conv1"]["size_bytes"] == 4 * 5 + 4 + 4 + 32  # four planes of 36 bits, each 5 bytes


def test_an_assignment_is_shown_where_its_network_is_gone(finished: Path) -> None:
    job = finished / "job.toml"
    job.write_text(job.read_text().partition("\n")[2].replace("zoo:tiny_resnet", "zoo:gone"))
    result = dnas("show", "digits", "search-1")
    assert result.exit_code == 0
    assert "layer1.0.conv1" in result.stdout
    assert "costs of single layers are not shown" in result.stderr


@pytest.mark.parametrize("old", ['source = "zoo:tiny_resnet"', "functions = {}"])
def test_what_only_looks_runs_no_code_of_a_job(old: str, finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("own_code.py").write_text("raise SystemExit('ran')")
    job = finished / "job.toml"
    text = job.read_text().partition("\n")[2]
    new = {"source": 'source = "own_code:net"'}.get(old[:6], 'functions = {price = "own_code:price"}')
    assert old in text or "[costs]" in text
    job.write_text(text.replace(old, new) if old in text else text.replace("[costs]", f"[costs]\n{new}"))
    assert "own_code" in job.read_text()
    commands = [("show", "digits"), ("show", "digits", "search-1"), ("status",), ("plot", "digits", "--kind", "front")]
    commands += [("export", "digits", "search-1", "--format", kind, "--out", kind) for kind in ("json", "csv")]
    for words in commands:
        result = dnas(*words)
        assert (result.exit_code, "ran" in result.stderr) == (0, False), result.stderr
    assert "own_code" not in sys.modules


def test_the_times_of_a_run_are_those_of_its_own_images(finished: Path) -> None:
    told = refused("bench-latency", "digits", "--runtime", "torch", "--input-shape", "1,9,9")
    assert "--input-shape 1,9,9: the nets of runs/digits take inputs of (1, 8, 8); leave it out" in told


def test_a_plot_over_an_unknown_cost_is_refused(finished: Path) -> None:
    assert "has no cost 'latency'" in refused("plot", "digits", "--x", "latency")


@pytest.mark.whole
def test_plots_are_written(finished: Path) -> None:
    files = json.loads(dnas("plot", "digits", "--json").stdout)["files"]
    assert files == [f"runs/digits/{name}.png" for name in ("front", "bits", "curves-search-1")]
    assert dnas("plot", "digits", "--kind", "front", "--x", "bitops", "--out", "f.svg").exit_code == 0
    assert all(Path(file).stat().st_size for file in (*files, "f.svg"))
    again = json.loads(dnas("plot", "digits", "--out", "curves.png", "--json").stdout)["files"]
    assert again == ["curves.png", "curves-bits.png", "curves-search-1.png"]
    assert "did you mean 'bitops'?" in refused("plot", "digits", "--kind", "front", "--x", "bitop")
    assert ".png, .svg, .pdf" in refused("plot", "digits", "--out", "front.doc")
    assert "no folder" in refused("plot", "digits", "--out", "nowhere/front.png")
    assert "cannot draw c.doc" in refused("compare", "digits", "other", "--out", "c.doc")


@pytest.mark.whole
def test_pictures_for_print_and_their_numbers_leave_the_files_of_the_run_alone(finished: Path) -> None:
    before = Path("runs/digits/front.csv").read_bytes()
    files = json.loads(dnas("plot", "digits", "--style", "paper", "--data", "--json").stdout)["files"]
    names = ("front", "bits", "curves-search-1")
    assert files == [f"runs/digits/{name}{suffix}" for suffix in (".pdf", ".data.csv") for name in names]
    assert all(Path(file).stat().st_size for file in files)
    assert Path("runs/digits/front.csv").read_bytes() == before


def test_a_run_that_cannot_be_written_to_is_drawn_here(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert json.loads(dnas("plot", "digits", "--kind", "front", "--json").stdout)["files"] == ["front.png"]
    assert Path("front.png").stat().st_size


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("show", "a\nb"), "there is no run at runs/a\N{REPLACEMENT CHARACTER}b"),
        (("status", "лод"), "there is no run at runs/лод"),
        (("resume", ""), "'' is no name of a run"),
        (("search", "--device", ""), "device"),
        (("search", "folder"), "it is a folder; name a file"),
        (("doctor", "--job", "folder"), "it is a folder; name a file"),
        (("search", "--set", "model.checkpoint='folder'"), "it is a folder; name a file"),
        (("search", "--set", "space.capability='folder'"), "it is a folder; name a file"),
        (("search", "--set", "costs.latency_table='folder'"), "it is a folder; name a file"),
        (("search", "--run", "file"), "file is a file; choose another folder with --run"),
        (("search", "--run", "x" * 300), "cannot hold a run: File name too long"),
        (("doctor", "zoo:tiny_resnet", "--input-shape", "1,99999999,99999999"), "does not fit into memory"),
        (("doctor", "zoo:tiny_resnet", "--input-shape", f"1,{2**64},1"), "does not fit into memory"),
        (("prune", "digits", "--bits", "-1"), "there is no run"),
        (
            ("doctor", "--job", "digits", "--budget", "macs=5%, macs=4%"),
            "limits macs twice; give one amount for each cost",
        ),
        (("init", "x" * 300), "File name too long; choose another file"),
        (("sensitivity", "--job", "digits", "--out", "s.txt"), "the suffix '.txt' is none of"),
    ],
)
def test_odd_input_is_one_sentence(words: tuple[str, ...], told: str) -> None:
    Path("folder").mkdir()
    Path("file").write_text("")
    assert told in refused(*words)
    assert not Path("runs/digits").exists()


def test_pictures_beside_one_another_say_their_kind_once(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plotting, "save_figure", lambda figure, path, style: path.touch())
    monkeypatch.setattr(plotting, "draw_search_curves", lambda course, style: None)  # what is drawn is tested elsewhere
    with Run.open(finished, write=True) as run:
        for search in ("search-2", "search-3"):
            run.journal.append({**EPOCH, "run": search})
    for kind, out, names in (
        ("curves", "curves.png", ["curves", "curves-search-2", "curves-search-3"]),
        ("curves", "mine.png", ["mine", "mine-search-2", "mine-search-3"]),
        ("all", "front.png", ["front", "front-bits", *(f"front-curves-search-{n}" for n in (1, 2, 3))]),
    ):
        files = json.loads(dnas("plot", "digits", "--kind", kind, "--out", out, "--json").stdout)["files"]
        assert files == [f"{name}.png" for name in names]
        assert all(Path(file).exists() for file in files)


def test_the_float_network_is_shown_as_the_front_has_it(finished: Path) -> None:
    row = json.loads(dnas("show", "digits", "float", "--json").stdout)
    assert (row["id"], row["size_kib"], row["val_top1"], row["test_top1"]) == ("float", 31.25, 0.99, None)
    shown = dnas("show", "digits", "float").stdout
    assert [line.split() for line in shown.splitlines()][1][:4] == ["float", "float", "31.25", "1.0x"]
    assert shown.splitlines()[-1] == "in all: size_bytes 31.25 KiB"
    with Run.open(finished, write=True) as run:
        run.save_front(replace(run.load_front(), reference=None))
    assert "measure it with: dnas evaluate runs/digits float" in refused("show", "digits", "float")
    (finished / "front.json").unlink()
    assert "front.json is gone; write it again with: dnas resume" in refused("show", "digits", "float")


def test_export(finished: Path) -> None:
    assert dnas("export", "digits", "search-1", "--format", "csv", "--out", "a.csv").exit_code == 0
    assert Path("a.csv").read_text().splitlines()[1] == "conv1,4,4,,"
    assert dnas("export", "digits", "search-1", "--out", "a.json").exit_code == 0
    assert BitAssignment.loads(Path("a.json").read_text()) == assignment("search-1", 4)
    assert "unknown format 'xml'" in refused("export", "digits", "search-1", "--format", "xml", "--out", "b")
    assert "is a folder" in refused("export", "digits", "search-1", "--out", "runs")


def test_evaluate(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engines: list[tuple[bool, str | None]] = []

    def measured(
        run: Run, name: str, split: str, report: Callable[[Any], None], packed: bool, device: str | None
    ) -> dict[str, Any]:
        engines.append((packed, device))
        return {
            "assignment": name,
            "split": split,
            "metric": ACCURACY.to_json(),
            "beside": [Metric("f1", unit="%", scale=100).to_json()],
            "top1": {"mean": 0.5, "std": 0.01, "n": 2},
            "f1": {"mean": 0.25, "std": 0.02, "n": 2},
            "images": 360,
        }

    monkeypatch.setattr(launching.jobs, "evaluate_assignment", measured)
    shown = dnas("evaluate", "digits", "search", "--split", "test").stdout
    assert shown == "search-1 on test: 50.00 ± 1.00 % top-1, 25.00 ± 2.00 % f1 (2 seeds, 360 images)\n"
    assert json.loads(dnas("evaluate", "digits", "search", "--json").stdout)["split"] == "val"
    dnas("evaluate", "digits", "search", "--runtime", "packed", "--device", "cpu")
    assert engines == [(False, None), (False, None), (True, "cpu")]
    assert "did you mean 'search-1'?" in refused("evaluate", "digits", "seerch-1")


def test_doctor() -> None:
    result = dnas("doctor", "zoo:tiny_resnet", "--budget", "size_bytes=50%,bitops=50%", "--budget", "size_bytes=1%")
    assert result.exit_code == 2
    for part in ("layer3.0.conv2", "first layer", "can be met", "cannot be met", "Searchable: 6 layers"):
        assert part in result.stdout
    data = json.loads(dnas("doctor", "zoo:tiny_resnet", "--json").stdout)
    assert data["searchable"] is True
    assert "did you mean 'zoo:resnet20'?" in refused("doctor", "resnet20")
    assert "--budget size_bytes is not of the form" in refused("doctor", "zoo:tiny_resnet", "--budget", "size_bytes")
    assert "is not a shape" in refused("doctor", "zoo:tiny_resnet", "--input-shape", "1,8,eight")
    assert "to have 1 channels" in refused("doctor", "zoo:tiny_resnet", "--input-shape", "3,8,8")
    assert "name a MODEL" in refused("doctor")


def test_doctor_fails_where_nothing_can_be_searched() -> None:
    Path("job.toml").write_text('[space]\ninclude = ["conv1"]\n[search]\nbudgets = [{ size_bytes = "50%" }]\n')
    result = dnas("doctor", "--job", "job.toml")
    assert result.exit_code == 2
    assert "Not searchable: all 8 layers are fixed or excluded" in result.stdout


def test_usage_errors_end_with_two() -> None:
    assert dnas("serch").exit_code == 2
    assert dnas("evaluate", "a", "b", "--split", "training").exit_code == 2


@pytest.mark.parametrize("words", [("export", "runs/digits", "search-1", "--out"), ("plot", "digits", "--out")])
def test_what_is_no_regular_file_is_not_written_over(words: tuple[str, ...], finished: Path, tmp_path: Path) -> None:
    precious = tmp_path / "precious.png"
    precious.write_text("precious")
    os.mkfifo("pipe.png")
    Path("link.png").symlink_to(precious)
    Path("loose.png").symlink_to("gone.png")
    for name, what in (("pipe.png", "pipe"), ("link.png", "link"), ("loose.png", "link"), ("/dev/full", "device")):
        assert f"{name} is a {what}" in refused(*words, name)
    assert "loose.png is a link" in refused("init", "loose.png")
    assert precious.read_text() == "precious"
    assert not Path("gone.png").exists()


def test_a_folder_to_write_into_may_be_a_link(finished: Path, tmp_path: Path) -> None:
    Path("linked").symlink_to(tmp_path, target_is_directory=True)
    id = next(iter(Run.open(finished).assignments()))
    assert dnas("export", "digits", id, "--out", "linked/out.json").exit_code == 0
    assert (tmp_path / "out.json").is_file()


def test_keys_of_thousands_of_parts_are_one_sentence() -> None:
    deep = ".".join(["a"] * 5000)
    Path("deep.toml").write_text(f"{deep} = 1\n")
    assert "deep.toml: keys are nested too deeply" in refused("doctor", "--job", "deep.toml")
    assert "nested too deeply" in refused("search", "digits", "--set", f"{deep}=1")
    assert len(refused("show", "x" * 200 + "/" + "y" * 5000)) < 2000


def test_a_long_front_is_shown_in_part(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    whole = Run._read

    def counted(run: Run, path: Path) -> BitAssignment:
        read.append(path.stem)
        return whole(run, path)

    monkeypatch.setattr(Run, "_read", counted)
    with Run.open(finished, write=True) as run:
        kept = run.assignment("search-1")
        front = run.load_front()
        some = front.points[0]
        points = []
        for number in range(100):
            run.save_assignment(replace(kept, id=f"more-{number}"))
            estimate = Estimate(0.001 * number)
            points.append(replace(some, assignment=f"more-{number}", size_bytes=10.0 + number, val=estimate))
        run.save_front(ParetoFront.from_points(points))
    read.clear()
    result = dnas("show", "digits")
    assert "bits of 32 of the 100 assignments on the front" in result.stdout
    assert len(read) == len(set(read)), "each file is read once"
    assert "bits of 32 of the 100" in dnas("plot", "digits", "--kind", "bits").stderr
