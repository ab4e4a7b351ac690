"""What a result depends on beside its job file: versions and the machine."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

GIT_SECONDS = 10.0


def environment(seed: int | None = None, device: str | None = None) -> dict[str, Any]:
    """Return what a result depends on beside its job file: versions, platform, CPU and thread count, CUDA device.

    ``seed`` and ``device`` are those that the job asks for. ``git`` is the revision of the repository that the process
    was started in, and whether files of it were changed since; None outside one.
    """
    cuda = torch.cuda.is_available()
    return {
        "python": platform.python_version(),
        **{name: _version(name) for name in ("dnas", "torch", "torchvision", "numpy", "scipy", "scikit-optimize")},
        "platform": platform.platform(),
        "cpu_count": os.cpu_count(),
        "thread_count": torch.get_num_threads(),
        "cuda": torch.version.cuda if cuda else None,
        "cuda_device": torch.cuda.get_device_name() if cuda else None,
        "device": device,
        "seed": seed,
        "git": git_revision(Path.cwd()),
    }


def git_revision(folder: Path) -> dict[str, Any] | None:
    """The commit of the repository around a folder, and whether tracked files differ from it; None without either.

    What lies in submodules is not looked at.
    """
    commit = _git(folder, {}, "rev-parse", "--verify", "HEAD")
    if commit is None:
        return None
    words = ("status", "--porcelain", "--untracked-files=no", "--ignore-submodules=all")
    changed = _git(folder, _without_filters(folder), *words)
    return {"commit": commit.strip(), "changed": changed is None or bool(changed.strip())}


_STARTS_NOTHING = {
    "GIT_OPTIONAL_LOCKS": "0",  # a refreshed index would be written, which runs a hook
    "GIT_NO_LAZY_FETCH": "1",
    "GIT_ALLOW_PROTOCOL": "none",
    "GIT_TERMINAL_PROMPT": "0",
}
_NO_PROGRAMS = {"core.fsmonitor": "false", "core.hooksPath": os.devnull}


def _without_filters(folder: Path) -> dict[str, str]:
    """Settings that switch the filters off which the repository's configuration names."""
    told = _git(folder, {}, "config", "--null", "--name-only", "--get-regexp", r"^filter\.")
    names = {key.rpartition(".")[0] for key in (told or "").split("\0") if key}
    off = {"clean": "", "smudge": "", "process": "", "required": "false"}
    return {f"{name}.{key}": value for name in names for key, value in off.items()}


def _git(folder: Path, settings: Mapping[str, str], *words: str) -> str | None:
    """What git prints; None where it cannot tell. The repository's own configuration must not start programs."""
    environment = {**os.environ, **_STARTS_NOTHING}
    given = {**_NO_PROGRAMS, **settings}
    count = os.environ.get("GIT_CONFIG_COUNT", "")
    first = int(count) if count.isdecimal() else 0  # behind what the user sets in this way, such as safe.directory
    environment["GIT_CONFIG_COUNT"] = str(first + len(given))
    for number, (key, value) in enumerate(given.items(), start=first):
        environment |= {f"GIT_CONFIG_KEY_{number}": key, f"GIT_CONFIG_VALUE_{number}": value}
    command = ["git", "-c", "core.fsmonitor=false", "-C", str(folder), *words]  # the option for git before 2.31
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=GIT_SECONDS, check=False, env=environment
        )
    except (OSError, ValueError, subprocess.SubprocessError):  # no git, or what it prints is no text
        return None
    return done.stdout if done.returncode == 0 else None


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
