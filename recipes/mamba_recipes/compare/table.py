"""The table of a comparison: its columns, and how the terminal shows it."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from dataclasses import dataclass

from mamba_recipes.compare.result import Comparison, Summary
from mamba_recipes.compare.stats import Spread
from mamba_recipes.compare.words import figure, relative, spread_figure

_NO = "–"


@dataclass(frozen=True)
class Column:
    """One column after the model's name."""

    heading: str
    cell: Callable[[Summary], str]


def metric_heading(comparison: Comparison) -> str:
    """Return the primary metric with its unit and which way is better."""
    metric = comparison.metric
    unit = f", {metric.unit}" if metric.unit else ""
    return f"{metric.label}{unit} ({'lower' if metric.direction == 'min' else 'higher'} is better)"


def columns(comparison: Comparison) -> list[Column]:
    """Return the columns that this comparison needs."""
    metric = comparison.metric
    summaries = comparison.summaries()
    shown = [Column(metric.label, lambda s: _spread(s.metrics.get(metric.name)))]
    best = next((s.metrics[metric.name].mean for s in summaries if metric.name in s.metrics), None)
    if best is not None:
        shown.append(Column("to the best", lambda s: _to_best(s, metric.name, best)))
    if any(s.paired for s in summaries):
        shown.append(Column("minus best Transformer", _paired))
    others = dict.fromkeys(name for s in summaries for name in s.metrics if name != metric.name)
    for other in others:
        shown.append(Column(_heading(other), lambda s, other=other: _spread(s.metrics.get(other))))  # type: ignore[misc]
    shown.append(Column("parameters", lambda s: _whole(s.figures["parameters"])))
    if comparison.plan.measure == "quality":
        shown.append(Column("training s", lambda s: _decimal(s.figures["train_seconds"])))
        shown.append(
            Column(f"{comparison.plan.recipe.card['sample']}s/s", lambda s: _whole(s.figures["samples_per_second"]))
        )
    shown.append(Column("peak MiB", lambda s: _whole(s.figures["peak_memory_mib"])))
    return shown


def written_paired(comparison: Comparison) -> str:
    """Explain the column of paired differences; empty where there is none."""
    if not any(s.paired for s in comparison.summaries()):
        return ""
    return (
        "Mean ± sample standard deviation over seeds; the paired difference to the best Transformer is taken seed by "
        "seed, with its 95 % interval (Student's t)."
    )


def print_table(comparison: Comparison) -> None:
    """Print the table to stdout."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    shown = columns(comparison)
    table = Table(title=None, header_style="bold", box=None, pad_edge=False)
    table.add_column("model", no_wrap=True)
    for column in shown:
        table.add_column(column.heading, justify="right", no_wrap=True)
    failed = []
    for place, summary in enumerate(comparison.summaries()):
        if summary.metrics:
            style = "bold" if place == 0 else ""
            table.add_row(Text(summary.model), *(column.cell(summary) for column in shown), style=style)
        if summary.errors:
            failed.append(f"{summary.model}  failed: {summary.errors[0]}")
    # A file or a pipe has no width: let the table have what it needs, so that no figure is cut.
    width = None if sys.stdout.isatty() else 240
    console = Console(file=sys.stdout, width=width, highlight=False, markup=False, soft_wrap=False)
    if table.row_count:
        console.print(table)
    for line in failed:
        console.print(line, style="red")


def _spread(value: Spread | None) -> str:
    if value is None:
        return _NO
    return (
        figure(value.mean)
        if math.isnan(value.std)
        else f"{figure(value.mean)} ± {spread_figure(value.std, value.mean)}"
    )


def _to_best(summary: Summary, name: str, best: float) -> str:
    if name not in summary.metrics:
        return _NO
    value = summary.metrics[name].mean
    if value == best:
        return "best"
    return f"{value / best - 1:+.1%}".replace("%", " %") if best else relative(value, best)


def _paired(summary: Summary) -> str:
    p = summary.paired
    return f"{p.mean:+.3g} [{p.low:+.3g}, {p.high:+.3g}]" if p else _NO


def _heading(name: str) -> str:
    return name.upper() if len(name) <= 5 else name.replace("_", " ")


def _whole(value: float | None) -> str:
    return _NO if value is None else f"{value:,.0f}"


def _decimal(value: float | None) -> str:
    return _NO if value is None else f"{value:,.1f}"
