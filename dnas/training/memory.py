"""Memory that a step has freed is kept for the next one, where the C library can be told so.

As it comes, glibc gives freed memory back to the system at every chance, and fetches it again page by page in the next
step. Other C libraries, and allocators put in its place, have no such
switch and keep theirs.
"""

from __future__ import annotations

import ctypes
import os
import platform

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of mallopt(3)
_KEPT_BYTES = 256 * 2**20  # of freed memory at most; no job was seen to grow by it
_LARGEST_BLOCK_BYTES = 32 * 2**20  # the most that glibc takes: larger tensors come from the system each time
_OWN_SETTINGS = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")


def keep_freed_memory() -> bool:
    """Let this process keep what it frees; whether it will. A user's own settings of glibc in the environment stay."""
    if platform.libc_ver()[0] != "glibc" or any(name in os.environ for name in _OWN_SETTINGS):
        return False
    library = ctypes.CDLL(None)
    settings = {_MMAP_THRESHOLD: _LARGEST_BLOCK_BYTES, _TRIM_THRESHOLD: _KEPT_BYTES}
    return all([library.mallopt(name, value) == 1 for name, value in settings.items()])
