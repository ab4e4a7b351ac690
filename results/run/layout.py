"""The layout of a run folder: the names of its files, and what is one, is none, or may become one."""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from results.files import NAME, TEMPORARY_SUFFIX, refuse_special
from results.run.locks import OWNER
from search_spaces.errors import InputError, quoted

if TYPE_CHECKING:
    from search_spaces.sensitivities import SensitivityKind

RUNS = Path("runs")
"""Where runs lie by name, seen from the working directory."""
JOB = "job.toml"
ENVIRONMENT = "environment.json"
JOURNAL = "journal.jsonl"
FRONT_JSON = "front.json"
FRONT_CSV = "front.csv"
FRONT_PICTURE = "front.png"
NETWORK = "network.json"
SENSITIVITIES: dict[SensitivityKind, str] = {
    "hessian": "sensitivity-hessian.json",
    "measured": "sensitivity-measured.json",
}
RANKING = "ranking.json"
ASSIGNMENTS = "assignments"
CHECKPOINTS = "checkpoints"
LOCK = ".lock"
ORIGIN = ".origin"
PROGRESS = ".progress.json"
LOG = "log.txt"
"""What a detached process prints."""
TENSORBOARD = "tensorboard"
"""The folder of TensorBoard's event files."""
MLFLOW = ".mlflow"
"""Holds the mark by which the run is found again in MLflow."""
_SHOWN = (ENVIRONMENT, FRONT_JSON, FRONT_CSV, FRONT_PICTURE, NETWORK, RANKING, *SENSITIVITIES.values())
_WRITTEN = (*_SHOWN, LOCK, OWNER, ORIGIN, PROGRESS, LOG, MLFLOW)
"""Files that are replaced whole, beside those in the two folders."""

_RESTORE = (
    "restore it from a copy, or put the job file that the run was started with there, its --set values written in"
)
_JOB_SEAL = re.compile(r"sha256 of the lines below|[0-9a-f]{64}")


def checkpoint_file(name: str) -> str:
    """The path of a checkpoint inside a run.

    >>> checkpoint_file("warmup")
    'checkpoints/warmup.safetensors'
    """
    return f"{CHECKPOINTS}/{safe_name('a checkpoint name', name)}.safetensors"


def assignment_file(id: str) -> str:
    """The path of an assignment inside a run."""
    return f"{ASSIGNMENTS}/{safe_name('an assignment id', id)}.json"


def is_run(folder: Path) -> bool:
    """Whether ``folder`` holds a run."""
    return (folder / JOURNAL).is_file() and (folder / JOB).is_file()


def list_runs(parent: Path) -> list[Path]:
    """Return the run folders directly inside ``parent``, sorted by name; empty where there is no such folder.

    A folder that lost its job or its journal is one of them: :meth:`Run.open` says what it lacks. One that somebody
    else keeps to himself is none.
    """
    if not parent.is_dir():
        return []
    return sorted(path for path in parent.iterdir() if any(_is_seen(path / name) for name in (JOURNAL, JOB)))


def _is_seen(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:
        return False


def refuse_incomplete(folder: Path) -> None:
    """Raise unless ``folder`` has both files without which nothing of a run can be told or gone on with."""
    if is_run(folder):
        return
    elsewhere = "or start again with another --run"
    if folder.is_file():
        packed = (
            f"; a packed net is opened in Python: dnas.load('{folder}')"
            if folder.suffix in (".safetensors", ".dnas")
            else ""
        )
        raise InputError(f"{folder} is a file, and a run is a folder; name the folder of a run{packed}")
    for name in (JOURNAL, JOB):
        if (folder / name).is_dir():
            raise InputError(
                f"{folder / name} is a folder where the run keeps a file; move it away and restore the file from a "
                f"copy, {elsewhere}"
            )
    if (folder / JOURNAL).is_file():
        raise InputError(f"{folder} has lost its {JOB}: {_RESTORE}")
    if (folder / JOB).is_file() and any((folder / name).glob("*") for name in (ASSIGNMENTS, CHECKPOINTS)):
        raise InputError(f"{folder} has lost its {JOURNAL}: restore it from a copy, {elsewhere}")
    raise InputError(f"{folder} is not a run folder: it has no {JOURNAL} beside a {JOB}")


def refuse_links(folder: Path) -> None:
    """Raise where a link, a pipe or a device lies in the place of anything of the run: what is written stays in it."""
    for home in (folder, folder / ASSIGNMENTS, folder / CHECKPOINTS):
        if home != folder:
            refuse_special(home)
        if not home.is_dir():
            continue
        with os.scandir(home) as entries:
            for entry in entries:
                if not entry.is_file(follow_symlinks=False) and _is_kept(entry.name, home == folder):
                    refuse_special(Path(entry.path))


def _is_kept(name: str, outside: bool) -> bool:
    """Whether the run keeps something of this name: in its folder, or in one of the two inside it."""
    return name in (JOB, JOURNAL, *_WRITTEN) if outside else name.endswith((".json", ".safetensors"))


def refuse_kept(path: Path) -> None:
    """Raise where a run keeps a file of its own, be it there or not: nothing else is written over it."""
    home = path.absolute().parent
    inside = home.name in (ASSIGNMENTS, CHECKPOINTS)
    for folder, outside in ((home, True), *([(home.parent, False)] if inside else [])):
        # A folder of the user's own may hold a job file, and files of such names.
        is_one = (folder / JOURNAL).is_file() or all((folder / name).is_dir() for name in (ASSIGNMENTS, CHECKPOINTS))
        if is_one and _is_kept(path.name, outside):
            raise InputError(f"{path} is a file that the run {folder.name} keeps itself; name another file")


def refuse_misplaced(folder: Path) -> None:
    """Raise where a folder lies in the place of a file of the run, or a file in that of a folder."""
    homes = [folder / name for name in (ASSIGNMENTS, CHECKPOINTS)]
    kept = [path for home in homes for path in home.glob("*") if path.suffix in (".json", ".safetensors")]
    files = [folder / name for name in _WRITTEN]
    wrong = [(path, "folder", "file") for path in (*files, *kept) if path.is_dir()]
    wrong += [(home, "file", "folder") for home in homes if home.exists() and not home.is_dir()]
    for path, found, wanted in wrong:
        raise InputError(
            f"{path} is a {found} where the run keeps a {wanted}; move it away, then go on with: "
            f"dnas resume {quoted(folder)}"
        )


def refuse_occupied(folder: Path) -> None:
    """Raise unless ``folder`` is absent, empty, or what a run left that was killed while being created."""
    if is_run(folder):
        raise InputError(
            f"{folder} already holds a run; go on with it (dnas resume {quoted(folder)}) or choose another folder with "
            "--run"
        )
    if not folder.exists():
        return
    if not folder.is_dir():
        raise InputError(f"{folder} is a file; choose another folder with --run")
    names = {path.name for path in folder.iterdir() if not path.name.endswith(TEMPORARY_SUFFIX)}
    made = {LOCK, OWNER, ORIGIN, LOG, ENVIRONMENT, JOB, ASSIGNMENTS, CHECKPOINTS}
    unborn = names == {LOG} or (LOCK in names and names <= made)
    if names and not unborn:
        raise InputError(f"{folder} is not empty and is not a run; choose another folder with --run")


def sealed_job(text: str) -> str:
    """The text of a job file behind a comment with its checksum."""
    return f"# sha256 of the lines below: {hashlib.sha256(text.encode()).hexdigest()}\n{text}"


def unsealed_job(path: Path, text: str) -> str:
    """The text without that comment; :class:`InputError` where it was changed. Older files have no such comment."""
    if not text.strip():
        raise InputError(f"{path} is empty, and it said what the run is: {_RESTORE}")
    first, _, rest = text.partition("\n")
    found = _JOB_SEAL.search(first)
    if not found:
        return text
    if first != sealed_job(rest).partition("\n")[0]:
        raise InputError(
            f"{path} was changed after it was written: its checksum is wrong; restore it from a copy, or remove its "
            "first line to go on with it as it is"
        )
    return rest


def safe_name(what: str, name: str) -> str:
    """Return ``name`` if it can be a file's name everywhere, so that no id ever leaves the run folder."""
    if not re.fullmatch(NAME, name):
        raise InputError(f"'{name}' cannot be {what}: use letters, digits and ._+=- only, 121 at most")
    return name
