"""Pictures as inline SVG: they take the page's colours, light or dark, and need no library to be seen."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

from mamba_recipes.compare.report.ticks import number_label, number_ticks, seconds_of, time_ticks

WIDTH, HEIGHT = 760, 300
LEFT, RIGHT, TOP, BOTTOM = 62, 14, 10, 46

Scale = Callable[[float], float]
Range = tuple[float, float]


@dataclass(frozen=True)
class Line:
    """A line of a chart.

    Args:
        label: Its name in the legend.
        x: Positions; numbers, or ISO timestamps.
        y: Values; NaN leaves a gap.
        style: A CSS class that colours it.
        dash: An SVG dash pattern; empty for a solid line.
        band: Lower and upper values around it.
        shown: Whether it is drawn until the reader asks otherwise.
    """

    label: str
    x: Sequence[float | str]
    y: Sequence[float]
    style: str
    dash: str = ""
    band: tuple[Sequence[float], Sequence[float]] | None = None
    shown: bool = True


@dataclass(frozen=True)
class Bar:
    """A candidate's place on the metric's axis.

    Args:
        label: The candidate.
        value: Its metric, the mean over seeds.
        text: The value as written.
        style: A CSS class that colours it.
        points: The value of each seed.
    """

    label: str
    value: float
    text: str
    style: str
    points: Sequence[float] = ()


def line_chart(lines: Sequence[Line], x_label: str, y_label: str, name: str) -> str:
    """Draw ``lines`` over each other.

    Args:
        lines: What to draw, in drawing order.
        x_label: The horizontal axis's name.
        y_label: The vertical axis's name.
        name: What the picture shows, for readers that cannot see it.
    """
    timed = any(isinstance(position, str) for line in lines for position in line.x)
    positions = [[seconds_of(str(p)) if timed else float(p) for p in line.x] for line in lines]
    flat_x = [p for line in positions for p in line]
    curves = [values for line in lines for values in (line.y, *(line.band or ()))]
    flat_y = [value for values in curves for value in values if math.isfinite(value)]
    if not flat_x or not flat_y:
        return "<p class='muted'>Nothing to draw.</p>"
    x_low, x_high = min(flat_x), max(flat_x)
    y_low, y_high = min(flat_y), max(flat_y)
    room = (y_high - y_low) * 0.06 or abs(y_high) * 0.1 or 1.0
    y_high += room
    # A quantity that is never negative starts at zero where that costs little of the picture.
    y_low = 0.0 if 0 <= y_low < 0.35 * y_high else y_low - room

    def px(value: float) -> float:
        return LEFT + (value - x_low) / ((x_high - x_low) or 1) * (WIDTH - LEFT - RIGHT)

    def py(value: float) -> float:
        return HEIGHT - BOTTOM - (value - y_low) / (y_high - y_low) * (HEIGHT - TOP - BOTTOM)

    parts = [f"<svg viewBox='0 0 {WIDTH} {HEIGHT}' role='img' aria-label='{escape(name, quote=True)}'>"]
    parts.append(_axes(px, py, (x_low, x_high), (y_low, y_high), timed=timed))
    parts.append(
        f"<text class='axis' x='{(LEFT + WIDTH - RIGHT) / 2:.0f}' y='{HEIGHT - 8}' text-anchor='middle'>"
        f"{escape(x_label)}</text>"
        f"<text class='axis' transform='translate(13 {(TOP + HEIGHT - BOTTOM) / 2:.0f}) rotate(-90)' "
        f"text-anchor='middle'>{escape(y_label)}</text>"
    )
    for line, xs in zip(lines, positions, strict=True):
        hidden = "" if line.shown else " off"
        label = escape(line.label, quote=True)
        parts.append(f"<g class='series {line.style}{hidden}' data-series='{label}'>")
        if line.band is not None:
            parts.append(f"<path class='band' d='{_ribbon(xs, *line.band, px, py)}'/>")
        dash = f" stroke-dasharray='{line.dash}'" if line.dash else ""
        parts.append(f"<path class='line'{dash} d='{_path(xs, line.y, px, py)}'/></g>")
    parts.append("</svg>")
    return "".join(parts)


def dot_chart(bars: Sequence[Bar], name: str) -> str:
    """Draw one row per candidate: its metric as a dot on a scale from zero, each seed as a small tick.

    Rows are plain boxes and no SVG, so that their text stays readable at any width of the page.

    Args:
        bars: The candidates, in drawing order.
        name: What the picture shows, for readers that cannot see it.
    """
    values = [value for bar in bars for value in (bar.value, *bar.points) if math.isfinite(value)]
    low, high = min([0.0, *values]), max([0.0, *values])
    span = (high - low) or 1.0

    def place(value: float) -> str:
        return f"{(value - low) / span * 100:.2f}%"

    rows = []
    for bar in bars:
        start, end = min(bar.value, 0.0), max(bar.value, 0.0)
        stem = f"<i class='stem' style='left:{place(start)};width:{(end - start) / span * 100:.2f}%'></i>"
        seeds = (
            "".join(f"<i class='seed' style='left:{place(p)}'></i>" for p in bar.points) if len(bar.points) > 1 else ""
        )
        rows.append(
            f"<div class='row {bar.style}'><span class='name'>{escape(bar.label)}</span>"
            f"<span class='track'>{stem}{seeds}<i class='dot' style='left:{place(bar.value)}'></i></span>"
            f"<span class='value'>{escape(bar.text)}</span></div>"
        )
    return f"<div class='dots' role='img' aria-label='{escape(name, quote=True)}'>{''.join(rows)}</div>"


def _axes(px: Scale, py: Scale, x_range: Range, y_range: Range, *, timed: bool) -> str:
    parts = []
    y_ticks = number_ticks(*y_range)
    for tick in y_ticks:
        parts.append(
            f"<line class='grid' x1='{LEFT}' x2='{WIDTH - RIGHT}' y1='{py(tick):.1f}' y2='{py(tick):.1f}'/>"
            f"<text class='tick' x='{LEFT - 7}' y='{py(tick) + 4:.1f}' text-anchor='end'>"
            f"{number_label(tick, y_ticks)}</text>"
        )
    if timed:
        x_ticks = time_ticks(*x_range)
    else:
        plain = number_ticks(*x_range, 8)
        x_ticks = [(tick, number_label(tick, plain)) for tick in plain]
    for position, label in x_ticks:
        x = px(position)
        parts.append(
            f"<line class='notch' x1='{x:.1f}' x2='{x:.1f}' y1='{HEIGHT - BOTTOM}' y2='{HEIGHT - BOTTOM + 4}'/>"
            f"<text class='tick' x='{x:.1f}' y='{HEIGHT - BOTTOM + 17}' text-anchor='middle'>{escape(label)}</text>"
        )
    return "".join(parts)


def _path(xs: Sequence[float], ys: Sequence[float], px: Scale, py: Scale) -> str:
    parts, pen = [], "M"
    for x, y in zip(xs, ys, strict=True):
        if not math.isfinite(y):
            pen = "M"
            continue
        parts.append(f"{pen}{px(x):.1f} {py(y):.1f}")
        pen = "L"
    return "".join(parts)


def _ribbon(xs: Sequence[float], low: Sequence[float], high: Sequence[float], px: Scale, py: Scale) -> str:
    edge = [(x, a, b) for x, a, b in zip(xs, low, high, strict=True) if math.isfinite(a) and math.isfinite(b)]
    if not edge:
        return ""
    upper = "L".join(f"{px(x):.1f} {py(b):.1f}" for x, _, b in edge)
    lower = "L".join(f"{px(x):.1f} {py(a):.1f}" for x, a, _ in reversed(edge))
    return f"M{upper}L{lower}Z"
