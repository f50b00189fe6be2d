"""Labelled points with intervals, each row a trace of its own, and labels only where there is room."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mtl.report.figures.drawing import GREY, colour, text

AREA = (480, 280)  # of a plot in pixels, about that of the page at its usual width
LETTER, LINE = 6.6, 13  # size of a letter, in pixels
LONGEST = 26  # letters of a label
PLACES = {  # where a label may stand beside its point: shift of its nearest edges, in its own widths and pixels
    "middle right": (0.0, 8, 0), "middle left": (-1.0, -8, 0), "top center": (-0.5, 0, 13),
    "bottom center": (-0.5, 0, -13), "top right": (0.0, 6, 11), "bottom right": (0.0, 6, -11),
    "top left": (-1.0, -6, 11), "bottom left": (-1.0, -6, -11),
}  # fmt: skip
Span = tuple[float, float]
Box = tuple[float, float, float, float]  # left, right, bottom, top


@dataclass(frozen=True)
class Point:
    """A row in a scatter plot: ``spread`` from the left to the right end, ``half`` of the interval above and below."""

    label: str
    index: int  # of its row, which decides its colour
    x: float
    y: float
    spread: Span
    half: float
    static: bool = False

    @property
    def left(self) -> float:
        """The left end."""
        return self.spread[0]

    @property
    def right(self) -> float:
        """The right end."""
        return self.spread[1]

    @property
    def bottom(self) -> float:
        """The lower end."""
        return self.y - self.half

    @property
    def top(self) -> float:
        """The upper end."""
        return self.y + self.half


def ranges(boxes: Sequence[Box]) -> tuple[Span, Span]:
    """The ranges of both axes that show all boxes, with a tenth of room on each side."""
    if not boxes:
        return (0.0, 1.0), (0.0, 1.0)
    left, right, bottom, top = zip(*boxes, strict=True)
    return _with_room(min(left), max(right)), _with_room(min(bottom), max(top))


def _with_room(low: float, high: float) -> Span:
    room = (high - low) / 10 or abs(high) / 10 or 1.0
    return low - room, high + room


def scatter(points: Sequence[Point], span: tuple[Span, Span], unit: str = "") -> list[dict[str, Any]]:
    """One trace a point, within axes of these ranges. Static weights are squares, and get their labels first."""
    places = _place(points, span)
    traces = []
    for point in points:
        shade = GREY if point.static else colour(point.index)
        place = places.get(point.index)
        marker = {"color": shade, "size": 10, "symbol": "square-open" if point.static else "circle"}
        marker |= {"line": {"width": 2, "color": shade}}
        traces.append(
            {
                "type": "scatter", "mode": "markers+text" if place else "markers", "x": [point.x], "y": [point.y],
                "name": text(point.label), "legendgroup": point.label, "marker": marker,
                "text": [text(_short(point.label))] if place else None, "textposition": place or "top center",
                "error_x": _bar([point.right - point.x], [point.x - point.left]),
                "error_y": _bar([point.half], [point.half]), "customdata": [_interval(point)],
                "hovertemplate": f"%{{x:.4~g}}{unit}, %{{y:.4~g}}%{{customdata}}",
            }
        )  # fmt: skip
    return traces


def _interval(point: Point) -> str:
    return f" ± {point.half:.2g}" if point.half else ""


def _bar(plus: list[float], minus: list[float]) -> dict[str, Any]:
    return {
        "type": "data", "array": plus, "arrayminus": minus, "symmetric": False, "thickness": 1.2, "width": 0,
        "visible": bool(plus[0] or minus[0]),
    }  # fmt: skip


def _short(label: str) -> str:
    return label if len(label) <= LONGEST else f"{label[: LONGEST - 1]}…"


def _place(points: Sequence[Point], span: tuple[Span, Span]) -> dict[int, str]:
    """Where the label of each row stands, so that none covers another one or a point; a row without room is absent."""

    def pixels(value: float, axis: int) -> float:
        low, high = span[axis]
        return (value - low) / (high - low) * AREA[axis]

    centres = {point.index: (pixels(point.x, 0), pixels(point.y, 1)) for point in points}
    taken: list[Box] = [(x - 6, x + 6, y - 6, y + 6) for x, y in centres.values()]
    places = {}
    for point in sorted(points, key=lambda point: not point.static):
        x, y = centres[point.index]
        width = LETTER * len(_short(point.label))
        for place, (widths, right, up) in PLACES.items():
            left, middle = x + widths * width + right, y + up
            box = (left, left + width, middle - LINE / 2, middle + LINE / 2)
            inside = box[0] >= 0 and box[1] <= AREA[0] and box[2] >= 0 and box[3] <= AREA[1]
            if inside and not any(_overlap(box, other) for other in taken):
                taken.append(box)
                places[point.index] = place
                break
    return places


def _overlap(a: Box, b: Box) -> bool:
    return a[0] <= b[1] and b[0] <= a[1] and a[2] <= b[3] and b[2] <= a[3]
