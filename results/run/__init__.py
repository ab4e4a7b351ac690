"""The run folder: atomic writes, one writer, the journal, checkpoints, where it stands.

Checkpoints hold tensors; their module is loaded when the first one is read or written, so that ``dnas status`` and
``dnas show`` need not wait for torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from search_spaces.lazy import attach

if TYPE_CHECKING:
    from results.run.checkpoints import check_checkpoint, read_checkpoint, write_checkpoint

__all__ = ["check_checkpoint", "read_checkpoint", "write_checkpoint"]

__getattr__, __dir__ = attach(
    __name__, {"results.run.checkpoints": ("check_checkpoint", "read_checkpoint", "write_checkpoint")}
)
