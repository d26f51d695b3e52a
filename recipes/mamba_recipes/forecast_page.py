"""A page on a cross-validation: how good the forecasts were, beside a naive one, and the series that went worst."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mamba_apps.forecasting.scores import forecast_scores
from mamba_recipes.compare.report.charts import Line, line_chart
from mamba_recipes.compare.words import figure

if TYPE_CHECKING:
    import pandas as pd

    from mamba_datasets.series import Series, SeriesSet

_REPORT = Path(__file__).resolve().parent / "compare" / "report"
_MOST_ROWS = 30
_WORST = 4
_PAST_HORIZONS = 3


@dataclass(frozen=True)
class CrossValidation:
    """What a page is about.

    Args:
        forecasts: What `Forecaster.cross_validation` returned.
        naive: What that of a naive forecaster with the same cuts returned.
        series_set: The series.
        name: The forecast's column.
        naive_name: The naive one's.
        levels: The intervals.
        horizon: Steps a cut.
        facts: What was done, a phrase each.
        command: What repeats it.
    """

    forecasts: pd.DataFrame
    naive: pd.DataFrame
    series_set: SeriesSet
    name: str
    naive_name: str
    levels: Sequence[float]
    horizon: int
    facts: Sequence[str]
    command: str

    @property
    def target(self) -> str:
        """The column of what was observed."""
        return str(self.series_set.columns["target_col"])

    def scores(self, by: Any = None) -> pd.DataFrame:
        """Return the scores of the forecasts."""
        return forecast_scores(self.forecasts, self.name, target_col=self.target, levels=self.levels, by=by)

    def naive_scores(self, by: Any = None) -> pd.DataFrame:
        """Return the scores of the naive forecasts."""
        return forecast_scores(self.naive, self.naive_name, target_col=self.target, by=by)

    def by_series(self) -> pd.DataFrame:
        """Return the scores of each series, the worst first: by its error as a part of its own size."""
        column = str(self.series_set.columns["id_col"])
        found = self.scores(column)
        naive = self.naive_scores(column)["mae"]
        found["naive"] = naive.reindex(found.index)
        return found.sort_values("wape", ascending=False, na_position="last")


def render(found: CrossValidation) -> str:
    """Return the page as one HTML document that opens without a network."""
    title = f"Forecasts of {escape(found.target)} that have come true"
    style = (_REPORT / "report.css").read_text(encoding="utf-8")
    sections = [
        f"<h1>{title}</h1>\n<p class='muted'>{escape(' · '.join(found.facts))}</p>",
        _summary(found),
        _steps(found),
        _worst(found),
        _table(found),
        f"<section><h2>How to repeat it</h2><pre>{escape(found.command)}</pre></section>",
    ]
    return (
        "<!doctype html>\n<html lang='en'>\n<head>\n<meta charset='utf-8'>\n"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>\n"
        "<meta http-equiv='Content-Security-Policy' content=\"default-src 'none'; style-src 'unsafe-inline'\">\n"
        f"<title>{title}</title>\n<style>\n{style}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(section for section in sections if section)
        + "\n</main>\n</body>\n</html>\n"
    )


def summary_lines(found: CrossValidation) -> list[str]:
    """Return what the page says first, a sentence each."""
    own, naive = found.scores().iloc[0], found.naive_scores().iloc[0]
    change = own["mae"] / naive["mae"] - 1 if naive["mae"] else float("nan")
    lines = [
        f"{found.name} is off by {figure(own['mae'])} a step on average, {found.naive_name} by {figure(naive['mae'])} "
        f"({change:+.1%}).".replace("%", " %")
    ]
    for level in found.levels:
        cover = own[f"cover-{level:g}"]
        lines.append(f"{100 * cover:.1f} % of the observations lie in the {level:g} % interval.")
    by_series = found.by_series()
    if len(by_series) > 1:
        worse = int((by_series["mae"] > by_series["naive"]).sum())
        lines.append(f"In {worse} of {len(by_series)} series the naive forecast was better.")
    return lines


def _summary(found: CrossValidation) -> str:
    first, *rest = summary_lines(found)
    items = "".join(f"<li>{escape(line)}</li>" for line in rest)
    return f"<section class='verdict'><p class='lead'>{escape(first)}</p><ul>{items}</ul></section>"


def _steps(found: CrossValidation) -> str:
    """Draw the error over the steps of the horizon."""
    if found.horizon == 1:
        return ""
    ahead = np.arange(1, found.horizon + 1)
    lines = []
    for label, frame, name, style in (
        (found.naive_name, found.naive, found.naive_name, "naive"),
        (found.name, found.forecasts, found.name, "mamba"),
    ):
        step = np.tile(ahead, len(frame) // found.horizon)
        mae = forecast_scores(frame, name, target_col=found.target, by=step.tolist())["mae"]
        lines.append(Line(label, ahead.tolist(), mae.reindex(ahead).tolist(), style))
    chart = line_chart(lines, "steps ahead", "mean absolute error", "the error over the steps of the horizon")
    return f"<section><h2>The further, the harder</h2>{_legend(lines)}<div class='scroll'>{chart}</div></section>"


def _worst(found: CrossValidation) -> str:
    """Draw the worst cut of each of the worst series."""
    order = found.by_series()
    shown = order.index[order["steps"] > 0][:_WORST]
    parts: list[str] = []
    lines: list[Line] = []
    for key in shown:
        lines, words = _worst_cut(found, key)
        time_col = str(found.series_set.columns["time_col"])
        chart = line_chart(lines, time_col, found.target, words)
        parts.append(f"<h3>{escape(words)}</h3><div class='scroll'>{chart}</div>")
    title = "The series that went worst" if len(order) > 1 else "The cut that went worst"
    return f"<section><h2>{title}</h2>{_legend(lines)}{''.join(parts)}</section>" if parts else ""


def _worst_cut(found: CrossValidation, key: Any) -> tuple[list[Line], str]:
    """Return the lines of the cut of a series with the largest error, and what they show."""
    columns = found.series_set.columns
    own = found.forecasts[found.forecasts[columns["id_col"]] == key]
    cuts = forecast_scores(own, found.name, target_col=found.target, by="cutoff")
    cut: Any = cuts["mae"].idxmax()
    rows = own[own["cutoff"] == cut]
    one: Series = found.series_set[key]
    end = int(one.index.searchsorted(cut)) + 1
    past = slice(max(0, end - _PAST_HORIZONS * found.horizon), end)
    observed = np.concatenate([np.where(one.observed[past], one.y[past], np.nan), rows[found.target]])
    x = [_position(stamp) for stamp in [*one.index[past], *rows[columns["time_col"]]]]
    ahead = x[-len(rows) :]
    band = None
    if found.levels:
        low, high = (rows[f"{found.name}-{side}-{found.levels[-1]:g}"].tolist() for side in ("lo", "hi"))
        band = (low, high)
    naive = found.naive[(found.naive[columns["id_col"]] == key) & (found.naive["cutoff"] == cut)]
    lines = [
        Line("observed", x, observed.tolist(), "observed"),
        Line(found.naive_name, ahead, naive[found.naive_name].tolist(), "naive", "4 4"),
        Line(found.name, ahead, rows[found.name].tolist(), "mamba", "", band),
    ]
    return lines, f"{key}: forecast from {rows[columns['time_col']].iloc[0]}"


def _table(found: CrossValidation) -> str:
    order = found.by_series()
    heads = ["series", "observed steps", "MAE", "error / size", "naive MAE"]
    heads += [f"in {level:g} %" for level in found.levels]
    rows = []
    for key, row in order.head(_MOST_ROWS).iterrows():
        wape = "–" if np.isnan(row["wape"]) else f"{100 * row['wape']:.1f} %"
        cells = [escape(str(key)), f"{int(row['steps']):,}", figure(row["mae"]), wape, figure(row["naive"])]
        cells += [f"{100 * row[f'cover-{level:g}']:.1f} %" for level in found.levels]
        rows.append("<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    left = len(order) - len(rows)
    more = f"<p class='muted small'>{left:,} more series went better.</p>" if left > 0 else ""
    head = "".join(f"<th>{escape(name)}</th>" for name in heads)
    return (
        f"<section><h2>Each series, the worst first</h2><div class='scroll'><table><thead><tr>{head}</tr></thead>"
        f"<tbody>{''.join(rows)}</tbody></table></div>{more}</section>"
    )


def _legend(lines: Sequence[Line]) -> str:
    keys = "".join(f"<span class='{line.style}'><i class='key'></i>{escape(line.label)}</span> " for line in lines)
    return f"<p class='small'>{keys}</p>"


def _position(stamp: Any) -> float | str:
    return float(stamp) if isinstance(stamp, (int, np.integer)) else str(np.datetime64(stamp.tz_localize(None), "s"))
