"""Names beside the points of a front: each where it covers neither a point nor another name, or not at all.

Where there is such a place that no line runs through, it is taken.

What is taken is kept as a map of the figure whose sums answer for all places of a name at once. So the time for a name
does not depend on how many points and names there are.
"""

from __future__ import annotations

from functools import cache
from itertools import pairwise
from typing import Any, cast

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg, RendererAgg
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.patheffects import withStroke

from results.pictures.figures import SMALL
from results.pictures.plot_data import FrontPicture

MARKER_POINTS = 4.5
"""Half of what a marker takes, in points."""
APART = np.array([-3.0, -1.0, 3.0, 1.0])
"""How far names are from each other, in pixels: left, bottom, right, top."""
BESIDE_PIXELS = 4.0
PIXELS_OF_A_LINE = 24
ENLARGED = 16
_SIDES = (("left", 1, 0.0), ("right", -1, 1.0), ("center", 0, 0.5))
"""How a name is aligned, on which side of its point it stands, and which share of it lies left of where it is put."""
_HEIGHTS = (-8, 8, -15, 15, -23, 23, -32, 32, -42, 42, -54)
_PLACES = tuple((side, 7.0 * sign, float(height), share) for height in _HEIGHTS for side, sign, share in _SIDES)
"""The places that are tried, the best first: alignment, offset in points (1/72 inch), share left of it."""


class Room:
    """What is taken of a figure of this size in pixels; boxes are rows of left, bottom, right, top."""

    def __init__(self, width: float, height: float) -> None:
        self._taken = np.zeros((int(np.ceil(height)), int(np.ceil(width))), dtype=np.int32)
        self._sums = np.zeros((self._taken.shape[0] + 1, self._taken.shape[1] + 1), dtype=np.int32)

    def take(self, boxes: np.ndarray) -> None:
        """Count what lies in the boxes (n, 4) as taken."""
        for left, bottom, right, top in self._cells(boxes):
            self._taken[bottom:top, left:right] = 1
        sums = self._sums[1:, 1:]  # in place: thousands of large arrays take the system seconds to hand out
        np.cumsum(self._taken, axis=0, out=sums)
        np.cumsum(sums, axis=1, out=sums)

    def free(self, boxes: np.ndarray) -> np.ndarray:
        """Of each box (n, 4), whether nothing in it is taken."""
        left, bottom, right, top = self._cells(boxes).T
        sums = self._sums
        return sums[top, right] - sums[bottom, right] - sums[top, left] + sums[bottom, left] == 0

    def _cells(self, boxes: np.ndarray) -> np.ndarray:
        """The pixels that the boxes touch, within the figure."""
        height, width = self._taken.shape
        cells = np.concatenate([np.floor(boxes[:, :2]), np.ceil(boxes[:, 2:])], axis=1).astype(int)
        return cells.clip(0, [width, height, width, height])


def name_points(figure: Figure, axes: Axes, picture: FrontPicture) -> None:
    """Write the labels of the picture; a name is left out where the axes have no room for it."""
    if not picture.labels:
        return
    figure.draw_without_rendering()  # places the axes, which the room for names depends on
    room, names, lines_through = (Room(figure.bbox.width, figure.bbox.height) for _ in range(3))
    room.take(np.array([*_markers(figure, axes, picture), *_lines_across(axes), *_texts(axes)]))
    lines_through.take(_lines(axes, picture))
    within = np.array([axes.bbox.x0, axes.bbox.y0, figure.bbox.x1, axes.bbox.y1]) - APART
    points = axes.transData.transform([label.point for label in picture.labels])
    lines = []
    for label, point in zip(picture.labels, points, strict=True):
        boxes = _boxes(point, _extent(figure, label.text), figure.dpi / 72)
        inside = (boxes[:, :2] >= within[:2]).all(axis=1) & (boxes[:, 2:] <= within[2:]).all(axis=1)
        empty = np.flatnonzero(inside & room.free(boxes))
        fitting = empty[_unbroken(point, boxes[empty], names)] if empty.size else empty
        clear = fitting[lines_through.free(boxes[fitting])]
        for place in (clear if clear.size else fitting)[:1]:
            box = boxes[place : place + 1]
            names.take(box)
            room.take(np.concatenate([box + APART, _along(point, box)[0]]))
            lines.append([point, point.clip(box[0, :2], box[0, 2:])])
            _write(axes, label.text, label.point, place)
    _draw_lines(axes, np.array(lines).reshape(-1, 2, 2))


def _boxes(point: np.ndarray, size: tuple[float, float], scale: float) -> np.ndarray:
    """What a name of this size would take at each of its places (n, 4), ``scale`` pixels to a point."""
    width, height = size
    lefts = [point[0] + across * scale - share * width for _, across, _, share in _PLACES]
    bottoms = [point[1] + up * scale - height / 2 for _, _, up, _ in _PLACES]
    corners = np.array([lefts, bottoms]).T
    return np.concatenate([corners, corners + np.array(size)], axis=1)


def _along(point: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Pixels (n, PIXELS_OF_A_LINE, 4) of the line from each box to the point."""
    starts = point.clip(boxes[:, :2], boxes[:, 2:])
    shares = np.linspace(0, 1, PIXELS_OF_A_LINE, endpoint=False)[None, :, None]
    pixels = starts[:, None] + shares * (point - starts)[:, None]
    return np.concatenate([pixels, pixels + 1e-3], axis=2)


def _unbroken(point: np.ndarray, boxes: np.ndarray, names: Room) -> np.ndarray:
    """Whether the line from each box to the point runs across no name."""
    pixels = _along(point, boxes)
    return np.all(names.free(pixels.reshape(-1, 4)).reshape(pixels.shape[:2]), axis=1)


def _extent(figure: Figure, text: str) -> tuple[float, float]:
    """Width and height of a name in pixels, by its letters: measuring names one by one takes a second for thousands."""
    sizes = [_letter_size(figure.dpi, letter) for letter in text]
    return sum(width for width, _ in sizes), max((height for _, height in sizes), default=0.0)


@cache
def _letter_size(dpi: float, letter: str) -> tuple[float, float]:
    """By how much the letter makes a name longer, and how high a line with it is, in pixels.

    Measured enlarged: a picture is saved at another resolution, where each letter is rounded to other pixels.
    """
    renderer, font = _ruler(ENLARGED * dpi), FontProperties(size=SMALL - 1)
    once, twice, line = (
        renderer.get_text_width_height_descent(text, font, False) for text in (letter, 2 * letter, f"lp{letter}")
    )
    return (twice[0] - once[0]) / ENLARGED, line[1] / ENLARGED


@cache
def _ruler(dpi: float) -> RendererAgg:
    """What measures letters: one for all of them, and with next to nothing to draw on, which would be a large image."""
    return FigureCanvasAgg(Figure(figsize=(0.1, 0.1), dpi=dpi)).get_renderer()


def _write(axes: Axes, text: str, point: tuple[float, float], place: int) -> None:
    """The name does not take part in the layout, which has made the room that it stands in."""
    side, across, up, _ = _PLACES[place]
    note = axes.annotate(
        text,
        point,
        xytext=(across, up),
        textcoords="offset points",
        ha=cast(Any, side),
        va="center",
        fontsize=SMALL - 1,
        color="0.15",
        zorder=6,
        parse_math=False,
        path_effects=[withStroke(linewidth=1.8, foreground="white")],
    )
    note.set_in_layout(False)


def _draw_lines(axes: Axes, lines: np.ndarray) -> None:
    """Lines (n, 2, 2) in pixels from points to their names, which begin beside the marker."""
    spans = lines[:, 1] - lines[:, 0]
    lengths = np.linalg.norm(spans, axis=1, keepdims=True)
    far = lengths[:, 0] > BESIDE_PIXELS
    starts = lines[far, 0] + spans[far] * (BESIDE_PIXELS / lengths[far])
    ends = np.stack([starts, lines[far, 1]], axis=1)
    places = axes.transData.inverted().transform(ends.reshape(-1, 2)).reshape(-1, 2, 2)
    drawn = LineCollection(list(places), colors="0.5", linewidths=0.5, zorder=5.5)
    drawn.set_in_layout(False)
    axes.add_collection(drawn, autolim=False)


def _lines_across(axes: Axes) -> list[np.ndarray]:
    """What lines from one side of the axes to the other take, in pixels, such as that of the float network."""
    across = [line for line in axes.lines if line.get_transform() == axes.get_yaxis_transform("grid")]
    heights = (line.get_window_extent().y0 for line in across)
    return [np.array([axes.bbox.x0, y - 2, axes.bbox.x1, y + 2]) for y in heights]


def _lines(axes: Axes, picture: FrontPicture) -> np.ndarray:
    """What the front and the error bars take, in pixels (n, 4)."""
    spans = [
        ((x, y - error), (x, y + error))
        for series in picture.series
        for x, y, error in zip(series.x, series.y, series.error, strict=True)
    ]
    for stairs in picture.staircases:
        corners = [*zip(stairs.x, stairs.y, strict=True)]
        for (x, y), (next_x, next_y) in pairwise(corners):
            spans += [((x, y), (next_x, y)), ((next_x, y), (next_x, next_y))]
    ends = axes.transData.transform(np.array(spans).reshape(-1, 2)).reshape(-1, 2, 2)
    return np.concatenate([ends.min(axis=1), ends.max(axis=1)], axis=1) + APART[[1, 1, 3, 3]]


def _texts(axes: Axes) -> list[np.ndarray]:
    """What words in the axes take, in pixels."""
    return [np.array(text.get_window_extent().extents) for text in axes.texts]


def _markers(figure: Figure, axes: Axes, picture: FrontPicture) -> np.ndarray:
    """What the points take, in pixels (n, 4)."""
    half = MARKER_POINTS * figure.dpi / 72
    places = [(x, y) for series in picture.series for x, y in zip(series.x, series.y, strict=True)]
    middles = np.array(axes.transData.transform(places))
    return np.concatenate([middles - half, middles + half], axis=1)
