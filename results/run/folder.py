"""The run folder: who may write to it, and the only functions that do."""

from __future__ import annotations

import shutil
from collections.abc import Collection, Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar

from results import run as room
from results.events import Decoded, Finished
from results.files import (
    TEMPORARY_SUFFIX,
    read_sealed_json,
    read_text,
    write_bytes,
    write_error,
    write_sealed_json,
    write_text,
)
from results.network import Network
from results.pareto import ParetoFront
from results.ranking import Ranking
from results.run.ids import completed, told_unknown
from results.run.journal import Journal
from results.run.layout import (
    ASSIGNMENTS,
    CHECKPOINTS,
    ENVIRONMENT,
    FRONT_CSV,
    FRONT_JSON,
    FRONT_PICTURE,
    JOB,
    JOURNAL,
    LOCK,
    NETWORK,
    RANKING,
    SENSITIVITIES,
    assignment_file,
    checkpoint_file,
    list_runs,
    refuse_incomplete,
    refuse_links,
    refuse_misplaced,
    refuse_occupied,
    sealed_job,
    unsealed_job,
)
from results.run.locks import FolderLock, Owner, lock_holder
from results.run.origin import mark_own
from search_spaces.assignments import BitAssignment
from search_spaces.errors import InputError, nearest, quoted
from search_spaces.records import Record
from search_spaces.sensitivities import Sensitivities, SensitivityKind

if TYPE_CHECKING:
    import torch

Kept = TypeVar("Kept", bound=Record)


class Run:
    """A run folder, opened for reading (no lock) or for writing (an exclusive lock until :meth:`close`).

    Made by :meth:`create` or :meth:`open`; also a context manager.
    """

    def __init__(self, folder: Path, lock: FolderLock | None = None, *, helps: bool = False) -> None:
        self.folder = folder
        self._lock, self._helps = lock, helps
        self.journal = Journal(folder / JOURNAL, read_only=lock is None)

    @classmethod
    def create(cls, folder: Path | str, job_toml: str, environment: Mapping[str, Any]) -> Run:
        """Make a new run folder, locked for writing; the folder may exist if it is empty.

        Raises :class:`InputError` over an existing run or a foreign folder, :class:`JobError` where the disk refuses.
        """
        folder = Path(folder)
        refuse_occupied(folder)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock = FolderLock(folder / LOCK)
        except OSError as error:
            raise write_error(folder, error) from error
        try:
            refuse_occupied(folder)
            refuse_links(folder)
            for name in (ASSIGNMENTS, CHECKPOINTS):
                (folder / name).mkdir(exist_ok=True)
            write_sealed_json(folder / ENVIRONMENT, dict(environment))
            write_text(folder / JOB, sealed_job(job_toml))
            mark_own(folder)
            # The journal comes last: a folder without one was killed before it became a run.
            write_bytes(folder / JOURNAL, b"")
        except BaseException as error:
            lock.release()
            if isinstance(error, OSError):
                raise write_error(folder, error) from error
            raise
        return cls(folder, lock)

    @classmethod
    def open(cls, folder: Path | str, *, write: bool = False, take_over: bool = False) -> Run:
        """Open an existing run; ``write=True`` takes the lock, with ``take_over`` that of another host's dead process.

        Raises :class:`InputError` where there is no run or another process is writing to it.
        """
        folder = Path(folder)
        try:
            if not folder.exists():
                names = [run.name for run in list_runs(folder.parent)]
                raise InputError(f"there is no run at {folder}{nearest(folder.name, names)}")
            refuse_incomplete(folder)
            refuse_links(folder)
        except OSError as error:
            raise InputError(f"the run {folder} cannot be read: {error.strerror or error}") from error
        if not write:
            return cls(folder)
        refuse_misplaced(folder)
        run = cls(folder, FolderLock(folder / LOCK, take_over=take_over))
        run.remove_leftovers()
        return run

    @classmethod
    def helping(cls, folder: Path | str) -> Run:
        """A run whose lock another process holds for which this one works: checkpoints may be written, no journal."""
        return cls(Path(folder), helps=True)

    def close(self) -> None:
        """Free the lock; the run can still be read."""
        if self._lock is not None:
            self._lock.release()
        self.journal.read_only = True

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def name(self) -> str:
        """The folder's own name."""
        return self.folder.resolve().name

    @property
    def writable(self) -> bool:
        """Whether this object holds the lock, or works for the one that does."""
        return self._helps or (self._lock is not None and self._lock.held)

    @property
    def writer(self) -> Owner | None:
        """The process that is writing to this run, or None."""
        return lock_holder(self.folder / LOCK)

    @property
    def picture_path(self) -> Path:
        """Where the picture of the front belongs."""
        return self.folder / FRONT_PICTURE

    def job_toml(self) -> str:
        """Return the resolved job file this run was created with; :class:`InputError` where it was changed since."""
        return unsealed_job(self.folder / JOB, read_text(self.folder / JOB))

    def job_file(self) -> str:
        """The path of the resolved job file, which is as it was written."""
        self.job_toml()
        return str(self.folder / JOB)

    def save_environment(self, environment: Mapping[str, Any]) -> None:
        """Write what is known of the versions and the machine again."""
        write_sealed_json(self._writable_folder() / ENVIRONMENT, dict(environment))

    def environment(self) -> dict[str, Any]:
        """Return the versions and the machine this run was created on."""
        found = read_sealed_json(self.folder / ENVIRONMENT)
        if not isinstance(found, dict):
            raise InputError(f"{self.folder / ENVIRONMENT} is damaged: it is not a JSON object")
        return found

    def save_checkpoint(self, name: str, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, Any]) -> None:
        """Write ``checkpoints/NAME.safetensors`` in one step; an older one of that name is replaced.

        ``metadata`` is kept as JSON: tuples come back as lists and keys as text.
        """
        room.write_checkpoint(self._checkpoint_path(name, write=True), tensors, metadata)

    def load_checkpoint(self, name: str) -> tuple[dict[str, torch.Tensor], dict[str, Any]] | None:
        """Return (tensors on the CPU, metadata), or None if there is none; raise InputError if it is damaged."""
        path = self._checkpoint_path(name)
        return room.read_checkpoint(path) if path.exists() else None

    def has_checkpoint(self, name: str) -> bool:
        """Whether there is a checkpoint of that name, be it damaged or not."""
        return self._checkpoint_path(name).exists()

    def delete_checkpoint(self, name: str) -> None:
        """Remove a checkpoint; one that is not there is fine."""
        self.delete_file(checkpoint_file(name))

    def delete_file(self, path: str) -> None:
        """Remove the file at this path inside the folder; one that is not there is fine."""
        file = self._writable_folder() / path
        try:
            file.unlink(missing_ok=True)
        except OSError as error:
            raise write_error(file, error) from error

    def save_assignment(self, assignment: BitAssignment) -> Path:
        """Write ``assignments/ID.json`` and return its path; an older one of that id is replaced."""
        self._writable_folder(ASSIGNMENTS)
        path = self.folder / assignment_file(assignment.id)
        write_sealed_json(path, assignment.to_json())
        return path

    def read_assignments(self, ids: Collection[str] | None = None) -> tuple[dict[str, BitAssignment], dict[str, str]]:
        """Return all assignments of this run that can be read, by id, sorted; and why, for each that cannot.

        With ``ids`` only those of them that it has: a front of thousands takes a second to read.
        """
        found: dict[str, BitAssignment] = {}
        damaged: dict[str, str] = {}
        for path in self.assignment_paths():
            if ids is not None and path.stem not in ids:
                continue
            try:
                found[path.stem] = self._read(path)
            except InputError as error:
                damaged[path.stem] = str(error)
        return found, damaged

    def assignments(self, ids: Collection[str] | None = None) -> dict[str, BitAssignment]:
        """Return all assignments of this run that can be read, by id, sorted; with ``ids`` only those of them."""
        return self.read_assignments(ids)[0]

    def damaged_assignments(self) -> dict[str, str]:
        """Return why, for each assignment whose file cannot be read."""
        return self.read_assignments()[1]

    def assignment(self, id: str) -> BitAssignment:
        """Return the assignment of exactly this id; else raise :class:`InputError`."""
        paths = {path.stem: path for path in self.assignment_paths()}
        if id not in paths:
            if self._decoded(id):
                raise InputError(
                    f"{self.folder / ASSIGNMENTS / id}.json is gone; make it again with: "
                    f"dnas resume {quoted(self.folder)}"
                )
            raise InputError(told_unknown(str(id), list(paths), self.folder))
        return self._read(paths[id])

    def complete_id(self, beginning: str) -> str:
        """The id that a person meant: this one, or the only one that begins so; an unknown one is returned as it is.

        One whose file is gone is meant by its own name all the same. Raises :class:`InputError` where several begin so.
        """
        ids = [path.stem for path in self.assignment_paths()]
        return beginning if beginning in ids or self._decoded(beginning) else completed(beginning, ids, self.folder)

    def _decoded(self, id: str) -> bool:
        """Whether the journal says that there was an assignment of this id."""
        return any(isinstance(event, Decoded) and event.assignment == id for event in self.journal.events())

    def save_sensitivities(self, found: Sensitivities) -> None:
        """Write the sensitivities of one kind; older ones are replaced."""
        write_sealed_json(self._writable_folder() / SENSITIVITIES[found.kind], found.to_json())

    def sensitivities(self, kind: SensitivityKind) -> Sensitivities | None:
        """Return the sensitivities of a kind, or None if there are none; raise :class:`InputError` if damaged."""
        path = self.folder / SENSITIVITIES[kind]
        if not path.exists():
            return None
        try:
            found = Sensitivities.read(read_sealed_json(path))
        except InputError as error:
            raise InputError(_named(path, error)) from error
        if found.kind != kind:
            raise InputError(f"{path} holds {found.kind} sensitivities")
        return found

    def save_network(self, found: Network) -> None:
        """Write what the network's layers are; an older file is replaced."""
        write_sealed_json(self._writable_folder() / NETWORK, found.to_json())

    def network(self) -> Network | None:
        """Return the layers of the network, or None where none are kept; raise :class:`InputError` if damaged."""
        return self._record(NETWORK, Network)

    def save_ranking(self, found: Ranking) -> None:
        """Write how well the supernet ranks; an older file is replaced."""
        write_sealed_json(self._writable_folder() / RANKING, found.to_json())

    def ranking(self) -> Ranking | None:
        """Return how well the supernet ranks, or None if it is not known; raise :class:`InputError` if damaged."""
        return self._record(RANKING, Ranking)

    def save_front(self, front: ParetoFront) -> None:
        """Write ``front.json`` and ``front.csv``."""
        folder = self._writable_folder()
        write_sealed_json(folder / FRONT_JSON, front.to_json())
        write_text(folder / FRONT_CSV, front.to_csv())

    def load_front(self) -> ParetoFront:
        """Return the measured front; raise :class:`InputError` if the run has none yet or it is damaged."""
        path = self.folder / FRONT_JSON
        if not path.exists():
            if any(isinstance(event, Finished) for event in self.journal.events()):
                raise InputError(f"{path} is gone; write it again with: dnas resume {quoted(self.folder)}")
            raise InputError(f"{self.folder} has no front yet; go on with: dnas resume {quoted(self.folder)}")
        try:
            return ParetoFront.from_json(read_sealed_json(path))
        except InputError as error:
            raise InputError(
                f"{_named(path, error)}; write it again with: dnas resume {quoted(self.folder)}"
            ) from error

    def check_file(self, path: str) -> None:
        """Raise :class:`InputError` where the file at this path inside the folder cannot be read."""
        whole = self.folder / path
        if whole.parent.name == CHECKPOINTS:
            room.check_checkpoint(whole)
        elif whole.parent.name == ASSIGNMENTS:
            _read_assignment(whole)
        elif path == FRONT_JSON:
            self.load_front()
        elif path == ENVIRONMENT:
            self.environment()

    def assignment_paths(self) -> list[Path]:
        """Return the files of all assignments, sorted."""
        return sorted(path for path in (self.folder / ASSIGNMENTS).glob("*.json") if not path.name.startswith("."))

    def checkpoint_paths(self) -> list[Path]:
        """Return the files of all checkpoints, sorted."""
        paths = (self.folder / CHECKPOINTS).glob("*.safetensors")
        return sorted(path for path in paths if not path.name.startswith("."))

    @property
    def holds_results(self) -> bool:
        """Whether there is anything that a job computed."""
        return bool(self.assignment_paths() or self.checkpoint_paths()) or (self.folder / FRONT_JSON).exists()

    def _record(self, name: str, kind: type[Kept]) -> Kept | None:
        """What a file of the run holds, or None where there is none."""
        path = self.folder / name
        if not path.exists():
            return None
        try:
            return kind.read(read_sealed_json(path))
        except InputError as error:
            raise InputError(_named(path, error)) from error

    def _read(self, path: Path) -> BitAssignment:
        """The assignment of a file; the error says how to have it again."""
        try:
            return _read_assignment(path)
        except InputError as error:
            raise InputError(f"{_named(path, error)}; make it again with: dnas resume {quoted(self.folder)}") from error

    def _checkpoint_path(self, name: str, *, write: bool = False) -> Path:
        if write:
            self._writable_folder(CHECKPOINTS)
        return self.folder / checkpoint_file(name)

    def _writable_folder(self, name: str = "") -> Path:
        if not self.writable:
            raise RuntimeError(f"{self.folder} was opened for reading; open the run with write=True")
        folder = self.folder / name
        try:
            folder.mkdir(exist_ok=True)
        except OSError as error:
            raise write_error(folder, error) from error
        return folder

    def remove_leftovers(self) -> None:
        """Remove the temporary files and folders that kills left; with the lock held nobody is writing one."""
        for folder in (self.folder, self.folder / ASSIGNMENTS, self.folder / CHECKPOINTS):
            for path in folder.glob(f".*{TEMPORARY_SUFFIX}"):
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path, ignore_errors=True)
                else:
                    path.unlink(missing_ok=True)


def _read_assignment(path: Path) -> BitAssignment:
    found = BitAssignment.from_json(read_sealed_json(path))
    if found.id != path.stem:
        raise InputError(f"it holds the assignment '{found.id}'")
    return found


def _named(path: Path, error: InputError) -> str:
    """The error's sentence, with the path in front unless it says it already."""
    return str(error) if str(path) in str(error) else f"{path}: {error}"
