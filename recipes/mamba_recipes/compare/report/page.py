"""The report: one HTML file with its style, pictures and numbers inside, that opens without a network."""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Sequence
from pathlib import Path

from mamba_apps.training.files import storage_error, write_text
from mamba_recipes.compare.report.charts import Bar, dot_chart
from mamba_recipes.compare.report.panels import Series, chips, draw_panels, series_of
from mamba_recipes.compare.report.sweeps import draw_sweeps
from mamba_recipes.compare.result import Comparison, Summary
from mamba_recipes.compare.table import columns, metric_heading, written_paired
from mamba_recipes.compare.words import figure, verdict

_HERE = Path(__file__).resolve().parent

_MEMORY = (
    "Memory is how far the peak of the candidate's process rose above what it held with libraries loaded, kernels "
    "compiled and the data read (on a GPU: the peak that its tensors took there)."
)
_ALONE = "Every candidate ran alone in a fresh process, one after another, on the same data"
_TOGETHER = "Every candidate ran in a fresh process, {} at a time, so that times are left out, on the same data"
_NOTES = {
    "quality": (
        "{alone}, with the same budget and seeds. Learned ones keep the weights that were best on the validation data, "
        "or their last ones where the recipe monitors nothing; the test data decides nothing.",
        "Training time is the whole fit with its validation; compiling kernels comes before the clock starts. Samples "
        f"per second counts training steps only. {_MEMORY}",
    ),
    "speed": (
        "{alone}. A figure is the median "
        "over the steps of the timed span, loading left out, after a few steps to warm up.",
        _MEMORY,
    ),
}


def write(comparison: Comparison, path: Path) -> None:
    """Write the report to ``path``, whole or not at all.

    Raises:
        UserError: The disk is full, the folder is read-only, ...
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, render(comparison))
    except OSError as error:
        raise storage_error("write the report", path, error) from error


def render(comparison: Comparison) -> str:
    """Return the report as one HTML document."""
    recipe = comparison.plan.recipe
    summaries = comparison.summaries()
    title = f"{recipe.card['title']}: Mamba against Transformer"
    sections = [_head(comparison, title), _verdict(comparison), _picture(comparison, summaries)]
    sections += [draw_sweeps(comparison), _table(comparison, summaries), _panels(comparison, summaries)]
    sections.append(_how(comparison))
    style = (_HERE / "report.css").read_text(encoding="utf-8")
    script = (_HERE / "report.js").read_text(encoding="utf-8")
    return (
        "<!doctype html>\n<html lang='en'>\n<head>\n<meta charset='utf-8'>\n"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>\n"
        # Even a text that slipped through as markup could load nothing from anywhere.
        "<meta http-equiv='Content-Security-Policy' content=\"default-src 'none'; img-src data:; "
        "style-src 'unsafe-inline'; script-src 'unsafe-inline'\">\n"
        f"<title>{_text(title)}</title>\n<style>\n{style}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(section for section in sections if section)
        + f"\n</main>\n<script>\n{script}</script>\n</body>\n</html>\n"
    )


def _text(value: object) -> str:
    return html.escape(str(value), quote=True)


def _head(comparison: Comparison, title: str) -> str:
    plan = comparison.plan
    seeds = plan.seeds
    facts = [
        comparison.setting.get("data", ""),
        f"budget {plan.budget} each",
        f"seed {seeds[0]}" if len(seeds) == 1 else f"seeds {seeds[0]} to {seeds[-1]}",
        comparison.setting.get("device", ""),
    ]
    return f"<h1>{_text(title)}</h1>\n<p class='muted'>{_text(' · '.join(fact for fact in facts if fact))}</p>"


def _verdict(comparison: Comparison) -> str:
    first, *rest = verdict(comparison)
    items = "".join(f"<li>{_text(line)}</li>" for line in rest)
    return (
        f"<section class='verdict'><p class='lead'>{_text(first)}</p>"
        + (f"<ul>{items}</ul>" if items else "")
        + ("</section>")
    )


def _picture(comparison: Comparison, summaries: Sequence[Summary]) -> str:
    metric = comparison.metric
    ended = [s for s in summaries if metric.name in s.metrics]
    if not ended:
        return ""
    bars = []
    for summary in ended:
        points = [row.metrics[metric.name] for row in comparison.rows if row.model == summary.model and row.metrics]
        mean = summary.metrics[metric.name].mean
        bars.append(Bar(summary.model, mean, figure(mean), summary.family, points))
    heading = metric_heading(comparison)
    chart = dot_chart(bars, f"{heading} of every candidate")
    families = dict.fromkeys(s.family for s in ended)
    keys = " &ensp; ".join(f"<span class='{f}'><span class='key'></span></span>{_text(f)}" for f in families)
    return f"<section><h2>{_text(heading)}</h2>{chart}<p class='small muted'>{keys}</p></section>"


def _table(comparison: Comparison, summaries: Sequence[Summary]) -> str:
    shown = columns(comparison)
    head = "".join(f"<th>{_text(column.heading)}</th>" for column in shown)
    lines = []
    for place, summary in enumerate(summaries):
        name = f"<td><span class='{summary.family}'><span class='key'></span></span>{_text(summary.model)}</td>"
        if summary.errors and not summary.metrics:
            lines.append(
                f"<tr>{name}<td class='words bad' colspan='{len(shown)}'>failed: {_text(summary.errors[0])}</td></tr>"
            )
            continue
        cells = "".join(f"<td>{_text(column.cell(summary))}</td>" for column in shown)
        lines.append(f"<tr{' class=best' if place == 0 else ''}>{name}{cells}</tr>")
    note = f"<p class='small muted'>{_text(written_paired(comparison))}</p>" if written_paired(comparison) else ""
    return (
        "<section><h2>All figures</h2><div class='scroll'><table><thead><tr><th>model</th>"
        f"{head}</tr></thead><tbody>{''.join(lines)}</tbody></table></div>{note}</section>"
    )


def _panels(comparison: Comparison, summaries: Sequence[Summary]) -> str:
    series: list[Series] = series_of(comparison, summaries)
    if not series:
        return ""
    return (
        "<section><h2>In pictures</h2><p class='small muted'>Tap a name to show or hide "
        f"it in every picture.</p>{chips(series)}{draw_panels(series)}</section>"
    )


def _how(comparison: Comparison) -> str:
    plan, about = comparison.plan, comparison.environment
    card = plan.recipe.card
    versions = about.get("versions") or {}
    facts = [
        ("Recipe", f"{plan.recipe.name}: {card['title']}"),
        ("Data", comparison.setting.get("data", "")),
        ("Budget", f"{plan.budget} for each candidate"),
        ("Seeds", ", ".join(map(str, plan.seeds))),
        ("Device", comparison.setting.get("device", "")),
        ("Processor", f"{about.get('cpu', '')}, {about.get('cores', '?')} cores; {about.get('platform', '')}"),
        ("Versions", f"Python {about.get('python', '')}, " + ", ".join(f"{k} {v}" for k, v in versions.items())),
        ("Commit", about.get("commit") or ""),
        ("Took", f"{comparison.seconds:.0f} seconds in all"),
        ("Reference", card["paper"]),
        ("Expected", card["expected"]),
    ]
    listing = "".join(f"<dt>{_text(name)}</dt><dd>{_text(value)}</dd>" for name, value in facts if value)
    note = f"<p>{_text(plan.recipe.compare.note)}</p>" if plan.recipe.compare and plan.recipe.compare.note else ""
    alone = _ALONE if comparison.parallel == 1 else _TOGETHER.format(comparison.parallel)
    written = [text.format(alone=alone) for text in _NOTES[plan.measure]]
    notes = "".join(f"<p class='small muted'>{_text(text)}</p>" for text in written)
    return (
        f"<section><h2>How it was run</h2><pre>{_text(comparison.command)}</pre>{note}<dl>{listing}</dl>"
        f"{_overrides(comparison)}{notes}</section>"
    )


def _overrides(comparison: Comparison) -> str:
    rows = []
    for job in {job.model: job for job in comparison.plan.jobs}.values():
        settings: Iterable[tuple[str, object]] = [*job.overrides.items(), *job.init_args.items()]
        text = ", ".join(f"{_short(key)} = {_value(value)}" for key, value in settings)
        rows.append(f"<tr><td>{_text(job.model)}</td><td class='words'>{_text(text or 'as the recipe says')}</td></tr>")
    common = ", ".join(f"{_short(key)} = {_value(value)}" for key, value in comparison.plan.settings.items())
    extra = f"<p class='small'>For every candidate: {_text(common)}</p>" if common else ""
    return (
        "<h3>Set for each candidate alone</h3><div class='scroll'><table><thead><tr><th>model</th><th class='words'>"
        f"settings</th></tr></thead><tbody>{''.join(rows)}</tbody></table></div>{extra}"
    )


def _short(key: str) -> str:
    return key.replace("init_args.", "")


def _value(value: object) -> str:
    if isinstance(value, float) and math.isfinite(value):
        return f"{value:g}"
    return "none" if value is None else str(value)
