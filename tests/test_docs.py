"""The documentation does what it says: its code runs, its commands and links exist, its names are all there are."""

from __future__ import annotations

import doctest
import json
import os
import re
import shlex
import shutil
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import typer
from PIL import Image
from sklearn.utils import Bunch
from typer.testing import CliRunner

import bayesopt
import dnas
from dnas.commands.cli import app
from dnas.config.file import job_file_reference, load_job
from dnas.config.job import JobConfig
from dnas.data import sources
from dnas.data.load import load_data
from results.run.folder import Run
from results.run.journal import Journal
from search_spaces.fields import BIT_WIDTHS
from search_spaces.options import read_capability

ROOT = Path(__file__).parent.parent
DIGITS = 300  # of 1,797: what the pages train on
PACKAGES = ("dnas", "search_spaces", "results", "bayesopt")
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]

# The default job, as small as it can be and still leave every file that docs/file-formats.md reads.
SMALL_JOB = (
    "pretrain.epochs=1",
    "search.warmup_epochs=1",
    "search.epochs=1",
    "search.budgets=[{size_bytes='20%'}]",
    "finetune.epochs=1",
    "finetune.seeds=1",
    "controls.uniform=[4]",
    "controls.ilp=false",
    "model.arguments={width=4}",
    "data.train_limit=120",
    "data.test_limit=60",
    "prune.enabled=true",
    "prune.assignments=['search-1']",
    "prune.budgets=[{size_bytes='70%'}]",
    "prune.trials=4",
    "prune.finalists=2",
    "prune.controls=['uniform']",
    "finalise.epochs=1",
)


class Block(NamedTuple):
    page: Path
    line: int
    language: str
    text: str


def blocks(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    found = re.finditer(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [Block(page, text.count("\n", 0, match.start()) + 2, match[1], match[2]) for match in found]


def all_blocks(*languages: str) -> list[object]:
    found = [block for page in PAGES for block in blocks(page) if block.language in languages]
    return [pytest.param(block, id=f"{block.page.name}:{block.line}") for block in found]


def pages_with(language: str) -> list[object]:
    found = [page for page in PAGES if any(block.language == language for block in blocks(page))]
    return [pytest.param(page, id=page.name) for page in found]


def modules_with_examples() -> list[str]:
    paths = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
    shown = [path.relative_to(ROOT) for path in paths if ">>> " in path.read_text(encoding="utf-8")]
    return [".".join(path.with_suffix("").parts).removesuffix(".__init__") for path in shown]


def commands(text: str) -> Iterator[list[str]]:
    """Every ``dnas ...`` of a shell block, without the prompt; lines of output are no commands."""
    prompted = any(line.startswith("$ ") for line in text.splitlines())
    for line in text.replace("\\\n", " ").splitlines():
        if prompted and not line.startswith("$ "):
            continue
        words = shlex.split(line.removeprefix("$ "), comments=True)
        starts = [at for at, word in enumerate(words) if word == "dnas" or word.endswith("/dnas")]
        for at in starts:
            end = next((i for i, word in enumerate(words) if i > at and word in ("&&", "|", ";")), len(words))
            yield words[at + 1 : end]


def links(page: Path) -> Iterator[str]:
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if not re.match(r"[a-z]+:", target):
            yield target


def anchors(page: Path) -> set[str]:
    """Ids of a page's headings, as GitHub makes them."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    titles = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}


@pytest.fixture(scope="module")
def digits_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that the snippets read."""
    folder = tmp_path_factory.mktemp("docs") / "runs" / "digits"
    settings = [part for setting in SMALL_JOB for part in ("--set", setting)]
    result = CliRunner().invoke(app, ["search", "--run", str(folder), "--device", "cpu", *settings])
    assert result.exit_code == 0, result.output
    return folder


@pytest.fixture
def _own_modules_are_forgotten(tmp_path: Path) -> Iterator[None]:
    """Several pages write a ``mine.py``."""
    yield
    for name, module in list(sys.modules.items()):
        if Path(getattr(module, "__file__", None) or "/").is_relative_to(tmp_path):
            del sys.modules[name]


@pytest.mark.whole
@pytest.mark.usefixtures("_own_modules_are_forgotten")
@pytest.mark.parametrize("page", pages_with("python"))
def test_python_blocks_run(
    page: Path, digits_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    digits = sources.load_digits()
    some = Bunch(images=digits.images[:DIGITS], target=digits.target[:DIGITS])
    monkeypatch.setattr(sources, "load_digits", lambda: some)
    shutil.copytree(digits_run, tmp_path / "runs" / "digits")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)  # as for a script there
    names: dict[str, object] = {"__name__": "docs"}
    for block in blocks(page):
        if block.language == "python":
            # Blank lines in front, so that a traceback names the line of the page.
            exec(compile("\n" * (block.line - 1) + block.text, str(page), "exec"), names)
    assert capsys.readouterr().out


@pytest.mark.parametrize("module", modules_with_examples())
def test_examples_in_docstrings_give_what_they_show(module: str) -> None:
    result = doctest.testmod(import_module(module))
    assert result.attempted
    assert not result.failed


@pytest.mark.parametrize("block", all_blocks("toml"))
def test_toml_blocks_are_jobs(block: Block, tmp_path: Path) -> None:
    path = tmp_path / "job.toml"
    path.write_text(block.text, encoding="utf-8")
    assert isinstance(load_job(str(path)), JobConfig)


@cache
def command_line() -> Any:
    """Built once: that takes longer than any block does."""
    return typer.main.get_command(app)


@pytest.mark.parametrize("block", all_blocks("bash", "console"))
def test_commands_exist_with_their_options(block: Block) -> None:
    group = command_line()
    found = list(commands(block.text))
    assert found or "pytest" in block.text, "a shell block without a command"
    for words in found:
        context = group.make_context("dnas", list(words))  # refuses an unknown option
        name, command, rest = group.resolve_command(context, [*words])
        command.make_context(name, rest, parent=context)


@pytest.mark.parametrize("page", [pytest.param(page, id=page.name) for page in PAGES if "`dnas " in page.read_text()])
def test_commands_within_sentences_exist_with_their_options(page: Path) -> None:
    group = command_line()
    for text in re.findall(r"`dnas ([a-z][^`]*)`", page.read_text(encoding="utf-8")):
        name, *words = shlex.split(text)
        command = group.commands[name]  # type: ignore[attr-defined]
        known = {option for parameter in command.params for option in parameter.opts} | {"--help"}
        assert {word.partition("=")[0] for word in words if word.startswith("--")} <= known, text


def test_the_table_of_the_readme_has_every_command_and_width() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    [row] = re.findall(r"^\| commands \| (.*)$", text, re.MULTILINE)
    group = command_line()
    assert set(re.findall(r"`([a-z-]+)`", row)) - {"dnas"} == set(group.commands)  # type: ignore[attr-defined]
    assert "| choices | 0 (skip a residual branch), 1–8, 16, 32 bits," in text
    assert set(BIT_WIDTHS) | {0} == {0, *range(1, 9), 16, 32}
    python = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["requires-python"]
    assert f"Python {python.replace('>=', '≥ ')}" in text


def test_extras_that_pages_name_can_be_installed() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    named = {extra for page in PAGES for extra in re.findall(r"dnas\[([a-z0-9-]+)\]", page.read_text(encoding="utf-8"))}
    assert named
    assert named <= set(project["optional-dependencies"])


@pytest.mark.parametrize("page", [pytest.param(page, id=page.name) for page in PAGES if [*links(page)]])
def test_links_resolve(page: Path) -> None:
    for target in links(page):
        path, _, anchor = target.partition("#")
        linked = (page.parent / path).resolve() if path else page
        assert linked.exists(), f"{page.name} links to {target}, which is not there"
        assert linked.is_relative_to(ROOT), f"{page.name} links to {target}, which is outside"
        if anchor:
            assert anchor in anchors(linked), f"{linked.name} has no heading '#{anchor}'"


def test_every_page_is_in_the_index_of_the_site() -> None:
    docs = ROOT / "docs"
    index = (docs / "index.md").read_text(encoding="utf-8")
    listed = [line for part in re.findall(r"```{toctree}(.*?)```", index, re.DOTALL) for line in part.split()]
    pages = [page.relative_to(docs).with_suffix("").as_posix() for page in docs.rglob("*.md")]
    assert {each for each in listed if not each.startswith(":")} >= {*pages} - {"index"}


def test_the_page_of_names_is_complete() -> None:
    text = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (`.+?) \|", text[text.index("## Names") :], re.MULTILINE)
    told = [name for row in rows for name in re.findall(r"`(\w+)", row)]
    assert sorted(set(told)) == sorted({*dnas.__all__, *bayesopt.__all__})


@pytest.mark.parametrize("side", [64, 96])
def test_a_file_is_read_by_the_pages_recipe_as_by_a_job(side: int, tmp_path: Path) -> None:
    pixels = torch.randint(0, 256, (125, 181, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    for name in ("train/a/0.png", "train/a/1.png", "train/b/0.png", "train/b/1.png", "test/a/0.png", "test/b/0.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.numpy()).save(tmp_path / name)
    data = load_data("imagefolder", root=tmp_path, image_size=side, validation_fraction=0.5).test
    [recipe] = [block.text for page in PAGES for block in blocks(page) if "def pixels_of(" in block.text]
    names: dict[str, Any] = {}
    exec(recipe, names)
    read = names["pixels_of"](tmp_path / "test/a/0.png", side)
    mean, std = (torch.tensor(getattr(data, key))[:, None, None] for key in ("mean", "std"))
    images, _ = next(data.batches(1))
    assert torch.allclose((read - mean) / std, images[0], atol=1e-6)


def test_the_job_file_page_is_generated_anew() -> None:
    assert (ROOT / "docs" / "job-file.md").read_text(encoding="utf-8") == job_file_reference()


def test_the_readme_holds_the_tests_command_that_ci_extracts() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    found = re.search(r"^<!-- tests -->\n```bash\n(.+pytest.*)\n```$", text, re.MULTILINE)
    assert found
    assert found[1].startswith("python3 -m venv .venv && .venv/bin/pip install -e '.[test]'")


@pytest.mark.whole
def test_every_event_of_a_run_is_told_with_its_keys(digits_run: Path) -> None:
    page = (ROOT / "docs" / "file-formats.md").read_text(encoding="utf-8")
    part = page[page.index("## journal.jsonl") : page.index("## assignments")]
    told = set(re.findall(r"`(\w+)`", part))
    for record in Journal(digits_run / "journal.jsonl", read_only=True).records():
        trial = record.get("trial", {})
        assert {record["event"], *record, *trial, *trial.get("proposal", ())} <= told, record


@pytest.mark.whole
def test_every_key_of_an_assignment_and_of_the_front_is_told(digits_run: Path) -> None:
    page = (ROOT / "docs" / "file-formats.md").read_text(encoding="utf-8")
    front = json.loads((digits_run / "front.json").read_text())
    for name in ("search-1", "search-1-pruned-1"):
        assignment = Run.open(digits_run).assignment(name).to_json()
        entry = next(iter(assignment["layers"].values()))
        for key in (*assignment, *assignment["model"], *entry, *assignment["provenance"], *front, *front["points"][0]):
            assert re.search(rf"\b{key}\b", page), key
    header = (digits_run / "front.csv").read_text().splitlines()[0].split(",")
    assert all(
        re.search(rf"\b{name.removesuffix('_mean').removesuffix('_std')}", page) for name in (*header[:3], *header[-4:])
    )


@pytest.mark.whole
def test_every_file_of_a_run_is_told(digits_run: Path) -> None:
    page = (ROOT / "docs" / "file-formats.md").read_text(encoding="utf-8")
    for path in digits_run.iterdir():
        assert f"`{path.name}" in page, path.name


def test_the_capability_file_shown_can_be_read(tmp_path: Path) -> None:
    [shown] = [block for page in PAGES for block in blocks(page) if block.language == "json" and "pairs" in block.text]
    path = tmp_path / "capability.json"
    path.write_text(shown.text)
    assert read_capability(path)["Linear"] == ((8, 8),)


@pytest.mark.parametrize("page", [pytest.param(page, id=page.name) for page in PAGES])
def test_pages_name_no_path_of_this_machine(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert str(ROOT) + os.sep not in text
    assert not re.search(r"(?<![\w.])/(home|work|tmp|root|Users)/", text)
