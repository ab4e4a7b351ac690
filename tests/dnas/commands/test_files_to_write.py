"""Where a command is to write: what cannot be a file is refused before any work."""

from __future__ import annotations

from pathlib import Path

import pytest

from dnas.commands.exporting_bits import check_format
from dnas.commands.options import check_file, check_page
from dnas.export.formats import NET_EXPORTERS
from results.run.folder import Run
from results.tables.export import EXPORTERS
from search_spaces.errors import InputError


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("", "is a folder; name a file in it"),
        ("no/where/net.onnx", "there is no folder .*where to write net.onnx into"),
        ("file/net.onnx", "there is no folder .*file to write net.onnx into"),
        ("n" * 300, "cannot write .*nnn: File name too long; choose another file"),
        ("n" * 300 + "/net.onnx", "cannot write .*net.onnx: File name too long; choose another file"),
        ("link", "is a link"),
    ],
)
def test_what_cannot_be_written_is_told(tmp_path: Path, name: str, sentence: str) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    with pytest.raises(InputError, match=sentence):
        check_file(tmp_path / name)
    check_file(None)
    check_file(tmp_path / "new")


KEPT = ("job.toml", "journal.jsonl", "front.json", "front.csv", "environment.json", "network.json", ".lock")
INSIDE = ("assignments/search-1.json", "assignments/new.json", "checkpoints/warmup.safetensors")


@pytest.mark.parametrize("left", [(), ("job.toml",), ("journal.jsonl",)])
@pytest.mark.parametrize("name", [*KEPT, *INSIDE])
def test_no_file_of_a_run_is_written_over(
    tmp_path: Path, name: str, left: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether the run has it already or not, by whatever path it is named, and where the run has lost a file."""
    Run.create(tmp_path / "digits", "seed = 1\n", {}).close()
    for lost in left:
        (tmp_path / "digits" / lost).unlink()
    monkeypatch.chdir(tmp_path / "digits")
    for path in (tmp_path / "digits" / name, Path(name), Path("..", "digits", name)):
        with pytest.raises(InputError, match=f"{name} is a file that the run digits keeps itself; name another file"):
            check_file(path)


@pytest.mark.parametrize("name", ["report.html", "search-1.onnx", "search-1.json", "assignments/table.csv"])
def test_other_files_may_lie_in_a_run(tmp_path: Path, name: str) -> None:
    Run.create(tmp_path / "digits", "seed = 1\n", {}).close()
    check_file(tmp_path / "digits" / name)
    (tmp_path / "mine/assignments").mkdir(parents=True)
    (tmp_path / "mine/job.toml").write_text("seed = 1\n")  # as where the user's jobs lie
    for kept in (*KEPT, *INSIDE[:1]):
        check_file(tmp_path / "mine" / kept)


@pytest.mark.parametrize(
    ("name", "format", "sentence"),
    [
        (
            "net.onnx",
            "json",
            "for a file of the format 'json'; end it in .json, or give --format onnx or qonnx",
        ),
        ("net.json", "packed", "end it in .safetensors or .dnas, or give --format json or torchao or aimet"),
        ("net.PNG", "csv", "no name for a file of the format 'csv'; end it in .csv$"),
        ("net.dnas", "pt2e", r"end it in \.pt2, or give --format packed"),
    ],
)
def test_a_file_of_one_format_is_not_called_as_one_of_another(name: str, format: str, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        check_format(Path(name), format)


@pytest.mark.parametrize("format", [*EXPORTERS, *NET_EXPORTERS])
def test_every_format_has_an_ending_of_its_own_and_takes_those_that_say_nothing(format: str) -> None:
    with pytest.raises(InputError, match=f"'{format}'; end it in ") as refused:
        check_format(Path("net.html"), format)
    own = str(refused.value).split("end it in ")[1].split(",")[0].split(" or ")
    for name in (*(f"net{suffix}" for suffix in own), "net", "net.txt", "search-0.5"):
        check_format(Path(name), format)
    check_format(Path("net.html"), "dnas.export.save:save_packed")  # a format of one's own says nothing of names


@pytest.mark.parametrize("name", ["page", "page.txt", "page.json", "page.png"])
def test_a_page_is_called_as_one(name: str) -> None:
    with pytest.raises(InputError, match=rf"cannot write a page as {name}: the suffix '.*' is none of \.html, \.htm"):
        check_page(Path(name))
    check_page(Path("page.HTML"))
    check_page(None)
