"""Packed nets run from their files in integer arithmetic, by one C file (``runtime.c``) or by numpy."""

from __future__ import annotations

from typing import TYPE_CHECKING

from search_spaces.lazy import attach

if TYPE_CHECKING:
    from dnas.runtime.net import Runtime

__all__ = ["Runtime"]

__getattr__, __dir__ = attach(__name__, {"dnas.runtime.net": ("Runtime",)})
