"""A run for TensorBoard: event files in its own folder, written anew by each process from what the journal tells."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from contextlib import suppress

import matplotlib.image
from torch.utils.tensorboard import SummaryWriter

from results.events import Event
from results.files import refuse_special
from results.run.folder import Run
from results.run.layout import TENSORBOARD
from results.tracking.scalars import Scalar
from results.tracking.tracker import Tracker
from search_spaces.assignments import BitAssignment, LayerBits

SECONDS_BETWEEN_WRITES = 5
_FILES = "events.out.tfevents.*"


class TensorboardLog(Tracker):
    """The folder ``tensorboard`` of a run: scalars by epoch, the front as a picture and a table, bits as tables."""

    title = "TensorBoard"

    def __init__(self, run: Run) -> None:
        super().__init__(run)
        folder = run.folder / TENSORBOARD
        refuse_special(folder)
        folder.mkdir(exist_ok=True)
        self._before = sorted(folder.glob(_FILES))
        # Whatever a reader has seen of earlier files is void from step 0 on: all of it follows here once more.
        self._writer = SummaryWriter(str(folder), purge_step=0, flush_secs=SECONDS_BETWEEN_WRITES)

    def begin(self, events: Sequence[Event]) -> None:
        """Tell all that the journal tells so far; then earlier files are needed no more.

        But the last of them: a TensorBoard that reads it now goes on from there, and would not without it.
        """
        super().begin(events)
        self._writer.flush()
        for path in self._before[:-1]:
            path.unlink(missing_ok=True)

    def scalars(self, found: Sequence[Scalar]) -> None:
        """Write numbers, at their own times."""
        for scalar in found:
            self._writer.add_scalar(scalar.name, scalar.value, scalar.step, scalar.time)

    def assignment(self, assignment: BitAssignment) -> None:
        """Write the bits of every layer as a table."""
        rows = [(name, *_described(bits)) for name, bits in assignment.layers.items()]
        table = _markdown(("layer", "weight bits", "input bits", "filters kept"), rows)
        self._writer.add_text(f"assignments/{assignment.id}", table, 0)

    def front(self) -> None:
        """Write the front as the run draws it, and as a table."""
        columns, *rows = csv.reader(io.StringIO(self.run.load_front().to_csv()))
        self._writer.add_text("front", _markdown(columns, rows), 0)
        with suppress(OSError, SyntaxError, ValueError):  # a picture that is lost or damaged
            self._writer.add_image("front", matplotlib.image.imread(self.run.picture_path), 0, dataformats="HWC")

    def close(self, finished: bool) -> None:
        """Write what is left."""
        self._writer.close()


def _described(bits: LayerBits) -> tuple[object, ...]:
    return bits.weight_bits, bits.activation_bits, "all" if bits.kept_channels is None else len(bits.kept_channels)


def _markdown(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table as TensorBoard shows it."""
    return "\n".join(f"| {' | '.join(map(str, cells))} |" for cells in (columns, ["---"] * len(columns), *rows))
