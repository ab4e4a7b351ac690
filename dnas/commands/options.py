"""What several commands take: the run, common options, and how files to write are checked."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Literal

import typer

from results.files import refuse_special
from results.run.layout import RUNS
from search_spaces.errors import InputError, nearest


class Split(StrEnum):
    """What to measure on."""

    val = "val"
    test = "test"


class Engine(StrEnum):
    """What runs a net."""

    torch = "torch"
    packed = "packed"


FORMATS = ("json", "csv", "packed", "onnx", "qonnx", "pt2e", "torchao", "aimet")
"""What `dnas export` writes, so that its help need not wait for those who do."""


class Look(StrEnum):
    """What a picture is drawn for."""

    screen = "screen"
    paper = "paper"


class Kind(StrEnum):
    """What to draw."""

    front = "front"
    bits = "bits"
    curves = "curves"
    ratios = "ratios"
    trials = "trials"
    all = "all"


RunArgument = Annotated[str, typer.Argument(metavar="RUN", help="A run folder, or its name in runs/.")]
NewRunOption = Annotated[
    str | None, typer.Option("--run", metavar="DIR", help="The run folder to create; runs/NAME by default.")
]
ProcessesOption = Annotated[
    int | None, typer.Option("--nproc-per-node", min=1, metavar="N", help="Train in N processes, on N devices.")
]
WorkersOption = Annotated[
    str | None,
    typer.Option("--workers", metavar="N|auto", help="Carry out so many tasks of the job at once; results stay equal."),
]
ExecutorOption = Annotated[
    Literal["local", "ray", "submitit"] | None,
    typer.Option(
        "--executor", help="Who carries them out: processes of this machine, a Ray cluster, or Slurm's queue."
    ),
]
DeviceOption = Annotated[
    str | None, typer.Option("--device", metavar="auto|cpu|cuda|cuda:1|mps|xpu", help="Where to compute.")
]
TrustOption = Annotated[
    bool, typer.Option("--trust", help="Import what a run that you did not start here names; read it first.")
]
TakeOverOption = Annotated[
    bool, typer.Option("--take-over", help="The process of another host that worked on the run is gone.")
]
DetachOption = Annotated[
    bool, typer.Option("--detach", help="Go on without this terminal; look after it with dnas status, logs, stop.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="JSON on stdout; everything else goes to stderr.")]


def run_folder(run: str) -> Path:
    """A run as a path: as given where there is something, else by its name in runs/."""
    path = _folder_of(run)
    try:
        return path if path.exists() or path.name != run else RUNS / run
    except OSError as error:
        raise InputError(f"the run {run} cannot be read: {error.strerror or error}") from error


def new_folder(run: str | None) -> Path | None:
    """The folder of a run to create, where one is named."""
    return None if run is None else _folder_of(run)


def _folder_of(run: str) -> Path:
    if not run.strip():  # as a path it would be the current folder
        raise InputError(f"'{run}' is no name of a run; name its folder, or what it is called in {RUNS}/")
    try:
        return Path(run).expanduser()
    except RuntimeError as error:
        raise InputError(f"the home folder in '{run}' is not known; write the path out") from error


def check_file(path: Path | None) -> None:
    """Refuse a file to write that is a folder, a link, a device or one that a run keeps, or lies in no folder."""
    from results.run.layout import refuse_kept

    if path is None:
        return
    try:
        is_folder, has_folder = path.is_dir() and not path.is_symlink(), path.parent.is_dir()
    except OSError as error:  # a name that is too long, a folder that cannot be looked into
        raise InputError(f"cannot write {path}: {error.strerror or error}; choose another file") from error
    if is_folder:
        raise InputError(f"{path} is a folder; name a file in it")
    if not has_folder:
        raise InputError(f"there is no folder {path.parent} to write {path.name} into")
    refuse_special(path)
    refuse_kept(path)


def check_format_name(format: str) -> None:
    """Refuse a format that is neither one of ours nor the import path of one's own."""
    if format not in FORMATS and ":" not in format:
        raise InputError(f"unknown format '{format}'; choose one of {', '.join(FORMATS)}{nearest(format, FORMATS)}")


PAGES = (".html", ".htm")


def check_page(path: Path | None) -> None:
    """Refuse a page that no browser would show as one, for its name says that it is something else."""
    if path is not None and path.suffix.lower() not in PAGES:
        raise InputError(f"cannot write a page as {path}: the suffix '{path.suffix}' is none of {', '.join(PAGES)}")


def check_table(out: Path) -> None:
    """Refuse files that cannot be written, and a name that does not end in .json, as the table is read by its name."""
    if out.suffix != ".json":
        raise InputError(f"the table {out} must be a file whose name ends in .json")
    for path in (out, capability_file(out), times_file(out)):
        check_file(path)


def times_file(out: Path) -> Path:
    """What was timed while the table ``out`` is not done yet."""
    return out.with_name(f"{out.stem}.unfinished.json")


def capability_file(out: Path) -> Path:
    """The widths that are worth it, beside the table ``out``."""
    return out.with_name(f"{out.stem}.capability.json")
