"""Figures without pyplot, so that drawing changes nothing outside the figure; and how they become files."""

from __future__ import annotations

import io
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure

from results.files import write_bytes
from search_spaces.errors import InputError
from search_spaces.fields import BIT_WIDTHS

PNG_DPI = 200
SMALL, NORMAL = 7.0, 8.5

# The metadata entry that would put the time of day into the file: the same figure gives the same bytes.
_UNDATED: dict[str, dict[str, None]] = {"png": {}, "svg": {"Date": None}, "pdf": {"CreationDate": None}}


def new_figure(width: float, height: float) -> Figure:
    """Return an empty figure of this size in inches, whose layout keeps labels apart."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save_figure(figure: Figure, path: Path) -> None:
    """Write ``figure`` as png (200 dpi), svg or pdf by the suffix of ``path``, in one step.

    Raises :class:`InputError` for another suffix, :class:`JobError` where the disk refuses.
    """
    format = path.suffix.lower().removeprefix(".")
    if format not in _UNDATED:
        raise InputError(f"cannot draw {path}: the suffix '{path.suffix}' is none of .png, .svg, .pdf")
    buffer = io.BytesIO()
    _lay_out(figure)
    # Text as text (svg) and as embedded TrueType (pdf), which journals ask for; ids that do not change per call.
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "dnas", "pdf.fonttype": 42}):
        figure.savefig(buffer, format=format, dpi=PNG_DPI, metadata=_UNDATED[format])
    write_bytes(path, buffer.getvalue())


def _lay_out(figure: Figure) -> None:
    """Find every place once: matplotlib would draw the whole figure for it, and names lie where they were put."""
    engine = figure.get_layout_engine()
    if engine is not None:
        engine.execute(figure)
        figure.set_layout_engine("none")


def plain_axes(axes: Axes) -> None:
    """Give ``axes`` the house look: two spines, a faint grid behind the data, small tick labels."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(True, color="0.9", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=SMALL)


def bit_colours() -> dict[int, tuple[float, float, float, float]]:
    """Return one colour per bit-width, the same in every figure: grey for a skipped layer, viridis for the others."""
    widths = [bits for bits in BIT_WIDTHS if bits]
    colours = mpl.colormaps["viridis"].resampled(len(widths))
    return {0: (0.85, 0.85, 0.85, 1.0)} | {bits: colours(index) for index, bits in enumerate(widths)}


def bit_colour_map(levels: tuple[int, ...]) -> ListedColormap:
    """Return a colour map with one entry for each of these bit-widths; missing cells stay blank."""
    colours = bit_colours()
    return ListedColormap([colours[level] for level in levels])
