"""The C runtime as a library: compiled once for this machine, kept in the user's cache directory."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from search_spaces.errors import one_line

SOURCE = Path(__file__).with_name("runtime.c")
FLAGS = ("-std=c11", "-O3", "-march=native", "-ffp-contract=off", "-fPIC", "-shared")
_COMPILERS = ("cc", "gcc", "clang")
_SECONDS = 120


class NoLibrary(Exception):
    """Why there is no library, in one sentence."""


@functools.cache
def library(flags: Sequence[str] = FLAGS) -> ctypes.CDLL:
    """The runtime, with the types of its functions; :class:`NoLibrary` where it cannot be compiled or loaded."""
    compiler = find_compiler()
    try:
        path = _compiled(compiler, tuple(flags))
        found = ctypes.CDLL(str(path))
    except OSError as error:
        raise NoLibrary(f"the C runtime cannot be loaded ({one_line(error)})") from error
    size, pointer = ctypes.c_size_t, ctypes.c_void_p
    found.dnas_load.argtypes = [ctypes.POINTER(pointer), pointer, size, pointer, size]
    found.dnas_switch.argtypes = [pointer, ctypes.c_char_p]
    found.dnas_run.argtypes = [pointer, pointer, size, pointer]
    found.dnas_status_name.argtypes, found.dnas_status_name.restype = [ctypes.c_int], ctypes.c_char_p
    for name in ("input_size", "output_size", "memory_used", "memory_kept"):
        function = getattr(found, f"dnas_{name}")
        function.argtypes, function.restype = [pointer], size
    return found


def find_compiler() -> tuple[str, ...]:
    """The system's C compiler, its path and its arguments: ``$CC`` ("ccache gcc"), else the first that there is."""
    for command in (os.environ.get("CC", ""), *_COMPILERS):
        name, *arguments = _words(command) or [""]
        found = shutil.which(name) if name else None
        if found is not None:
            return found, *arguments
    raise NoLibrary("there is no C compiler (cc, gcc or clang; $CC names another)")


def _words(command: str) -> list[str]:
    """A command as a shell reads it; nothing of one that ends within quotes."""
    try:
        return shlex.split(command)
    except ValueError:
        return []


def _compiled(compiler: tuple[str, ...], flags: tuple[str, ...]) -> Path:
    """The library's file, made where there is none of this source, compiler and processor yet."""
    key = repr((SOURCE.read_bytes(), compiler, flags, platform.machine(), _processor())).encode()
    path = _cache() / f"runtime-{hashlib.sha256(key).hexdigest()[:24]}.so"
    if not path.is_file():
        compile_to(path, compiler, [str(SOURCE)], flags)
    return path


def compile_to(path: Path, compiler: Sequence[str], sources: Sequence[str], flags: Sequence[str]) -> None:
    """Compile ``sources`` into ``path`` in one step; :class:`NoLibrary` with the compiler's first complaint."""
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".") as folder:
        made = Path(folder) / path.name
        command = [*compiler, *flags, *sources, "-o", str(made)]
        name = " ".join(compiler)
        try:
            run = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=False)
        except subprocess.TimeoutExpired as error:
            raise NoLibrary(f"{name} took more than {_SECONDS} seconds for the C runtime") from error
        if run.returncode or not made.is_file():
            why = next((line for line in run.stderr.splitlines() if "error" in line), run.stderr.strip()[:200])
            raise NoLibrary(f"{name} cannot compile the C runtime ({why or run.returncode})")
        made.replace(path)


def _cache() -> Path:
    """The user's own folder for it; one for this process where that cannot be written."""
    told = os.environ.get("XDG_CACHE_HOME", "")
    folder = (Path(told) if Path(told).is_absolute() else Path.home() / ".cache") / "dnas" / "runtime"
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        theirs = folder.stat().st_uid != os.getuid() or folder.stat().st_mode & 0o022
    except (OSError, RuntimeError):
        theirs = True
    return _own_folder() if theirs or not os.access(folder, os.W_OK) else folder


@functools.cache
def _own_folder() -> Path:
    folder = tempfile.TemporaryDirectory(prefix="dnas-runtime-")
    _kept.append(folder)
    return Path(folder.name)


_kept: list[tempfile.TemporaryDirectory[str]] = []


def _processor() -> str:
    """What ``-march=native`` depends on: a home directory may be seen from several machines."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.startswith(("flags", "Features"))), platform.processor())
