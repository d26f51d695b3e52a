"""The table of a comparison: its columns, and how the terminal shows it."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mamba_recipes.compare.result import Comparison, Summary
from mamba_recipes.compare.stats import Spread
from mamba_recipes.compare.words import figure, relative, spread_figure

if TYPE_CHECKING:
    from rich.table import Table

_NO = "–"
_ENDLESS = 10_000
_ACRONYMS = {"mae", "mse", "rmse", "mape", "smape", "mase", "iou", "miou"}
_HEADINGS = {"predict_samples_per_second": "inference samples/s", "predict_peak_memory_mib": "inference peak MiB"}


@dataclass(frozen=True)
class Column:
    """One column after the model's name.

    Args:
        heading: What stands over it.
        cell: From a candidate to what stands in it.
        spare: Narrow terminals go without the columns of the highest number; 0 always stays.
    """

    heading: str
    cell: Callable[[Summary], str]
    spare: int = 0


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
        shown.append(Column("to the best", lambda s: _to_best(s, metric.name, best), spare=4))
    if any(s.paired for s in summaries):
        shown.append(Column("minus best Transformer", _paired))
    others = dict.fromkeys(name for s in summaries for name in s.metrics if name != metric.name)
    for other in others:
        shown.append(Column(_heading(other), lambda s, other=other: _spread(s.metrics.get(other)), spare=5))  # type: ignore[misc]
    shown.append(Column("parameters", lambda s: _whole(s.figures["parameters"]), spare=1))
    if comparison.plan.measure == "quality":
        shown.append(Column("training s", lambda s: _decimal(s.figures["train_seconds"]), spare=1))
        shown.append(
            Column(
                f"{comparison.plan.recipe.card['sample']}s/s",
                lambda s: _whole(s.figures["samples_per_second"]),
                spare=3,
            )
        )
    shown.append(
        Column(
            "peak MiB" if comparison.plan.measure == "quality" else "training peak MiB",
            lambda s: _whole(s.figures["peak_memory_mib"]),
            spare=2,
        )
    )
    return shown


def written_paired(comparison: Comparison) -> str:
    """Explain the column of paired differences; empty where there is none."""
    if not any(s.paired for s in comparison.summaries()):
        return ""
    return (
        "Mean ± sample standard deviation over seeds; the paired difference to the best Transformer is taken seed by "
        "seed, with its 95 % interval (Student's t)."
    )


def print_table(comparison: Comparison, width: int | None = None) -> None:
    """Print the table to stdout.

    Args:
        comparison: What to print.
        width: Columns of the terminal, which the table is fitted to by leaving columns out; None asks stdout. A file
            or a pipe has no width, and gets all.
    """
    from rich.console import Console

    endless = width is None and not sys.stdout.isatty()
    console = Console(file=sys.stdout, width=_ENDLESS if endless else width, highlight=False, markup=False)
    shown = columns(comparison)
    table = _table(comparison, shown)
    endless_console = Console(width=_ENDLESS)
    while any(column.spare for column in shown) and endless_console.measure(table).maximum > console.width:
        most = max(column.spare for column in shown)
        shown = [column for column in shown if column.spare != most]
        table = _table(comparison, shown)
    if table.row_count:
        console.print(table)
    for summary in comparison.summaries():
        if summary.errors:
            console.print(f"{summary.model}  failed: {summary.errors[0]}", style="red", soft_wrap=True)


def _table(comparison: Comparison, shown: Sequence[Column]) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table(header_style="bold", box=None, pad_edge=False)
    table.add_column("model", no_wrap=True)
    for column in shown:
        table.add_column(column.heading, justify="right", no_wrap=True)
    for place, summary in enumerate(s for s in comparison.summaries() if s.metrics):
        cells = (column.cell(summary) for column in shown)
        table.add_row(Text(summary.model), *cells, style="bold" if place == 0 else "")
    return table


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
    if name in _HEADINGS:
        return _HEADINGS[name]
    return name.upper() if name in _ACRONYMS else name.replace("_", " ")


def _whole(value: float | None) -> str:
    return _NO if value is None else f"{value:,.0f}"


def _decimal(value: float | None) -> str:
    return _NO if value is None else f"{value:,.1f}"
