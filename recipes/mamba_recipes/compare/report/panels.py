"""The pictures that candidates hand back, those of one title laid over each other."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass

from mamba_recipes.compare.candidate import Panel
from mamba_recipes.compare.report.charts import Line, line_chart
from mamba_recipes.compare.result import Comparison, Summary

DASHES = ("", "7 4", "2 3", "10 3 2 3", "1 4")


@dataclass(frozen=True)
class Series:
    """One line of one panel, with its name among the candidates and its look.

    Args:
        panel: Where it is drawn.
        key: The line's label in the panel.
        label: Its name in the report: the candidate's, or the shared line's.
        style: A CSS class that colours it.
        dash: An SVG dash pattern.
        shown: Whether it is drawn until the reader asks otherwise.
    """

    panel: Panel
    key: str
    label: str
    style: str
    dash: str
    shown: bool


def series_of(comparison: Comparison, summaries: Sequence[Summary]) -> list[Series]:
    """Return every line to draw, of each candidate's first seed; shared lines come once and first."""
    first: dict[str, Sequence[Panel]] = {}
    for row in comparison.rows:
        if row.panels and row.model not in first:
            first[row.model] = row.panels
    shown = _shown(summaries)
    used: dict[str, int] = {}
    found: list[Series] = []
    common: set[tuple[str, str]] = set()
    for summary in summaries:
        panels = first.get(summary.model)
        if not panels:
            continue
        dash = DASHES[min(used.get(summary.family, 0), len(DASHES) - 1)]
        used[summary.family] = used.get(summary.family, 0) + 1
        for panel in panels:
            own = [key for key in panel.lines if key not in panel.shared]
            for key in panel.lines:
                if key in panel.shared:
                    if (panel.title, key) not in common:
                        common.add((panel.title, key))
                        found.append(Series(panel, key, key, "observed", "", shown=True))
                    continue
                label = summary.model if len(own) == 1 else f"{summary.model}: {key}"
                found.append(Series(panel, key, label, summary.family, dash, shown=summary.model in shown))
    return found


def chips(series: Sequence[Series]) -> str:
    """Return the legend: one button per name, which shows or hides it in every picture."""
    parts = []
    for label, one in {s.label: s for s in series}.items():
        text = html.escape(label, quote=True)
        dash = f" stroke-dasharray='{one.dash}'" if one.dash else ""
        parts.append(
            f"<button type='button' class='{one.style}{'' if one.shown else ' off'}' data-series='{text}' "
            f"aria-pressed='{'true' if one.shown else 'false'}'><svg viewBox='0 0 24 8' aria-hidden='true'>"
            f"<path class='line'{dash} d='M0 4H24'/></svg><span>{text}</span></button>"
        )
    return f"<div class='chips'>{''.join(parts)}</div>"


def draw_panels(series: Sequence[Series]) -> str:
    """Return one picture per title."""
    parts = []
    for title in dict.fromkeys(one.panel.title for one in series):
        group = [one for one in series if one.panel.title == title]
        panel = group[0].panel
        # The best candidate comes first in the list and is drawn last, on top of the others.
        ordered = [s for s in group if s.style == "observed"] + [s for s in reversed(group) if s.style != "observed"]
        lines = [
            Line(s.label, s.panel.x, s.panel.lines[s.key], s.style, s.dash, s.panel.bands.get(s.key), s.shown)
            for s in ordered
        ]
        chart = line_chart(lines, panel.x_label, panel.y_label, title)
        parts.append(f"<h3>{html.escape(title)}</h3><div class='scroll'>{chart}</div>")
    return "".join(parts)


def _shown(summaries: Sequence[Summary]) -> set[str]:
    """Return what is drawn at first: the best Mamba, its attention twin (else the best Transformer), the best naive."""
    best: dict[str, Summary] = {}
    for summary in summaries:
        if summary.metrics:
            best.setdefault(summary.family, summary)
    shown = {best[family].model for family in ("mamba", "transformer", "naive") if family in best}
    if "mamba" in best and best["mamba"].twin:
        shown.discard(best["transformer"].model if "transformer" in best else "")
        shown.add(best["mamba"].twin)
    return shown or {summary.model for summary in summaries}
