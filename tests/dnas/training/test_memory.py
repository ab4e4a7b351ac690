"""Memory that was freed is not fetched anew: the system counts the pages."""

from __future__ import annotations

import platform

import pytest
import torch

from dnas.training.memory import keep_freed_memory

PAGES_OF_A_STEP = 20 * 2 * 2**20 // 4096


def pages_fetched(steps: int) -> int:
    """Pages that the system gives for steps of twenty tensors of 2 MiB each, which live together and go together."""
    resource = pytest.importorskip("resource", reason="only Unix counts pages")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(steps):
        tensors = [torch.ones(2**19) for _ in range(20)]
        del tensors
    return int(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library here has no such switch")
def test_a_step_uses_the_memory_of_the_steps_before(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES"):
        monkeypatch.delenv(name, raising=False)
    assert keep_freed_memory()
    pages_fetched(30)  # until every size has found its place
    assert pages_fetched(10) < PAGES_OF_A_STEP  # ten times as many without


def test_settings_of_the_user_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "131072")
    assert not keep_freed_memory()
