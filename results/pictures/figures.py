"""Figures without pyplot, so that drawing changes nothing outside the figure; and how they become files."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
MOST_BAR_INCHES = 4.0

# The metadata entry that would put the time of day into the file: the same figure gives the same bytes.
_UNDATED: dict[str, dict[str, None]] = {"png": {}, "svg": {"Date": None}, "pdf": {"CreationDate": None}}


@dataclass(frozen=True)
class Style:
    """What a picture is drawn for; ``columns`` are the widths in inches that it may have, ascending, none: its own.

    ``outlined`` says that an .svg holds the shapes of its letters, so that it needs no font where it is read.
    """

    name: str
    suffix: str
    columns: tuple[float, ...] = ()
    outlined: bool = False

    def figure(self, width: float, height: float, least_width: float | None = None) -> Figure:
        """An empty figure for content of this size in inches, which can do with ``least_width``.

        It is as wide as the narrowest column that holds it; content that none holds keeps its size.
        """
        least = width if least_width is None else least_width
        own = next((column for column in self.columns if least <= column), width)
        return new_figure(own, height * min(1.0, max(own / width, 0.75)))


SCREEN = Style("screen", ".png")
PAPER = Style("paper", ".pdf", columns=(3.5, 7.16), outlined=True)
"""The columns of IEEE's journals; those of others are hardly different."""
STYLES = {style.name: style for style in (SCREEN, PAPER)}


def new_figure(width: float, height: float) -> Figure:
    """Return an empty figure of this size in inches, whose layout keeps labels apart."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def bar_place(inches: float, share: float = 1.0) -> dict[str, Any]:
    """Where a colour bar stands beside cells of so many ``inches`` in height, as arguments of ``Figure.colorbar``.

    Beside many rows a bar of their height would be as wide as their columns and have its names far down the page: then
    it is short, at their top.
    """
    short = MOST_BAR_INCHES / max(inches, 0.1)
    place = {"shrink": short, "anchor": (0.0, 1.0)} if short < share else {"shrink": share}
    return {"pad": 0.02, "aspect": 30, **place}


def picture_format(path: Path) -> str:
    """``png``, ``svg`` or ``pdf`` by the suffix of ``path``; :class:`InputError` for another one."""
    format = path.suffix.lower().removeprefix(".")
    if format not in _UNDATED:
        raise InputError(f"cannot draw {path}: the suffix '{path.suffix}' is none of .png, .svg, .pdf")
    return format


def save_figure(figure: Figure, path: Path, style: Style = SCREEN) -> None:
    """Write ``figure`` as png (200 dpi), svg or pdf by the suffix of ``path``, in one step.

    Raises :class:`InputError` for another suffix, :class:`JobError` where the disk refuses.
    """
    format = picture_format(path)
    buffer = io.BytesIO()
    _lay_out(figure)
    # Text as text (svg) and as embedded TrueType (pdf), which journals ask for; ids that do not change per call.
    letters = "path" if style.outlined else "none"
    with mpl.rc_context({"svg.fonttype": letters, "svg.hashsalt": "dnas", "pdf.fonttype": 42}):
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
