"""A packed file as something that runs: any of its profiles, without PyTorch and without the network's code."""

from __future__ import annotations

import ctypes
import mmap
import os
import threading
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from dnas.export.reference_net import run_net, told_operations
from dnas.runtime.compiled import NoLibrary, library
from results.packed.file import PackedFile, read_packed
from results.packed.header import header_of, is_compact
from results.packed.weights import FLOAT, stored_weight
from search_spaces.errors import InputError, JobError, check_type, nearest, one_line

_MOST_MEMORY_STATUS = 8
_LEAST_MEMORY = 1 << 20


class Runtime:
    """The net of a packed file, run by the C runtime, or by numpy where nothing compiles it (told in a warning).

    ``engine`` says which: "c" or "numpy"; both give the same bits. Only the file's ``profiles`` that can be run are
    offered. An object serves one call at a time; calls from several threads wait for one another. Raises
    :class:`InputError` for a damaged file and for a net whose operations the file does not tell.
    """

    def __init__(
        self, path: Path | str, profile: str | None = None, engine: Literal["c", "numpy"] | None = None
    ) -> None:
        check_type(path, (str, Path), "the path of a packed file", "give text or a Path")
        if engine not in (None, "c", "numpy"):
            raise InputError(f"engine {engine!r} is none; choose 'c', 'numpy', or leave it out")
        self.path = Path(path)
        packed = read_packed(self.path)
        try:
            self.profiles = tuple(packed.description["profiles"])
            self._shapes = {name: _checked(packed, name) for name in self.profiles}
            self.profile = self.profiles[0]
        except InputError as error:
            raise InputError(f"{path}: {error}") from error
        except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
            raise InputError(f"{path} does not describe a net that can be run ({error!r}); export it again") from error
        self._lock = threading.Lock()
        self._engine: _Compiled | _Reference = _engine(self.path, packed, self.profiles, engine)
        self.engine = self._engine.name
        if profile is not None:
            self.switch(profile)

    def switch(self, profile: str) -> Runtime:
        """Run this profile from now on; returns the net itself."""
        check_type(profile, str, "a profile", "give its name")
        if profile not in self.profiles:
            known = ", ".join(self.profiles)
            raise InputError(
                f"{self.path} has no profile '{profile}'; there are {known}{nearest(profile, self.profiles)}"
            )
        with self._lock:
            self._engine.switch(profile)
            self.profile = profile
        return self

    @property
    def input_shape(self) -> tuple[int, ...]:
        """The shape of one input: channels, then space."""
        return self._shapes[self.profile][0]

    @property
    def output_shape(self) -> tuple[int, ...]:
        """The shape of one output."""
        return self._shapes[self.profile][1]

    @property
    def memory_bytes(self) -> Mapping[str, int]:
        """What the C runtime takes for the profile: ``kept`` (weights, scales, tables) and ``activations``."""
        return self._engine.memory_bytes

    def __call__(self, inputs: Any) -> np.ndarray:
        """The outputs (N, ...) fp32 for ``inputs`` (N, C, ...), normalised as the file's ``preprocessing`` tells.

        An array, or a tensor of PyTorch on any device; :class:`InputError` for what is none, or of another shape.
        """
        x = _floats(inputs)
        if x.shape[1:] != self.input_shape:
            raise InputError(
                f"inputs have the shape {x.shape}; this net takes (N, {', '.join(map(str, self.input_shape))})"
            )
        with self._lock:
            return self._engine.run(x, self.output_shape)


def _floats(inputs: Any) -> np.ndarray:
    """What was given as an array of fp32, of one dimension at least."""
    try:
        given = np.asarray(inputs.detach().cpu() if hasattr(inputs, "detach") else inputs)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"inputs are no array: {one_line(error)}; give numbers (N, C, ...)") from error
    if given.dtype.kind not in "biuf":
        raise InputError(f"inputs are of the type {given.dtype}; give real numbers (N, C, ...)")
    return np.ascontiguousarray(given, dtype=np.float32)


def _checked(packed: PackedFile, profile: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The shapes of input and output of a profile; :class:`InputError` for what no engine runs."""
    told, chosen = told_operations(packed, profile), packed.description["profiles"][profile]["layers"]
    for step in told["steps"]:
        if step["kind"] != "layer":
            continue
        name = step["name"]
        storage = stored_weight(packed, name)["storage"]
        if ":" in storage:  # a weight scheme of somebody's own
            raise InputError(
                f"the weight of layer '{name}' is stored as '{storage}', which dnas.load reads and no runtime"
            )
        if storage == FLOAT and (chosen[name]["weight"] or {}).get("transform"):
            raise InputError(
                f"the weight of layer '{name}' is stored in fp32 for several widths of 'dorefa', which is not run; "
                "make the net with finalise.weights = 'nested', or export one profile"
            )
    shapes = [tuple(told["input"]), *(tuple(step["shape"]) for step in told["steps"])]
    return shapes[0], shapes[told["output"]]


def _engine(path: Path, packed: PackedFile, profiles: Sequence[str], wanted: str | None) -> _Compiled | _Reference:
    if wanted == "numpy":
        return _Reference(packed, profiles[0])
    try:
        return _Compiled(path, packed)
    except NoLibrary as error:
        if wanted == "c":
            raise JobError(f"{error}; install one, or take engine='numpy'") from error
        warnings.warn(f"{error}, so numpy runs the net, bit for bit the same and slowly", stacklevel=3)
        return _Reference(packed, profiles[0])


class _Reference:
    """The specification, carried out."""

    name = "numpy"
    memory_bytes: Mapping[str, int] = {}

    def __init__(self, packed: PackedFile, profile: str) -> None:
        self.packed, self.profile = packed, profile

    def switch(self, profile: str) -> None:
        self.profile = profile

    def run(self, x: np.ndarray, output_shape: tuple[int, ...]) -> np.ndarray:
        if not len(x):  # the specification is of samples
            return np.empty((0, *output_shape), np.float32)
        return np.ascontiguousarray(run_net(self.packed, x, self.profile))


class _Compiled:
    """A net of the C library, in memory of its own that is taken once."""

    name = "c"

    def __init__(self, path: Path, packed: PackedFile) -> None:
        self.path, self.library = path, library()
        self.file = _file_of(path, packed)
        size = _LEAST_MEMORY + 4 * packed.tensor_bytes
        while (status := self._load(size)) == _MOST_MEMORY_STATUS:
            size *= 4
            if size > _memory_of_machine():
                raise InputError(f"{path} describes a net that takes more memory than this machine has")
        self._check(status)
        self._forget_pages()

    def _load(self, size: int) -> int:
        try:
            self.memory = mmap.mmap(-1, size)
        except (OSError, ValueError, OverflowError) as error:
            raise InputError(f"{self.path} describes a net that takes {size:,} bytes, which cannot be had") from error
        self.net = ctypes.c_void_p()
        file, memory = (ctypes.c_char.from_buffer(part) for part in (self.file, self.memory))
        return int(
            self.library.dnas_load(
                ctypes.byref(self.net), ctypes.addressof(file), len(self.file), ctypes.addressof(memory), size
            )
        )

    def _check(self, status: int) -> None:
        if status:
            word = self.library.dnas_status_name(status).decode()
            raise InputError(f"{self.path} holds a net that the runtime does not run ({word}); export it again")

    def _forget_pages(self) -> None:
        """What the file held is in the net's own memory now; it is read again for a switch."""
        if isinstance(self.file, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
            self.file.madvise(mmap.MADV_DONTNEED)

    def switch(self, profile: str) -> None:
        self._check(self.library.dnas_switch(self.net, profile.encode()))
        self._forget_pages()

    @property
    def memory_bytes(self) -> Mapping[str, int]:
        kept = self.library.dnas_memory_kept(self.net)
        return {"kept": kept, "activations": self.library.dnas_memory_used(self.net) - kept}

    def run(self, x: np.ndarray, output_shape: tuple[int, ...]) -> np.ndarray:
        outputs = np.empty((len(x), *output_shape), np.float32)
        sizes = self.library.dnas_input_size(self.net), self.library.dnas_output_size(self.net)
        if (len(x) * sizes[0], len(x) * sizes[1]) != (x.size, outputs.size):
            raise JobError(f"{self.path}: the runtime and the file differ in the shapes of inputs")
        self._check(self.library.dnas_run(self.net, x.ctypes.data, len(x), outputs.ctypes.data))
        return outputs


def _file_of(path: Path, packed: PackedFile) -> mmap.mmap | bytearray:
    """The bytes of a compact file, mapped; of one with JSON, written anew in memory."""
    if is_compact(path):
        with path.open("rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    tensors = b"".join(tensor.tobytes() for tensor in packed.tensors.values())
    return bytearray(header_of(path.with_suffix(""), packed.description, packed.tensors) + tensors)


def _memory_of_machine() -> int:
    return int(os.sysconf("SC_PAGE_SIZE")) * int(os.sysconf("SC_PHYS_PAGES"))
