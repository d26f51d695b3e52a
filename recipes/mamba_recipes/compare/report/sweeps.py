"""Figures over a setting that was swept through numbers: a line a candidate, a picture a figure."""

from __future__ import annotations

import html
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from mamba_recipes.compare.plan import row_name
from mamba_recipes.compare.report.charts import Line, line_chart
from mamba_recipes.compare.report.panels import DASHES
from mamba_recipes.compare.result import Comparison, Summary


@dataclass(frozen=True)
class _Figure:
    title: str
    of: Callable[[Summary], float | None]


def draw_sweeps(comparison: Comparison) -> str:
    """Return the pictures of every axis of numbers with at least two of them; empty where there is none."""
    parts = [_draw_axis(comparison, key) for key in comparison.plan.axes]
    return f"<section><h2>Over what was swept</h2>{''.join(parts)}</section>" if parts else ""


def _figures(comparison: Comparison) -> list[_Figure]:
    metric = comparison.metric
    unit = f", {metric.unit}" if metric.unit else ""
    if comparison.plan.measure == "quality":
        return [
            _Figure(f"{metric.label}{unit}", _mean(metric.name)),
            _Figure("Training seconds", lambda s: s.figures["train_seconds"]),
        ]
    sample = comparison.plan.recipe.card["sample"]
    return [
        _Figure(f"Training, {sample}s a second", _mean("train_samples_per_second")),
        _Figure(f"Inference, {sample}s a second", _mean("predict_samples_per_second")),
        _Figure("Peak memory of training, MiB", lambda s: s.figures["peak_memory_mib"]),
        _Figure("Peak memory of inference, MiB", _mean("predict_peak_memory_mib")),
    ]


def _mean(name: str) -> Callable[[Summary], float | None]:
    return lambda summary: summary.metrics[name].mean if name in summary.metrics else None


def _draw_axis(comparison: Comparison, key: str) -> str:
    """Return every figure over one axis; candidates that differ elsewhere are lines of their own."""
    lines: dict[str, dict[float, Summary]] = {}
    summaries = {summary.model: summary for summary in comparison.summaries()}
    for job in comparison.plan.jobs:
        name = row_name(job.candidate, {other: value for other, value in job.point.items() if other != key})
        lines.setdefault(name, {})[job.point[key]] = summaries[job.model]
    looks = _looks(lines)
    legend = " &ensp; ".join(
        f"<span class='{style}'><svg viewBox='0 0 24 8' width='24' height='8' aria-hidden='true'><path class='line' "
        f"stroke-dasharray='{dash}' d='M0 4H24'/></svg></span> {html.escape(name)}"
        for name, (style, dash) in looks.items()
    )
    parts = [f"<p class='small'>{legend}</p>"]
    for figure in _figures(comparison):
        drawn = [_line(name, points, figure, *looks[name]) for name, points in lines.items()]
        shown = [line for line in drawn if line.x]
        if shown:
            chart = line_chart(shown, key, figure.title, f"{figure.title} over {key}")
            parts.append(f"<h3>{html.escape(figure.title)}</h3><div class='scroll'>{chart}</div>")
    return "".join(parts)


def _looks(lines: Mapping[str, Mapping[float, Summary]]) -> dict[str, tuple[str, str]]:
    """Return for each line its family's colour and a dash that tells it from the others of the family."""
    used: dict[str, int] = {}
    looks = {}
    for name, points in lines.items():
        family = next(iter(points.values())).family
        looks[name] = (family, DASHES[min(used.get(family, 0), len(DASHES) - 1)])
        used[family] = used.get(family, 0) + 1
    return looks


def _line(name: str, points: Mapping[float, Summary], figure: _Figure, style: str, dash: str) -> Line:
    known = [(x, figure.of(points[x])) for x in sorted(points)]
    found = [(x, y) for x, y in known if y is not None]
    return Line(name, [x for x, _ in found], [y for _, y in found], style, dash)
