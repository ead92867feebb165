"""Line charts as hand-written SVG: losses over steps, success over steps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from unbackdoor.report.svg import drawing, element
from unbackdoor.visible_text import one_line

WIDTH, PLOT_HEIGHT, LEFT, RIGHT, BOTTOM = 330.0, 140.0, 36.0, 8.0, 34.0
MOST_POINTS = 240
"""A longer curve is averaged over neighbouring steps: more points than pixels only make the file larger."""

Point = tuple[float, float]


@dataclass(frozen=True)
class Series:
    """One line, which may be broken into segments; `css` gives its colour and whether it is dashed."""

    label: str
    segments: Sequence[Sequence[Point]]
    css: str


def line_chart(
    title: str,
    series: Sequence[Series],
    *,
    percentages: bool = False,
    dividers: Sequence[tuple[float, str]] = (),
) -> Markup:
    """Lines over steps, with a legend above.

    Args:
        title: stands above the figure.
        series: what is drawn.
        percentages: the values are shares, and the axis reaches from 0% to 100%.
        dividers: (step, label) of vertical lines where something new begins.
    """
    points = [p for line in series for segment in line.segments for p in segment]
    last_step = max([x for x, _ in points], default=1) or 1
    ticks = [0, 0.25, 0.5, 0.75, 1] if percentages else nice_ticks([y for _, y in points])
    low, high = ticks[0], ticks[-1]
    legend, top = _legend(series)
    top += 14 if dividers else 6

    def x(step: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * step / last_step

    def y(value: float) -> float:
        return top + PLOT_HEIGHT * (1 - (value - low) / (high - low))

    parts = [element("text", title, x=0, y=12, class_="strong", font_weight="600"), *legend]
    for tick in ticks:
        text = f"{tick:.0%}" if percentages else f"{tick:g}"
        parts.append(element("line", x1=LEFT, x2=WIDTH - RIGHT, y1=y(tick), y2=y(tick), class_="grid"))
        parts.append(element("text", text, x=LEFT - 6, y=y(tick) + 4, text_anchor="end"))
    ends = [*(x(step) for step, _ in dividers[1:]), WIDTH]
    for (step, label), end in zip(dividers, ends, strict=bool(dividers)):
        if step:
            parts.append(element("line", x1=x(step), x2=x(step), y1=top, y2=top + PLOT_HEIGHT, class_="divider"))
        parts.append(element("text", _fitted(label, end - x(step) - 3), x=x(step) + 3, y=top - 4, font_size="10"))
    base = top + PLOT_HEIGHT
    parts.append(element("line", x1=LEFT, x2=WIDTH - RIGHT, y1=base, y2=base, class_="axis"))
    for step, anchor in ((0.0, "start"), (last_step, "end")):
        parts.append(element("text", f"{step:g}", x=x(step), y=base + 15, text_anchor=anchor))
    parts.append(element("text", "steps", x=(LEFT + WIDTH - RIGHT) / 2, y=base + 15, text_anchor="middle"))
    for line in series:
        for segment in line.segments:
            coordinates = " ".join(f"{x(a):.1f},{y(b):.1f}" for a, b in _thinned(segment))
            parts.append(element("polyline", points=coordinates, class_=f"line {line.css}"))
    return drawing(title, WIDTH, base + BOTTOM - 12, *parts)


def nice_ticks(values: Sequence[float]) -> list[float]:
    """About five round numbers that enclose the values, and 0 where all are positive."""
    finite = [value for value in values if math.isfinite(value)] or [0.0, 1.0]
    low, high = min(0.0, *finite), max(0.0, *finite)
    if high == low:
        high = low + 1
    raw = (high - low) / 4
    magnitude = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * magnitude for factor in (1, 2, 2.5, 5, 10) if factor * magnitude >= raw * 0.999)
    first, last = math.floor(low / step), math.ceil(high / step - 1e-9)
    return [round(number * step, 10) for number in range(first, last + 1)]


def _thinned(segment: Sequence[Point]) -> Sequence[Point]:
    """At most `MOST_POINTS` points, each the mean of its neighbours, and none that is not finite."""
    finite = [p for p in segment if math.isfinite(p[1])]
    size = math.ceil(len(finite) / MOST_POINTS) or 1
    groups = [finite[i : i + size] for i in range(0, len(finite), size)]
    return [(sum(x for x, _ in g) / len(g), sum(y for _, y in g) / len(g)) for g in groups]


def _fitted(label: str, room: float) -> str:
    """The label, or its last word ("5" of "round 5"), or nothing: as much as so many pixels hold."""
    return next((text for text in (label, *label.split()[-1:]) if 5.6 * len(text) <= room), "")


def _legend(series: Sequence[Series]) -> tuple[list[Markup], float]:
    """The legend's elements below the title, and the height at which it ends."""
    parts: list[Markup] = []
    x, y = 0.0, 29.0
    for line in series:
        label = one_line(line.label)
        label = label if len(label) <= 40 else label[:39] + "…"
        width = 24 + 6.1 * len(label) + 12
        if x and x + width > WIDTH:
            x, y = 0.0, y + 16
        parts.append(element("line", x1=x, x2=x + 16, y1=y - 4, y2=y - 4, class_=f"line {line.css}"))
        parts.append(element("text", label, x=x + 21, y=y))
        x += width
    return parts, y + 8
