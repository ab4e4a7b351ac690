"""Names beside the points of a front: each where it covers neither a point nor another name, or not at all."""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.text import Annotation, Text
from matplotlib.transforms import Bbox

from results.pictures.figures import SMALL
from results.pictures.plot_data import FrontPicture

MARKER_POINTS = 4.5
"""Half of what a marker takes, in points."""
_SIDES = (("left", 1), ("right", -1), ("center", 0))
_HEIGHTS = (-8, 8, -15, 15, -23, 23, -32, 32, -42, 42, -54)


def name_points(figure: Figure, axes: Axes, picture: FrontPicture) -> None:
    """Write the labels of the picture; a name is left out where the axes have no room for it."""
    if not picture.labels:
        return
    figure.draw_without_rendering()  # places the axes, which the room for names depends on
    taken = [*_markers(figure, axes, picture), *_lines_across(axes), *(text.get_window_extent() for text in axes.texts)]
    for label in picture.labels:
        for note in _candidates(axes, label.text, label.point):
            text = _text_box(note, figure)
            inside = axes.bbox.x0 <= text.x0 and text.x1 <= figure.bbox.x1
            inside = inside and axes.bbox.y0 <= text.y0 and text.y1 <= axes.bbox.y1
            if inside and not any(text.overlaps(other) for other in taken):
                taken.append(text.padded(1.0))
                break
            note.remove()


def _text_box(note: Annotation, figure: Figure) -> Bbox:
    """The bounds of the words alone: those of an annotation hold its line too."""
    renderer = cast(FigureCanvasAgg, figure.canvas).get_renderer()
    note.update_positions(renderer)
    return Text.get_window_extent(note, renderer)


def _candidates(axes: Axes, text: str, point: tuple[float, float]) -> Iterator[Annotation]:
    for height in _HEIGHTS:
        for side, sign in _SIDES:
            yield axes.annotate(
                text,
                point,
                xytext=(7 * sign, height),
                textcoords="offset points",
                ha=side,
                va="center",
                fontsize=SMALL - 1,
                color="0.15",
                zorder=6,
                path_effects=[withStroke(linewidth=1.8, foreground="white")],
                arrowprops={"arrowstyle": "-", "color": "0.5", "linewidth": 0.5, "shrinkA": 0, "shrinkB": 3},
            )


def _lines_across(axes: Axes) -> list[Bbox]:
    """What lines from one side of the axes to the other take, in pixels, such as that of the float network."""
    across = [line for line in axes.lines if line.get_transform() == axes.get_yaxis_transform("grid")]
    heights = (line.get_window_extent().y0 for line in across)
    return [Bbox.from_extents(axes.bbox.x0, y - 2, axes.bbox.x1, y + 2) for y in heights]


def _markers(figure: Figure, axes: Axes, picture: FrontPicture) -> list[Bbox]:
    """What the points take, in pixels."""
    half = MARKER_POINTS * figure.dpi / 72
    places = [(x, y) for series in picture.series for x, y in zip(series.x, series.y, strict=True)]
    return [Bbox.from_extents(x - half, y - half, x + half, y + half) for x, y in axes.transData.transform(places)]
