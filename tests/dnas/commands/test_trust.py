"""A run folder of somebody else makes no command import what it names, wherever it names it, until it is trusted."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from dnas.commands import cli
from dnas.commands.trust import trusting
from dnas.config.file import dump_job, load_job
from dnas.jobs.job import load_network, load_splits
from dnas.jobs.planning import plan_job
from dnas.jobs.stored_nets import stored_switchable
from results.run.folder import Run
from results.run.origin import own_names, unproven
from search_spaces.errors import InputError
from search_spaces.registry import import_callable, importing_only, refuse_fetching

CODE = "import search_spaces.models.zoo as zoo\nprint('ran')\ndef net(**given):\n    return zoo.tiny_resnet(**given)\n"
COMMANDS = [
    ("resume",),
    ("evaluate", "float"),
    ("export", "search-1", "--format", "packed", "--out", "net"),
    ("prune", "--bits", "4"),
    ("finalise",),
    ("rank",),
    ("sensitivity",),
]


@pytest.fixture(autouse=True)
def _with_code_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    Path("own_net.py").write_text(CODE)
    yield
    sys.modules.pop("own_net", None)


def made(source: str = "own_net:net", *settings: str) -> Path:
    job = dump_job(load_job("digits", [f"model.source={source}", "device=cpu", *settings]))
    with Run.create("run", job, {}) as run:
        run.journal.append({"event": "started", "version": 2})
    return run.folder


def from_elsewhere(folder: Path) -> Path:
    """The folder as somebody else has it: under the key of another machine."""
    (folder / ".origin").unlink()
    return folder


def dnas(command: str, *words: str) -> tuple[int, str]:
    result = CliRunner().invoke(cli.app, [command, "run", *words])
    return result.exit_code, result.stderr.strip().rpartition("\n")[2]


@pytest.mark.parametrize("words", COMMANDS)
def test_a_run_from_elsewhere_runs_none_of_its_code(words: tuple[str, ...]) -> None:
    from_elsewhere(made())
    code, told = dnas(*words)
    assert code == 2
    assert "run has no mark (.origin) of having been made on this machine" in told or "no assignment" in told
    assert "own_net" not in sys.modules


def test_a_run_of_ones_own_does_wherever_it_lies(tmp_path: Path) -> None:
    folder = made()
    for place in (folder, Path(shutil.copytree(folder, tmp_path / "copy")), folder.rename(tmp_path / "moved")):
        with trusting(place, False):
            assert callable(import_callable("own_net:net", "model"))


def test_what_is_trusted_once_stays_so() -> None:
    folder = from_elsewhere(made())
    with pytest.raises(InputError, match="add --trust"), trusting(folder, False):
        load_network(load_job(str(folder / "job.toml")))
    for trust in (True, False):
        with trusting(folder, trust):
            load_network(load_job(str(folder / "job.toml")))


def test_a_job_that_was_changed_is_as_one_from_elsewhere() -> None:
    folder = made()
    path = folder / "job.toml"
    path.write_text(path.read_text().partition("\n")[2].replace("own_net:net", "os:system"))
    assert own_names(folder) == set()
    path.write_text("")
    assert own_names(folder) == set()


@pytest.mark.parametrize(
    "mark", ["", "{}", "[]", '{"names": ["os:system"], "mac": "0"}', '{"names": 1, "mac": 2}', "x"]
)
def test_nobody_else_can_write_a_mark(mark: str) -> None:
    folder = made()
    (folder / ".origin").write_text(mark)
    assert own_names(folder) == set()


def test_without_a_key_everything_is_from_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for key in (b"", b"short"):
        (tmp_path / "dnas").mkdir(exist_ok=True)
        (tmp_path / "dnas" / "key").write_bytes(key)
        monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
        assert own_names(made()) == set()
        shutil.rmtree("run")
    monkeypatch.setenv("XDG_STATE_HOME", "/proc/nowhere")
    assert own_names(made()) == set()


@pytest.mark.parametrize("home", ["/proc/nowhere", "/dev/null"])
def test_where_no_key_can_be_kept_it_is_said_so(home: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", home)
    made()
    for words in COMMANDS[:2]:
        code, told = dnas(*words)
        assert (code, "own_net" in sys.modules) == (2, False)
        assert "run was made on this machine by this user cannot be told: the key in" in told
        assert home in told
        assert told.endswith("read it as you would read a script, then add --trust")


def test_a_user_without_a_home_has_no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    monkeypatch.setattr(Path, "expanduser", lambda path: (_ for _ in ()).throw(RuntimeError("no home directory")))
    assert own_names(made()) == set()
    assert "no home directory" in unproven(Path("run"))


def test_a_job_that_was_changed_is_said_to_be_so() -> None:
    folder = made()
    path = folder / "job.toml"
    path.write_text(path.read_text().partition("\n")[2] + "\n")
    assert "was not made on this machine by this user, or its job.toml was changed since" in dnas("resume")[1]


def test_runs_made_at_once_have_one_whole_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    kept, link, seen = tmp_path / "dnas" / "key", os.link, []

    def slow(made: Path, path: Path) -> None:
        seen.append((kept.exists(), made.read_bytes()))
        kept.write_bytes(b"k" * 32)  # another process was faster
        link(made, path)

    monkeypatch.setattr("os.link", slow)
    assert own_names(made()) == {"own_net:net"}
    [(was_there, key)] = seen
    assert (was_there, len(key), kept.read_bytes()) == (False, 32, b"k" * 32)
    assert [path.name for path in kept.parent.iterdir()] == ["key"]


@pytest.mark.parametrize("file", ["job.toml", "journal.jsonl"])
def test_bytes_that_are_no_text_are_told_not_stumbled_over(file: str) -> None:
    folder = made()
    with (folder / file).open("ab") as out:
        out.write(2 * b'# "event": "prune" \xff\n')
    code, told = dnas("resume", "--trust")
    assert (code, str(folder / file) in told) == (2, True), told


@pytest.mark.parametrize(
    "setting",
    [
        "quantizer.weights=own_net:net",
        "quantizer.activations=own_net:net",
        "data.source=own_net:net",
        "data.transforms=['own_net:net']",
        "costs.functions={price='own_net:net'}",
        "task.kind=own_net:net",
        "task.metrics={a={kind='own_net:net'}}",
        "finetune.optimizer=own_net:net",
        "controls.own=['own_net:net']",
    ],
)
def test_every_key_that_names_code_is_refused(setting: str) -> None:
    from_elsewhere(made("zoo:tiny_resnet", setting))
    code, told = dnas("resume")
    assert (code, "own_net" in sys.modules) == (2, False)
    assert "own_net:net" in told
    assert "add --trust" in told


def test_what_is_written_on_the_command_line_is_the_users_own() -> None:
    folder = made("zoo:tiny_resnet")
    with trusting(folder, False, ["criterion='own_net:net'"]):
        assert import_callable("own_net:net", "criterion")
    with trusting(folder, False):  # it was kept, for the resume
        assert import_callable("own_net:net", "criterion")
        with pytest.raises(InputError, match="add --trust"):
            import_callable("os:system", "criterion")  # such as a record that somebody put into the journal


def test_names_in_checkpoints_are_refused_too(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = made("zoo:tiny_resnet")
    with Run.open(folder, write=True) as run:
        values = {"profiles": {}, "quantizer": {"weights": "own_net:net"}, "private_norms": True}
        run.save_checkpoint("net-switchable-1-seed0", {"a": torch.zeros(1)}, values)
    config = load_job(run.job_file())
    network = load_network(config).module
    plan = plan_job(config, network, load_splits(config).input_shape)
    with pytest.raises(InputError), trusting(folder, False):
        stored_switchable(run, network, plan.graph, "switchable-1")
    assert "own_net" not in sys.modules


@pytest.mark.parametrize(
    "arguments", [{"weights": "DEFAULT"}, {"pretrained": True}, {"pretrained_cfg": {"url": "http://x"}}]
)
def test_nothing_is_fetched_for_a_run_from_elsewhere(arguments: dict[str, Any]) -> None:
    refuse_fetching("timm:resnet18", arguments)
    with importing_only({"timm:resnet18"}, "x"):
        refuse_fetching("timm:resnet18", arguments)
    with importing_only(set(), "it is not trusted"):
        refuse_fetching("timm:resnet18", {"pretrained": False, "num_classes": 3})
        with pytest.raises(InputError, match="is to fetch what its argument"):
            refuse_fetching("timm:resnet18", arguments)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (("executor=ray", "ray.address='127.0.0.1:1'"), "to go to a cluster at '127.0.0.1:1', as ray.address says"),
        (("data.source=cifar10", "data.download=true", "data.root=there"), "is to be fetched, as data.download says"),
    ],
)
def test_a_run_from_elsewhere_reaches_no_other_machine(
    settings: tuple[str, ...], told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    reached = []
    monkeypatch.setattr("dnas.data.sources._download", lambda *given: reached.append(given))
    monkeypatch.setattr("dnas.jobs.bench.make_executor", lambda *given, **options: reached.append(given))
    folder = made("zoo:tiny_resnet", *settings)
    for trusted in (False, True):
        folder = folder if trusted else from_elsewhere(folder)
        _, last = dnas("resume", *(["--trust"] if trusted else []))
        assert bool(reached) == trusted
        assert (told in last and last.endswith("add --trust")) != trusted, last


LOOKS = (
    *("show", "show search-1", "show float", "show --json", "status", "switch", "logs", "clean --dry-run"),
    *(f"plot --kind {kind} --out {kind}.svg" for kind in ("front", "bits", "curves")),
    *("compare run", "report --out page.html"),
    *(f"export search-1 --format {format} --out {format}" for format in ("json", "csv")),
)


def test_looking_imports_nothing_and_needs_no_trust(smaller_run: Run) -> None:
    shutil.copytree(smaller_run.folder, "run")
    job = Path("run", "job.toml")
    text = job.read_text().partition("\n")[2]
    for name in ("zoo:tiny_resnet", "digits"):
        assert f'source = "{name}"' in text
        text = text.replace(f'source = "{name}"', 'source = "own_net:net"')
    job.write_text(text)
    for look in LOOKS:
        code, told = dnas(*look.split())
        assert "trust" not in told
        assert "own_net" not in sys.modules, look
        assert code == 0 or "no switchable net" in told, (look, told)
