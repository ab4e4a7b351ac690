"""What a result depends on beside its job file: versions and the machine."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
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
    """The commit of the repository around a folder, and whether tracked files differ from it; None without either."""
    commit = _git(folder, "rev-parse", "--verify", "HEAD")
    if commit is None:
        return None
    changed = _git(folder, "status", "--porcelain", "--untracked-files=no")
    return {"commit": commit.strip(), "changed": changed is None or bool(changed.strip())}


def _git(folder: Path, *words: str) -> str | None:
    """What git prints; None where it cannot tell. The repository's own configuration must not start programs."""
    command = ["git", "-c", "core.fsmonitor=false", "-C", str(folder), *words]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=GIT_SECONDS, check=False)
    except (OSError, subprocess.SubprocessError, UnicodeDecodeError):
        return None
    return done.stdout if done.returncode == 0 else None


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
