"""Errors as sentences: what is told from what, whatever was made of it on the way."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from search_spaces.errors import InputError, JobError, nearest, out_of_memory


@pytest.mark.parametrize(
    ("error", "known"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), True),
        (RuntimeError("CUDA error: out of memory"), True),
        (RuntimeError("MPS backend out of memory (MPS allocated: 9 GB)"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: 9 bytes"), True),
        (MemoryError(), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (JobError("a process that reads images died (out of memory?)"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_too_little_memory_is_told_from_other_errors(error: Exception, known: bool) -> None:
    assert bool(out_of_memory(error)) == known


@pytest.mark.parametrize("kind", [InputError, JobError])
def test_a_question_in_a_sentence_has_one_mark(kind: type[Exception]) -> None:
    """Whoever goes on behind a hint, and however often."""
    told = kind(f"no 'epoch'{nearest('epoch', ['epochs'])}; no 'sed'{nearest('sed', ['seed'])}; restore the file")
    assert str(told) == "no 'epoch'; did you mean 'epochs'? no 'sed'; did you mean 'seed'? restore the file"


def test_hints_end_what_is_told() -> None:
    """In our own sentences the question comes last, where nothing is run on behind it."""
    root = Path(__file__).parents[2]
    rooms = ("dnas", "search_spaces", "results", "bayesopt")
    texts = [path.read_text() for room in rooms for path in (root / room).rglob("*.py")]
    behind = [found for text in texts for found in re.findall(r"\{nearest\([^{}]*\)\}(.)", text)]
    assert len(behind) > 20
    assert set(behind) == {'"'}


def test_too_little_memory_is_seen_through_what_was_made_of_it() -> None:
    """By whoever took it for a fault of the network."""
    memory = torch.OutOfMemoryError("CUDA out of memory")
    told, taken = InputError("the network does not run"), ValueError("images")
    assert out_of_memory(told) is None
    told.__cause__, taken.__cause__ = taken, memory
    assert out_of_memory(told) is memory
