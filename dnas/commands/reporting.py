"""The command `dnas report`: runs as one HTML file that can be sent."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dnas.commands.terminal import show, show_json
from results.files import write_text
from results.report.page import page
from results.report.runs import report_json
from results.run.folder import Run

REPORT = "report.html"


def report(folders: Sequence[Path], out: Path | None, as_json: bool) -> None:
    """Write the page of these runs: into the folder of one alone, of several into the current one, unless told."""
    runs = [Run.open(folder) for folder in dict.fromkeys(folders)]
    shown = report_json(runs)
    if as_json and out is None:
        show_json(shown)
        return
    path = out or (folders[0] if len(runs) == 1 else Path()) / REPORT
    text = page(shown)
    write_text(path, text)
    size = len(text.encode())
    if as_json:
        show_json({"file": str(path), "bytes": size})
    else:
        show(f"written: {path} ({size / 1e6:.1f} MB; it needs no other file and no network)")
