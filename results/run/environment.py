"""What a result depends on beside its job file: versions and the machine."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from typing import Any

import torch


def environment() -> dict[str, Any]:
    """Return what a result depends on beside its job file: versions, platform, CPU and thread count, CUDA device."""
    cuda = torch.cuda.is_available()
    return {
        "python": platform.python_version(),
        **{name: _version(name) for name in ("dnas", "torch", "torchvision", "numpy", "scipy", "scikit-optimize")},
        "platform": platform.platform(),
        "cpu_count": os.cpu_count(),
        "thread_count": torch.get_num_threads(),
        "cuda": torch.version.cuda if cuda else None,
        "cuda_device": torch.cuda.get_device_name() if cuda else None,
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
