"""Where a command is to write: what cannot be a file is refused before any work."""

from __future__ import annotations

from pathlib import Path

import pytest

from dnas.commands.options import check_file
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
