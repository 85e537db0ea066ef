"""A small chart as SVG: one panel a line, no library."""

from collections.abc import Sequence
from typing import NamedTuple

WIDTH, HEIGHT, MARGIN = 460, 240, 48
STYLE = "font-family:system-ui,sans-serif;font-size:12px"


class Line(NamedTuple):
    """A titled panel: points from left to right."""

    title: str
    points: Sequence[tuple[float, float]]


def chart(lines: Sequence[Line]) -> str:
    """Return the panels side by side; points stand at even distances, the ordinate begins at 0."""
    panels = "".join(_panel(line, number * WIDTH) for number, line in enumerate(lines))
    size = f'width="{WIDTH * len(lines)}" height="{HEIGHT}"'
    paper = '<rect width="100%" height="100%" fill="#fff"/>'  # a page may be dark
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size} style="{STYLE}">{paper}{panels}</svg>\n'


def _panel(line: Line, left: int) -> str:
    most = max(y for _, y in line.points) or 1
    wide, high = WIDTH - 2 * MARGIN, HEIGHT - 2 * MARGIN
    step = wide / max(len(line.points) - 1, 1)
    at = [
        (left + MARGIN + number * step, HEIGHT - MARGIN - y / most * high)
        for number, (_, y) in enumerate(line.points)
    ]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in at)
    marks = "".join(
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="#2a6"/>'
        f'<text x="{x:.1f}" y="{y - 8:.1f}" text-anchor="middle">{value:,.4g}</text>'
        f'<text x="{x:.1f}" y="{HEIGHT - MARGIN + 18}" text-anchor="middle">{across:,g}</text>'
        for (x, y), (across, value) in zip(at, line.points, strict=True)
    )
    base = HEIGHT - MARGIN
    axis = f'<path d="M{left + MARGIN} {base}h{wide}" stroke="#999"/>'
    title = f'<text x="{left + MARGIN}" y="16" font-weight="600">{line.title}</text>'
    drawn = f'<polyline points="{path}" fill="none" stroke="#2a6" stroke-width="2"/>'
    return title + axis + drawn + marks
